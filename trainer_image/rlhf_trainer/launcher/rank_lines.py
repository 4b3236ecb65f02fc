"""The log of a pod with several ranks: each line begins with its rank, whoever wrote it.

torchrun's own way (`--tee`) is a file for each rank on the node's disk, which grows for as long as
a stage trains, and is looked at ten times a second. Here the ranks write into pipes, and a thread
of the launcher hands on whole lines at once. Each rank has two, so that what a process writes to
stdout in pieces is not broken up by what it says on stderr.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from contextlib import suppress
from typing import Final

BLOCK: Final = 1 << 16
"""Bytes; as much as a pipe holds."""
LONGEST: Final = 1 << 20
"""Bytes that are kept of a line whose end does not come."""
PATIENCE: Final = 1.0
"""Seconds after which the beginning of a line is shown: a progress bar, dots, a prompt."""
REST_WITHIN: Final = 5.0
"""Seconds for what the ranks have left in their pipes; a process that outlives them may go on."""
CLOSE_WITHIN: Final = 10.0
"""Seconds that the thread has to end: whoever reads the pod's log may stand still."""


class RankLines:
    """Reads what ranks write until it is left; then the log has all of it."""

    def __init__(self) -> None:
        self._streams: list[_Stream] = []
        self._writers: list[int] = []
        self._over, self._end = os.pipe()
        self._thread = threading.Thread(target=self._live, name="rank-lines", daemon=True)

    def path(self, rank: int, to: int) -> str:
        """By which to open a new pipe of a rank for writing; its lines go to descriptor `to`."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._streams.append(_Stream(reader, to, rank))
        self._writers.append(writer)  # open until the end, whatever the ranks close
        return f"/proc/self/fd/{writer}"

    def start(self) -> None:
        """After the last `path`."""
        self._thread.start()

    def __enter__(self) -> RankLines:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)  # which the thread sees
        if self._thread.ident is None:
            self._stop_reading()
        else:
            self._thread.join(CLOSE_WITHIN)
        for writer in self._writers:
            os.close(writer)

    def _stop_reading(self) -> None:
        """Who still writes is refused, and does not wait for a reader that is gone."""
        for reader in (self._over, *(stream.reader for stream in self._streams)):
            os.close(reader)

    def _live(self) -> None:
        try:
            self._relay()
            self._empty()
        finally:
            self._stop_reading()

    def _relay(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._over, selectors.EVENT_READ)
            for stream in self._streams:
                ready.register(stream.reader, selectors.EVENT_READ, stream)
            is_over = False
            while not is_over:
                for key, _ in ready.select(self._until_due()):
                    is_over = is_over or key.data is None
                    if key.data:
                        key.data.hand_on()
                self._show_begun()

    def _until_due(self) -> float | None:
        """Seconds until the beginning of a line is to be shown."""
        due = [stream.since + PATIENCE for stream in self._streams if stream.since is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _show_begun(self) -> None:
        long_ago = time.monotonic() - PATIENCE
        for stream in self._streams:
            if stream.since is not None and stream.since <= long_ago:
                stream.show_begun()

    def _empty(self) -> None:
        """What is left, to its end; a rank that was killed may have begun a line."""
        end = time.monotonic() + REST_WITHIN
        for stream in self._streams:
            while stream.hand_on() and time.monotonic() < end:
                pass
            stream.show_begun()


class _Stream:
    """What one rank writes to one descriptor, by whole lines."""

    def __init__(self, reader: int, to: int, rank: int) -> None:
        self.reader = reader
        self.since: float | None = None  # when the line that has no end yet began
        self._to = to
        self._mark = f"[rank {rank}] ".encode()
        self._begun = b""
        self._is_shown = False  # whether the beginning of this line has been shown

    def hand_on(self) -> bool:
        """What is there now; whether anything was."""
        try:
            piece = os.read(self.reader, BLOCK)
        except BlockingIOError:
            return False
        *whole, rest = (self._begun + piece).split(b"\n")
        _write(self._to, b"".join(map(self._line, whole)))
        if whole or self.since is None:
            self.since = time.monotonic()
        self._begun = rest
        if not rest:
            self.since = None
        elif len(rest) > LONGEST:
            self.show_begun()
        return True

    def show_begun(self) -> None:
        """The beginning of a line, as a line of its own."""
        if self._begun:
            _write(self._to, self._line(self._begun))
            self._begun, self._is_shown = b"", True
        self.since = None

    def _line(self, text: bytes) -> bytes:
        r"""As a terminal would show it: of what `\r` has written over, the last. May be empty."""
        shown = text.rstrip(b"\r").rpartition(b"\r")[2]
        is_rest, self._is_shown = self._is_shown, False
        if not shown.strip() and (is_rest or b"\r" in text):
            return b""
        return self._mark + shown + b"\n"


def _write(to: int, text: bytes) -> None:
    """All of it. Where nobody reads the log any more, or its disk is full, ranks go on."""
    rest = memoryview(text)
    with suppress(OSError):
        while rest:
            rest = rest[os.write(to, rest) :]
