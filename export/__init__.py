"""Export checkpoints to bundles that devices run; `pulse-edge export` calls :func:`export_bundle`.

torch, onnx and coremltools are imported when an export starts, not when this package is.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.device import Device, load_device
from pulse_edge.errors import MissingExtraError, UnknownNameError, UserError

if TYPE_CHECKING:
    from pulse_edge.export.source import Source
    from pulse_edge.export.stream import Options

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it tells of versions when it is imported

# What a target needs, and the extra that brings it.
_NEEDS: Final = {
    "jetson": (("torch", "transformers", "onnx", "onnxscript"), "export"),
    "onnx": (("torch", "transformers", "onnx", "onnxscript"), "export"),
    "coreml": (("torch", "transformers", "coremltools"), "coreml"),
}
TARGETS: Final = tuple(_NEEDS)
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
    profile: str | None = None,
    resume: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
    pages: Sequence[Any] = (),
    vision_tiles: Sequence[Any] = (),
    capture: bool = False,
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
        profile: form of the decoder: ``trt``, ``trt10.15`` or ``ort``; what suits the device by default.
        resume: go on with what an export of the same that was killed left.
        tick: called with the bytes of weights that are written, and of all.
        pages: real ECG pages, uint8 [H, W, 3]: on them the range of float16 is observed, and what comes near
            its end is kept in float32; then every shape of every optimisation profile is run.
        vision_tiles: calibration pages, float32 [5, 3, 336, 336]: the vision graph's weights and activations
            become 8 bits, for the target ``onnx``.
        capture: write the graph that makes tiles of photos (:mod:`.capture_graph`) beside the model.

    Returns:
        The manifest.

    Raises:
        UnknownNameError: unknown target, device or precision.
        UserError: the precision does not fit the target, or the checkpoint is not usable.
        FitError: the device has no memory for the model.
        GateError: TensorRT's documents or the gate refuse the result.
        MissingExtraError: torch, transformers, onnx or coremltools is not installed.
    """
    where = _place(target, device)
    if len(vision_tiles) and (target != "onnx" or resume):
        raise UserError(
            "A vision graph of 8 bits is for --target onnx, without --resume: on a Jetson Orin, TensorRT 10 "
            "does not build such a graph (NVIDIA/TensorRT issue 4832), and Core ML has a form of its own."
        )
    if target == "coreml":
        if resume or profile is not None:
            raise UserError("--resume and --profile are for the targets jetson and onnx. Leave them out.")
        return _export_coreml(Path(checkpoint), Path(output), where, precision, gate, report, capture)
    source, options = _prepare(checkpoint, target, where, precision, profile)
    from pulse_edge.export.exporter import export_to_folder

    options = replace(options, resume=resume, pages=pages, report=report, tick=tick)
    options = replace(options, vision_tiles=vision_tiles, capture=capture)
    return export_to_folder(source, Path(output), options, gate)


def _place(target: str, device: str | None) -> Device:
    """Check the target, that the device is one of its, and that what it needs is installed."""
    if target not in TARGETS:
        raise UnknownNameError("target", target, TARGETS)
    where = load_device(device or DEFAULT_DEVICE[target])
    if target in KINDS and where.kind not in KINDS[target]:
        known = " or ".join(KINDS[target])
        raise UserError(
            f"{where.name} is a device of the kind {where.kind}, and the target {target} is for {known}. "
            "Use another --target, or another --device."
        )
    packages, extra = _NEEDS[target]
    for package in packages:
        # torch is not imported here: writing a CLIP model never needs it, and it takes 200 MB
        if not _installed(package):
            raise MissingExtraError(package, extra)
    return where


def _export_coreml(
    checkpoint: Path,
    output: Path,
    where: Device,
    precision: str | None,
    gate: Gate | None,
    report: Callable[[str], None],
    capture: bool,
) -> dict[str, Any]:
    from pulse_edge.export.coreml.bundle import export_to_folder
    from pulse_edge.export.weights import precision as read_precision
    from pulse_edge.fit import require_fit

    how = read_precision(precision or _usual_precision(checkpoint), "coreml")
    require_fit(checkpoint, where.name, f"int{how.bits}" if how.bits < 16 else how.name, "coreml")
    return export_to_folder(checkpoint, output, "coreml", where, how, gate, report, capture)


