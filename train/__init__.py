"""Train PULSE models; `pulse-edge train` calls :func:`run`.

torch and transformers are imported when a training starts, not when this package is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pulse_edge.errors import MissingExtraError, UserError


def run(
    recipe: str | Path,
    data: Path,
    output: Path,
    pages: int | None = None,
    workers: int = 1,
    init: str | None = None,
) -> dict[str, Any]:
    """Train a model from a recipe and write its checkpoint.

    An interrupted training is resumed by the same call; its working files stand in
    ``<output>.training`` until the checkpoint is complete, and may then be deleted.

    Args:
        recipe: name of a shipped recipe, or path of a YAML file.
        data: PTB-XL's folder, a table like shared/ecg/labels.csv, or a folder of WFDB records with SNOMED
            codes; see ``train.sources``.
        output: folder of the checkpoint, must not exist.
        pages: overrides the recipe's number of pages, for a short trial.
        workers: processes that render pages.
        init: checkpoint folder, or a shipped model's name, to start from instead of from random
            weights; layers that it lacks begin as the identity.

    Returns:
        ``{"checkpoint", "parameters", "history", "metrics"}``; metrics are measured on patients
        of the test side of the split, which the training never sees.

    Raises:
        UserError: unusable recipe or data, or the output exists.
        MissingExtraError: torch or transformers is not installed.
    """
    if output.exists():
        raise UserError(f"{output} exists already. Choose another --output or delete it first.")
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "train") from error
    from pulse_edge.train.pipeline import train_checkpoint
    from pulse_edge.train.recipe import read_recipe

    return train_checkpoint(read_recipe(recipe), Path(data), Path(output), pages, workers, init)
