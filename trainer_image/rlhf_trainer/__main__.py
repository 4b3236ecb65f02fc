"""Entry point of a stage's pod: read the stage file, run the stage, say how it ended.

python -m rlhf_trainer run config/stage.yaml       one rank (torchrun or `launch` starts it)
python -m rlhf_trainer launch … config/stage.yaml  all ranks of this pod
python -m rlhf_trainer prepare config/stage.yaml   fetch and check, no GPU
python -m rlhf_trainer chat DIRECTORY              talk to a trained model
python -m rlhf_trainer copy URI DIRECTORY PATTERN  bring files of a job from an object store
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from rlhf_api.run import ExitCode

from rlhf_trainer.quiet import configure_logging, silence_libraries
from rlhf_trainer.run_stage import run_stage

USAGE: Final = __doc__ or ""


def main(arguments: Sequence[str]) -> int:
    """Run one command; the result is the process's exit code."""
    silence_libraries()
    configure_logging(int(os.environ.get("RANK", "0")))
    match list(arguments):
        case ["run", stage_file] | ["prepare", stage_file]:
            return run_stage(stage_file)
        case ["launch", *rest]:
            from rlhf_trainer.launcher.launch import main as launch

            return launch(rest)
        case ["chat", directory, *rest]:
            from rlhf_trainer.chat import main as chat

            return chat(directory, rest)
        case ["copy", *rest]:
            from rlhf_trainer.checkpoints.copying import main as copy

            return copy(rest)
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return int(ExitCode.CONFIGURATION)


def end_at_sigterm() -> None:
    """Until a stage has something to save, SIGTERM ends it: by itself it would not end process 1 of
    a container, which the kernel spares where nobody handles the signal.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.TERMINATED))


def end(code: int) -> NoReturn:
    """Exit; at once where this rank has failed alone, as an orderly exit would wait for others."""
    ranks = sys.modules.get("rlhf_trainer.ranks")
    if ranks is not None and ranks.left_open():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    if os.getpid() == 1:
        end_at_sigterm()
    end(main(sys.argv[1:]))
