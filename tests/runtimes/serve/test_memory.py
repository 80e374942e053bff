"""The heap of the process: what was freed is kept for what comes next, up to a bound."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from pulse_edge.runtimes.serve import memory

GLIBC = platform.libc_ver()[0] == "glibc"
# Blocks of 20 MB again and again, as the steps of a capture take them, and one of a very large photo.
PROGRAM = """
import resource, sys
from pulse_edge.runtimes.serve.memory import keep_heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()

if sys.argv[1] == "keep":
    assert keep_heap()
del (first := [bytearray(b"x") * (20 << 20)])[0]
before = faults()
for _ in range(20):
    bytearray(b"x") * (20 << 20)
print(faults() - before)
large = bytearray(b"x") * (400 << 20)
most = resident()
del large
print(most - resident())
"""


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator")
def test_pages_are_not_fetched_anew_for_every_step_and_a_large_photo_is_given_back() -> None:
    def run(how: str) -> tuple[int, int]:
        out = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        faults, returned = out.stdout.split()
        return int(faults), int(returned)

    (default, _), (kept, returned) = run("default"), run("keep")
    assert kept < default / 4
    assert returned > 300 << 20


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.keep_heap() is False
