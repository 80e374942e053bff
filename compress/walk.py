"""Walk through a decoder layer by layer, one layer in memory at a time.

What enters a layer is kept for every calibration prompt; the layer is rounded, and what leaves the rounded
layer enters the next one, so that each layer is calibrated on what it will really see.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pulse_edge.compress.form import Form
from pulse_edge.compress.methods import Method
from pulse_edge.errors import CheckpointError
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import QuantizedWeight


def take_layer(model: PulseForConditionalGeneration, number: int) -> nn.Module:
    """Return a float32 copy of one decoder layer; the model's own weights stay memory-mapped."""
    layer = copy.deepcopy(model.model.language_model.layers[number]).float()
    broken = [name for name, weight in layer.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"Layer {number} of the checkpoint holds {broken[0]} with values that are no numbers. "
            "Download or train the checkpoint again."
        )
    return layer


def round_layer(
    layer: nn.Module, grams: dict[str, Tensor] | None, method: Method, form: Form
) -> tuple[dict[str, QuantizedWeight], list[str]]:
    """Round the linear layers of a decoder layer; their weights become what the integers stand for.

    Args:
        layer: of :func:`take_layer`; changed in place.
        grams: of :func:`observe`, or None without data.
        method: of rounding.
        form: of the integers.

    Returns:
        Integers by the linear layer's name inside ``layer``, and the names of those that the form does not
        fit, which are left as they are.
    """
    if method.smooth is not None and grams is not None:
        method.smooth(layer, grams, form)
    done, kept = {}, []
    for name, module in layer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if not form.fits(tuple(module.weight.shape)):
            kept.append(name)
            continue
        done[name] = method.quantize(module.weight.data, None if grams is None else grams[name], form)
        module.weight.data = torch.from_numpy(done[name].dequantize())
    return done, kept


@torch.no_grad()
def observe(
    model: PulseForConditionalGeneration, layer: nn.Module, hidden: list[Tensor]
) -> dict[str, Tensor]:
    """Return the mean of x xᵀ, float32 [K, K], of every linear layer's inputs x.

    Args:
        model: for its positions.
        layer: not rounded yet.
        hidden: what enters it, float32 [1, L, H] for every prompt.
    """
    sums: dict[str, Tensor] = {}
    latest: tuple[Tensor, Tensor] | None = None  # q, k and v read the same tensor: one product serves them

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal latest
            x = inputs[0]
            if latest is None or latest[0] is not x:
                rows = x.reshape(-1, x.shape[-1])
                latest = (x, rows.T @ rows)
            sums[name] = latest[1].clone() if name not in sums else sums[name].add_(latest[1])

        return add

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        for _ in advance(model, layer, hidden):
            latest = None
    finally:
        for handle in handles:
            handle.remove()
    count = sum(x.shape[1] for x in hidden)
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def advance(model: PulseForConditionalGeneration, layer: nn.Module, hidden: list[Tensor]) -> Iterator[Tensor]:
    """Yield what leaves a layer for each prompt that enters it, float32 [1, L, H]."""
    rotary = model.model.language_model.rotary_emb
    for x in hidden:
        positions = torch.arange(x.shape[1])[None]
        out = layer(x, position_ids=positions, position_embeddings=rotary(x, positions))
        yield out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def enter(
    model: PulseForConditionalGeneration, prompts: list[tuple[list[int], Tensor, tuple[int, int]]]
) -> Iterator[Tensor]:
    """Yield what enters the first layer for every prompt, float32 [1, L, H].

    Args:
        model: of which the vision part is used in float32, a copy that is gone afterwards.
        prompts: token ids with one -200, pixel values float32 [n, 3, 336, 336], size (w, h) of the
            picture; for text alone there is no -200, and no values.
    """
    with _vision_in_float32(model):
        for ids, pixels, size in prompts:
            image = model.merge_images(model.encode_images(pixels), size) if len(pixels) else None
            yield model.embed_prompt(ids, image).float()


@contextmanager
def _vision_in_float32(model: PulseForConditionalGeneration) -> Iterator[None]:
    """Half precision is slow or missing on a CPU; the vision part is small enough to be copied."""
    parts = {name: getattr(model.model, name) for name in ("vision_tower", "multi_modal_projector")}
    try:
        for name, module in parts.items():
            setattr(model.model, name, copy.deepcopy(module).float())
        yield
    finally:
        for name, module in parts.items():
            setattr(model.model, name, module)
