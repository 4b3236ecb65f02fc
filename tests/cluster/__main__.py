"""A control plane to look at: `PYTHONPATH=tests python -m cluster`, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from cluster.binaries import find_binaries
from cluster.control_plane import ControlPlane
from cluster.programs import ProgramError
from cluster.toolchain import NoBinaries


def main() -> None:
    binaries = find_binaries()
    with (
        tempfile.TemporaryDirectory(prefix="control-plane-") as directory,
        ControlPlane(binaries, Path(directory)) as control_plane,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print(f"export KUBECONFIG={control_plane.kubeconfig} PATH={binaries}:$PATH", flush=True)
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except (NoBinaries, ProgramError) as error:
        sys.exit(f"error: {error}")
