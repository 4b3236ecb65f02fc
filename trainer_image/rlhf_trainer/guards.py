"""What ends or undoes a step: SIGTERM, and numbers that are not finite. All ranks agree on both."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_trainer.errors import Diverged, NonFinite
from rlhf_trainer.ranks import Ranks

T = TypeVar("T")
log = logging.getLogger(__name__)


class Guard:
    """Watches one run. Its collectives must be called by all ranks alike."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.signalled = False
        self._step: int | None = None
        self._row_ids: Sequence[str] = ()

    def listen(self) -> None:
        """From now on SIGTERM only sets a flag; the step in progress is finished and saved."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def should_stop(self) -> bool:
        """Whether any rank was told to end. A collective: call it once a step."""
        return bool(self.ranks.max(torch.tensor(float(self.signalled))))

    @contextmanager
    def batch(self, step: int, row_ids: Sequence[str]) -> Iterator[None]:
        """Within it, what is found not finite is reported with this step and these rows.

        `row_ids` are this rank's; those of the other ranks are added to the report.
        """
        self._step, self._row_ids = step, row_ids
        try:
            yield
        except NonFinite as error:
            if error.step is not None:
                raise
            everyone = self._everyones(row_ids)
            raise NonFinite(error.name, step=step, row_ids=everyone, value=error.value) from None
        finally:
            self._step, self._row_ids = None, ()

    def check_finite(
        self,
        name: str,
        tensor: Tensor,
        step: int | None = None,
        row_ids: Sequence[str] | None = None,
    ) -> None:
        """NonFinite, on every rank, where any rank's tensor holds NaN or Inf. A collective.

        Step and rows default to those of the `batch` around it.
        """
        finite = torch.isfinite(tensor.detach()).all()
        if not bool(self.ranks.max((~finite).float())):
            return
        ids = self._row_ids if row_ids is None else row_ids
        bad = tensor.detach().flatten()[~torch.isfinite(tensor.detach().flatten())]
        values = [v for v in self.ranks.gather_objects(str(bad[0].item()) if len(bad) else "") if v]
        at = self._step if step is None else step
        raise NonFinite(name, step=at, row_ids=self._everyones(ids), value=values[0])

    def _everyones(self, row_ids: Sequence[str]) -> list[str]:
        """Each once: ranks that share a batch name the same rows."""
        return list(dict.fromkeys(i for ids in self.ranks.gather_objects(row_ids) for i in ids))

    def _on_sigterm(self, *_: Any) -> None:
        if not self.signalled:
            log.warning("SIGTERM: finishing this step, then saving")
        self.signalled = True


def with_one_rollback(train: Callable[[], T]) -> T:
    """Run `train`, which starts from the newest checkpoint; if numbers diverge, once again.

    A flipped bit or a bad device is healed by it; a cause in data or settings comes back and ends
    the run. Every rank raises NonFinite together, so every rank comes here together.
    """
    try:
        return train()
    except NonFinite as error:
        first = str(error)
    log.warning("%s: rolling back to the last checkpoint", first)
    gc.collect()  # engines and their hooks form cycles; their memory is needed again
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return train()
    except NonFinite as error:
        is_same = str(error) == first
        where = ", again after a roll-back" if is_same else f" (after a roll-back from: {first})"
        raise Diverged(f"{error}{where}", step=error.step) from None
