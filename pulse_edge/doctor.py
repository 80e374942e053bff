"""What this machine has for pulse-edge, what is missing, and the command that brings it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any, Final

from pulse_edge.board import cuda_device, read_board
from pulse_edge.device import list_devices, load_device

# What each extra adds, by distribution name; "" is the base installation.
NEEDED: Final = {
    "": (
        "numpy", "pillow", "opencv-python-headless", "onnxruntime", "sentencepiece", "wfdb",
        "scikit-learn", "scipy", "pyyaml", "typer", "rich", "cryptography",
    ),
    "export": ("torch", "transformers", "safetensors", "onnx", "onnxscript"),
    "train": ("torch", "transformers", "safetensors", "accelerate"),
    "coreml": ("torch", "transformers", "safetensors", "coremltools"),
    "compress": ("torch", "transformers", "safetensors", "nncf", "onnx"),
    "serve": ("fastapi", "uvicorn", "python-multipart", "prometheus-client"),
    "heic": ("pillow-heif",),
}  # fmt: skip
_JETSON_MODEL: Final = Path("/proc/device-tree/model")
_L4T: Final = Path("/etc/nv_tegra_release")


def examine(device: bool = False) -> dict[str, Any]:
    """Look at the machine.

    Args:
        device: also collect what a report from a Jetson needs: see :func:`examine_device`.

    Returns:
        ``python``, ``platform``, ``cores``, ``memory_gb``, ``packages`` (name, version or None, extra,
        install: the command or None), ``onnxruntime_providers``, ``jetson`` (model and L4T, or None),
        ``tensorrt`` (version or None), ``models`` (shipped), ``ok`` (the base is complete); with
        ``device``, ``device`` too.
    """
    packages = [_package(name, extra) for extra, names in NEEDED.items() for name in names]
    more = {"device": examine_device()} if device else {}
    return {
        "ok": all(p["version"] for p in packages if not p["extra"]),
        "pulse_edge": installed_version("pulse-edge"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "packages": packages,
        "onnxruntime_providers": _providers(),
        "jetson": _jetson(),
        "tensorrt": installed_version("tensorrt"),
        "models": sorted(p.parent.name for p in (Path(__file__).parent / "assets").glob("*/pulse.json")),
        **more,
    }


def examine_device(root: Path = Path("/")) -> dict[str, Any]:
    """Collect what tells a run on a device apart from another: board, versions, power, memory, clocks.

    Args:
        root: of the file system; tests give a recorded tree.

    Returns:
        What ``board.read_board`` tells; ``gpu`` (``board.cuda_device``), ``tensorrt_python`` and
        ``cuda_python`` (versions or None), ``profile`` (the device profile of the module, or None), and
        ``missing``: what could not be read, each with the next step.
    """
    found = {
        **read_board(root),
        "gpu": cuda_device(),
        "tensorrt_python": installed_version("tensorrt"),
        "cuda_python": installed_version("cuda-python"),
    }
    profiles = [load_device(name) for name in list_devices()]
    names = [p.name for p in profiles if set(p.values["module_ids"].value or ()) & set(found["modules"])]
    found["profile"] = names[0] if names else None
    found["missing"] = [f"{name}: {step}" for name, step in _NEXT.items() if not found[name]]
    return found


_NEXT: Final = {
    "l4t": "/etc/nv_tegra_release is not there; this is no Jetson, or a container without that file.",
    "jetpack": "the SD card image comes without its package: sudo apt install nvidia-jetpack",
    "gpu": "no CUDA driver answers; on a Jetson add the user to the groups video and render.",
    "tensorrt_python": "sudo apt install python3-libnvinfer, and make the environment with "
    "python3 -m venv --system-site-packages",
    "cuda_python": 'pip install "pulse-edge[jetson]"; on JetPack 6 also "cuda-python<13"',
    "trtexec": "sudo apt install libnvinfer-bin",
    "power_mode": "sudo nvpmodel -q says it.",
}


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, extra: str) -> dict[str, Any]:
    version = installed_version(name)
    if version is None and name == "opencv-python-headless":
        version = installed_version("opencv-python")  # serves as well
    what = f"pulse-edge[{extra}]" if extra else "pulse-edge"
    return {
        "name": name,
        "version": version,
        "extra": extra,
        "install": None if version else f'pip install "{what}"',
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _jetson() -> dict[str, str | None] | None:
    if not _JETSON_MODEL.is_file():
        return None
    model = _JETSON_MODEL.read_bytes().decode("utf-8", "replace").strip("\0\n")
    if "jetson" not in model.lower() and "orin" not in model.lower() and "thor" not in model.lower():
        return None
    l4t = _L4T.read_text(encoding="utf-8", errors="replace").splitlines()[0] if _L4T.is_file() else None
    return {"model": model, "l4t": l4t}
