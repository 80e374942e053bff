"""How far pulse-nano's probabilities can be trusted: reliability and confusion, on PTB-XL's test patients and
on the other databases of the table.

    python benchmarks/calibration.py ../shared/ecg/labels.csv

The calibration is the one in the model's card, fitted to validation patients (`pulse-edge calibrate`). Prints
a table, writes benchmarks/results/calibration.json and calibration.png. Three minutes on two quiet cores.

The other databases have no superclasses: a class is present where a code of PTB-XL's is stated that its
scp_statements.csv puts into the class (translated by train/sources/snomed_codes.py), not known where a code
leaves it open, and absent otherwise, as far as a table that never says "absent" can tell. Whether such a
record is normal is not known unless a class is present. They are few; read the counts, not the shares.
"""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from pulse_edge import load
from pulse_edge.chart import Counts, Lines, draw
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.errors import RecordError
from pulse_edge.evaluate.calibration import uncalibrated
from pulse_edge.evaluate.labels import read_labels
from pulse_edge.evaluate.reliability import (
    brier,
    calibrate_scores,
    confusion,
    ece,
    reliability,
    report_calibration,
)
from pulse_edge.evaluate.score import Scored, auroc, score_records
from pulse_edge.train.sources.snomed_codes import MEANINGS

RESULT = Path(__file__).parent / "results" / "calibration.json"
CLASSES = {
    "MI": "IMI ASMI AMI ALMI ILMI LMI PMI IPMI IPLMI INJAS INJAL INJIN INJIL INJLA",
    "STTC": "NDT NST_ DIG LNGQT ISC_ ISCAL ISCIL ISCIN ISCAS ISCLA ISCAN ANEUR EL",
    "CD": "CLBBB CRBBB ILBBB IRBBB LAFB LPFB IVCD 1AVB 2AVB 3AVB WPW",
    "HYP": "LVH RVH SEHYP LAO/LAE RAO/RAE",
}
ANSWERS = ("yes", "uncertain", "no")


def main() -> None:
    """Score, compare, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="checkpoint folder, bundle or shipped name")
    parser.add_argument("--limit", type=int, help="at most so many records of each set, for a trial")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    session = load(options.model)
    calibration = session.calibration or uncalibrated(session.labels)
    scored = score_records(session, options.labels, "test", options.limit)
    after = calibrate_scores(scored, calibration)
    test = {
        "n": len(scored.truth),
        "patients": len(set(scored.patients)),
        "auroc": auroc(scored.truth, scored.score, scored.names),
        **report_calibration(scored, calibration),
        "reliability": {
            "before": reliability(scored.score, scored.truth),
            "after": reliability(after, scored.truth),
            **{name: reliability(after[:, k], scored.truth[:, k], 6) for k, name in enumerate(scored.names)},
        },
    }
    page_scores: dict[str, dict[str, float] | None] = {}
    others = {
        name: measure_other(session, calibration, options.labels, rows[: options.limit], page_scores)
        for name, rows in other_databases(options.labels).items()
    }
    report = {
        "command": "python benchmarks/calibration.py",
        **describe_machine(),
        "model": str(options.model),
        "calibrated": session.calibration is not None,
        "band": list(calibration.band),
        "test": test,
        "others": others,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".png").write_bytes(picture(test, others, scored))
    print_table(test, others)


def other_databases(labels: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of each database but PTB-XL whose codes are all known, and all of them together."""
    found: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
    for row in read_labels(labels):
        known = row["scheme"] == "snomed" and row["database"] != "ptbxl"
        if known and set(row["codes"].split(";")) <= MEANINGS.keys():
            found[row["database"]].append(row)
    together = [row for rows in found.values() for row in rows]
    return {**dict(sorted(found.items())), "all of these": together}


def truth_of(codes: str) -> dict[str, bool | None]:
    """Whether a record shows each superclass; None where its codes do not tell."""
    meanings = [MEANINGS[code] for code in codes.split(";")]
    stated = frozenset[str]().union(*(meaning.stated for meaning in meanings))
    doubtful = frozenset[str]().union(*(meaning.open for meaning in meanings))
    known: dict[str, bool | None] = {}
    for name, text in CLASSES.items():
        group = set(text.split())
        known[name] = True if stated & group else None if doubtful & group else False
    known["NORM"] = False if any(known.values()) else None
    return known


