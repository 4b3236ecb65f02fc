"""Follows the logs of all pods of a run, for `rlhfctl run -v`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

INTERVAL: Final = 0.5


class LogFollower:
    """Hands on each whole line that appears in DIR/pods/*/log.txt from now on."""

    def __init__(self, pods: Path, say: Callable[[str], None]) -> None:
        self._pods, self._say = pods, say
        self._offsets = {file: file.stat().st_size for file in self._files()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="logs")

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.read_new()

    def read_new(self) -> None:
        """Hand on what was appended since the last call."""
        for file in self._files():
            with file.open("rb") as stream:
                stream.seek(self._offsets.get(file, 0))
                whole = stream.read().rpartition(b"\n")[0]
            if whole:
                self._offsets[file] = self._offsets.get(file, 0) + len(whole) + 1
                for line in whole.decode("utf-8", "replace").split("\n"):
                    self._say(f"{file.parent.name} | {line}")

    def _files(self) -> list[Path]:
        return sorted(self._pods.glob("*/log.txt"))

    def _follow(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.read_new()
