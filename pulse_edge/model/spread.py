"""Rotary embedding of a language model whose visual tokens were pruned; see :mod:`.places`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pulse_edge.model.places import positions


class SpreadRotary(nn.Module):
    """The rotary embedding of transformers, asked for the places of tokens and not for their numbers.

    Args:
        inner: of the language model.
        config: of the language model; ``spread`` as for :func:`.places.positions`.
    """

    def __init__(self, inner: nn.Module, config: Any) -> None:
        super().__init__()
        self.inner = inner
        self._places = positions(config.max_position_embeddings, config.spread)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, L, D] for tokens with the numbers ``position_ids`` [B, L]."""
        places = torch.tensor(self._places, device=position_ids.device)
        found: tuple[Tensor, Tensor] = self.inner(x, places[position_ids])
        return found


def spread_positions(language_model: Any) -> None:
    """Let a language model, as transformers builds it, stand its tokens as its configuration says."""
    config = language_model.config
    if getattr(config, "spread", None) is not None:
        language_model.rotary_emb = SpreadRotary(language_model.rotary_emb, config)
