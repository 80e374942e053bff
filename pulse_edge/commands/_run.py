"""`run`: one ECG, one question, an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError


def run(
    bundle: str,
    image: Path | None = None,
    record: Path | None = None,
    ask: str | None = None,
    labels: bool = False,
    max_new_tokens: int | None = None,
    require_key: Path | None = None,
    runtime: str | None = None,
    on_text: Callable[[str], None] = lambda piece: None,
    report: Callable[[str], None] = lambda text: None,
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
        require_key: public key that must have signed the bundle; see ``runtimes.load.load``.
        runtime: ``onnx`` or ``tensorrt``; by default what the bundle has engines for.
        on_text: called with every piece of the answer as it comes.
        report: called with what runs the model, and why.

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
    from pulse_edge.commands._open import open_model
    from pulse_edge.ecg.instruct import REPORT_QUESTION

    page = _page(image, record)
    session = open_model(bundle, require_key, runtime)
    report(session.runtime)
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
