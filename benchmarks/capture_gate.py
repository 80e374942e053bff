"""What the quality gate of the capture path lets through: ROC of every check, and silent failures.

    python benchmarks/capture_gate.py ../shared/photos

Takes the annotated photos (their `quality` flags were set by eye), synthesised photos with one known defect
each, photos drawn as people take them from careful to careless, and pictures that are no ECG. Every picture
goes through `rectify` and `judge`. For each check it prints the area under the ROC curve and what its limit
(runtimes/capture/limits.py) catches and falsely alarms. A silent failure is a photo graded good or usable
whose mesh is off by more than 1 mm RMS or whose spacing by more than 2 %, or that does not stand upright,
whatever the reasons say.

With ``--rows FILE`` every picture's measures are added to that file as a line, and pictures that it holds are
not examined again: a run may be stopped, or be cut into slices by ``--minutes``.

Writes benchmarks/results/capture_gate.json and capture_gate.png.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from capture_sets import DEFECTS, LAYOUTS, Shot, lead_boxes, lost_mm, not_ecgs, shoot
from capture_truth import Error, against_lattice, against_photo, read_photos, stands_upright
from machine import describe_machine
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from pulse_edge.ecg.leads import LEADS
from pulse_edge.ecg.paper import GRID_COLOURS
from pulse_edge.ecg.photo import draw_photo_style
from pulse_edge.image_io import open_image
from pulse_edge.runtimes.capture import limits
from pulse_edge.runtimes.capture.quality import REFUSE, Measures, judge
from pulse_edge.runtimes.capture.rectify import rectify

RESULT = Path(__file__).parent / "results" / "capture_gate.json"
SILENT_MM, SILENT_SCALE = 1.0, 0.02
Row = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One check of the gate.

    Attributes:
        name: of the check.
        key: of the measure in a row.
        sign: 1 if larger is worse, -1 if smaller is.
        limit: beyond which a reason is given.
        bad: whether a row has the defect; None leaves it out.
        sets: of rows that are used.
    """

    name: str
    key: str
    sign: int
    limit: float
    bad: Callable[[Row], bool | None]
    sets: tuple[str, ...]


def _has(defect: str) -> Callable[[Row], bool | None]:
    """The defect against photos with nothing wrong."""
    return lambda row: True if row["defect"] == defect else False if row["defect"] == "none" else None


def _flag(name: str) -> Callable[[Row], bool | None]:
    return lambda row: bool(row["flags"][name])


CHECKS = (
    Check("blur", "sharpness", -1, limits.LEAST_SHARPNESS, _has("blur"), ("defects",)),
    Check("blur, real", "sharpness", -1, limits.LEAST_SHARPNESS, _flag("blur"), ("real",)),
    Check("shadow", "evenness", -1, limits.LEAST_EVENNESS, _has("shadow"), ("defects",)),
    Check("shadow, real", "evenness", -1, limits.LEAST_EVENNESS, _flag("shadow"), ("real",)),
    Check("glare", "lost_mm2", 1, limits.MOST_GLARE_MM2, _has("glare"), ("defects",)),
    Check("glare, real", "lost_mm2", 1, limits.MOST_GLARE_MM2, _flag("glare"), ("real",)),
    Check("cut leads", "cut", 1, 0.0, lambda row: row["lost_mm"] > 10, ("defects",)),
    Check("cut leads, real", "cut", 1, 0.0, _flag("crop"), ("real",)),
    Check(
        "grid lost", "seen", -1, limits.LEAST_SEEN,
        lambda row: row["failed"], ("careless", "defects", "real"),
    ),
    Check(
        "nodes astray", "residual_mm", 1, limits.MOST_RESIDUAL_MM,
        lambda row: row["failed"], ("careless", "defects", "real"),
    ),
    Check(
        "no ECG", "trace_mm", -1, limits.LEAST_TRACE_MM,
        lambda row: row["set"] == "no ECG", ("no ECG", "real", "defects", "no grid"),
    ),
    Check(
        "no ECG, no grid", "paper", -1, limits.LEAST_PAPER,
        lambda row: None if row["grid_found"] else row["set"] == "no ECG", ("no ECG", "no grid"),
    ),
)  # fmt: skip


