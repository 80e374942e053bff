"""Build a fresh model from the shape that a recipe gives."""

from __future__ import annotations

from transformers import LlamaConfig

from pulse_edge.contract import BOS_ID, EOS_ID, PAD_ID
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.tower import PulseConvVisionConfig
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