def measure_other(
    session: Any,
    calibration: Any,
    labels: Path,
    rows: list[dict[str, str]],
    page_scores: dict[str, dict[str, float] | None],
) -> dict[str, Any]:
    """Figures of one database over all (record, label) pairs with a known truth; ``page_scores`` is kept."""
    names = list(session.labels)
    scores, truths = [], []
    for row in rows:
        name = row["record"]
        if name not in page_scores:
            try:
                page_scores[name] = session.label(render(read_record(labels.parent / name)).image)
            except RecordError:
                page_scores[name] = None
        said, known = page_scores[name], truth_of(row["codes"])
        if said is None:
            continue
        scores.append([said[name] for name in names])
        truths.append([known[name] for name in names])
    score = np.array(scores)
    blank = [str(k) for k in range(len(score))]
    after = calibrate_scores(
        Scored(names, blank, blank, score, np.zeros(score.shape, bool), {}, 0.0), calibration
    )
    table, pairs = {}, []
    for k, name in enumerate(names):
        told = [j for j, truth in enumerate(truths) if truth[k] is not None]
        true = np.array([bool(truths[j][k]) for j in told], bool)
        table |= confusion(after[told][:, [k]], true[:, None], [name], calibration)
        pairs += [(score[j, k], after[j, k], bool(truths[j][k])) for j in told]
    before, now, true = (np.array(column) for column in zip(*pairs, strict=True))
    return {
        "n": len(score),
        "pairs": len(pairs),
        "before": {"ece": ece(before, true), "brier": brier(before, true)},
        "after": {"ece": ece(now, true), "brier": brier(now, true)},
        "reliability": reliability(now, true, 6),
        "confusion": table,
    }


def picture(test: dict[str, Any], others: dict[str, Any], scored: Scored) -> bytes:
    """Reliability of all labels, of each, of the other databases; and both confusions."""

    def points(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
        return [(row["probability"], row["true"]) for row in rows]

    def panel(title: str, lines: dict[str, list[dict[str, Any]]]) -> Lines:
        drawn = {name: points(rows) for name, rows in lines.items()}
        return Lines(title, ("probability", "share true"), drawn, (0, 1), (0, 1), True, True)

    def counts(title: str, table: dict[str, Any]) -> Counts:
        rows = {
            f"{name} {side}": [cells[side][answer] for answer in ANSWERS]
            for name, cells in table.items()
            for side in ("present", "absent")
        }
        return Counts(title, ANSWERS, rows)

    curves, other = test["reliability"], others["all of these"]
    title = f"PTB-XL test, {test['n']} records"
    return draw(
        [
            panel(f"{title}: all labels", {"before": curves["before"], "after": curves["after"]}),
            panel(f"{title}: each label", {name: curves[name] for name in scored.names}),
            panel(f"Other databases, {other['n']} records", {"after": other["reliability"]}),
            counts(f"{title}: answers", test["confusion"]),
            counts(f"Other databases, {other['n']} records: answers", other["confusion"]),
        ],
        across=3,
    )


def print_table(test: dict[str, Any], others: dict[str, Any]) -> None:
    """Print one line for each set, and the answers on PTB-XL."""
    print(f"{'':18s}{'records':>8s}{'ECE':>8s}{'after':>8s}{'Brier':>8s}{'after':>8s}")
    for name, row in {"PTB-XL test": test, **others}.items():
        cells = [row[side][key] for key in ("ece", "brier") for side in ("before", "after")]
        print(f"{name:18s}{row['n']:8d}" + "".join(f"{cell:8.4f}" for cell in cells))
    chosen = test["selective"]
    print(
        f"{chosen['coverage']:.1%} of the answers given, {chosen['risk']:.1%} of them wrong; "
        f"{chosen['risk_at_half']:.1%} of all at 0.5"
    )
    for name, cells in test["confusion"].items():
        sides = [f"{side}: " + ", ".join(f"{n} {a}" for a, n in cells[side].items()) for side in cells]
        print(f"{name:6s}{'; '.join(sides)}")


if __name__ == "__main__":
    main()
