"""Packed questions in torch: what a token of :mod:`pulse_edge.model.packing` sees, and where it stands."""

from __future__ import annotations

import torch

from pulse_edge.contract import IMAGE_MEAN, IMAGE_STD
from pulse_edge.model.packing import PAD_SEGMENT


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """CLIP's normalisation on the device: uint8 [n, 336, 336, 3] -> float32 [n, 3, 336, 336]."""
    mean = torch.tensor(IMAGE_MEAN, device=tiles.device) * 255
    std = torch.tensor(IMAGE_STD, device=tiles.device) * 255
    return tiles.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def segment_mask(segment: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive causal mask [B, 1, L, L]: a token sees the prefix and the earlier part of its own segment."""
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    seen = (same | (segment == 0).unsqueeze(1)) & (segment != PAD_SEGMENT).unsqueeze(1)
    seen = seen & torch.ones_like(seen[0]).tril()
    seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)  # padding sees itself
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -1e4).unsqueeze(1)


def segment_positions(segment: torch.Tensor) -> torch.Tensor:
    """Position ids [B, L]: every segment continues right behind the prefix."""
    index = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    new = torch.ones_like(segment, dtype=torch.bool)
    new[:, 1:] = segment[:, 1:] != segment[:, :-1]
    start = torch.cummax(torch.where(new, index, torch.zeros_like(index)), dim=1).values
    prefix = (segment == 0).sum(1, keepdim=True)
    return torch.where(segment == 0, index, index - start + prefix)
