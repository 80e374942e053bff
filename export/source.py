"""A checkpoint as the exporter sees it: what it is, and its weights by the row.

Nothing here needs torch or transformers, and no weight is read before it is written. What
``model.checkpoint.load_model`` refuses when it builds the model is refused here from names and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import CheckpointError
from pulse_edge.export.rounding import to_float32
from pulse_edge.export.shape import DecoderShape, decoder_shape
from pulse_edge.export.vision import ClipShape
from pulse_edge.model.layouts import HEAD, NEWLINE, TABLE, pulse_config
from pulse_edge.model.merge import KEPT
from pulse_edge.model.shards import FLOATS, Shards, describe_kinds
from pulse_edge.model.weights import brief, read_json, refuse

# What transformers assumes of a language model or tower whose config.json does not say.
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    },
    "qwen2": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "hidden_act": "silu",
    },
}  # fmt: skip
_TOWER: Final = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14,
    "image_size": 336, "num_hidden_layers": 24, "num_attention_heads": 16,
}  # fmt: skip
_PROJECTOR: Final = "projector.linear_"


class Source:
    """An opened checkpoint.

    Args:
        folder: in any layout that :mod:`pulse_edge.model.layouts` reads.

    Attributes:
        weights: all of them.
        fields: the configuration in PulseConfig's terms.
        text: the language model's settings, with transformers' defaults.
        shape: of the decoder.

    Raises:
        CheckpointError: anything is missing, left over, damaged, or of another shape or type.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = folder / "config.json"
        raw = read_json(settings)
        self.weights = Shards(folder)
        try:
            self.fields = pulse_config(raw, self.weights.shapes)
            if not self.fields.get("vision_config"):
                self.fields["vision_config"] = dict(_TOWER)
            self.fields["vision_config"].setdefault("model_type", _TOWER["model_type"])
            text = self.fields["text_config"]
            kind = text.get("model_type", "llama")
            self.text = SimpleNamespace(**{"model_type": kind, **_DEFAULTS.get(kind, {}), **text})
            if getattr(self.text, "num_key_value_heads", None) is None:
                self.text.num_key_value_heads = self.text.num_attention_heads
            self.shape: DecoderShape = decoder_shape(self.text)
            expected = dict(self._expected())
        except CheckpointError:
            raise
        except Exception as error:  # whatever a wrong value in the file leads to
            raise CheckpointError(
                f"{settings} does not describe a model ({brief(error)}). Restore the original file."
            ) from error
        self._check(expected)

    @property
    def merge(self) -> str:
        """How tiles are merged: ``flat``, ``spatial_unpad``, or ``kept`` where the graph chooses tokens."""
        return str(self.fields["merge"]) if self.keep is None else KEPT

    @property
    def keep(self) -> int | None:
        """Visual tokens that are kept of a page; None for all."""
        return self.fields.get("keep_tokens")

    @property
    def head(self) -> str:
        """Name of the weight that makes logits: of a tied model, the embedding table."""
        return TABLE if self.fields["tie_word_embeddings"] else HEAD

    @property
    def vision(self) -> dict[str, Any]:
        """Configuration of the tower."""
        return dict(self.fields["vision_config"])

    @property
    def clip(self) -> bool:
        """Whether the tower is a CLIP ViT."""
        return self.vision.get("model_type") == "clip_vision_model"

    @property
    def kinds(self) -> dict[str, int]:
        """How many weights are of each type; more than one is unusual but sound."""
        kinds = [entry.kind for entry in self.weights.stored.values() if entry.kind in FLOATS]
        return describe_kinds(kinds + [f"INT{form.bits}" for form in self.weights.forms.values()])

    @property
    def bits(self) -> int | None:
        """Fewest bits of the weights that stand as integers; None where none does."""
        return min((form.bits for form in self.weights.forms.values()), default=None)

    def array(self, name: str) -> NDArray[np.float32]:
        """A whole weight as float32; only for small ones."""
        shape = self.weights.shape(name)
        return to_float32(self.weights.rows(name, 0, shape[0]), self.weights.kind(name))

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Canonical names and shapes of all weights but those of a tower that is not CLIP's."""
        yield from self.shape.weights()
        if self.head == HEAD:
            yield HEAD, (self.shape.vocab, self.shape.hidden)
        if self.merge == "spatial_unpad" or NEWLINE in self.weights.shapes:
            yield NEWLINE, (self.shape.hidden,)
        width = ClipShape.read(self.fields).hidden if self.clip else self.vision["widths"][-1]
        for number, into in ((1, width), (2, self.shape.hidden)):
            yield f"{_PROJECTOR}{number}.weight", (self.shape.hidden, into)
            if self.fields.get("multimodal_projector_bias", True):
                yield f"{_PROJECTOR}{number}.bias", (self.shape.hidden,)
        if self.clip:
            yield from ClipShape.read(self.fields).weights()

    def _check(self, expected: dict[str, tuple[int, ...]]) -> None:
        folder, stored, shapes = self.folder, self.weights.stored, self.weights.shapes
        refuse(folder, "lacks", shapes, expected, "Download it again, completely.")
        given = [name for name in shapes if self.clip or not name.startswith("vision.")]
        refuse(folder, "has no use for", expected, given, "Restore its config.json.")
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise CheckpointError(
                    f"{folder} holds {name} of shape {list(shapes[name])}, but its config.json asks for "
                    f"{list(shape)}. Restore its config.json."
                )
            if name in stored and stored[name].kind not in FLOATS:
                raise CheckpointError(
                    f"{folder} holds {name} as {stored[name].kind}; pulse-edge reads {', '.join(FLOATS)}. "
                    "Convert the checkpoint to bfloat16."
                )
