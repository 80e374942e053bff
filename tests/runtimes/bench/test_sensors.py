"""What a machine says of itself: lines of tegrastats, and trees of files as sysfs has them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse_edge.runtimes.bench import sensors
from pulse_edge.runtimes.bench.sensors import Counter, Sample, Sensors, cpu_mhz, hottest, rapl_counters
from pulse_edge.runtimes.bench.tegrastats import parse_tegrastats

# One line for each family, in the forms that NVIDIA's developer guides describe.
ORIN_NANO = (
    "11-24-2026 23:05:01 RAM 4722/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [12%@1510,off,4%@1512,8%@1510] "
    "EMC_FREQ 2%@2133 GR3D_FREQ 76%@[918] VIC_FREQ 729 APE 174 cpu@48.5C soc2@47.125C gpu@49.875C tj@49.9C "
    "cv0@-256C VDD_IN 7416mW/6990mW VDD_CPU_GPU_CV 2521mW/2400mW VDD_SOC 1532mW/1500mW"
)
AGX_ORIN = (
    "RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
    "cpu@52.968C/52.968C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR = (
    "RAM 9000/125771MB (lfb 1x512kB) CPU [1%@972,0%@972] GR3D_FREQ @[1000,1000,1000] cpu@40C gpu@39.5C "
    "VDD_GPU 3000mW/3000mW VDD_CPU_SOC_MSS 8000mW/8000mW VIN_SYS_5V0 4000mW/4000mW VIN 21000mW/20500mW"
)
XAVIER = (
    "RAM 3000/31921MB (lfb 6700x4MB) CPU [2%@1190,1%@1190,off,off] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@32.5C PMIC@100C GPU@33C GPU 155/155 CPU 310/310 SOC 1240/1240 CV 0/0 VDDRQ 155/155 SYS5V 1832/1832"
)
NANO = (
    "RAM 1500/3964MB (lfb 2x4MB) CPU [20%,18%,19%,16%]@1479 EMC_FREQ 0% GR3D_FREQ 99%@921 "
    "POM_5V_IN 5000/4800 A0@41C"
)


@pytest.mark.parametrize(
    ("text", "watts", "temperature", "cpu", "gpu", "ram"),
    [
        (ORIN_NANO, 7.416, 49.9, (1510 + 1512 + 1510) / 3, 918, 4722),
        (AGX_ORIN, 5.139 + 3.268 + 5.5, 52.968, 2201, 1300, 20642),
        (THOR, 21.0, 40, 972, 1000, 9000),
        (XAVIER, 0.155 + 0.31 + 1.24 + 0 + 0.155 + 1.832, 33, 1190, None, 3000),
        (NANO, 5.0, 41, 1479, 921, 1500),
        ("", None, None, None, None, None),
        ("VDD_SOC 1532mW/1500mW CPU [off,off]", None, None, None, None, None),  # no whole module
    ],
    ids=["Orin Nano", "AGX Orin", "Thor", "AGX Xavier", "Nano", "nothing", "one rail"],
)
def test_a_line_is_read_as_the_guides_say(text, watts, temperature, cpu, gpu, ram) -> None:
    line = parse_tegrastats(text)
    assert (line.watts, line.temperature, line.cpu_mhz) == (
        pytest.approx(watts), pytest.approx(temperature), pytest.approx(cpu),
    )  # fmt: skip
    assert (line.gpu_mhz, line.ram_mb) == (gpu, ram)


@given(st.text(), st.integers(0, len(ORIN_NANO)))
def test_no_line_is_an_error(text, cut) -> None:
    for line in (text, ORIN_NANO[:cut] + text + ORIN_NANO[cut:]):
        found = parse_tegrastats(line)
        assert found.watts is None or found.watts >= 0


def test_tegrastats_power_is_added_up_over_time(tmp_path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(f"#!/bin/sh\nwhile true; do echo '{ORIN_NANO}'; sleep 0.02; done\n")
    program.chmod(0o755)
    with Sensors(tegrastats=str(program)) as found:
        deadline = time.monotonic() + 20
        while len(found.samples) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
    first, last = found.samples[2].at, found.samples[-2].at
    assert found.source == "tegrastats"
    assert found.joules(first, last) == pytest.approx(7.416 * (last - first))
    assert found.joules(first, last + 100) is None
    assert found.samples[0].ram_mb == 4722


def test_a_board_that_shows_no_whole_power_says_so(tmp_path) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nwhile true; do echo 'RAM 1/2MB VDD_SOC 10mW/10mW'; sleep 0.02; done\n")
    program.chmod(0o755)
    with Sensors(tegrastats=str(program)) as found:
        deadline = time.monotonic() + 20
        while not found.samples and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (found.source, found.joules(0, 1)) == (None, None)
    assert "no rail" in found.reason


def _package(root: Path, name: str, what: str, energy: int, wraps_at: int = 1000) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(what + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return folder


def test_rapl_counts_packages_once_and_over_a_wrap(tmp_path, monkeypatch) -> None:
    first = _package(tmp_path, "intel-rapl:0", "package-0", 900)
    _package(tmp_path, "intel-rapl:0:0", "core", 5)
    _package(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    _package(tmp_path, "intel-rapl:1", "package-1", 10)
    _package(tmp_path, "intel-rapl:2", "psys", 10)
    counters, reason = rapl_counters(tmp_path)
    assert [counter.path.name for counter in counters] == ["intel-rapl:0", "intel-rapl:1"]
    assert not reason
    assert counters[0].read() == 900
    assert counters[0].since(900, 950) == pytest.approx(50e-6)
    assert counters[0].since(900, 100) == pytest.approx(200e-6)
    (first / "energy_uj").unlink()
    assert [counter.path.name for counter in rapl_counters(tmp_path)[0]] == ["intel-rapl:1"]

    def forbidden(self):
        raise PermissionError

    monkeypatch.setattr(Counter, "read", forbidden)
    counters, reason = rapl_counters(tmp_path)
    assert counters == []
    assert "root only" in reason
    assert "neither tegrastats" in rapl_counters(tmp_path / "nowhere")[1]


def test_rapl_s_energy_is_that_of_the_time_between(tmp_path, monkeypatch) -> None:
    _package(tmp_path, "intel-rapl:0", "package-0", 0, 10**9)
    monkeypatch.setattr(Counter, "read", lambda self: int(time.monotonic() * 12e6) % 10**9)  # 12 W
    with Sensors(tmp_path, tegrastats=None, period=0.01) as found:
        time.sleep(0.15)
    first, last = found.samples[1].at, found.samples[-1].at
    assert found.source == "RAPL"
    assert found.joules(first, last) == pytest.approx(12 * (last - first), rel=0.1, abs=0.2)


def test_energy_between_two_samples_is_interpolated() -> None:
    found = Sensors()
    found.samples = [Sample(t, j, None, None, None, None) for t, j in ((0.0, 5.0), (1.0, 7.0), (3.0, 8.0))]
    assert found.joules(0.5, 2.0) == pytest.approx(7.5 - 6.0)
    assert found.joules(0.0, 3.0) == pytest.approx(3.0)
    assert found.joules(-0.1, 1.0) is None


def test_temperatures_and_clocks_are_those_of_the_files(tmp_path) -> None:
    for k, value in enumerate(("45000", "71500", "-256000", "x")):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{k}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(value)
    for k, value in enumerate(("1500000", "1700000")):
        core = tmp_path / f"sys/devices/system/cpu/cpu{k}/cpufreq"
        core.mkdir(parents=True)
        (core / "scaling_cur_freq").write_text(value)
    assert hottest(tmp_path) == 71.5
    assert cpu_mhz(tmp_path) == 1600.0
    assert hottest(tmp_path / "nowhere") is None
    assert cpu_mhz(tmp_path / "nowhere") is None
    with Sensors(tmp_path, tegrastats=None) as found:
        time.sleep(0.02)
    assert (found.samples[0].temperature, found.samples[0].joules) == (71.5, None)
    assert math.isfinite(sensors.PERIOD_S)
