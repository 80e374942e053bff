"""Cut a model down: whole decoder layers, neurons, groups of heads, the inside of the tower, visual tokens.

Widths stay uniform, so that what is left is an ordinary PULSE with a smaller configuration, which every
target exports unchanged. Where a linear layer loses inputs, those that stay take over what they can foretell
of them: least squares on the calibration pages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pulse_edge.compress.calibrate import Prompt
from pulse_edge.compress.importance import (
    BY,
    group_scores,
    look,
    most,
    narrow_readers,
    neuron_scores,
    surprise,
    walk_through,
)
from pulse_edge.contract import IMAGE_TOKEN_ID, MAX_TILES
from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.model.checkpoint import compute_buffers
from pulse_edge.model.merge import KEEP_BY
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer

Tick = Callable[[str, int, int], None]
_DAMP = 1e-2  # of the mean second moment, as GPTQ adds it


@dataclass(frozen=True)
class Cut:
    """What is left of a model; None leaves a part as it is.

    Attributes:
        tokens: visual tokens kept of a page, a multiple of five.
        keep_by: which: ``uniform``, or by ``ink``.
        layers: decoder layers.
        mlp: neurons in each decoder layer.
        kv_heads: groups of heads in each decoder layer, each with one key and value head.
        tower: share of the width inside the tower's blocks (CLIP's MLPs, convolutional blocks).
        by: what layers are judged by: ``influence`` or ``perplexity``.
    """

    tokens: int | None = None
    keep_by: str = "uniform"
    layers: int | None = None
    mlp: int | None = None
    kv_heads: int | None = None
    tower: float | None = None
    by: str = "influence"

    @property
    def sees_pages(self) -> bool:
        """Whether pages must be read to decide what goes."""
        return any(part is not None for part in (self.layers, self.mlp, self.kv_heads, self.tower))

    @property
    def text(self) -> str:
        """In words, for a card."""
        parts = {k: v for k, v in asdict(self).items() if v is not None}
        if self.tokens is None:
            del parts["keep_by"]
        if self.layers is None:
            del parts["by"]
        return ", ".join(f"{name} {value}" for name, value in parts.items())


def check_cut(cut: Cut, config: PulseConfig) -> None:
    """Refuse a cut that is none, or that leaves more than there is.

    Raises:
        UserError: a number does not fit the model.
        UnknownNameError: no such way to choose.
    """
    text, vision = config.text_config, config.vision_config
    every = MAX_TILES * (vision.image_size // vision.patch_size) ** 2
    if cut.keep_by not in KEEP_BY:
        raise UnknownNameError("way to keep tokens", cut.keep_by, KEEP_BY)
    if cut.by not in BY:
        raise UnknownNameError("way to judge layers", cut.by, BY)
    for name, value, there in (
        ("tokens", cut.tokens, every),
        ("layers", cut.layers, text.num_hidden_layers),
        ("mlp", cut.mlp, text.intermediate_size),
        ("kv-heads", cut.kv_heads, text.num_key_value_heads),
    ):
        if value is not None and not 1 <= value <= there:
            raise UserError(f"--{name} {value} does not fit: this model has {there}. Give 1 to {there}.")
    if cut.tokens is not None and cut.tokens % MAX_TILES:
        near = max(MAX_TILES, cut.tokens // MAX_TILES * MAX_TILES)
        raise UserError(f"--tokens must be a multiple of {MAX_TILES}, one share for each tile. Give {near}.")
    if cut.tokens is not None and config.merge != "flat":
        raise UserError("Tokens are pruned of models that merge flat, as PULSE does. Leave --tokens out.")
    if cut.tower is not None and not 0 < cut.tower <= 1:
        raise UserError("--tower is a share above 0, at most 1.")


def cut_model(
    model: PulseForConditionalGeneration,
    cut: Cut,
    prompts: list[Prompt],
    tokenizer: Tokenizer,
    tick: Tick = lambda what, done, total: None,
) -> tuple[PulseForConditionalGeneration, dict[str, Any]]:
    """Return a smaller model, and what was decided.

    Args:
        model: in any type of weights; not changed.
        cut: checked by :func:`check_cut`.
        prompts: calibration pages with questions and answers; empty if ``cut.sees_pages`` is false.
        tokenizer: the model's.
        tick: called with the name of the stage, and parts done and in all.
    """
    config = copy.deepcopy(model.config)
    if cut.tokens is not None:
        _keep_tokens(config, cut.tokens, cut.keep_by, tokenizer)
    state = dict(model.state_dict())
    facts: dict[str, Any] = {}
    if cut.sees_pages:
        seen, tower = look(model, prompts, tokenizer)
        influence, moments = walk_through(model, seen, lambda d, t: tick("observing layers", d, t))
        worth = influence
        if cut.layers is not None and cut.by == "perplexity":
            worth = surprise(model, seen, lambda d, t: tick("leaving layers out", d, t))
        facts["layers"] = [round(value, 6) for value in worth]
        if cut.tower is not None:
            _narrow_tower(model, config, state, tower, cut.tower)
        _narrow_layers(model, config, state, moments, cut)
        if cut.layers is not None:
            kept = most(torch.tensor(worth), cut.layers).tolist()
            facts["kept_layers"] = kept
            state = _renumber(model, state, kept)
            config.text_config.num_hidden_layers = cut.layers
            if getattr(config.text_config, "layer_types", None):
                config.text_config.layer_types = [config.text_config.layer_types[k] for k in kept]
    with torch.device("meta"):
        small = PulseForConditionalGeneration(config)
    small.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    compute_buffers(small)
    small.tie_weights()
    return small.eval(), facts


def _keep_tokens(config: PulseConfig, keep: int, by: str, tokenizer: Tokenizer) -> None:
    """Keep so many visual tokens, spread over the places of all of them. What the model can read shrinks,
    as it has learnt so many places and no more."""
    text, vision = config.text_config, config.vision_config
    every = MAX_TILES * (vision.image_size // vision.patch_size) ** 2
    before = getattr(text, "spread", None) or (0, every, every)
    ids = encode_prompt(build_prompt([("", None)]), tokenizer)
    config.keep_tokens, config.keep_by = keep, by
    text.spread = [ids.index(IMAGE_TOKEN_ID), keep, every]
    text.max_position_embeddings -= before[1] - keep


def _narrow_layers(
    model: PulseForConditionalGeneration,
    config: PulseConfig,
    state: dict[str, Tensor],
    moments: list[dict[str, Tensor]],
    cut: Cut,
) -> None:
    text = config.text_config
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    names = {id(module): name for name, module in model.named_modules()}
    for layer, moment in zip(model.model.language_model.layers, moments, strict=True):
        start = names[id(layer)]
        if cut.mlp is not None:
            read = f"{start}.mlp.down_proj"
            kept = most(neuron_scores(moment["mlp.down_proj"], state[f"{read}.weight"]), cut.mlp)
            _keep_rows(state, (f"{start}.mlp.gate_proj", f"{start}.mlp.up_proj"), kept)
            _keep_inputs(state, read, moment["mlp.down_proj"], kept)
        if cut.kv_heads is not None:
            read, energy = f"{start}.self_attn.o_proj", moment["self_attn.o_proj"]
            scores = group_scores(energy, state[f"{read}.weight"], groups)
            chosen = most(scores, cut.kv_heads)
            query, value = (_spread(chosen, energy.shape[0] // n) for n in (groups, heads))
            _keep_rows(state, (f"{start}.self_attn.q_proj",), query)
            _keep_rows(state, (f"{start}.self_attn.k_proj", f"{start}.self_attn.v_proj"), value)
            _keep_inputs(state, read, energy, query)
    if cut.mlp is not None:
        text.intermediate_size = cut.mlp
    if cut.kv_heads is not None:
        text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        text.num_attention_heads = heads // groups * cut.kv_heads
        text.num_key_value_heads = cut.kv_heads


def _narrow_tower(
    model: PulseForConditionalGeneration,
    config: PulseConfig,
    state: dict[str, Tensor],
    moments: dict[str, Tensor],
    share: float,
) -> None:
    """Narrow every block of the tower inside, by the same share."""
    names = {id(module): name for name, module in model.named_modules()}
    for short, module in narrow_readers(model).items():
        read = names[id(module)]
        width = state[f"{read}.weight"].shape[1]
        keep = kept_width(width, share)
        moment = moments.get(short, torch.eye(width))  # CLIP's layers behind the one that is read see nothing
        kept = most(neuron_scores(moment, state[f"{read}.weight"]), keep)
        if isinstance(module, nn.Conv2d):
            before = read.removesuffix("conv2")
            _keep_rows(state, (f"{before}conv1", f"{before}norm1"), kept)
        else:
            makes = "fc1" if read.endswith("fc2") else "expand"
            _keep_rows(state, (f"{read.rpartition('.')[0]}.{makes}",), kept)
        _keep_inputs(state, read, moment, kept)
    vision = config.vision_config
    if vision.model_type == "pulse_conv":
        vision.inner = tuple(kept_width(width, share) for width in vision.inner)
        vision.context_mlp = kept_width(vision.context_mlp, share)
    else:
        vision.intermediate_size = kept_width(vision.intermediate_size, share)


def kept_width(width: int, share: float) -> int:
    """Return about ``share`` of a width, in steps of eight where there are as many."""
    return min(width, max(1, round(width * share) if width < 16 else 8 * max(1, round(width * share / 8))))


def _spread(groups: Tensor, width: int) -> Tensor:
    """Places of all members of groups of ``width`` neighbours."""
    return (groups[:, None] * width + torch.arange(width)).flatten()


def _keep_rows(state: dict[str, Tensor], layers: tuple[str, ...], kept: Tensor) -> None:
    for layer in layers:
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"{layer}.{part}" in state:
                state[f"{layer}.{part}"] = state[f"{layer}.{part}"][kept]


def _keep_inputs(state: dict[str, Tensor], layer: str, moment: Tensor, kept: Tensor) -> None:
    """Drop inputs of a linear layer; those that stay take over what they foretell of the others.

    Of a convolution's channels the same is taken to hold at each of its taps.
    """
    if len(kept) == len(moment):
        return
    weight = state[f"{layer}.weight"]
    inside = moment[kept][:, kept]
    inside = inside + _DAMP * inside.diagonal().mean().clamp(min=1e-12) * torch.eye(len(kept))
    gone = torch.ones(len(moment), dtype=torch.bool)
    gone[kept] = False
    rows = weight.float().movedim(1, -1)
    lost = rows[..., gone].reshape(-1, int(gone.sum()))
    taken = torch.linalg.solve(inside, moment[kept][:, gone] @ lost.T).T
    narrow = (rows[..., kept] + taken.reshape(*rows.shape[:-1], len(kept))).movedim(-1, 1)
    state[f"{layer}.weight"] = narrow.to(weight.dtype).contiguous()


def _renumber(
    model: PulseForConditionalGeneration, state: dict[str, Tensor], kept: list[int]
) -> dict[str, Tensor]:
    layers = model.model.language_model.layers
    prefix = next(name for name, module in model.named_modules() if module is layers) + "."
    found = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            found[name] = tensor
            continue
        number, rest = name.removeprefix(prefix).split(".", 1)
        if int(number) in kept:
            found[f"{prefix}{kept.index(int(number))}.{rest}"] = tensor
    return found