def examine(image: NDArray[np.uint8], kind: str, name: str, **truth: Any) -> tuple[Row, NDArray[np.float64]]:
    """Rectify and judge one picture; its row without what the truth says, and the mesh."""
    found = rectify(image)
    verdict = judge(image, found)
    few = any(reason.startswith("Only ") for reason in verdict.reasons)
    return {"set": kind, "name": name, "grade": verdict.grade, "reasons": list(verdict.reasons),
            "seed": found.seed, "rotation": found.rotation, "upright": found.orientation_sure,
            **_flat(verdict.measures, few), **truth}, found.mesh  # fmt: skip


def _flat(m: Measures, few_rows: bool) -> Row:
    """A row of plain numbers."""
    shade = asdict(m.shade)
    return {
        **{key: value for key, value in shade.items() if not key.endswith("_at")},
        "lost_mm2": m.shade.glare_mm2 + m.shade.covered_mm2,
        "px_per_mm": m.px_per_mm,
        "sharpness": m.sharpness,
        "seen": m.seen,
        "residual_mm": m.residual_mm,
        "trace_mm": m.trace_mm,
        "paper": m.paper,
        "longest_mm": m.longest_mm,
        "swing_mm": m.swing_mm,
        "alone": m.alone,
        "rows": len(m.layout.rows_mm),
        "columns": m.layout.columns,
        # Millimetres cut off a row; 1 for waves that leave by the upper or lower edge, and for missing rows.
        "cut": max([max(cut.lost_mm, 1.0) for cut in m.cuts], default=1.0 if few_rows else 0.0),
        "grid_found": m.grid_found,
    }


def _scored(row: Row, error: Error | None, upright: bool) -> Row:
    off = error is None or error.rms_mm > SILENT_MM or abs(error.scale - 1) > SILENT_SCALE
    figures = {"rms_mm": None, "scale": None} if error is None else {
        "rms_mm": error.rms_mm, "scale": error.scale}  # fmt: skip
    return {**row, **figures, "stands": upright, "failed": bool(off) or not upright}


def real_row(entry: Row, path: Path, lattice: NDArray[np.float64]) -> list[Row]:
    """Examine an annotated photo, scan or digital page."""
    image = np.asarray(open_image(path, upright=True))
    row, mesh = examine(image, "real", entry["file"], flags=entry["quality"], medium=entry["kind"])
    turned = (row["rotation"] - entry["grid_angle_deg"] + 180) % 360 - 180
    return [_scored(row, against_lattice(mesh, lattice), abs(turned) < 45)]


def defect_rows(seed: int) -> list[Row]:
    """Examine photos with one thing wrong, and the same photo with nothing wrong."""
    clean = shoot(seed)
    rows = []
    for name, defect in [("none", None), *DEFECTS.items()]:
        shot = shoot(seed, defect) if defect else clean
        row, mesh = examine(shot.photo.image, "defects", f"{name} {seed}", defect=name)
        row["lost_mm"] = max(lost_mm(shot).values())
        if name == "glare":
            row["named"] = names_what_is_hidden(row["reasons"], shot, clean)
        rows.append(_scored(row, against_photo(mesh, shot.photo), stands_upright(mesh, shot.photo)))
    return rows


