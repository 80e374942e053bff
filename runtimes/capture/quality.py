"""The quality gate: may a photo be read, and if not, what should the person do?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture import limits
from pulse_edge.runtimes.capture.focus import sharpness
from pulse_edge.runtimes.capture.framing import Cut, find_cuts
from pulse_edge.runtimes.capture.ink import Ink, Row, find_ink
from pulse_edge.runtimes.capture.layout import RHYTHM, Layout, find_layout, spoken
from pulse_edge.runtimes.capture.mesh import STEP_MM
from pulse_edge.runtimes.capture.rectify import SEEN, Rectified
from pulse_edge.runtimes.capture.shade import Shade, find_shade
from pulse_edge.runtimes.capture.sheet import Sheet, flatten

GOOD, USABLE, REFUSE = GRADES = ("good", "usable", "refuse")


@dataclass(frozen=True)
class Measures:
    """What the gate looks at; each is described where it is measured.

    Attributes:
        px_per_mm: the smaller of the two.
        sharpness: :func:`~pulse_edge.runtimes.capture.focus.sharpness`.
        shade: light and cover.
        cuts: traces that run into the frame.
        seen: share of the mesh's nodes within the photo at which the grid is seen.
        residual_mm: of single nodes.
        trace_mm: length of all rows of traces.
        longest_mm: of the longest row.
        paper: share of the sheet that is about as bright as the paper around it.
        swing_mm: the largest of the rows.
        alone: the median of the rows: no other ink beside the trace.
        upright: how sure it is which way up the page is.
        layout: where leads stand.
        grid_found: whether the page was found by its grid.
    """

    px_per_mm: float
    sharpness: float
    shade: Shade
    cuts: tuple[Cut, ...]
    seen: float
    residual_mm: float
    trace_mm: float
    longest_mm: float
    paper: float
    swing_mm: float
    alone: float
    upright: float
    layout: Layout
    grid_found: bool


@dataclass(frozen=True)
class Verdict:
    """A grade and why.

    Attributes:
        grade: good, usable or refuse.
        reasons: sentences for the person at the bedside, what weighs most first; none for a good photo.
        measures: what they rest on.
    """

    grade: str
    reasons: tuple[str, ...]
    measures: Measures


@dataclass
class _Findings:
    refused: list[str] = field(default_factory=list)
    limited: list[str] = field(default_factory=list)

    def add(self, is_bad: bool, is_limited: bool, reason: str) -> None:
        if is_bad:
            self.refused.append(reason)
        elif is_limited:
            self.limited.append(reason)


def judge(image: NDArray[np.uint8], found: Rectified) -> Verdict:
    """Grade a photo.

    Args:
        image: uint8 [H, W, 3], RGB, that was rectified.
        found: the result.

    Returns:
        The verdict. ``refuse`` means that nothing read from this photo may be trusted.
    """
    measures = measure(image, found)
    findings = _Findings()
    no_ecg = _is_no_ecg(measures)
    if no_ecg:
        return Verdict(REFUSE, (no_ecg,), measures)
    _look_at_place(measures, findings)
    if not _is_lost(measures):  # else nothing is known of places
        _look_at_light(measures, findings)
        _look_at_frame(measures, findings)
    grade = REFUSE if findings.refused else USABLE if findings.limited else GOOD
    return Verdict(grade, tuple(findings.refused + findings.limited), measures)


def measure(image: NDArray[np.uint8], found: Rectified) -> Measures:
    """Measure everything that the gate looks at; see :func:`judge`."""
    sheet = flatten(image, found.mesh)
    ink = find_ink(sheet)
    ink = replace(ink, rows=tuple(row for row in ink.rows if not _is_an_edge(row, found)))
    cuts = find_cuts(sheet, ink)
    edges = {cut.edge for cut in cuts}
    layout = find_layout(ink.rows, "left" in edges, "right" in edges)
    x, y = found.mesh[..., 0], found.mesh[..., 1]
    height, width = image.shape[:2]
    inside = (x > 0) & (y > 0) & (x < width - 1) & (y < height - 1)
    return Measures(
        px_per_mm=min(found.px_per_mm),
        sharpness=sharpness(ink),
        shade=find_shade(sheet, ink, found.mesh, found.strength, layout),
        cuts=tuple(cuts),
        seen=float((found.strength[inside] > SEEN).mean()) if inside.any() else 0.0,
        residual_mm=found.residual_mm,
        trace_mm=sum((row.x_mm[1] - row.x_mm[0]) * row.covered for row in ink.rows),
        longest_mm=max((row.x_mm[1] - row.x_mm[0] for row in ink.rows), default=0.0),
        paper=_plain(sheet, ink),
        swing_mm=max((row.swing_mm for row in ink.rows), default=0.0),
        alone=float(np.median([row.alone for row in ink.rows])) if ink.rows else 0.0,
        upright=found.orientation_sure,
        layout=layout,
        grid_found=found.grid_found,
    )


_STRAIGHT_MM: Final = 1.6
_STEP: Final = 0.1
_BESIDE_MM: Final = 7.5


def _is_an_edge(row: Row, found: Rectified) -> bool:
    """Whether a row of traces is the edge of the sheet: straight or a step in light, a grid on one side."""
    if not found.grid_found:
        return row.step > _STEP
    if row.swing_mm > _STRAIGHT_MM and row.step < _STEP:
        return False
    columns = slice(*(int(np.clip(x / STEP_MM, 0, found.mesh.shape[1])) for x in row.x_mm))
    for y in (row.y_mm - _BESIDE_MM, row.y_mm + _BESIDE_MM):
        node = round(y / STEP_MM)
        if not 0 <= node < len(found.mesh):
            return True  # a trace at the photo's own frame is seen to move
        if np.median(found.strength[node, columns]) < SEEN / 2:
            return True
    return False


_PLAIN: Final = 0.12  # darkness up to which a pixel counts as paper


def _plain(sheet: Sheet, ink: Ink) -> float:
    return float((np.abs(ink.lines[sheet.seen]) < _PLAIN).mean()) if sheet.seen.any() else 0.0


def _is_lost(m: Measures) -> bool:
    """Whether a grid was found that cannot be followed over the page."""
    bad = m.seen < limits.REFUSED_SEEN or m.residual_mm > limits.REFUSED_RESIDUAL_MM
    return m.grid_found and bad


_WHICH_WAY: Final = "It is not clear which way up the page is: hold it upright before the camera."


def _is_no_ecg(m: Measures) -> str:
    """Say why a picture is no ECG; empty if it may be one."""
    traces = m.trace_mm >= limits.LEAST_TRACE_MM and m.swing_mm >= limits.LEAST_SWING_MM
    if m.grid_found:
        if traces and m.alone >= limits.LEAST_ALONE_ON_GRID:
            sideways = m.alone < limits.LEAST_ALONE_UPRIGHT and m.longest_mm < limits.LONGEST_SIDEWAYS_MM
            return _WHICH_WAY if sideways else ""
        return "No ECG trace is visible on this paper: photograph the page with the traces."
    rows = len(m.layout.rows_mm)
    bare = m.paper >= limits.LEAST_PAPER and m.alone >= limits.LEAST_ALONE
    if traces and rows >= limits.LEAST_ROWS_WITHOUT_GRID and bare:
        return ""
    return "This does not look like an ECG: no grid and no traces were found."


def _look_at_place(m: Measures, findings: _Findings) -> None:
    """Look at orientation, distance, focus and flatness; where the grid is lost, say what explains it."""
    lost = _is_lost(m)
    blurred = m.sharpness < limits.LEAST_SHARPNESS
    far = m.grid_found and m.px_per_mm < limits.LEAST_PX_PER_MM
    findings.add(False, m.upright < limits.LEAST_UPRIGHT, _WHICH_WAY)
    if not m.grid_found:
        findings.add(False, True, "No grid was found: distances on this page are a guess.")
    findings.add(
        m.grid_found and m.px_per_mm < limits.REFUSED_PX_PER_MM,
        far,
        f"Move closer: {int(10 * m.px_per_mm) / 10:.1f} px/mm, at least {limits.LEAST_PX_PER_MM:g} needed.",
    )
    findings.add(
        m.sharpness < limits.REFUSED_SHARPNESS or (lost and blurred),
        blurred,
        "Hold still and let the camera focus: the traces are blurred.",
    )
    uneven = m.seen < limits.LEAST_SEEN or m.residual_mm > limits.MOST_RESIDUAL_MM
    if m.grid_found and not (blurred and lost):
        findings.add(lost, uneven, "Flatten the paper: its grid cannot be followed everywhere.")


def _look_at_light(m: Measures, findings: _Findings) -> None:
    shade, layout = m.shade, m.layout
    findings.add(
        shade.glare_mm2 > limits.REFUSED_GLARE_MM2,
        shade.glare_mm2 > limits.MOST_GLARE_MM2,
        f"Glare over {_where(layout, shade.glare_at)}: tilt the page or move the lamp.",
    )
    findings.add(
        shade.covered_mm2 > limits.REFUSED_COVERED_MM2,
        shade.covered_mm2 > limits.MOST_COVERED_MM2,
        f"The grid cannot be seen over {_where(layout, shade.covered_at)}: clear and flatten the page.",
    )
    findings.add(False, shade.level < limits.LEAST_LEVEL, "Too dark: turn on a light.")
    findings.add(
        False,
        shade.evenness < limits.LEAST_EVENNESS,
        f"Shadow over {_where(layout, shade.dark_at)}: let the light fall evenly.",
    )


_NAMED: Final = 3  # leads in one sentence; more are a part of the page
_SHARE: Final = 0.15  # of the affected area that a lead must hold to be named


def _where(layout: Layout, places: tuple[tuple[float, float], ...]) -> str:
    """Name the leads at places, or the part of the page if they are many."""
    if not places:
        return "the page"
    names = [layout.lead_at(x, y) for x, y in places]
    counts = {name: names.count(name) for name in names}
    chief = [name for name, count in counts.items() if count >= _SHARE * len(names)]
    if chief and len(chief) <= _NAMED:
        return spoken(chief)
    middle = np.median(places, axis=0)
    return f"{layout.region(float(middle[0]), float(middle[1]))} of the page"


def _look_at_frame(m: Measures, findings: _Findings) -> None:
    rows = len(m.layout.rows_mm)
    if rows not in _USUAL_ROWS:
        what = f"{rows} rows of leads are" if rows > 1 else "1 row of leads is"
        findings.add(rows < 2, True, f"Only {what} visible: show the whole page.")
    for edge in ("left", "right", "top", "bottom"):
        cuts = [cut for cut in m.cuts if cut.edge == edge]
        if cuts:
            lost = max(cut.lost_mm for cut in cuts)
            what = _what_is_cut(m.layout, cuts)
            findings.add(lost > limits.REFUSED_LOST_MM, True, f"{what} cut off at the {edge} edge.")


# Three rows of four, six of two or twelve leads, with up to three rhythm strips below.
_USUAL_ROWS: Final = (3, 4, 5, 6, 7, 8, 12, 13)


def _what_is_cut(layout: Layout, cuts: list[Cut]) -> str:
    inward = {"left": 5.0, "right": -5.0}.get(cuts[0].edge, 0.0)
    names = {layout.lead_at(cut.at_mm[0] + inward, cut.at_mm[1]) for cut in cuts}
    if not layout.columns:
        return "The page is"
    if len(names) > 1:
        names.discard(RHYTHM)  # it repeats one of the leads
    if len(names) > _NAMED:
        return f"{len(names)} leads are"
    text = spoken(names)
    if names != {RHYTHM}:
        text = f"{'Leads' if len(names) > 1 else 'Lead'} {text}"
    return f"{text[0].upper()}{text[1:]} {'are' if len(names) > 1 else 'is'}"
