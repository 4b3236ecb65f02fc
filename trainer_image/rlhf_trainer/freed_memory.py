"""Freed memory stays with the process: training asks for the same sizes again at each step.

glibc gives large blocks back to the system as they are freed, and each comes back as pages that the
system clears anew and no cache holds. PyTorch's tuning guide recommends jemalloc or TCMalloc for
that; glibc does the same when told so (mallopt(3)). The peak is what it was.
"""

from __future__ import annotations

import ctypes
from typing import Final

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # malloc.h
NEVER: Final = -1
MIB: Final = 1 << 20


def keep_freed_memory() -> bool:
    """From now on, for blocks of up to 32 MiB, glibc's limit; larger ones are mapped and unmapped.
    False where the C library is another one, which is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {TRIM_THRESHOLD: NEVER, TOP_PAD: 64 * MIB, MMAP_THRESHOLD: 32 * MIB}
    return all(mallopt(*setting) for setting in settings.items())
