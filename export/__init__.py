"""Export checkpoints to bundles that devices run; `pulse-edge export` calls :func:`export_bundle`.

torch, onnx and coremltools are imported when an export starts, not when this package is.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pulse_edge.device import load_device
from pulse_edge.errors import MissingExtraError, UnknownNameError, UserError

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it tells of versions when it is imported

# Of a target: the module with its export_to_folder, what that needs, and the extra that brings it. A further
# target (coreai, say) is a module of this signature and a line here.
_EXPORTERS: Final = {
    "jetson": ("exporter", ("torch", "transformers", "onnx", "onnxscript"), "export"),
    "onnx": ("exporter", ("torch", "transformers", "onnx", "onnxscript"), "export"),
    "coreml": ("coreml.bundle", ("torch", "transformers", "coremltools"), "coreml"),
}
TARGETS: Final = tuple(_EXPORTERS)
DEFAULT_DEVICE: Final = {"jetson": "orin-nano-8gb", "onnx": "x86-cpu", "coreml": "iphone-15-pro"}
DEFAULT_PRECISION: Final = {"jetson": "fp16", "onnx": "fp32", "coreml": "fp16"}
KINDS: Final = {"jetson": ("jetson",), "coreml": ("iphone", "ipad", "mac")}  # of devices, by target
Gate = Callable[[Path, str], dict[str, Any]]


def export_bundle(
    checkpoint: Path,
    output: Path,
    target: str = "jetson",
    device: str | None = None,
    precision: str | None = None,
    gate: Gate | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Export a checkpoint to a bundle, all or nothing.

    Args:
        checkpoint: folder in any layout that `model.checkpoint` reads.
        output: folder of the bundle, replaced if it exists.
        target: ``jetson``, ``onnx`` or ``coreml``.
        device: name of a profile in devices/; the target's usual one by default.
        precision: fp32, fp16, int8, int4 or, for Core ML, palette4; the target's usual one by default.
        gate: called with the complete bundle, before it gets its name, and the precision; what it
            returns is the manifest's ``parity``. It raises GateError to refuse the bundle.
        report: called with the name of every step, for progress.

    Returns:
        The manifest.

    Raises:
        UnknownNameError: unknown target, device or precision.
        UserError: the precision does not fit the target, or the checkpoint is not usable.
        FitError: the device has no memory for the model.
        GateError: TensorRT's documents or the gate refuse the result.
        MissingExtraError: torch, transformers, onnx or coremltools is not installed.
    """
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    profile = load_device(device or DEFAULT_DEVICE[target])
    if target in KINDS and profile.kind not in KINDS[target]:
        known = " or ".join(KINDS[target])
        raise UserError(
            f"{profile.name} is a device of the kind {profile.kind}, and the target {target} is for {known}. "
            "Use another --target, or another --device."
        )
    module, packages, extra = _EXPORTERS[target]
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(error.name or packages[0], extra) from error
    from pulse_edge.export.weights import precision as read_precision
    from pulse_edge.fit import require_fit

    how = read_precision(precision or _usual_precision(Path(checkpoint), target), target)
    require_fit(Path(checkpoint), profile.name, f"int{how.bits}" if how.bits < 16 else how.name, target)
    exporter = importlib.import_module(f"pulse_edge.export.{module}")
    manifest: dict[str, Any] = exporter.export_to_folder(
        Path(checkpoint), Path(output), target, profile, how, gate, report
    )
    return manifest


def _usual_precision(checkpoint: Path, target: str) -> str:
    """The target's usual precision or, for Core ML, that of the integers which the checkpoint holds."""
    if target == "coreml":
        from pulse_edge.model.weights import open_weights, take_quantized

        bits = {weight.bits for weight in take_quantized(open_weights(checkpoint)).values()}
        if bits:
            return f"int{min(bits)}"
    return DEFAULT_PRECISION[target]
