"""One function for each verb of the command line, with the same parameters; results are plain dicts.

Everything heavy is imported inside the function that needs it.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import BundleError, UserError

SAMPLES = Path(__file__).parent / "assets" / "samples"


def export(
    target: str = "jetson",
    model: str = "pulse-nano",
    device: str | None = None,
    precision: str | None = None,
    output: Path | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Export a model to a bundle and measure its parity on the shipped sample ECGs.

    Args:
        target: ``jetson`` or ``onnx``.
        model: checkpoint folder or shipped name.
        device: profile in devices/; the target's usual one by default.
        precision: fp32, fp16, int8 or int4; the target's usual one by default.
        output: folder of the bundle; ``./<model>-<target>`` by default.
        force: replace an existing bundle.
        report: called with the name of each step.

    Returns:
        ``{"bundle": path, "bytes": int, "parity": {...}}``.

    Raises:
        UserError: unknown name, unusable checkpoint, or the output exists.
        GateError: the bundle failed its parity gate or TensorRT's documented rules; nothing was kept.
    """
    from pulse_edge.export import export_bundle
    from pulse_edge.model.checkpoint import resolve_model

    checkpoint = resolve_model(model)
    output = Path(output) if output is not None else Path(f"{checkpoint.resolve().name}-{target}")
    _check_output(output, force)

    def gate(folder: Path, how: str) -> dict[str, Any]:
        return _parity(checkpoint, folder, how)

    manifest = export_bundle(checkpoint, output, target, device, precision, gate, report)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"bundle": str(output), "bytes": size, "parity": manifest["parity"]}


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


def _parity(checkpoint: Path, folder: Path, how: str) -> dict[str, Any]:
    from pulse_edge.ecg.paper import render
    from pulse_edge.ecg.record import read_record
    from pulse_edge.evaluate.parity import compare
    from pulse_edge.runtimes.load import load

    pages = [render(read_record(SAMPLES / row["record"])).image for row in samples()]
    return compare(load(checkpoint), load(folder), pages, how)


