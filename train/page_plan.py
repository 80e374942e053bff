"""What training a recipe of records costs: parameters, operations and hours, before a page is drawn."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pulse_edge.contract import MAX_TILES, TILE_SIZE
from pulse_edge.train.build import build_model
from pulse_edge.train.recipe import Recipe

TEXT_TOKENS: Final = 205  # of a page's questions and answers, in the mean of 32 training pages
# Forward and backward of pulse-nano's tower took 3.2 s of one core for 16 pages of 3 x 4.2 GFLOP (an Intel
# Xeon with avx512_bf16, batch 80 tiles, other programs running): measured once, good to a factor of two.
CORE_FLOPS: Final = 6.0e10
BACKWARD: Final = 2  # times the forward's operations


def plan(recipe: Recipe) -> dict[str, Any]:
    """Count what every stage computes; rendering, which overlaps on another core, is left out.

    Returns:
        ``recipe``, ``parameters``, ``flops_per_page`` (one forward: ``tower``, ``language``), ``stages``
        (by name: ``pages``, ``steps``, ``flops``) and ``core_hours``.
    """
    model = build_model(recipe.model, recipe.model.vocab_size).eval()
    tokens = MAX_TILES * model.config.vision_config.tokens_per_tile + TEXT_TOKENS
    # The counter does not know the fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as tower:
            model.model.vision_tower(torch.zeros(MAX_TILES, 3, TILE_SIZE, TILE_SIZE))
        with FlopCounterMode(display=False) as language:
            embeds = torch.zeros(1, tokens, model.config.text_config.hidden_size)
            model.model.language_model(inputs_embeds=embeds, use_cache=False)
    see, speak = tower.get_total_flops(), language.get_total_flops()
    trained = 1 + BACKWARD
    each = {"see": trained * see, "speak": see + trained * speak, "tune": trained * (see + speak)}
    stages = {
        stage: {
            "pages": settings.pages,
            "steps": settings.pages // settings.batch,
            "flops": settings.pages * each[stage],
        }
        for stage, settings in recipe.train.items()
    }
    return {
        "recipe": recipe.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_page": {"tower": see, "language": speak},
        "stages": stages,
        "core_hours": sum(stage["flops"] for stage in stages.values()) / CORE_FLOPS / 3600,
    }
