"""What each part of a model does on ECG pages: measured before anything is cut away.

* Decoder layers: block influence, 1 - cos(what enters, what leaves) (Men et al., ShortGPT, 2024), or how much
  worse the answers are foretold without the layer (``perplexity``).
* Neurons of an MLP and channels inside a residual block: size of the activation times the norm of the weights
  that read it. Groups of heads: energy of what they add.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from pulse_edge.compress.calibrate import Prompt
from pulse_edge.compress.walk import advance, observe
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer

BY: Final = ("influence", "perplexity")


@dataclass(frozen=True)
class Seen:
    """A calibration prompt as the decoder gets it.

    Attributes:
        embeds: float32 [1, L, H].
        target: the answer's token ids, at the end of the prompt.
    """

    embeds: Tensor
    target: list[int]


@torch.no_grad()
def look(
    model: PulseForConditionalGeneration, prompts: list[Prompt], tokenizer: Tokenizer
) -> tuple[list[Seen], dict[str, Tensor]]:
    """Show the pages to the vision part, in float32.

    Returns:
        What enters the decoder, and of every layer of the tower that may be narrowed the mean of x xᵀ,
        float32 [K, K], by the name of the layer that reads x.
    """
    eyes = _Eyes(model)
    seen = []
    with eyes:
        for prompt in prompts:
            turns = [(prompt.question, prompt.answer or None)]
            ids = encode_prompt(build_prompt(turns, image=prompt.page is not None), tokenizer)
            image = None
            if prompt.page is not None:
                size = (prompt.page.shape[1], prompt.page.shape[0])
                features = model.encode_images(torch.from_numpy(preprocess(prompt.page)))
                image = model.merge_images(features, size)
            start = encode_prompt(build_prompt([(prompt.question, None)], image=image is not None), tokenizer)
            embeds = model.embed_prompt(ids, image).float()
            seen.append(Seen(embeds, ids[len(start) :]))
    return seen, eyes.moments()


def narrow_readers(model: PulseForConditionalGeneration) -> dict[str, nn.Module]:
    """Return, by name, what reads inside the tower's blocks: the second layer of each."""
    names = ("mlp.fc2", ".conv2", ".shrink")
    return {
        name: module
        for name, module in model.model.vision_tower.named_modules()
        if name.endswith(names) and isinstance(module, nn.Linear | nn.Conv2d)
    }


class _Eyes:
    """The vision part in float32 for a while, observed."""

    def __init__(self, model: PulseForConditionalGeneration) -> None:
        self.model, self.sums, self.count = model, dict[str, Tensor](), dict[str, int]()

    def __enter__(self) -> None:
        inner = self.model.model
        self.own = inner.vision_tower, inner.multi_modal_projector
        inner.vision_tower = copy.deepcopy(self.own[0]).float()
        inner.multi_modal_projector = copy.deepcopy(self.own[1]).float()
        self.hooks = [
            module.register_forward_pre_hook(self._adds(name))
            for name, module in narrow_readers(self.model).items()
        ]

    def __exit__(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.model.model.vision_tower, self.model.model.multi_modal_projector = self.own

    def moments(self) -> dict[str, Tensor]:
        return {name: total / self.count[name] for name, total in self.sums.items()}

    def _adds(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].movedim(1, -1) if isinstance(module, nn.Conv2d) else inputs[0]
            rows = x.reshape(-1, x.shape[-1])
            product = rows.T @ rows
            self.sums[name] = product if name not in self.sums else self.sums[name] + product
            self.count[name] = self.count.get(name, 0) + len(rows)

        return add


@torch.no_grad()
def walk_through(
    model: PulseForConditionalGeneration, seen: list[Seen], tick: Callable[[int, int], None]
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Go through the decoder, one layer in float32 at a time.

    Returns:
        Of every layer its influence, and the mean of x xᵀ of its linear layers' inputs by name.
    """
    layers = model.model.language_model.layers
    hidden = [one.embeds for one in seen]
    influence, moments = [], []
    for number in range(len(layers)):
        tick(number, len(layers))
        layer = copy.deepcopy(layers[number]).float()
        moments.append(observe(model, layer, hidden))
        after = list(advance(model, layer, hidden))
        near = [
            nn.functional.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(hidden, after, strict=True)
        ]
        influence.append(1 - float(torch.stack(near).mean()))
        hidden = after
    tick(len(layers), len(layers))
    return influence, moments


@torch.no_grad()
def surprise(
    model: PulseForConditionalGeneration, seen: list[Seen], tick: Callable[[int, int], None]
) -> list[float]:
    """Return of every layer how much more the answers' tokens surprise without it, in nats a token."""
    layers = model.model.language_model.layers
    losses: list[float] = []
    for left_out in (None, *range(len(layers))):
        tick(len(losses), len(layers) + 1)
        hidden = [one.embeds for one in seen]
        for number in range(len(layers)):
            if number != left_out:
                hidden = list(advance(model, copy.deepcopy(layers[number]).float(), hidden))
        losses.append(_loss(model, hidden, seen))
    tick(len(losses), len(losses))
    return [loss - losses[0] for loss in losses[1:]]


def _loss(model: PulseForConditionalGeneration, hidden: list[Tensor], seen: list[Seen]) -> float:
    norm = copy.deepcopy(model.model.language_model.norm).float()
    head = model.lm_head.weight.float()
    total, count = 0.0, 0
    for states, one in zip(hidden, seen, strict=True):
        if one.target:
            at = norm(states[0, -len(one.target) - 1 : -1]) @ head.T
            total += float(nn.functional.cross_entropy(at, torch.tensor(one.target), reduction="sum"))
            count += len(one.target)
    return total / max(count, 1)


def most(scores: Tensor, keep: int) -> Tensor:
    """Return the places of the ``keep`` highest scores, int64, in their order."""
    return torch.topk(scores, keep).indices.sort().values


def neuron_scores(moment: Tensor, reader: Tensor) -> Tensor:
    """Root mean square of each input [K] times the norm of the weights [N, K, ...] that read it."""
    scores: Tensor = moment.diagonal().clamp(min=0).sqrt() * reader.float().transpose(0, 1).flatten(1).norm(
        dim=1
    )
    return scores


def group_scores(moment: Tensor, reader: Tensor, groups: int) -> Tensor:
    """Energy of what each of ``groups`` equal parts of the inputs [K] adds through ``reader`` [N, K]."""
    width = moment.shape[0] // groups
    energy = []
    for k in range(groups):
        part = slice(k * width, (k + 1) * width)
        weight = reader[:, part].float()
        energy.append(((weight @ moment[part, part]) * weight).sum())
    return torch.stack(energy)
