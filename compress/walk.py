"""Walk through a decoder layer by layer, one layer in memory at a time.

What enters a layer is kept for every calibration prompt; the layer is rounded, and what leaves the rounded
layer enters the next one, so that each layer is calibrated on what it will really see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pulse_edge.compress.form import Form
from pulse_edge.compress.methods import Method
from pulse_edge.model.pieces import Pieces
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import QuantizedWeight


def round_layer(
    layer: nn.Module,
    grams: dict[str, Tensor] | None,
    method: Method,
    form: Callable[[str], Form | None],
) -> tuple[dict[str, QuantizedWeight], list[str]]:
    """Round the linear layers of a decoder layer; with data, they then hold what the integers stand for.

    Args:
        layer: float32; changed in place.
        grams: of :func:`observe`, or None without data.
        method: of rounding.
        form: of the integers, by the linear layer's name inside ``layer``; None leaves it as it is.

    Returns:
        Integers by the linear layer's name, and the names of those that their form does not fit, which are
        left as they are.
    """
    if method.smooth is not None and grams is not None:
        method.smooth(layer, grams, form)
    done, kept = {}, []
    for name, module in layer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        own = form(name)
        if own is None or not own.fits(tuple(module.weight.shape)):
            kept += [name] if own is not None else []
            continue
        done[name] = method.quantize(module.weight.data, None if grams is None else grams.pop(name), own)
        if grams is not None:  # what follows is calibrated on it
            module.weight.data = torch.from_numpy(done[name].dequantize())
    return done, kept


@torch.no_grad()
def observe(
    model: PulseForConditionalGeneration, layer: nn.Module, hidden: list[Tensor]
) -> dict[str, Tensor]:
    """Return the mean of x xᵀ, float32 [K, K], of every linear layer's inputs x, in the order of use.

    Layers that read the same tensor share one matrix.

    Args:
        model: for its positions.
        layer: not rounded yet.
        hidden: what enters it, float32 [1, L, H] for every prompt.
    """
    sums: dict[str, Tensor] = {}
    first: dict[str, str] = {}  # q, k and v read the same tensor: the sum of the first serves them
    latest: tuple[Tensor, str] | None = None

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal latest
            x = inputs[0]
            if latest is not None and latest[0] is x:
                first[name] = latest[1]
                return
            latest, first[name] = (x, name), name
            rows = x.reshape(-1, x.shape[-1])
            if name in sums:
                sums[name].addmm_(rows.T, rows)
            else:
                sums[name] = rows.T @ rows

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
    means = {name: total.div_(count) for name, total in sums.items()}
    return {name: means[source] for name, source in first.items()}


@torch.no_grad()
def advance(model: PulseForConditionalGeneration, layer: nn.Module, hidden: list[Tensor]) -> Iterator[Tensor]:
    """Yield what leaves a layer for each prompt that enters it, float32 [1, L, H]."""
    rotary = model.model.language_model.rotary_emb
    for x in hidden:
        positions = torch.arange(x.shape[1])[None]
        out = layer(x, position_ids=positions, position_embeddings=rotary(x, positions))
        yield out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def enter(pieces: Pieces, prompts: list[tuple[list[int], Tensor, tuple[int, int]]]) -> Iterator[Tensor]:
    """Yield what enters the first layer for every prompt, float32 [1, L, H].

    Args:
        pieces: of the checkpoint.
        prompts: token ids with one -200, pixel values float32 [n, 3, 336, 336], size (w, h) of the
            picture; for text alone there is no -200, and no values.
    """
    with pieces.pictures() as model:
        for ids, pixels, size in prompts:
            image = model.merge_images(model.encode_images(pixels), size) if len(pixels) else None
            yield model.embed_prompt(ids, image)
