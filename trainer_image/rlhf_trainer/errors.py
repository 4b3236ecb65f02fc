"""What can go wrong in a run, and the exit code that tells the operator what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rlhf_api.run import ExitCode

ROW_IDS_SHOWN = 16
MESSAGE_LENGTH = 1024
"""Bytes of a message in a result; of a longer one the operator would show the end."""
MORE = "…"


class TrainerError(Exception):
    """An end of the run that a person can understand: a message and an exit code, no traceback."""

    exit_code: ClassVar[ExitCode] = ExitCode.CONFIGURATION

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step

    @property
    def reason(self) -> str:
        """One CamelCase word for programs."""
        return type(self).__name__


class ConfigurationError(TrainerError):
    """The job cannot work as written; trying again would not help."""


class BadData(TrainerError):
    """A data set that cannot be trained on; the message names file, line and reason."""


class CheckpointUnusable(TrainerError):
    """A checkpoint or an input model that is damaged, foreign or of another shape."""

    exit_code = ExitCode.CHECKPOINT


class Diverged(TrainerError):
    """Numbers stopped being finite, again after a roll-back."""

    exit_code = ExitCode.DIVERGED


class NonFinite(Diverged):
    """NaN or Inf in a tensor, found before the optimizer step; every rank raises it alike.

    `step`: how many were done by then. The message names the next one, as logs would have.
    """

    def __init__(
        self, name: str, *, step: int | None = None, row_ids: Sequence[str] = (), value: str = ""
    ) -> None:
        self.name, self.row_ids, self.value = name, tuple(row_ids), value
        super().__init__(self._sentence(step), step=step)

    def _sentence(self, step: int | None) -> str:
        where = "" if step is None else f" at step {step + 1}"
        value = self.value or "not finite"
        shown = ", ".join(self.row_ids[:ROW_IDS_SHOWN])
        more = len(self.row_ids) - ROW_IDS_SHOWN
        rows = f"; rows of the batch: {shown}" if shown else ""
        return f"{self.name} is {value}{where}{rows}" + (f" and {more} more" if more > 0 else "")


class Transient(TrainerError):
    """Worth another attempt: an endpoint down, a peer lost, a disk full."""

    exit_code = ExitCode.TRANSIENT


class GangIncomplete(Transient):
    """Other pods of the gang did not come; no fault to the operator where one never ran."""


class PeerLost(Transient):
    """Another rank has ended, and tells why by itself."""


class DeviceMissing(Transient):
    """torch sees fewer devices than the pod was given; on another node it may see them."""


class RankSilent(Transient):
    """A rank stands still, and those that wait for it in a collective would do so for hours."""


class Terminated(TrainerError):
    """SIGTERM: the state was saved, a later attempt goes on from it."""

    exit_code = ExitCode.TERMINATED


def first_line(error: BaseException) -> str:
    """What an exception of somebody else's says, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(text: str, size: int = MESSAGE_LENGTH) -> str:
    """As many whole lines of a text as fit so many bytes of UTF-8, and … where it went on; words
    where a line alone is long. Halves of characters, as file names may hold, are replaced."""
    raw = text.encode(errors="replace")
    if len(raw) <= size:
        return raw.decode()
    kept = raw[: size - len(MORE.encode())].decode(errors="ignore")
    for between in ("\n", " "):
        whole = kept.rpartition(between)[0]
        if len(whole) > len(kept) // 2:
            return whole + between + MORE
    return kept + MORE
