"""`export`: a checkpoint becomes a bundle, and its parity with the checkpoint is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import BundleError, UnknownNameError, UserError
from pulse_edge.samples import SAMPLES, samples

_STEPS = 64  # of decoding, where a state is carried from call to call


def export(
    target: str = "jetson",
    model: str = "pulse-nano",
    device: str | None = None,
    precision: str | None = None,
    output: Path | None = None,
    force: bool = False,
    profile: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    vision: str = "float",
    calibration: str | None = None,
    records: Path | None = None,
    limit: int | None = None,
    accept_loss: bool = False,
    capture: bool = False,
    report: Callable[[str], None] = lambda step: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Export a model to a bundle and measure its parity on the shipped sample ECGs.

    Args:
        target: ``jetson``, ``onnx`` or ``coreml``.
        model: checkpoint folder or shipped name.
        device: profile in devices/; the target's usual one by default.
        precision: fp32, fp16, int8, int4 or, for Core ML, palette4; the target's usual one by default.
        output: folder of the bundle; ``./<model>-<target>`` by default.
        force: replace an existing bundle.
        profile: form of the decoder, ``trt``, ``trt10.15`` or ``ort``; what suits the device by default.
        resume: go on with what a killed or interrupted export of the same left.
        dry_run: only say what would be written.
        vision: ``float``, or ``int8``: weights and activations of the vision graph, for the target ``onnx``.
        calibration: with ``int8``: labels.csv, YAML file or registered name of the set to calibrate on.
        records: with ``int8``: labels.csv whose test patients say what it costs.
        limit: at most so many of them.
        accept_loss: keep the bundle if that is beyond the budget, or not measured; both are recorded.
        capture: write the graph that makes tiles of photos beside the model.
        report: called with the name of each step.
        tick: called with what is done of the present step and all of it: bytes or layers.

    Returns:
        ``{"bundle": path, "bytes": int, "parity": {...}}``; of a dry run ``bundle`` and the fields of
        ``pulse_edge.export.preview``.

    Raises:
        UserError: unknown name, unusable checkpoint, or the output exists.
        GateError: the bundle failed its parity gate or TensorRT's documented rules; nothing was kept.
    """
    from pulse_edge.export import export_bundle, preview
    from pulse_edge.model.checkpoint import resolve_model

    checkpoint = resolve_model(model)
    output = Path(output) if output is not None else Path(f"{checkpoint.resolve().name}-{target}")
    _check_output(output, force)
    tiles = _vision_tiles(vision, calibration, records, accept_loss, report)
    if dry_run:
        return {"bundle": str(output), **preview(checkpoint, output, target, device, precision, profile)}
    pages = _pages()

    def gate(folder: Path, how: str) -> dict[str, Any]:
        result = _parity(checkpoint, folder, how, pages, tick)
        if len(tiles):
            result["accuracy"] = _accuracy(checkpoint, folder, records, limit, accept_loss, tick)
        return result

    manifest = export_bundle(
        checkpoint, output, target, device, precision, gate, report, profile, resume, tick, pages, tiles,
        capture,
    )  # fmt: skip
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"bundle": str(output), "bytes": size, "parity": manifest["parity"]}


def _vision_tiles(
    vision: str,
    calibration: str | None,
    records: Path | None,
    accept_loss: bool,
    report: Callable[[str], None],
) -> list[Any]:
    """Check the options of a vision graph of 8 bits, and make the tiles that it is calibrated on."""
    if vision not in ("float", "int8"):
        raise UnknownNameError("vision precision", vision, ("float", "int8"))
    if vision == "float":
        if calibration is not None or records is not None or accept_loss:
            raise UserError("--calibration, --records and --accept-loss go with --vision int8. Add it.")
        return []
    if calibration is None:
        raise UserError("--vision int8 needs ECGs to calibrate on. Add --calibration LABELS_CSV.")
    if records is None and not accept_loss:
        raise UserError(
            "Name the ECGs on which the loss of accuracy is measured: --records LABELS_CSV. To do without, "
            "add --accept-loss, which is recorded."
        )
    import numpy as np

    from pulse_edge.compress.calibrate import build, read_recipe
    from pulse_edge.contract import MAX_TILES
    from pulse_edge.model.preprocess import preprocess

    report("calibration pages")
    prompts, _ = build(read_recipe(calibration))
    tiles = [preprocess(prompt.page) for prompt in prompts if prompt.page is not None]
    return [np.pad(one, ((0, MAX_TILES - len(one)), (0, 0), (0, 0), (0, 0))) for one in tiles]


def _accuracy(
    checkpoint: Path,
    folder: Path,
    records: Path | None,
    limit: int | None,
    accept_loss: bool,
    tick: Callable[[int, int], None],
) -> dict[str, Any]:
    """Score bundle and checkpoint on test patients; an 8-bit step's budget holds."""
    if records is None:
        return {"set": None, "passed": False, "accepted": ["not measured"]}
    from pulse_edge.commands._open import open_model
    from pulse_edge.evaluate.gate import BUDGETS, compare, judge
    from pulse_edge.evaluate.score import score_records

    before, after = (
        score_records(open_model(path), Path(records), "test", limit, None, tick)
        for path in (checkpoint, folder)
    )
    found = judge(compare(before, after), BUDGETS[8], accept_loss)
    return {"set": f"test patients of {Path(records).name}", **found}


def _check_output(output: Path, force: bool) -> None:
    """Refuse an output that would destroy something; only a bundle may be replaced."""
    from pulse_edge.bundle import read_manifest

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        read_manifest(output)  # other software has files called manifest.json too
    except BundleError as error:
        raise UserError(f"{output} exists and is not a bundle. Choose another --output.") from error
    if not force:
        raise UserError(f"The bundle {output} exists already. Choose another --output, or add --force.")


def _pages() -> list[Any]:
    from pulse_edge.ecg.paper import render
    from pulse_edge.ecg.record import read_record

    return [render(read_record(SAMPLES / row["record"])).image for row in samples()]


def _parity(
    checkpoint: Path, folder: Path, how: str, pages: list[Any], tick: Callable[[int, int], None]
) -> dict[str, Any]:
    """Compare whole models where both fit the memory, and layer by layer where they do not."""
    from pulse_edge.commands._open import open_model
    from pulse_edge.evaluate.parity import LIMITS, compare, compare_tiles, probe, refuse_disparity
    from pulse_edge.export import compare_streamed, parity_memory
    from pulse_edge.machine import available_memory

    graphs = (folder / "decoder.onnx").is_file()  # what runs layer by layer
    if graphs and parity_memory(checkpoint, folder) >= available_memory():
        result = {"precision": how, **compare_streamed(checkpoint, folder, pages[0], LIMITS[how], tick)}
        refuse_disparity(result)
        return result
    bundle = open_model(folder, own=True)
    cut = getattr(bundle.backend, "cut", None)  # only Core ML bundles preprocess by themselves
    result = compare(open_model(checkpoint, own=True), bundle, pages, how, *((_STEPS,) if cut else ()))
    if cut:
        result["tiles"] = compare_tiles(cut, pages)
    return {**result, "probe": probe(bundle, pages[0])}
