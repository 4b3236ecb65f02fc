"""A cluster to look at: `PYTHONPATH=tests python -m cluster`, until Ctrl-C.

It has two nodes of 8 GPUs each; pods are bound to them, but nothing runs them.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from cluster.binaries import find_binaries
from cluster.control_plane import ControlPlane
from cluster.nodes import FakeNodes
from cluster.programs import ProgramError
from cluster.toolchain import NoBinaries


def main() -> None:
    binaries = find_binaries()
    with (
        tempfile.TemporaryDirectory(prefix="control-plane-") as directory,
        ControlPlane(binaries, Path(directory)) as control_plane,
        FakeNodes(control_plane.client) as nodes,
        contextlib.suppress(KeyboardInterrupt),
    ):
        nodes.add({"nvidia.com/gpu": 8})
        nodes.add({"nvidia.com/gpu": 8})
        print(f"export KUBECONFIG={control_plane.kubeconfig} PATH={binaries}:$PATH", flush=True)
        signal.pause()


if __name__ == "__main__":
    try:
        main()
    except (NoBinaries, ProgramError) as error:
        sys.exit(f"error: {error}")
