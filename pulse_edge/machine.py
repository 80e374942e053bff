"""What this machine has left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available_memory() -> int:
    """Return how many bytes a process may take before the machine swaps or a container's limit is met.

    On a system that does not say what is free, half of the memory.
    """
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *filter(None, map(_limit, _LIMITS))])


def _limit(path: Path) -> int | None:
    """A container's limit, where there is one."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max"
        return None