def names_what_is_hidden(reasons: list[str], shot: Shot, clean: Shot) -> bool | None:
    """Whether a lead that a highlight hides is named, by the difference to the photo without it.

    Returns:
        None where no lead is named, or none is seen to be hidden.
    """
    brighter = shot.photo.image.astype(np.int16).min(2) - clean.photo.image.astype(np.int16).min(2)
    rows, columns = np.nonzero(brighter > 60)
    said = next((reason for reason in reasons if reason.startswith("Glare over")), "")
    named = set(said.replace(",", " ").replace(":", " ").split()) & set(LEADS)
    if not named or not len(rows):
        return None
    step = max(1, len(rows) // 4000)
    mm = shot.photo.to_paper(columns[::step], rows[::step])
    hidden = {
        lead
        for lead, left, top, right, bottom in lead_boxes(shot)
        if np.mean((mm[:, 0] > left) & (mm[:, 0] < right) & (mm[:, 1] > top) & (mm[:, 1] < bottom)) > 0.05
    }
    return bool(named & hidden) if hidden else None


def careless_row(seed: int) -> list[Row]:
    """Examine a photo as people take them, from careful (severity 1) to hardly legible (2), from any side."""
    rng = random.Random(10_000 + seed)
    severity, width = rng.choice((1.0, 1.5, 2.0)), rng.choice((900, 1300, 1800))
    style = replace(draw_photo_style(rng, severity), quarter_turns=rng.randrange(4))
    size = (width, round(width * 0.7727))
    look = {"layout": rng.choice(LAYOUTS), "grid": rng.choice(list(GRID_COLOURS))}
    shot = shoot(seed, lambda rng, moderate: style, size[:: 1 - style.quarter_turns % 2 * 2], **look)
    row, mesh = examine(shot.photo.image, "careless", f"{severity} {seed}", severity=severity)
    return [_scored(row, against_photo(mesh, shot.photo), stands_upright(mesh, shot.photo))]


def no_grid_row(seed: int) -> list[Row]:
    """Examine a photo of an ECG that was printed on blank paper."""
    return [examine(shoot(seed, grid=None).photo.image, "no grid", str(seed))[0]]


def roc(check: Check, rows: list[Row]) -> dict[str, Any] | None:
    """The figures of one check; None where a class is missing."""
    known = [(row[check.key] * check.sign, check.bad(row)) for row in rows if row["set"] in check.sets]
    used = [(value, is_bad) for value, is_bad in known if is_bad is not None]
    values = np.array([value for value, _ in used], np.float64)
    bad = np.array([is_bad for _, is_bad in used], np.bool_)
    if not len(used) or bad.all() or not bad.any():
        return None
    wrong, right, _ = roc_curve(bad, values)
    said = values > check.limit * check.sign
    return {
        "measure": check.key,
        "limit": check.limit,
        "bad": int(bad.sum()),
        "fine": int((~bad).sum()),
        "auc": round(float(roc_auc_score(bad, values)), 4),
        "caught": round(float(said[bad].mean()), 4),
        "false_alarms": round(float(said[~bad].mean()), 4),
        "curve": [[round(float(x), 4), round(float(y), 4)] for x, y in zip(wrong, right, strict=True)],
    }


def grades(rows: list[Row]) -> dict[str, Any]:
    """How often each grade is given, and how often a failed photo is let through."""
    table: dict[str, Any] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        counts = {grade: sum(row["grade"] == grade for row in own) for grade in ("good", "usable", "refuse")}
        table[name] = {"n": len(own), **counts}
        if all("failed" in row for row in own):
            silent = [row for row in own if row["failed"] and row["grade"] != REFUSE]
            table[name] |= {
                "failed": sum(row["failed"] for row in own),
                "silent": len(silent),
                "silent_share": round(len(silent) / max(1, len(own) - counts["refuse"]), 4),
                "silent_names": [row["name"] for row in silent],
            }
    return table


def _upper(seen: int, n: int) -> float:
    """The rate below which the true one lies with 95 % (Clopper and Pearson, one-sided)."""
    return 1.0 if seen >= n else round(float(beta.ppf(0.95, seen + 1, n - seen)), 4)


def draw(checks: dict[str, Any], path: Path) -> None:
    """Draw every curve in a panel of its own."""
    side, across = 220, 4
    names = list(checks)
    sheet = np.full((-(-len(names) // across) * (side + 40), across * (side + 20), 3), 255, np.uint8)
    for k, name in enumerate(names):
        x0, y0 = (k % across) * (side + 20) + 10, (k // across) * (side + 40) + 30
        cv2.rectangle(sheet, (x0, y0), (x0 + side, y0 + side), (190, 190, 190), 1)
        cv2.line(sheet, (x0, y0 + side), (x0 + side, y0), (220, 220, 220), 1)
        curve = np.array(checks[name]["curve"]) * side
        points = np.round(np.stack([x0 + curve[:, 0], y0 + side - curve[:, 1]], axis=1)).astype(np.int32)
        cv2.polylines(sheet, [points], False, (150, 60, 20), 2, cv2.LINE_AA)
        at = (
            round(x0 + checks[name]["false_alarms"] * side),
            round(y0 + side - checks[name]["caught"] * side),
        )
        cv2.circle(sheet, at, 4, (30, 30, 200), -1, cv2.LINE_AA)
        title = f"{name}: {checks[name]['auc']:.2f}"
        cv2.putText(sheet, title, (x0, y0 - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20, 20, 20), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), sheet)


def jobs(photos: Path | None, count: int, first: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Name every part of the work: the key and what examines it."""
    for entry, path, lattice in read_photos(photos) if photos is not None else []:
        yield f"real {entry['file']}", partial(real_row, entry, path, lattice)
    for k in range(count):
        seed = first + k
        for turn in range(3):
            yield f"careless {first + 3 * k + turn}", partial(careless_row, first + 3 * k + turn)
        yield f"defects {seed}", partial(defect_rows, seed)
        if k % 2:
            yield f"no grid {seed}", partial(no_grid_row, seed)
    for name, image in not_ecgs(max(1, count // 5)):
        yield f"no ECG {name}", partial(lambda *what: [examine(*what)[0]], image, "no ECG", name)


def collect(
    work: Iterator[tuple[str, Callable[[], list[Row]]]], journal: Path | None, until: float
) -> list[Row]:
    """Examine every picture that the journal does not hold, until a time; the rows of all."""
    rows: dict[str, list[Row]] = {}
    if journal is not None and journal.is_file():
        for line in journal.read_text(encoding="utf-8").splitlines():
            rows.update(json.loads(line))
    for key, examine_it in work:
        if key in rows:
            continue
        if time.monotonic() > until:
            print(f"time is up before {key!r}; the same command goes on there", flush=True)
            break
        rows[key] = examine_it()
        if journal is not None:
            with journal.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({key: rows[key]}, default=float) + "\n")
    return [row for some in rows.values() for row in some]


def options(what: str, count: int, output: Path) -> argparse.Namespace:
    """Read the command line of a benchmark that goes on from a journal; capture_hard.py's too."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("photos", type=Path, nargs="?", help="folder with annotations.json")
    parser.add_argument("--count", type=int, default=count, help="synthesised photos of each kind")
    parser.add_argument("--seed", type=int, default=0, help="other synthesised photos: 1, 2, ...")
    parser.add_argument("--output", type=Path, default=output, help="where the figures are written")
    parser.add_argument(
        "--rows", type=Path, help="journal of every picture's measures, from which it goes on"
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long, with what there is")
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write the files."""
    args = options("ROC of the quality gate's checks, and silent failures.", 40, RESULT)
    if args.count < 5:
        raise SystemExit("--count must be at least 5")
    cv2.setNumThreads(1)
    about = describe_machine()
    work = jobs(args.photos, args.count, 100_000 * args.seed)
    rows = collect(work, args.rows, time.monotonic() + 60 * args.minutes)
    report(rows, {**about, "seed": args.seed, "count": args.count}, args.output)


def report(rows: list[Row], about: dict[str, Any], output: Path) -> None:
    """Print and write the figures of examined pictures."""
    checks = {check.name: figures for check in CHECKS if (figures := roc(check, rows))}
    print(f"{'check':<22} {'bad':>4} {'fine':>5} {'AUC':>6} {'limit':>8} {'caught':>7} {'false alarms':>13}")
    for name, f in checks.items():
        print(
            f"{name:<22} {f['bad']:>4} {f['fine']:>5} {f['auc']:>6.3f} {f['limit']:>8g} "
            f"{f['caught']:>7.0%} {f['false_alarms']:>13.0%}"
        )
    table = grades(rows)
    shown = [row for row in rows if "failed" in row and row["grade"] != REFUSE]
    silent = sum(row["failed"] for row in shown)
    print(f"silent failures: {silent} of {len(shown)} pictures graded good or usable")
    print(f"{'set':<10} {'n':>4} {'good':>5} {'usable':>7} {'refuse':>7} {'failed':>7} {'silent':>7}")
    for name, g in table.items():
        print(
            f"{name:<10} {g['n']:>4} {g['good']:>5} {g['usable']:>7} {g['refuse']:>7} "
            f"{g.get('failed', ''):>7} {g.get('silent', ''):>7}"
        )
    named = [row["named"] for row in rows if row.get("named") is not None]
    print(f"glare: of {len(named)} photos with a lead named, {sum(named)} name one that is hidden")
    accepted = [row["name"] for row in rows if row["set"] == "no ECG" and row["grade"] != REFUSE]
    print(f"no ECG, yet accepted: {', '.join(accepted) or 'none'}")
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": "capture_gate",
        **about,
        "checks": checks,
        "grades": table,
        "silent": {"n": len(shown), "silent": silent, "below_95": _upper(silent, len(shown))},
        "glare_named": {"n": len(named), "right": sum(named)},
        "no_ecg_accepted": accepted,
    }
    output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draw(checks, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
