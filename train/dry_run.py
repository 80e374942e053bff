"""What a recipe will cost, before anything is downloaded or rented: parameters, memory, FLOPs, hours.

The model is built on the meta device, which knows shapes and holds no weight.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pulse_edge.contract import MAX_TILES, TILE_SIZE
from pulse_edge.errors import UserError
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.train.sft_recipe import SftRecipe, empty_model, freeze, share_batch, tokens_per_page

# ECGInstruct (Liu et al., arXiv 2410.19008, table A1).
CONVERSATIONS: Final = 1_156_110
# Of a conversation, the system prompt (some 35) included. An assumption; --data measures it.
TEXT_TOKENS: Final = 200
# H100 SXM: dense bf16 peak and memory (NVIDIA, H100 Tensor Core GPU data sheet).
GPU: Final = {"name": "H100 SXM 80 GB", "peak_flops": 989.4e12, "memory_bytes": 80e9}
# Model FLOPs utilisation (PaLM, Chowdhery et al., 2022, appendix B). An assumption: well-tuned FSDP
# reaches 0.35 to 0.5. PULSE's own run (320 H100-hours) corresponds to about 0.4.
MFU: Final = 0.4
USABLE: Final = 0.92  # of a GPU's memory; the rest is CUDA's context, NCCL's buffers, fragmentation


def plan(
    recipe: SftRecipe, gpus: int = 1, conversations: int = CONVERSATIONS, text_tokens: int = TEXT_TOKENS
) -> dict[str, Any]:
    """Compute what a training costs; see :func:`memory` and :func:`flops` for the formulas.

    Args:
        recipe: what is trained.
        gpus: how many GPUs share it, one process each.
        conversations: training examples of an epoch.
        text_tokens: mean tokens of a conversation without its image.

    Returns:
        ``{"recipe", "parameters", "trainable", "vision_parameters", "conversations", "steps", "gpus", "gpu",
        "batch", "tokens", "memory_per_gpu", "fits", "flops", "mfu", "hours", "gpu_hours"}``; memory in bytes.

    Raises:
        UserError: the batch cannot be divided by the GPUs, or the recipe's shapes make no model.
    """
    if gpus < 1:
        raise UserError("--gpus must be at least 1.")
    settings = recipe.train
    at_a_time, repeats = share_batch(settings.batch, settings.per_device, gpus)
    model = empty_model(recipe.model)
    freeze(model, settings.freeze_vision)
    visual = tokens_per_page(model.config)
    text = min(text_tokens, settings.max_length - visual)
    if text < 1:
        raise UserError(
            f"The image alone has {visual} tokens, but max_length is {settings.max_length}. "
            "Raise max_length in the recipe."
        )
    needed = memory(model, gpus, at_a_time, visual, text, settings.gradient_checkpointing)
    work = flops(model, visual, text)
    steps = settings.epochs * conversations // settings.batch
    total = steps * settings.batch * work["conversation"]
    gpu_hours = total / (GPU["peak_flops"] * MFU) / 3600  # type: ignore[operator]
    return {
        "recipe": recipe.name,
        "parameters": _count(model),
        "trainable": _count(model, trainable=True),
        "vision_parameters": _count(model.model.vision_tower),
        "conversations": conversations,
        "steps": steps,
        "gpus": gpus,
        "gpu": dict(GPU),
        "batch": {"global": settings.batch, "per_gpu": at_a_time, "accumulate": repeats},
        "tokens": {"visual": visual, "text": text, "conversation": visual + text},
        "memory_per_gpu": needed,
        "fits": needed["total"] <= USABLE * GPU["memory_bytes"],  # type: ignore[operator]
        "flops": {**work, "step": settings.batch * work["conversation"], "total": total},
        "mfu": MFU,
        "hours": gpu_hours / gpus,
        "gpu_hours": gpu_hours,
    }


def memory(
    model: PulseForConditionalGeneration,
    gpus: int,
    rows: int,
    visual: int,
    text: int,
    checkpointing: bool,
) -> dict[str, int]:
    """Bytes that one GPU needs under full sharding with bf16 computation and float32 master weights.

    With P parameters, P_t trainable, N GPUs, b rows of S tokens, L layers of width h, key/value width k and
    FFN width f:

    * weights 4 P/N, gradients 4 P_t/N, AdamW's two moments 8 P_t/N (ZeRO stage 3: Rajbhandari et al., SC
      2020; FSDP: Zhao et al., VLDB 2023).
    * gathered: bf16 copies, 2 bytes, of what is whole at one time: the root (embeddings, head, projector) and
      two layers, the present one and the one fetched ahead, and the gradients of root and one layer. On
      one GPU autocast holds a bf16 copy of every weight instead.
    * activations: with checkpointing L inputs of a layer, 2 b S h each, and one layer in full, without
      it L full layers. A full layer keeps, counted as Korthikanti et al. (MLSys 2023) count GPT's:
      two normalisations 12 h (float32 copy and result), residuals 4 h, q and k before and after rotation
      and v 4 h + 6 k, attention's result 2 h, and gate, up, their product and the activated gate 8 f bytes
      a token. Attention itself is fused and keeps no S x S matrix.
    * logits: only of the text, 12 bytes a piece of the vocabulary (bf16 and float32, and their gradients).
    * vision: nothing is kept where the tower is frozen; otherwise its layers are checkpointed alike.

    CUDA's context, communication buffers and fragmentation are not in it: see ``USABLE``.

    Args:
        model: on the meta device, frozen as it will be trained.
        gpus: N.
        rows: b, conversations that a GPU computes at a time.
        visual: image tokens of a conversation.
        text: other tokens of a conversation.
        checkpointing: whether activations are computed again in the backward pass.

    Returns:
        weights, gradients, optimizer, gathered, activations, logits and their total, in bytes.
    """
    config = model.config.text_config
    layers = model.model.language_model.layers
    whole, trained = _count(model), _count(model, trainable=True)
    layer = _count(layers[0])
    root = trained - _count(layers) - _count(model.model.vision_tower, trainable=True)
    kept = _layer_bytes(config)
    tokens = rows * (visual + text)
    full = len(layers) if not checkpointing else 1
    activations = tokens * (2 * config.hidden_size * len(layers) * checkpointing + kept * full)
    tower = model.model.vision_tower
    if any(p.requires_grad for p in tower.parameters()) and hasattr(model.config.vision_config, "patch_size"):
        activations += _vision_bytes(model, rows, checkpointing)
    parts = {
        "weights": 4 * whole / gpus,
        "gradients": 4 * trained / gpus,
        "optimizer": 8 * trained / gpus,
        "gathered": 2 * whole if gpus == 1 else 2 * (root + 2 * layer) + 2 * (root + layer),
        "activations": activations,
        "logits": 12 * rows * text * config.vocab_size,
    }
    rounded = {name: round(size) for name, size in parts.items()}
    return {**rounded, "total": sum(rounded.values())}


def _layer_bytes(config: Any) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass; see :func:`memory`."""
    hidden = int(config.hidden_size)
    heads = config.num_key_value_heads / config.num_attention_heads
    return round(22 * hidden + 6 * hidden * heads + 8 * config.intermediate_size)


