"""What a program on a GPU would wait at, seen on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from torch.overrides import TorchFunctionMode

ASKED: Final = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero")
"""Values that the host needs: it waits until the device has them."""
SENT: Final = ("tensor",)
"""Values from pageable memory: the copy waits for all that the device has to do before."""


class Waits(TorchFunctionMode):  # type: ignore[misc]
    """Counts them, by the name of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        index = args[1] if name == "__getitem__" else ()
        by_list = any(
            isinstance(i, list) for i in (index if isinstance(index, tuple) else (index,))
        )
        if by_list or name in (*ASKED, *SENT):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))
