"""NVIDIA's tegrastats, line by line: power of the rails, temperatures, clocks and memory of a Jetson.

Forms of the lines: "Reported Statistics" of NVIDIA's developer guides (Jetson Linux r32 to r38, DRIVE OS 6).
Which rails make up a board's whole power: the INA3221 tables of the same guides (VDD_IN of Orin Nano, Orin NX
and Xavier NX, POM_5V_IN of the Nano, VIN of Thor; on AGX boards nothing measures the sum, so three or six
rails are added).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_RAIL: Final = re.compile(r"\b((?:VDD|VIN|POM|GPU|CPU|SOC|CV|SYS)\w*) (\d+)(?:mW)?/\d+")
_TEMPERATURE: Final = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b")
_RAM: Final = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CORES: Final = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?")
_GPU: Final = re.compile(r"\bGR3D_FREQ (?:\d+%)?@\[?(\d+)")
_WHOLE: Final = ("VDD_IN", "POM_5V_IN", "VIN")
_SUMS: Final = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_COLDEST: Final = -50.0  # sensors of parts that are switched off say -256
_NO_SENSOR: Final = "pmic"  # says 50 or 100 whatever it is


@dataclass(frozen=True)
class Line:
    """What one line says; None where it does not.

    Attributes:
        watts: of the whole module.
        rails: watts by rail.
        temperature: the hottest, degrees Celsius.
        cpu_mhz: mean of the cores that are on.
        gpu_mhz: of the first cluster.
        ram_mb: in use, of the whole machine.
    """

    watts: float | None
    rails: dict[str, float]
    temperature: float | None
    cpu_mhz: float | None
    gpu_mhz: float | None
    ram_mb: int | None


def parse_tegrastats(text: str) -> Line:
    """Read one line; what is not there or of another form is None."""
    rails = {name: int(milliwatts) / 1e3 for name, milliwatts in _RAIL.findall(text)}
    hot = [
        float(value)
        for name, value in _TEMPERATURE.findall(text)
        if float(value) > _COLDEST and name.lower() != _NO_SENSOR
    ]
    ram, gpu = _RAM.search(text), _GPU.search(text)
    return Line(
        _whole(rails),
        rails,
        max(hot, default=None),
        _cpu(text),
        float(gpu[1]) if gpu else None,
        int(ram[1]) if ram else None,
    )


def _whole(rails: dict[str, float]) -> float | None:
    for name in _WHOLE:
        if name in rails:
            return rails[name]
    return next((sum(rails[name] for name in names) for names in _SUMS if set(names) <= rails.keys()), None)


def _cpu(text: str) -> float | None:
    found = _CORES.search(text)
    if found is None:
        return None
    if found[2]:  # older: one frequency for all of them
        return float(found[2])
    clocks = [
        float(core.split("@")[1]) for core in found[1].split(",") if re.fullmatch(r"\d+%@\d+", core.strip())
    ]
    return sum(clocks) / len(clocks) if clocks else None
