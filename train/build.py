"""Build a fresh model from the shape that a recipe gives."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from pulse_edge.contract import BOS_ID, EOS_ID, PAD_ID
from pulse_edge.errors import UserError
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.tower import PulseConvVisionConfig, PulseConvVisionModel
from pulse_edge.train.recipe import ModelShape


def build_model(shape: ModelShape, vocab_size: int) -> PulseForConditionalGeneration:
    """Return a randomly initialised model: convolutional tower, two-layer projector, Llama decoder.

    Args:
        shape: of the recipe.
        vocab_size: pieces that the tokenizer really has.
    """
    text = LlamaConfig(
        vocab_size=vocab_size,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        **shape.text,
    )
    config = PulseConfig(
        merge="flat",
        vision_config=PulseConvVisionConfig(**shape.vision),
        text_config=text,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    return PulseForConditionalGeneration(config)


def grow(model: PulseForConditionalGeneration, earlier: PulseForConditionalGeneration) -> None:
    """Give a fresh model the weights of an earlier one that is the same or lacks some of its layers.

    Layers that the earlier model lacks begin as the identity, so that the grown model answers as the
    earlier one did (Chen et al., Net2Net, 2016).

    Args:
        model: fresh; changed in place.
        earlier: of the same widths and vocabulary, with as many or fewer residual blocks and context layers.

    Raises:
        UserError: the shapes do not fit, or the earlier model has layers that this one lacks.
    """
    new, old = model.state_dict(), earlier.state_dict()
    extra = sorted(set(old) - set(new))
    other = sorted(name for name in set(old) & set(new) if old[name].shape != new[name].shape)
    if extra or other:
        raise UserError(
            f"The model cannot start from {earlier.name_or_path or 'that checkpoint'}: "
            f"{(extra or other)[0]} is not there or has another shape. "
            "Start from a checkpoint of the same widths, or train without --init."
        )
    with torch.no_grad():
        for stage in (m for m in model.modules() if isinstance(m, PulseConvVisionModel)):
            stage.silence_blocks()
    model.load_state_dict(old, strict=False)
