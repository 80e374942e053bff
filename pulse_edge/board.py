"""What a Jetson says about itself: read from its files and its CUDA driver, never inferred.

Every value is None where the machine does not tell it. No serial number, host name or address is read,
so that the whole may be sent to someone. Where things stand follows rbonghi/jetson_stats (jtop/core) and
what users of Orin and Thor published of theirs; it was tested on trees of such files, not on a device.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# Debian packages whose versions matter; an entry that ends with * is a prefix.
PACKAGES: Final = (
    "nvidia-jetpack", "nvidia-l4t-core", "tensorrt", "libnvinfer*", "libnvonnxparsers*", "python3-libnvinfer",
    "libcudnn*", "cuda-runtime-*", "nvidia-container-toolkit",
)  # fmt: skip
TRTEXEC: Final = ("usr/src/tensorrt/bin/trtexec", "usr/bin/trtexec", "usr/local/bin/trtexec")
_MODULE: Final = re.compile(r"p3\d{3}-\d{4}")  # p3767-0005, of a module or of its carrier board
_CARRIERS: Final = ("p3768", "p3737", "p3740", "p3971", "p4071")
# cuDeviceGetAttribute, cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_SM_MAJOR, _SM_MINOR = 75, 76


def read_board(root: Path = Path("/")) -> dict[str, Any]:
    """Read what the files of a machine tell.

    Args:
        root: of the file system; tests give a recorded tree.

    Returns:
        ``model``, ``modules`` (part numbers), ``soc``, ``l4t``, ``jetpack``, ``tensorrt``, ``cuda`` and
        ``packages`` (versions by name, as dpkg has them), ``trtexec`` (path), ``power_mode``
        ``{"id", "name"}``, ``memory`` in MB, ``swap`` (one entry for each, zram included), ``clocks_mhz``
        ``{"cpu", "gpu": {"now", "min", "max"}}``, ``temperatures_c``, ``os``, ``kernel``.
    """
    tree = [part for part in _text(root, "proc/device-tree/compatible").split("\0") if part]
    packages = dict(_packages(root))
    found = sorted({m for part in tree for m in _MODULE.findall(part)})
    infer = next((v for n, v in sorted(packages.items()) if re.fullmatch(r"libnvinfer\d+", n)), None)
    return {
        "model": _text(root, "proc/device-tree/model").strip("\0\n ") or None,
        "modules": [name for name in found if not name.startswith(_CARRIERS)],
        "soc": next((part.split(",")[1] for part in tree if re.fullmatch(r"nvidia,tegra\d+", part)), None),
        "l4t": _l4t(root),
        "jetpack": _upstream(packages.get("nvidia-jetpack")),
        "tensorrt": _upstream(infer),
        "cuda": _cuda_toolkit(root),
        "packages": packages,
        "trtexec": next((f"/{place}" for place in TRTEXEC if (root / place).is_file()), None),
        "power_mode": _power_mode(root),
        "memory": _memory(root),
        "swap": _swap(root),
        "clocks_mhz": _clocks(root),
        "temperatures_c": dict(_temperatures(root)),
        "os": _os(root),
        "kernel": (_text(root, "proc/sys/kernel/osrelease").strip() or None),
    }


def cuda_device(library: str = "libcuda.so.1") -> dict[str, Any] | None:
    """Ask the CUDA driver for its first device; None where there is no driver or no device.

    Args:
        library: the driver's own library, which comes with L4T or the desktop driver.

    Returns:
        ``{"name", "sm": e.g. "8.7", "memory_mb", "driver": the CUDA version it offers, e.g. "12.6"}``.
    """
    try:
        cuda = ctypes.CDLL(library)
        version, device, major, minor = (ctypes.c_int() for _ in range(4))
        memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
        steps: tuple[Callable[[], int], ...] = (
            lambda: cuda.cuInit(ctypes.c_uint(0)),
            lambda: cuda.cuDriverGetVersion(ctypes.byref(version)),
            lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
            lambda: cuda.cuDeviceGetName(name, len(name), device),
            lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _SM_MAJOR, device),
            lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _SM_MINOR, device),
            lambda: cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        )
        if any(step() != 0 for step in steps):
            return None
    except (OSError, AttributeError):
        return None
    return {
        "name": name.value.decode("utf-8", "replace"),
        "sm": f"{major.value}.{minor.value}",
        "memory_mb": memory.value >> 20,
        "driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def _text(root: Path, name: str) -> str:
    try:
        return (root / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(root: Path, name: str) -> int | None:
    text = _text(root, name).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _l4t(root: Path) -> str | None:
    """``# R36 (release), REVISION: 4.3, …`` -> ``36.4.3``."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text(root, "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else None


