"""Export checkpoints to bundles that devices run; `pulse-edge export` calls :func:`export_bundle`.

torch and onnx are imported when an export starts, not when this package is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pulse_edge.device import load_device
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
    profile = load_device(device or DEFAULT_DEVICE[target])
    if target == "jetson" and profile.kind != "jetson":
        raise UserError(f"{profile.name} is not a Jetson. Use --target onnx, or another --device.")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "export") from error
    from pulse_edge.export.exporter import export_to_folder
    from pulse_edge.export.weights import precision as read_precision

    how = read_precision(precision or DEFAULT_PRECISION[target], target)
    return export_to_folder(Path(checkpoint), Path(output), target, profile, how, gate, report)
