"""Train PULSE models; `pulse-edge train` calls :func:`run`.

torch and transformers are imported when a training starts, not when this package is.
"""

from __future__ import annotations

import os
from dataclasses import replace
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
        data: for a recipe of records, PTB-XL's folder, a table like shared/ecg/labels.csv, or a folder of
            WFDB records with SNOMED codes; for a recipe of the kind ``sft``, ECGInstruct's JSON file with
            its pictures beside it. See ``train.sources``.
        output: folder of the checkpoint, must not exist.
        pages: overrides the recipe's number of pages (``sft``: of conversations), for a short trial.
        workers: processes that render pages.
        init: checkpoint folder, or a shipped model's name, to start from instead of from random
            weights (``sft``: of the recipe's ``init``); layers that it lacks begin as the identity.

    Returns:
        ``{"checkpoint", "parameters", "history", "metrics"}``; metrics are measured on patients
        of the test side of the split, which the training never sees (``sft``: the loss on
        conversations that were held out, if any).

    Raises:
        UserError: unusable recipe or data, or the output exists.
        MissingExtraError: torch or transformers is not installed.
    """
    if output.exists():
        raise UserError(f"{output} exists already. Choose another --output or delete it first.")
    _needs_torch()
    from pulse_edge.train.recipe import open_recipe, read_recipe

    if open_recipe(recipe)[1]["kind"] == "sft":
        from pulse_edge.train.sft import fine_tune
        from pulse_edge.train.sft_recipe import read_sft_recipe

        settings = read_sft_recipe(recipe)
        settings = settings if init is None else replace(settings, init=init)
        return fine_tune(settings, Path(data), Path(output), pages, workers)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "This recipe trains in one process: its batch normalisation and averaged weights would differ "
            "from process to process. Start it without torchrun or accelerate launch."
        )
    from pulse_edge.train.pipeline import train_checkpoint

    return train_checkpoint(read_recipe(recipe), Path(data), Path(output), pages, workers, init)


def estimate(recipe: str | Path, data: Path | None = None, gpus: int = 1) -> dict[str, Any]:
    """Compute what training a recipe costs, without downloading or training anything.

    Args:
        recipe: name of a shipped recipe, or path of a YAML file.
        data: ``sft``: the JSON file of conversations; as many as ECGInstruct has, by default.
        gpus: ``sft``: how many H100 share the training.

    Returns:
        See :func:`pulse_edge.train.dry_run.plan`; for a recipe of records,
        :func:`pulse_edge.train.page_plan.plan`.

    Raises:
        UserError: unusable recipe or data, or a batch that the GPUs cannot share.
        MissingExtraError: torch or transformers is not installed.
    """
    _needs_torch()
    from pulse_edge.train.recipe import open_recipe, read_recipe

    if open_recipe(recipe)[1]["kind"] != "sft":
        from pulse_edge.train import page_plan

        return page_plan.plan(read_recipe(recipe))
    from pulse_edge.train.dry_run import CONVERSATIONS, TEXT_TOKENS, mean_text_tokens, plan
    from pulse_edge.train.sft_recipe import read_sft_recipe
    from pulse_edge.train.sources.ecginstruct import EcgInstruct

    settings = read_sft_recipe(recipe)
    count, text = CONVERSATIONS, TEXT_TOKENS
    if data is not None:
        conversations = EcgInstruct(Path(data))
        count, text = len(conversations), mean_text_tokens(conversations)
    return plan(settings, gpus, count, text)


def _needs_torch() -> None:
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "train") from error
