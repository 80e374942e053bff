"""What this machine has for a process: memory that is left, and cores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
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


def usable_cores() -> int:
    """Return how many cores a process may compute on: those that it may be scheduled on, hyperthreads of one
    core counted once, and no more than a container's share of time. Multiplications gain nothing from a
    second thread on a core, and lose where threads wait for each other."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        count = len({_siblings(cpu) for cpu in allowed})
    share = _share()
    return max(1, count if share is None else min(count, share))


def _siblings(cpu: int) -> str:
    """The hyperthreads of a processor's core, as the kernel lists them."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return str(cpu)


def _share() -> int | None:
    """Whole cores' worth of time that a container may use, where that is limited."""
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return int(quota) // int(period)
    except (OSError, ValueError):  # no container, or "max"
        return None