def samples() -> list[dict[str, str]]:
    """Return the rows of the shipped sample ECGs: labels.csv's columns, and ``image``."""
    with (SAMPLES / "samples.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run(
    bundle: str,
    image: Path | None = None,
    record: Path | None = None,
    ask: str | None = None,
    labels: bool = False,
    max_new_tokens: int | None = None,
    on_text: Callable[[str], None] = lambda piece: None,
) -> dict[str, Any]:
    """Ask a model about one ECG.

    Args:
        bundle: bundle folder, checkpoint folder or shipped name.
        image: picture of an ECG page, opened upright; or
        record: WFDB record, rendered as a page.
        ask: the question; with neither ``ask`` nor ``labels`` a clinical report is asked for and the
            labels are scored too.
        labels: score the label set.
        max_new_tokens: bound of the answer.
        on_text: called with every piece of the answer as it comes.

    Returns:
        ``{"text", "labels", "timing_ms": {"preprocess", "vision", "prefill", "decode_per_token"}}``;
        text is empty and labels are empty where they were not asked for.

    Raises:
        UserError: not exactly one of image and record, or one of them cannot be used.
        BundleError: the bundle is damaged.
    """
    if (image is None) == (record is None):
        raise UserError("Name one ECG: either --image PAGE.png or --record WFDB_RECORD.")
    if ask is not None and not ask.strip():
        raise UserError("The question is empty. Write one after --ask, or leave --ask out for a report.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError("--max-new-tokens must be at least 1.")
    from pulse_edge.ecg.instruct import REPORT_QUESTION
    from pulse_edge.runtimes.load import load

    page = _page(image, record)
    session = load(bundle)
    both = ask is None and not labels
    text = ""
    scores: dict[str, float] = {}
    timing: dict[str, float | None] = {}
    if ask is not None or both:
        for piece in session.stream(page, ask or REPORT_QUESTION, max_new_tokens):
            text += piece
            on_text(piece)
        timing = dict(session.timing_ms)
    if labels or both:
        scores = session.label(page)
    return {"text": text.strip(), "labels": scores, "timing_ms": timing or dict(session.timing_ms)}


def _page(image: Path | None, record: Path | None) -> Any:
    if image is not None:
        from pulse_edge.image_io import open_image

        return open_image(image, upright=True)
    from pulse_edge.ecg.paper import render
    from pulse_edge.ecg.record import read_record

    return render(read_record(record or "")).image


def evaluate(
    model: str | None = None,
    records: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    layout: str = "3x4+1",
    ecgbench: str | None = None,
    answers: Path | None = None,
    references: Path | None = None,
    protocol: str = "published",
    judge_prompts: Path | None = None,
    judge: Path | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score a model's labels on real records, or a file of answers to ECGBench.

    Args:
        model: checkpoint, bundle or shipped name; not with ``ecgbench``.
        records: labels.csv; record paths are relative to its folder.
        split: only the patients of this side: train, validation or test.
        limit: at most so many records.
        layout: of the rendered pages.
        ecgbench: a set of ECGBench, or ``all``; it and what follows: ``evaluate.ecgbench.verb``.
        answers: a model's answers to it.
        references: the references of the set.
        protocol: ``published`` or ``strict``.
        judge_prompts: file for the judge's prompts.
        judge: the judge's answers.
        tick: called with records done and in all.

    Returns:
        See ``evaluate.score.evaluate``; ``model`` and ``split`` are added. For ECGBench see
        ``evaluate.ecgbench.verb.evaluate_answers``.

    Raises:
        UserError: options that do not go together, or a file that cannot be used.
    """
    of_records, of_bench = (model, records, split, limit), (answers, references, judge_prompts, judge)
    if ecgbench is not None:
        from pulse_edge.evaluate.ecgbench.verb import evaluate_answers

        if any(value is not None for value in of_records):
            raise UserError(
                "--ecgbench scores a file of answers. Leave MODEL, --records, --split and --limit out."
            )
        return evaluate_answers(ecgbench, answers, references, protocol, judge_prompts, judge)
    if any(value is not None for value in of_bench) or protocol != "published":
        raise UserError("No set is named for these options. Name it with --ecgbench DATASET.")
    if model is None or records is None:
        raise UserError(
            "Name MODEL and --records DIR/labels.csv; or, to score answers, --ecgbench DATASET and --answers."
        )
    records = Path(records)
    from pulse_edge.ecg.paper import PaperStyle
    from pulse_edge.ecg.split import SPLITS
    from pulse_edge.errors import UnknownNameError
    from pulse_edge.evaluate.labels import read_labels
    from pulse_edge.evaluate.score import evaluate as score
    from pulse_edge.runtimes.load import load

    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1.")
    read_labels(records)  # complain about the file before a model is loaded
    session = load(model)
    result = score(session, records, split, limit, PaperStyle(layout=layout), tick)
    return {**result, "model": str(model), "split": split}


def verify(bundle: Path) -> dict[str, Any]:
    """Compare every file of a bundle with its manifest: ``{"ok": bool, "problems": [...]}``.

    Raises:
        BundleError: there is no such folder.
    """
    from pulse_edge.bundle import verify_bundle

    if not Path(bundle).is_dir():
        raise BundleError(f"There is no bundle {bundle}. Make one with: pulse-edge export")
    problems = verify_bundle(Path(bundle))
    return {"ok": not problems, "problems": problems}


def doctor() -> dict[str, Any]:
    """Say what is installed and what is missing; see ``pulse_edge.doctor.examine``."""
    from pulse_edge.doctor import examine

    return examine()


def train(
    recipe: str = "pulse-nano",
    data: Path | None = None,
    output: Path | None = None,
    pages: int | None = None,
    workers: int = 1,
    init: str | None = None,
    dry_run: bool = False,
    gpus: int | None = None,
) -> dict[str, Any]:
    """Train a model from a recipe; see ``pulse_edge.train.run``, and ``pulse_edge.train.estimate``.

    Raises:
        UserError: no data, or ``gpus`` without ``dry_run``.
    """
    from pulse_edge.train import estimate
    from pulse_edge.train import run as train_run

    if dry_run:
        return estimate(recipe, data, 1 if gpus is None else gpus)
    if gpus is not None:
        raise UserError(
            "--gpus belongs to --dry-run. A training uses the processes it is started with: "
            "torchrun --nproc-per-node N -m pulse_edge.cli train …"
        )
    if data is None:
        raise UserError(
            "Name what is learned: --data and a table or folder of records, or ECGInstruct for PULSE."
        )
    start = time.perf_counter()
    result = train_run(recipe, Path(data), Path(output or Path(recipe).stem), pages, workers, init)
    return {**result, "seconds": time.perf_counter() - start}
