"""AWQ (Lin et al., MLSys 2024): channels that see large inputs are scaled up before rounding.

The inverse scale goes into whatever makes those inputs (a norm's gain, or the rows of the layer before), so
the model computes the same and nothing is added to it. The strength is searched for every group of layers;
ranges are then chosen by :mod:`pulse_edge.compress.clip`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from pulse_edge.compress import clip
from pulse_edge.compress.form import Form, grouped, integers, scales, values

quantize = clip.quantize
STRENGTHS: Final = tuple(step / 20 for step in range(20))
_ROWS: Final = 512  # of a large matrix, enough to compare strengths by


@dataclass(frozen=True)
class _Fold:
    """Layers that read the same input, and where its scale can be undone."""

    source: nn.Module
    readers: tuple[str, ...]
    heads: tuple[int, int, int] | None = None  # value heads, query heads that read each, their width


def smooth(layer: nn.Module, grams: dict[str, Tensor], form: Callable[[str], Form | None]) -> None:
    """Scale the channels of one decoder layer in place.

    Args:
        layer: Llama's or Qwen2's, float32.
        grams: by the name of a linear layer inside it, mean of x xᵀ float32 [K, K]; brought up to date.
        form: of the integers that follow, by the name of a linear layer; None where it is not rounded.
    """
    linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    for fold in _folds(layer, linear):
        gram = grams[fold.readers[0]]
        readers = [(linear[name].weight.data, form(name)) for name in fold.readers]
        scale = _search(readers, gram, fold.heads)
        if scale is None:
            continue
        for name in fold.readers:
            linear[name].weight.data *= scale
            grams[name] = gram / torch.outer(scale, scale)
        _undo(fold.source, scale, fold.heads)


def _folds(layer: nn.Module, linear: Mapping[str, nn.Linear]) -> Iterator[_Fold]:
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    yield _Fold(layer.get_submodule("input_layernorm"), attention)
    value, out = linear["self_attn.v_proj"], linear["self_attn.o_proj"]
    width = int(getattr(layer.get_submodule("self_attn"), "head_dim"))  # noqa: B009 - modules are Any here
    heads = (value.out_features // width, out.in_features // value.out_features, width)
    yield _Fold(value, ("self_attn.o_proj",), heads)
    yield _Fold(layer.get_submodule("post_attention_layernorm"), ("mlp.gate_proj", "mlp.up_proj"))
    yield _Fold(linear["mlp.up_proj"], ("mlp.down_proj",))


def _search(
    readers: list[tuple[Tensor, Form | None]], gram: Tensor, heads: tuple[int, int, int] | None
) -> Tensor | None:
    """Return the scales [K] under which rounding changes the outputs least; None if 1 is best."""
    rounded = [(weight, form) for weight, form in readers if form is not None]
    if not rounded or not all(form.fits(tuple(weight.shape)) for weight, form in rounded):
        return None
    size = gram.diagonal().clamp(min=0).sqrt()
    if heads is not None:  # what one value head makes is scaled once, for all that read it
        size = size.reshape(heads).amax(1, keepdim=True).expand(heads).reshape(-1)
    samples = [(weight[:: max(1, len(weight) // _ROWS)], form) for weight, form in rounded]
    best, least = None, torch.inf
    for strength in STRENGTHS:
        scale = size.clamp(min=1e-4 * float(size.max()) + 1e-12).pow(strength)
        scale = scale / torch.sqrt(scale.max() * scale.min())
        loss = sum(_loss(sample, scale, gram, form) for sample, form in samples)
        if loss < least:
            best, least = (scale if strength else None), loss
    return best


def _loss(sample: Tensor, scale: Tensor, gram: Tensor, form: Form) -> float:
    """Return what rounding the scaled rows [R, K] changes in their outputs, as a sum of squares."""
    blocks = grouped(sample * scale, form)
    step, zero = scales(blocks, form)
    error = values(integers(blocks, step, zero, form), step, zero).reshape(sample.shape) / scale - sample
    return float(((error @ gram) * error).sum())


def _undo(source: nn.Module, scale: Tensor, heads: tuple[int, int, int] | None) -> None:
    if heads is not None:
        scale = scale.reshape(heads)[:, 0].reshape(-1)
    weight, bias = source.get_parameter("weight"), getattr(source, "bias", None)
    weight.data /= scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    if bias is not None:
        bias.data /= scale
