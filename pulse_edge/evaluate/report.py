"""The certificate of a compressed model: one HTML file that shows what a step cost, for people to judge.

It refers to nothing outside itself: style and pictures are inside, there is no script, and its policy tells
the browser to load nothing. Figures carry their full value beside the rounded one (``data-value``). Nothing
in it names a time or a place, so that the same step gives the same file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.bundle import write_atomic
from pulse_edge.contract import REPORT
from pulse_edge.device import load_device
from pulse_edge.fit import TARGET_OF, Setup, fit
from pulse_edge.model.checkpoint import read_card
from pulse_edge.roofline import speed
from pulse_edge.shape import ModelShape, read_shape

DEVICES: Final = ("orin-nano-8gb", "orin-nx-16gb", "iphone-15-pro", "ipad-m4", "x86-cpu", "raspberry-pi-5")
_WIDTH: Final = 1000  # pixels of a page that is shown
_QUALITY: Final = 60  # of its JPEG
_STYLE: Final = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;margin:.6rem 0}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%;border:1px solid #ccc}"
    ".verdict{padding:.6rem 1rem;border-left:.4rem solid #2e7d32;background:#f1f8f1}"
    ".broken{border-color:#c62828;background:#fdf2f2}.note{color:#555;font-size:.9rem}"
    "td.text{text-align:left;max-width:26rem}svg{max-width:28rem}"
)
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
Cell = str | float | int | None


def write_report(
    folder: Path, parent: Path, row: Mapping[str, Any], pages: Sequence[NDArray[np.uint8]]
) -> Path:
    """Write ``report.html`` into a checkpoint's folder.

    Args:
        folder: of the compressed checkpoint, complete but for the card's last row.
        parent: folder of the checkpoint that the step began with.
        row: of :func:`pulse_edge.evaluate.certify.certify`.
        pages: uint8 [H, W, 3] RGB, of the records in ``row["worst"]``.
    """
    card = read_card(folder)
    parts = [
        f"<h1>{escape(str(card['name']))}: {escape(str(row['stage']))}</h1>",
        f"<p>{escape(str(card['recipe']))}</p>",
        _verdict(row),
        _chain([*card["metrics"], row]),
        _sizes(folder, parent),
        _accuracy(row),
        _flips(row),
        _calibration(row),
        _blank(row),
        _worst(row, pages),
        f'<p class="note">{escape(card["intended_use"] or "Research use; not a medical device.")}</p>',
    ]
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(str(card['name']))}, {escape(str(row['stage']))}</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    write_atomic(folder / REPORT, text.encode())
    return folder / REPORT


def _verdict(row: Mapping[str, Any]) -> str:
    loss, interval = row["loss"], row["loss_interval"]
    within = f" (95 % interval {interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
    cost = "not known" if loss is None else f"{loss:+.4f}{within}"
    said = "Within its budget." if row["passed"] else f"Kept beyond its budget: {'; '.join(row['accepted'])}."
    budget = row["budget"]
    return (
        f'<p class="verdict{"" if row["passed"] else " broken"}"><b>{escape(said)}</b> '
        f"Loss of macro AUROC {escape(cost)}, {budget['auroc']} allowed; {row['flip_share']:.2%} of the "
        f"labels flipped, {budget['flips']:.2%} allowed. {row['n']} ECGs of {row['patients']} patients, "
        f"{escape(row['set'])}.</p>"
    )


def _chain(rows: Iterable[Mapping[str, Any]]) -> str:
    body: list[list[Cell]] = []
    for row in rows:
        macro = (row.get("auroc") or {}).get("macro")
        verdict = {True: "passed", False: "; ".join(row.get("accepted", ())), None: ""}[row.get("passed")]
        loss, interval = row.get("loss"), row.get("loss_interval")
        within = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""
        body.append(
            [row.get("stage", ""), row.get("set") or "not measured", row.get("n"), macro, loss, within,
             row.get("flip_share"), verdict]
        )  # fmt: skip
    heads = ("stage", "measured on", "ECGs", "macro AUROC", "loss", "95 % interval", "labels flipped", "gate")
    return _section(
        "Accuracy chain", _table("chain", heads, body, ("", "", "d", ".4f", "+.4f", "", ".2%", ""))
    )


def _sizes(folder: Path, parent: Path) -> str:
    """Bytes on the disk, and what the roofline says of some devices; see docs/plan.md."""
    sizes = [sum(p.stat().st_size for p in f.glob("*.safetensors")) for f in (parent, folder)]
    shapes = [read_shape(f) for f in (parent, folder)]
    weights: list[list[Cell]] = [["weights, MB", *(size / 1e6 for size in sizes)]]
    weights.append(["parameters, millions", *(shape.parameters / 1e6 for shape in shapes)])
    body, extrapolated = [], False
    for name in DEVICES:
        device = load_device(name)
        cells: list[Cell] = [device.title]
        for shape in shapes:
            found = _speed(shape, name)
            extrapolated |= bool(found["extrapolated"])
            cells += [found["decode"], found["report"], found["fits"]]
        body.append(cells)
    heads = (
        "",
        *(f"{what}, {when}" for when in ("before", "after") for what in ("tokens/s", "report s", "fits")),
    )
    note = "Estimates of the roofline model (docs/plan.md), not measurements"
    note += "; this model is far smaller than any that they were fitted to." if extrapolated else "."
    return _section(
        "Size and predicted speed",
        _table("size", ("", "before", "after"), weights, ("", ".2f", ".2f")),
        _table("speed", heads, body, ("", ".0f", ".2f", "", ".0f", ".2f", "")),
        f'<p class="note">{note}</p>',
    )


def _speed(shape: ModelShape, name: str) -> dict[str, Any]:
    device = load_device(name)
    setup = Setup(precision=shape.integers or "fp16", target=TARGET_OF[device.kind])
    found, fits = speed(shape, device, setup), fit(shape, device, setup)["fits"]
    decode, report = found["decode_tokens_s"], found["report_s"]
    return {
        "decode": decode and decode["value"],
        "report": report and report["value"],
        "fits": {True: "yes", False: "no", None: "unknown"}[fits],
        "extrapolated": found["extrapolated"],
    }


def _accuracy(row: Mapping[str, Any]) -> str:
    body: list[list[Cell]] = []
    for name, after in row["auroc"].items():
        before = row["auroc_before"][name]
        gap = None if before is None or after is None else before - after
        body.append([name, before, _range(row, "before", name), after, _range(row, "after", name), gap])
    heads = ("diagnosis", "before", "95 % interval", "after", "95 % interval", "loss")
    return _section("AUROC by diagnosis", _table("auroc", heads, body, ("", ".4f", "", ".4f", "", "+.4f")))


def _range(row: Mapping[str, Any], when: str, name: str) -> str:
    found = row["intervals"][when][name]
    return f"{found[0]:.4f} to {found[1]:.4f}" if found else ""


def _flips(row: Mapping[str, Any]) -> str:
    keys = ("yes_yes", "yes_no", "no_yes", "no_no")
    body: list[list[Cell]] = [[name, *(cells[key] for key in keys)] for name, cells in row["matrix"].items()]
    heads = ("diagnosis", "yes, stays yes", "yes becomes no", "no becomes yes", "no, stays no")
    note = '<p class="note">Answers at a probability of 0.5, before and after; right or wrong alike.</p>'
    return _section("Flips", _table("flips", heads, body, ("", *4 * ("d",))), note)


def _calibration(row: Mapping[str, Any]) -> str:
    curves = row["calibration"]
    body: list[list[Cell]] = [[when, curves[when]["ece"]] for when in ("before", "after")]
    lines = []
    for when, colour in (("before", "#888888"), ("after", "#1565c0")):
        points = [(40 + 240 * p, 260 - 240 * rate, n) for p, rate, n in curves[when]["bins"]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">'
            f"<title>{when}: {n} answers</title></circle>"
            for x, y, n in points
        ]
    frame = (
        '<rect x="40" y="20" width="240" height="240" fill="none" stroke="#bbb"/>'
        '<line x1="40" y1="260" x2="280" y2="20" stroke="#ccc" stroke-dasharray="4"/>'
        '<text x="160" y="285" text-anchor="middle" font-size="12">probability that is said</text>'
        '<text x="16" y="140" font-size="12" text-anchor="middle" transform="rotate(-90 16 140)">'
        "share that is true</text>"
        '<text x="290" y="40" font-size="12" fill="#888888">before</text>'
        '<text x="290" y="58" font-size="12" fill="#1565c0">after</text>'
    )
    svg = f'<svg viewBox="0 0 340 295" role="img" aria-label="calibration">{frame}{"".join(lines)}</svg>'
    table = _table("calibration", ("", "expected calibration error"), body, ("", ".4f"))
    return _section("Calibration", svg, table)


def _blank(row: Mapping[str, Any]) -> str:
    before, after = row["blank_image"]["before"], row["blank_image"]["after"]
    body: list[list[Cell]] = [[name, before[name], after[name]] for name in before]
    note = (
        '<p class="note">Probabilities on paper without a trace: the same for every patient, so that '
        "their AUROC is 0.5: what a diagnosis scores above it comes from the picture.</p>"
    )
    return _section(
        "Blank paper", _table("blank", ("diagnosis", "before", "after"), body, ("", ".4f", ".4f")), note
    )


def _worst(row: Mapping[str, Any], pages: Sequence[NDArray[np.uint8]]) -> str:
    parts = ['<p class="note">The ECGs whose probabilities moved most.</p>']
    for number, (page, image) in enumerate(zip(row["worst"], pages, strict=True)):
        truth = ", ".join(page["truth"]) or "none of the labels"
        parts.append(f"<h3>{escape(page['record'])}</h3><p>Annotated: {escape(truth)}</p>")
        parts.append(f'<img alt="{escape(page["record"])}" src="data:image/jpeg;base64,{_jpeg(image)}">')
        body: list[list[Cell]] = [
            [name, page["before"][name], page["after"][name]] for name in page["before"]
        ]
        parts.append(_table(f"worst-{number}", ("diagnosis", "before", "after"), body, ("", ".4f", ".4f")))
        parts += [
            f'<p id="answer-{number}-{when}"><b>{when}:</b> {escape(answer)}</p>'
            for when, answer in zip(("before", "after"), page["answers"], strict=True)
        ]
    return _section("Worst pages", *parts)


def _jpeg(image: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((_WIDTH, _WIDTH))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def _table(name: str, heads: Sequence[str], body: Iterable[Sequence[Cell]], forms: Sequence[str]) -> str:
    """A table with the id ``name``; ``forms`` say how the numbers of a column are rounded."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    rows = "".join(
        "<tr>" + "".join(_cell(cell, form) for cell, form in zip(cells, forms, strict=True)) + "</tr>"
        for cells in body
    )
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _cell(cell: Cell, form: str) -> str:
    if cell is None:
        return "<td></td>"
    if isinstance(cell, str):
        return f'<td class="text">{escape(cell)}</td>'
    return f'<td data-value="{cell!r}">{cell:{form}}</td>'
