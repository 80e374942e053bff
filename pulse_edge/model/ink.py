"""Which visual tokens a pruned model keeps: by ``ink``, those that show trace, or ``uniform``, evenly spaced.

Ink is counted in each token's patch: pixels that are darker, in the red channel, than the lightest around
them. A red or pink grid is as light there as paper, the shade of a photo changes slowly, and what is black
all over is padding. The threshold lies between two grey levels and what is counted are whole numbers, so that
every runtime, whatever its arithmetic, keeps the same tokens. Their number is fixed: all shapes stay static.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pulse_edge.contract import exact_div
from pulse_edge.model.places import BLACK, CLOSING, DARKER, NEAR, uniform


def ink(pixels: Tensor, tokens: int, kind: torch.dtype = torch.float32) -> Tensor:
    """Count the pixels of ink in every patch.

    Args:
        pixels: normalised tiles, float [n, 3, I, I].
        tokens: of a tile, a square number.
        kind: to count in.

    Returns:
        [n * tokens] of that type, whole numbers, tile by tile and row by row.
    """
    side = math.isqrt(tokens)
    red = pixels[:, :1].float()
    paper = nn.functional.max_pool2d(red, NEAR, 1, NEAR // 2)
    around = nn.functional.max_pool2d(red, CLOSING, 1, CLOSING // 2)
    closed = -nn.functional.max_pool2d(-around, CLOSING, 1, CLOSING // 2)
    dark = (paper - red > DARKER).float() * (closed > BLACK).float()
    patch = exact_div(pixels.shape[-1], side)
    return dark.reshape(-1, side, patch, side, patch).to(kind).sum((2, 4), dtype=kind).reshape(-1)


def kept_tokens(pixels: Tensor, tokens: int, keep: int, by: str, kind: torch.dtype = torch.float32) -> Tensor:
    """Return which tokens of a page are kept, int64 [keep], in the order of the page.

    Args:
        pixels: all tiles of a page, normalised, float [n, 3, I, I]; zeros where there is none.
        tokens: of a tile.
        keep: how many of all of them.
        by: of ``merge.KEEP_BY``; of tokens with equal ink the first are kept.
        kind: to rank in: float32, which TensorRT sorts, or int32, which Core ML does not make half of.
    """
    if by == "uniform":
        return torch.tensor(uniform(len(pixels) * tokens, keep), device=pixels.device)
    found = ink(pixels, tokens, kind)
    count = len(pixels) * tokens
    later = torch.arange(count - 1, -1, -1, device=found.device, dtype=kind)
    chosen = torch.topk(found * count + later, keep).indices  # below 2^24: exact in float32 too
    return torch.topk(chosen.to(kind), keep, largest=False).values.long()