def _vision_bytes(model: PulseForConditionalGeneration, rows: int, checkpointing: bool) -> int:
    """Bytes of a trained tower: of CLIP counted as a layer of GPT, 34 h a token (Korthikanti et al.)."""
    vision = model.config.vision_config
    if vision.model_type != "clip_vision_model":
        return 0
    tokens = rows * MAX_TILES * ((vision.image_size // vision.patch_size) ** 2 + 1)
    layers = int(vision.num_hidden_layers)
    kept = 2 * layers + 34 if checkpointing else 34 * layers
    return int(tokens * vision.hidden_size * kept)


def flops(model: PulseForConditionalGeneration, visual: int, text: int) -> dict[str, float]:
    """Floating-point operations that one conversation takes, forward and backward.

    Six for every weight of a matrix and token, two forward and four backward (Kaplan et al., 2020), and
    for attention's two products 12 L S^2 h, not halved for causality (PaLM, Chowdhery et al., 2022, appendix
    B). Head and logits are computed for the text only, the projector for the image only. The tower is
    counted operation by operation on the meta device, forward only where it is frozen. What
    checkpointing computes again is not counted, as MFU is defined without it.

    Args:
        model: on the meta device, frozen as it will be trained.
        visual: image tokens.
        text: other tokens.

    Returns:
        vision, language, and conversation, their sum.
    """
    config = model.config.text_config
    language = model.model.language_model
    length = visual + text
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = head * config.num_attention_heads
    matrices = 6 * _weights(language.layers) * length
    matrices += 6 * model.lm_head.weight.numel() * text
    matrices += 6 * _weights(model.model.multi_modal_projector) * visual
    attention = 12 * len(language.layers) * length**2 * width
    tower = model.model.vision_tower
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    vision = vision_flops(model) * (3 if trained else 1)
    return {
        "vision": float(vision),
        "language": float(matrices + attention),
        "conversation": float(vision + matrices + attention),
    }


def vision_flops(model: PulseForConditionalGeneration) -> int:
    """Operations of the tower's forward pass over the five tiles of a page, counted by torch on shapes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.vision_tower(torch.zeros(MAX_TILES, 3, TILE_SIZE, TILE_SIZE, device=model.device))
    return int(counter.get_total_flops())


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)


def _count(module: nn.Module, trainable: bool = False) -> int:
    """Parameters, each once where several modules share it."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def mean_text_tokens(conversations: Any, most: int = 1000) -> int:
    """Estimate the mean tokens of a conversation's text: four characters a token, and the system prompt.

    Args:
        conversations: sequence of examples with ``turns``; up to ``most`` evenly spaced ones are read.
        most: how many.
    """
    step = max(1, len(conversations) // most)
    sizes = [
        sum(len(turn.question) + len(turn.answer) + len("USER: ASSISTANT:") for turn in example.turns)
        for example in itertools.islice((conversations[k] for k in range(0, len(conversations), step)), most)
    ]
    return 35 + round(sum(sizes) / len(sizes) / 4)
