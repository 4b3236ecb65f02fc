"""Where torchrun's agent lets its ranks write: into pipes that the launcher reads."""

from __future__ import annotations

from typing import Final

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest

from rlhf_trainer.launcher.rank_lines import RankLines

STDOUT: Final = 1
STDERR: Final = 2


class RankPipes(DefaultLogsSpecs):
    """Of each rank, stdout and stderr."""

    def __init__(self, lines: RankLines) -> None:
        super().__init__()
        self._lines = lines

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Called once: ranks are not started again. `envs` has the variables of each local rank."""
        found = super().reify(envs)
        for local_rank, variables in envs.items():
            rank = int(variables["RANK"])
            found.stdouts[local_rank] = self._lines.path(rank, STDOUT)
            found.stderrs[local_rank] = self._lines.path(rank, STDERR)
        self._lines.start()
        return found
