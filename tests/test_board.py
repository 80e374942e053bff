"""A Jetson read from trees of files in the form that users of such boards have published."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge import doctor
from pulse_edge.board import cuda_device, read_board

DPKG = """Package: nvidia-l4t-core
Status: install ok installed
Architecture: arm64
Version: 36.4.3-20250107174145

Package: nvidia-jetpack
Status: install ok installed
Version: 6.2+b77

Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: libnvinfer-bin
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: libnvinfer8
Status: deinstall ok config-files
Version: 8.6.2.3-1+cuda12.2

Package: libc6
Status: install ok installed
Version: 2.35-0ubuntu3.8
"""
ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "proc/device-tree/serial-number": "1421224123456\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
    "var/lib/dpkg/status": DPKG,
    "usr/local/cuda/version.json": json.dumps({"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}),
    "usr/src/tensorrt/bin/trtexec": "",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
    "proc/meminfo": "MemTotal:        7802172 kB\nMemFree:          201788 kB\nMemAvailable:    5324800 kB\n"
    "CmaTotal:         262144 kB\nCmaFree:          225280 kB\n",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 650176 1024 5\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1728000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48812\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "etc/hostname": "bedside-7\n",
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 4.0, GCID: 1, BOARD: generic, EABI: aarch64\n",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_an_orin_nano_as_it_was_flashed(tmp_path) -> None:
    found = read_board(tree(tmp_path, ORIN_NANO))
    assert found == {
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "modules": ["p3767-0005"],
        "soc": "tegra234",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "tensorrt": "10.3.0.30",
        "cuda": "12.6.68",
        "packages": {
            "nvidia-l4t-core": "36.4.3-20250107174145",
            "nvidia-jetpack": "6.2+b77",
            "libnvinfer10": "10.3.0.30-1+cuda12.5",
            "libnvinfer-bin": "10.3.0.30-1+cuda12.5",
        },
        "trtexec": "/usr/src/tensorrt/bin/trtexec",
        "power_mode": {"id": 2, "name": "MAXN_SUPER"},
        "memory": {"total": 7619, "available": 5200, "cma_total": 256, "cma_free": 220},
        "swap": [{"on": "/dev/zram0", "total_mb": 634, "used_mb": 1}],
        "clocks_mhz": {
            "cpu": {"now": 1728, "min": 730, "max": 1728},
            "gpu": {"now": 306, "min": 306, "max": 1020},
        },
        "temperatures_c": {"cpu-thermal": 48.812},
        "os": "Ubuntu 22.04.5 LTS",
        "kernel": "5.15.148-tegra",
    }


def test_nothing_in_the_report_names_the_machine(tmp_path) -> None:
    text = json.dumps(doctor.examine_device(tree(tmp_path, ORIN_NANO)))
    assert "1421224123456" not in text
    assert "bedside" not in text


def test_a_thor_with_little_to_read(tmp_path) -> None:
    found = read_board(tree(tmp_path, THOR))
    assert (found["modules"], found["soc"], found["l4t"]) == (["p3834-0008"], "tegra264", "38.4.0")
    # JetPack 7.1 would follow from L4T 38.4.0, but no package says it: it is not inferred.
    assert found["jetpack"] is None
    assert found["tensorrt"] is None
    assert found["power_mode"] is None


def test_the_report_says_which_profile_and_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "cuda_device", lambda: None)
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    found = doctor.examine_device(tree(tmp_path / "nano", ORIN_NANO))
    assert found["profile"] == "orin-nano-8gb"
    assert [line.split(":")[0] for line in found["missing"]] == ["gpu", "tensorrt_python", "cuda_python"]
    found = doctor.examine_device(tree(tmp_path / "thor", THOR))
    assert found["profile"] == "thor-t5000"
    assert {"jetpack", "trtexec", "power_mode"} <= {line.split(":")[0] for line in found["missing"]}
    found = doctor.examine_device(tmp_path / "nothing")
    assert found["profile"] is None
    assert any(line.startswith("l4t: ") for line in found["missing"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(ORIN_NANO)), content=st.binary(max_size=80))
def test_damaged_files_never_fail(tmp_path, name, content) -> None:
    root = tree(tmp_path, ORIN_NANO)
    (root / name).write_bytes(content)
    json.dumps(read_board(root))


DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return flags ? 1 : RESULT; }
int cuDriverGetVersion(int *v) { *v = 12060; return 0; }
int cuDeviceGet(int *d, int i) { *d = 7 + i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 7 ? "Orin" : "?", n); return 0; }
int cuDeviceGetAttribute(int *v, int what, int d) {
    *v = d != 7 ? -1 : what == 75 ? 8 : what == 76 ? 7 : -1; return 0;
}
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)7619 << 20; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("result", [0, 100])
def test_the_driver_is_asked_as_its_header_says(tmp_path, result) -> None:
    """A library with the driver's entry points, called through the real C interface."""
    (tmp_path / "cuda.c").write_text(DRIVER.replace("RESULT", str(result)))
    library = tmp_path / "libcuda.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "cuda.c"], check=True)
    found = cuda_device(str(library))
    expected = {"name": "Orin", "sm": "8.7", "memory_mb": 7619, "driver": "12.6"}
    assert found == (None if result else expected)


def test_without_a_driver_there_is_no_device(tmp_path) -> None:
    assert cuda_device(str(tmp_path / "libcuda.so")) is None
    assert cuda_device("libm.so.6") is None  # a library without these entry points
