"""`train`: records and a recipe become a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError


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

    A model of records is calibrated on its validation patients at the end: ``calibration`` is then added.

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
    if any("auroc" in row for row in result["metrics"]):
        from pulse_edge.commands._calibrate import calibrate_trained

        result = {**result, "calibration": calibrate_trained(Path(result["checkpoint"]), Path(data))}
    return {**result, "seconds": time.perf_counter() - start}
