"""Examples that are read from their files each time they are asked for: those of a large data set
would take one and a half times its size in memory, on each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress, islice
from typing import TypeVar, overload

T = TypeVar("T")


class Reread(Sequence[T]):
    """Some of what can be read again and again, in its order. To be iterated: an index reads all
    that stands before it."""

    def __init__(self, read: Callable[[], Iterator[T]], wanted: Sequence[bool]) -> None:
        """`wanted`: whether each of what is read is one of these."""
        self._read, self._wanted, self._count = read, wanted, sum(map(bool, wanted))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return compress(self._read(), self._wanted)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return list(self)[index]
        place = range(self._count)[index]
        return next(islice(self, place, None))
