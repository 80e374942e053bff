"""What the machine says of itself while it works: power, temperature and clocks, sampled beside the work.

On a Jetson tegrastats says it all. Elsewhere Linux counts the energy of x86 packages (RAPL,
Documentation/power/powercap), and shows temperatures and clocks in sysfs. What a machine does not tell is
reported as not told, with the reason, and never estimated.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from pulse_edge.runtimes.bench.tegrastats import parse_tegrastats

PERIOD_S: Final = 0.1
MIN_SECONDS: Final = 1.0  # of work whose energy is worth a figure at that period
_POWERCAP: Final = "sys/class/powercap"


@dataclass(frozen=True)
class Sample:
    """One look at the sensors; None where they do not tell.

    Attributes:
        at: ``time.monotonic``, which processes of one machine share.
        joules: counted since some point of the past.
        temperature: the hottest, degrees Celsius.
        cpu_mhz: mean of the cores.
        gpu_mhz: of the graphics unit.
        ram_mb: in use by the whole machine.
    """

    at: float
    joules: float | None
    temperature: float | None
    cpu_mhz: float | None
    gpu_mhz: float | None
    ram_mb: int | None


class Sensors:
    """Samples the sensors in a thread between ``with`` and its end.

    Args:
        root: of the file system; tests give a recorded tree.
        tegrastats: the program; None where there is none.
        period: seconds between samples.

    Attributes:
        samples: so far.
        source: what counts energy: ``tegrastats``, ``RAPL``, or None.
        reason: why nothing does.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        tegrastats: str | None = shutil.which("tegrastats"),
        period: float = PERIOD_S,
    ) -> None:
        self.root, self.tegrastats, self.period = root, tegrastats, period
        self.samples: list[Sample] = []
        self.source: str | None = None
        self.reason = ""
        self._stop = threading.Event()

    def __enter__(self) -> Sensors:
        work: Callable[[], None]
        if self.tegrastats is not None:
            self.source = "tegrastats"
            self._process = subprocess.Popen(
                [self.tegrastats, "--interval", str(round(self.period * 1e3))],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
            )  # fmt: skip
            work = self._follow
        else:
            self._counters, self.reason = rapl_counters(self.root)
            self.source = "RAPL" if self._counters else None
            work = self._poll
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self.tegrastats is not None:
            self._process.terminate()
            self._process.wait()
        self._thread.join()
        if self.tegrastats is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self.tegrastats is not None and all(sample.joules is None for sample in self.samples):
            self.source, self.reason = None, "tegrastats shows no rail of this board's whole power"

    def joules(self, start: float, end: float) -> float | None:
        """Return the energy between two instants, interpolated; None if it was not counted throughout."""
        counted = [(sample.at, sample.joules) for sample in self.samples if sample.joules is not None]
        if len(counted) < 2 or counted[0][0] > start or counted[-1][0] < end:
            return None
        return _at(counted, end) - _at(counted, start)

    def _follow(self) -> None:
        """Read tegrastats, and add up its power over time."""
        joules, last = 0.0, None
        for text in self._process.stdout or ():
            line, now = parse_tegrastats(text), time.monotonic()
            if line.watts is not None:
                if last is not None:
                    joules += (now - last[0]) * (line.watts + last[1]) / 2
                last = (now, line.watts)
            energy = joules if last is not None else None
            self.samples.append(
                Sample(now, energy, line.temperature, line.cpu_mhz, line.gpu_mhz, line.ram_mb)
            )

    def _poll(self) -> None:
        total, before = 0.0, [counter.read() for counter in self._counters]
        while True:
            now, read = time.monotonic(), [counter.read() for counter in self._counters]
            for counter, old, new in zip(self._counters, before, read, strict=True):
                total += counter.since(old, new)
            before = read
            energy = total if self._counters else None
            self.samples.append(Sample(now, energy, hottest(self.root), cpu_mhz(self.root), None, None))
            if self._stop.wait(self.period):
                return


@dataclass(frozen=True)
class Counter:
    """RAPL's energy counter of one x86 package.

    Attributes:
        path: of its folder.
        wraps_at: microjoules after which it begins at 0 again.
    """

    path: Path
    wraps_at: int

    def read(self) -> int:
        """Return the microjoules counted; raises OSError where they may not be read."""
        return int((self.path / "energy_uj").read_text(encoding="ascii"))

    def since(self, old: int, new: int) -> float:
        """Return the joules between two readings, over at most one wrap."""
        return (new - old + (self.wraps_at if new < old else 0)) / 1e6


def rapl_counters(root: Path) -> tuple[list[Counter], str]:
    """Find the counters of whole packages; return them, or none and why."""
    found: list[Counter] = []
    # intel-rapl:0 is a package (AMD's too); intel-rapl:0:1 a part of it, and intel-rapl-mmio the same again.
    folders = sorted(path for path in (root / _POWERCAP).glob("intel-rapl:*") if path.name.count(":") == 1)
    for folder in folders:
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            counter = Counter(folder, int((folder / "max_energy_range_uj").read_text(encoding="ascii")))
            counter.read()
        except PermissionError:
            return [], f"/{_POWERCAP}/{folder.name}/energy_uj may be read by root only"
        except (OSError, ValueError):
            continue
        if name.startswith("package"):
            found.append(counter)
    return found, "" if found else f"neither tegrastats nor a package in /{_POWERCAP}"


def hottest(root: Path) -> float | None:
    """Return the highest temperature of the thermal zones in degrees Celsius; None without any."""
    values = [_number(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    return max((value / 1e3 for value in values if value is not None and value > -50_000), default=None)


def cpu_mhz(root: Path) -> float | None:
    """Return the mean clock of the cores in MHz; None where they do not tell."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    values = [value for path in paths if (value := _number(path)) is not None]
    return sum(values) / len(values) / 1e3 if values else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # a zone of a part that is off says EAGAIN
        return None


def _at(counted: list[tuple[float, float]], instant: float) -> float:
    for (t0, j0), (t1, j1) in pairwise(counted):
        if t0 <= instant <= t1:
            return j0 + (j1 - j0) * ((instant - t0) / (t1 - t0) if t1 > t0 else 0.0)
    return counted[-1][1]
