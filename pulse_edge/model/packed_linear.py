"""Linear layers that stay integers in memory, so that a quantised model takes no more than its checkpoint.

What the integers stand for is computed anew in every call and forgotten: slow for a single token, but a
7B checkpoint of 4 bits is evaluated within 7 GB instead of 28.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from pulse_edge.errors import CheckpointError
from pulse_edge.model.layouts import canonical
from pulse_edge.model.quantized import INTEGERS, SCALE, ZERO, quantized_names, quantized_weight

LARGE: Final = 1_000_000_000  # weights that stand as integers, from which on they stay so in memory


class PackedLinear(nn.Module):
    """A linear layer over the stored parts of a weight.

    Args:
        name: of the weight.
        parts: integers, scale and, if any, zero points, as :mod:`.quantized` stores them; not copied.
        bias: of the layer it replaces, or None.
    """

    def __init__(self, name: str, parts: Mapping[str, Tensor], bias: nn.Parameter | None) -> None:
        super().__init__()
        self.name, self.parts, self.bias = name, dict(parts), bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., K] with what the integers stand for, in the type of ``x``: [..., N]."""
        weight = quantized_weight(self.name, {name: part.numpy() for name, part in self.parts.items()})
        return nn.functional.linear(x, torch.from_numpy(weight.dequantize()).to(x.dtype), self.bias)


def packed_size(weights: Mapping[str, Tensor]) -> int:
    """Count the weights of decoder layers that stand as integers."""
    names = [name for name in quantized_names(weights) if name.startswith("text.layers.")]
    nibbles = {torch.uint8: 2, torch.int8: 1}
    return sum(part.numel() * nibbles[part.dtype] for part in (weights[name + INTEGERS] for name in names))


def pack(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put packed layers into a model without weights, and take what they hold out of ``weights``.

    Args:
        model: on the meta device.
        weights: of a checkpoint, by canonical name; only decoder layers are packed.

    Raises:
        CheckpointError: one is incomplete, of an unknown form, or of another shape than the model's.
    """
    held = {name for name in quantized_names(weights) if name.startswith("text.layers.")}
    for own, module in list(model.named_modules()):
        name = canonical(f"{own}.weight")
        if name in held and isinstance(module, nn.Linear):
            parts = {name + part: weights.pop(name + part) for part in (INTEGERS, SCALE, ZERO)
                     if name + part in weights}  # fmt: skip
            form = quantized_weight(name, {key: part[:1].numpy() for key, part in parts.items()})
            rows = {len(part) for part in parts.values()}
            if (rows, form.shape[1]) != ({module.out_features}, module.in_features):
                raise CheckpointError(
                    f"{name} stands as integers of another shape than config.json asks for, "
                    f"{[module.out_features, module.in_features]}. Restore its config.json."
                )
            parent, _, last = own.rpartition(".")
            setattr(model.get_submodule(parent), last, PackedLinear(name, parts, module.bias))
