"""The API server's clock, by which deletions, creations and other machines' ends are dated.

That of the machine that an operator runs on may be minutes off, and may be put back: a pod that
takes its grace period to save was then taken for one on a lost node, and its peer's fault for none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

log = logging.getLogger(__name__)

Clock = Callable[[], datetime]

TOLERANCE: Final = timedelta(seconds=5)
"""By how much two clocks may differ before that counts."""
WHOLE_SECONDS: Final = timedelta(seconds=1)
"""How much later than a Date says it may have been."""


def own_clock() -> datetime:
    """This machine's."""
    return datetime.now(UTC)


class ServerClock:
    """Our own clock, less what it is ahead of the server's: nothing, where both are right."""

    def __init__(self, own: Clock = own_clock) -> None:
        self.own = own
        self._ahead = timedelta()

    def now(self) -> datetime:
        """What the server's clock shows."""
        return self.own() - self._ahead

    def hear(self, date: str | None, sent: datetime) -> None:
        """Takes in the Date of an answer to a request that was sent then, by our own clock.

        The server wrote it at some moment before its answer came: however late that was, a clock
        that may be right is taken for right.
        """
        told, received = _parsed(date), self.own()
        if told is None or received < sent:
            return
        least, most = sent - told - WHOLE_SECONDS, received - told
        if _is_between(self._ahead, least, most):
            return
        is_right = _is_between(timedelta(), least, most)
        self._ahead = timedelta() if is_right else (least + most) / 2
        # No warning: of rlhfctl, which uses the same client, that would stand among its output.
        log.info("This machine's clock %s", _described(round(self._ahead.total_seconds())))


def _described(seconds: int) -> str:
    if not seconds:
        return "agrees with the API server's again."
    side = "ahead of" if seconds > 0 else "behind"
    return f"is {abs(seconds)} s {side} the API server's, which counts."


def _is_between(ahead: timedelta, least: timedelta, most: timedelta) -> bool:
    return least - TOLERANCE <= ahead <= most + TOLERANCE


def _parsed(date: str | None) -> datetime | None:
    """None where it is no date of HTTP (RFC 9110): a proxy may write anything there."""
    try:
        found = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return found if found.tzinfo else None
