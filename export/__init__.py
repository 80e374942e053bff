"""Export checkpoints to bundles that devices run; `pulse-edge export` calls :func:`export_bundle`.

torch and onnx are imported when an export starts, not when this package is.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pulse_edge.device import Device, load_device
from pulse_edge.errors import MissingExtraError, UnknownNameError, UserError

TARGETS: Final = ("jetson", "onnx")
DEFAULT_DEVICE: Final = {"jetson": "orin-nano-8gb", "onnx": "x86-cpu"}
DEFAULT_PRECISION: Final = {"jetson": "fp16", "onnx": "fp32"}
Gate = Callable[[Path, str], dict[str, Any]]


def export_bundle(
    checkpoint: Path,
    output: Path,
    target: str = "jetson",
    device: str | None = None,
    precision: str | None = None,
    gate: Gate | None = None,
    report: Callable[[str], None] = lambda step: None,
    profile: str | None = None,
    resume: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Export a checkpoint to a bundle, all or nothing.

    Args:
        checkpoint: folder in any layout that `model.checkpoint` reads.
        output: folder of the bundle, replaced if it exists.
        target: ``jetson`` or ``onnx``.
        device: name of a profile in devices/; the target's usual one by default.
        precision: fp32, fp16, int8 or int4; the target's usual one by default.
        gate: called with the complete bundle, before it gets its name, and the precision; what it
            returns is the manifest's ``parity``. It raises GateError to refuse the bundle.
        report: called with the name of every step, for progress.
        profile: form of the decoder: ``trt``, ``trt10.15`` or ``ort``; what suits the device by default.
        resume: go on with what an export of the same that was killed left.
        tick: called with the bytes of weights that are written, and of all.

    Returns:
        The manifest.

    Raises:
        UnknownNameError: unknown target, device or precision.
        UserError: the precision does not fit the target, or the checkpoint is not usable.
        GateError: TensorRT's documents or the gate refuse the result.
        MissingExtraError: torch, transformers or onnx is not installed.
    """
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    where = load_device(device or DEFAULT_DEVICE[target])
    if target == "jetson" and where.kind != "jetson":
        raise UserError(f"{where.name} is not a Jetson. Use --target onnx, or another --device.")
    for package in ("onnx", "onnxscript", "torch", "transformers"):
        # torch is not imported here: most exports never need it, and it takes 200 MB
        if not _installed(package):
            raise MissingExtraError(package, "export")
    from pulse_edge.export.exporter import Options, export_to_folder
    from pulse_edge.export.source import Source
    from pulse_edge.export.weights import precision as read_precision
    from pulse_edge.export.weights import take_integers

    form = profile or default_profile(where)
    how = read_precision(precision or DEFAULT_PRECISION[target], target, form)
    report("reading the checkpoint")
    source = Source(Path(checkpoint))
    if source.bits is not None:
        how = take_integers(how, source.bits, precision, target)
    return export_to_folder(source, Path(output), Options(target, where, how, resume, report, tick), gate)


def default_profile(device: Device) -> str:
    """The form of a decoder for a device: opset 23's operators where its TensorRT is known to take them."""
    version = device.values["tensorrt"].value
    if device.kind != "jetson" or version is None:
        return "trt"
    return "trt10.15" if tuple(int(part) for part in version.split(".")[:2]) >= (10, 15) else "trt"


def _installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False