def _packages(root: Path) -> Iterator[tuple[str, str]]:
    """Installed Debian packages of :data:`PACKAGES`, from dpkg's own list."""
    for entry in _text(root, "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", entry, flags=re.MULTILINE))
        name = fields.get("Package", "")
        wanted = any(name == p or (p.endswith("*") and name.startswith(p[:-1])) for p in PACKAGES)
        if wanted and fields.get("Status", "").endswith(" installed") and "Version" in fields:
            yield name, fields["Version"]


def _upstream(version: str | None) -> str | None:
    """Debian's ``10.3.0.30-1+cuda12.5`` -> ``10.3.0.30``; JetPack's ``6.2+b77`` -> ``6.2``."""
    return re.split(r"[-+~]", version)[0] if version else None


def _cuda_toolkit(root: Path) -> str | None:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(_text(root, "usr/local/cuda/version.json"))["cuda"]["version"])
    return None


def _power_mode(root: Path) -> dict[str, Any] | None:
    """nvpmodel's present mode, with the name that its configuration gives it."""
    found = re.search(r"pmode:(\d+)", _text(root, "var/lib/nvpmodel/status"))
    if not found:
        return None
    number = int(found[1])
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root, "etc/nvpmodel.conf"))
    return {"id": number, "name": {int(i): name for i, name in names}.get(number)}


def _memory(root: Path) -> dict[str, int] | None:
    rows = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _text(root, "proc/meminfo"), flags=re.MULTILINE))
    names = {"total": "MemTotal", "available": "MemAvailable", "cma_total": "CmaTotal", "cma_free": "CmaFree"}
    return {key: int(rows[name]) >> 10 for key, name in names.items() if name in rows} or None


def _swap(root: Path) -> list[dict[str, Any]]:
    rows = [line.split() for line in _text(root, "proc/swaps").splitlines()[1:]]
    return [
        {"on": row[0], "total_mb": int(row[2]) >> 10, "used_mb": int(row[3]) >> 10}
        for row in rows
        if len(row) >= 4 and row[2].isdigit() and row[3].isdigit()
    ]


def _clocks(root: Path) -> dict[str, dict[str, int | None]]:
    cpu = "sys/devices/system/cpu/cpu0/cpufreq"
    clocks = {"cpu": {k: _mhz(root, f"{cpu}/scaling_{f}_freq", 1000) for k, f in _FREQUENCIES.items()}}
    for place in _glob(root, "sys/class/devfreq/*"):
        if re.search(r"gpu|ga10b|gb10b", place):
            clocks["gpu"] = {k: _mhz(root, f"{place}/{f}_freq", 1_000_000) for k, f in _FREQUENCIES.items()}
    return {name: clock for name, clock in clocks.items() if any(clock.values())}


_FREQUENCIES: Final = {"now": "cur", "min": "min", "max": "max"}


def _mhz(root: Path, name: str, unit: int) -> int | None:
    value = _number(root, name)
    return None if value is None else round(value / unit)


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in _glob(root, "sys/class/thermal/thermal_zone*"):
        name, value = _text(root, f"{zone}/type").strip(), _text(root, f"{zone}/temp").strip()
        if name and value.lstrip("-").isdigit() and int(value) > -200_000:  # -256000: the sensor is off
            yield name, int(value) / 1000


def _os(root: Path) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root, "etc/os-release"), flags=re.MULTILINE)
    return found[1] if found else None


def _glob(root: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
