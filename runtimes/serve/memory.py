"""How this process keeps memory: what an ECG needs is held for the next one, and never more than that."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM, _MAPPED, _ARENAS = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of glibc's malloc.h
# The most that glibc takes. An A4 page's planes, bytes or floats, are smaller; what a large photo needs while
# it is decoded is larger, and goes back to the system at once.
_LARGEST: Final = 32 << 20
_KEPT: Final = 256 << 20  # bytes that are free at the end of the heap before some are given back


def keep_heap() -> bool:
    """Let glibc hold one heap and keep what was freed for what comes next; whether it does.

    By default it hands large blocks back to the system and fetches them anew for every step of every photo,
    and each thread fills a heap of its own. Figures in docs/serve.md. Call it before threads are started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc
        return False
    pairs = ((_ARENAS, 1), (_MAPPED, _LARGEST), (_TRIM, _KEPT))
    done = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in pairs]
    return all(done)
