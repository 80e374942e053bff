"""`run`: one ECG, one question, an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from pulse_edge.runtimes.session import Session

FORMATS: Final = ("text", "json")


def run(
    bundle: str,
    image: Path | None = None,
    record: Path | None = None,
    ask: str | None = None,
    labels: bool = False,
    max_new_tokens: int | None = None,
    require_key: Path | None = None,
    runtime: str | None = None,
    format: str = "text",
    time_limit: float | None = None,
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
        format: ``text``, or ``json`` for one object of ``runtimes/answer_schema.json``.
        time_limit: seconds for the answer, which ends there as far as it came.
        on_text: called with every piece of the answer as it comes.
        report: called with what runs the model, and why.

    Returns:
        ``{"text", "labels", "findings", "finish_reason", "timing_ms": {"preprocess", "vision", "prefill",
        "decode_per_token"}}``; what was not asked for is empty. Labels are probabilities, calibrated if the
        model is, and findings the same with phrase and answer (yes, no, uncertain). With ``json``, also
        ``structured``, the object.

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
    if time_limit is not None and not time_limit > 0:
        raise UserError("--time-limit must be more than 0 seconds.")
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    if format == "json" and (ask is not None or labels):
        raise UserError("--format json is a whole answer by itself. Leave --ask and --labels out.")
    from pulse_edge.commands._open import open_model
    from pulse_edge.ecg.instruct import REPORT_QUESTION

    page = _page(image, record)
    session = open_model(bundle, require_key, runtime)
    report(session.runtime)
    if format == "json":
        answer = session.structured(page, max_new_tokens, time_limit)
        return {**_result(session, answer["report"], answer["findings"]), "structured": answer}
    text, findings = "", {}
    both = ask is None and not labels
    timing, reason = None, None
    if ask is not None or both:
        turns = [(ask or REPORT_QUESTION, None)]
        for piece in session.chat(page, turns, max_new_tokens, time_limit=time_limit):
            text += piece
            on_text(piece)
        timing, reason = dict(session.timing_ms), session.finish_reason
    if labels or both:
        findings = session.findings(page)
    result = _result(session, text.strip(), findings)
    return result if timing is None else {**result, "timing_ms": timing, "finish_reason": reason}


def _result(session: Session, text: str, findings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "text": text,
        "labels": {name: entry["probability"] for name, entry in findings.items()},
        "findings": findings,
        "finish_reason": session.finish_reason,
        "timing_ms": dict(session.timing_ms),
    }


def _page(image: Path | None, record: Path | None) -> Any:
    if image is not None:
        from pulse_edge.image_io import open_image

        return open_image(image, upright=True)
    from pulse_edge.ecg.paper import render
    from pulse_edge.ecg.record import read_record

    return render(read_record(record or "")).image