def _usual_precision(checkpoint: Path) -> str:
    """Core ML's usual precision, or that of the integers which the checkpoint holds."""
    from pulse_edge.model.shards import Shards

    bits = {form.bits for form in Shards(checkpoint).forms.values()}
    return f"int{min(bits)}" if bits else DEFAULT_PRECISION["coreml"]


def _prepare(
    checkpoint: Path, target: str, where: Device, precision: str | None, profile: str | None
) -> tuple[Source, Options]:
    """Read the precision, and open the checkpoint."""
    from pulse_edge.export.ort_decoder import takes
    from pulse_edge.export.source import Source
    from pulse_edge.export.stream import Options
    from pulse_edge.export.weights import precision as read_precision
    from pulse_edge.export.weights import take_integers
    from pulse_edge.fit import require_fit

    form = profile or default_profile(where)
    read_precision(precision or DEFAULT_PRECISION[target], target, form)  # what is mistyped, before reading
    source = Source(Path(checkpoint))
    if profile is None and form == "ort" and not takes(source.shape):
        form = "trt"
    how = read_precision(precision or DEFAULT_PRECISION[target], target, form)
    if source.bits is not None:
        how = take_integers(how, source.bits, precision, target)
    can = where.values["precisions"].value
    if target == "jetson" and can is not None and how.name not in can:
        raise UserError(f"{where.title} does not compute {how.name}. Use --precision {' or '.join(can)}.")
    require_fit(Path(checkpoint), where.name, f"int{how.bits}" if how.bits < 16 else how.name, target)
    return source, Options(target, where, how)


def preview(
    checkpoint: Path,
    output: Path,
    target: str = "jetson",
    device: str | None = None,
    precision: str | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Say what :func:`export_bundle` would write, without writing it or reading weights.

    Returns:
        ``files`` (bytes by name), ``bytes``, ``memory`` (bytes that writing and comparing whole models take,
        about), ``memory_available``, ``parity`` (the kind that fits), ``disk_free``, ``precision``,
        ``profile`` and ``kept_fp16``. Sizes are exact but for a vision tower that torch.onnx exports.

    Raises:
        UserError: as in :func:`export_bundle`.
        GateError: TensorRT's documents refuse the graphs.
    """
    where = _place(target, device)
    if target == "coreml":
        raise UserError("--dry-run is for the targets jetson and onnx. Leave it out.")
    source, options = _prepare(checkpoint, target, where, precision, profile)
    from pulse_edge.export.stream import preview_bundle

    return preview_bundle(source, Path(output), options)


def parity_memory(checkpoint: Path, folder: Path) -> int:
    """Bytes that comparing a whole checkpoint in PyTorch with a bundle takes, about."""
    from pulse_edge.export.stream import parity_bytes
    from pulse_edge.model.shards import Shards

    data = sum(path.stat().st_size for path in folder.glob("*.data"))
    return parity_bytes(Shards(Path(checkpoint)).shapes, data)


def compare_streamed(
    checkpoint: Path, folder: Path, page: Any, limits: dict[str, float], tick: Callable[[int, int], None]
) -> dict[str, Any]:
    """Compare a bundle with a checkpoint that does not fit the memory: see :mod:`.streamed`."""
    from pulse_edge.evaluate.labels import label_set
    from pulse_edge.export.prompts import Questions
    from pulse_edge.export.streamed import compare_streamed as compare
    from pulse_edge.model.checkpoint import read_card
    from pulse_edge.model.tokenizer import Tokenizer

    questions = Questions.read(Tokenizer.from_folder(checkpoint), *label_set(read_card(checkpoint)))
    return compare(checkpoint, folder, page, questions, limits, tick)


def default_profile(device: Device) -> str:
    """The form of a decoder for a device: ONNX Runtime's own operators off a Jetson, and on one opset 23's
    where its TensorRT is known to take them."""
    version = device.values["tensorrt"].value
    if device.kind != "jetson":
        return "ort"
    if version is None:
        return "trt"
    return "trt10.15" if tuple(int(part) for part in version.split(".")[:2]) >= (10, 15) else "trt"


def _installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False
