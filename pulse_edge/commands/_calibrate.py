"""`calibrate`: what a checkpoint's probabilities are worth, written into its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError


def calibrate(
    checkpoint: str,
    records: Path,
    risk: float = 0.1,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Fit a checkpoint's calibration to the validation patients of a table, and rewrite its card.

    Nothing but ``pulse.json`` changes, and its line in ``SHA256SUMS`` where the folder has one. Bundles that
    are exported afterwards carry it.

    Args:
        checkpoint: folder, or shipped name.
        records: labels.csv with patient_id; only its validation patients are read.
        risk: largest share of wrong answers among those that are not ``uncertain``.
        tick: called with records done and in all.

    Returns:
        ``{"checkpoint", "calibration"}``; see ``evaluate.calibration_fit.fit_calibration``.

    Raises:
        UserError: the table cannot be used or has too few validation patients.
        CheckpointError: the checkpoint cannot be used.
    """
    if not 0 < risk < 0.5:
        raise UserError("--risk must be a share above 0 and below 0.5, for example 0.1.")
    from pulse_edge.contract import MANIFEST
    from pulse_edge.evaluate.labels import read_labels
    from pulse_edge.model.checkpoint import resolve_model

    if (Path(checkpoint) / MANIFEST).is_file():
        raise UserError(
            f"{checkpoint} is a bundle, whose manifest is not changed. Calibrate the checkpoint that it came "
            "from, and export it again."
        )
    folder = resolve_model(checkpoint)
    records = Path(records)
    read_labels(records)  # complain about the file before a model is loaded
    return {"checkpoint": str(folder), "calibration": fit_card(folder, records, risk, None, tick)}


def fit_card(
    folder: Path,
    records: Path,
    risk: float = 0.1,
    limit: int | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Fit a checkpoint's calibration to validation patients, write it into its card and return it.

    Args:
        folder: of the checkpoint.
        records: labels.csv.
        risk: see :func:`calibrate`.
        limit: at most so many records.
        tick: called with records done and in all.

    Raises:
        UserError: too few validation patients.
    """
    from pulse_edge.evaluate.calibration_fit import fit_calibration
    from pulse_edge.evaluate.score import score_records
    from pulse_edge.model.checkpoint import write_card_field
    from pulse_edge.runtimes.load import load

    scored = score_records(load(folder, own=True), records, "validation", limit, None, tick)
    found = fit_calibration(scored, risk)
    found["fit"] = {"set": f"validation patients of {records.name}", **found["fit"]}
    write_card_field(folder, "calibration", found)
    return found


def calibrate_trained(folder: Path, data: Path) -> dict[str, Any] | None:
    """Fit the calibration of a checkpoint that was just trained, on its data's validation patients.

    Args:
        folder: of the checkpoint; its card is rewritten.
        data: of the training, in any layout of ``train.sources``.

    Returns:
        The calibration; None where the patients are too few, and the model stays without one.
    """
    import time

    import numpy as np

    from pulse_edge.ecg.paper import render
    from pulse_edge.evaluate.calibration_fit import MIN_PATIENTS, fit_calibration
    from pulse_edge.evaluate.score import Scored
    from pulse_edge.model.checkpoint import write_card_field
    from pulse_edge.runtimes.load import load
    from pulse_edge.train.examples import read_examples

    examples = [one for one in read_examples(data, ("validation",))[0] if one.facts.superclasses]
    patients = [one.patient for one in examples]
    if len(set(patients)) < MIN_PATIENTS:
        return None
    session, start = load(folder), time.perf_counter()
    names = list(session.labels)
    scores = [session.label(render(one.record).image) for one in examples]
    scored = Scored(
        names,
        [str(k) for k in range(len(examples))],
        patients,
        np.array([[score[name] for name in names] for score in scores]),
        np.array([[name in one.facts.superclasses for name in names] for one in examples]),
        {},
        (time.perf_counter() - start) / len(examples),
    )
    found = fit_calibration(scored)
    found["fit"] = {"set": f"validation patients of {data.name}", **found["fit"]}
    write_card_field(folder, "calibration", found)
    return found
