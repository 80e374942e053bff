"""A CLIP vision tower with LLaVA's projector as one ONNX graph, its weights streamed.

torch.onnx makes the same graph, and does so for towers that are not CLIP's (:mod:`.graphs`), but tracing
PULSE-7B's takes half a gigabyte before a weight is read; this takes what one layer takes. Layer norms and
softmax are computed in float32 whatever the precision, the rest in the computing type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pulse_edge.contract import MAX_TILES, exact_div
from pulse_edge.errors import CheckpointError
from pulse_edge.export.ink import choose_rows
from pulse_edge.export.linear import linear, rows, vector
from pulse_edge.export.onnx_writer import GraphWriter
from pulse_edge.export.rounded import Rounded
from pulse_edge.export.rounding import to_float32
from pulse_edge.export.weights import Precision, Weights
from pulse_edge.model.shards import Form

OPSET: Final = 18  # below the Gelu operator, which older TensorRT lacks
# What transformers assumes where a CLIP vision configuration says nothing.
_DEFAULTS: Final = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
_ACTIVATIONS: Final = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class ClipShape:
    """Shape of a CLIP tower.

    Attributes:
        hidden, mlp, layers, heads, image, patch: as in the configuration, lengths in pixels.
        activation: ``quick_gelu`` or ``gelu``.
        epsilon: of the layer norms.
        used: layers that run before the features are taken; the others are not exported.
        skip: tokens left out at the start: 1 for the class token, or 0.
        projected: width behind the projector.
        biased: whether the projector has biases.
        keep, keep_by: visual tokens that are kept of a page (None: all), and which.
    """

    hidden: int
    mlp: int
    layers: int
    heads: int
    image: int
    patch: int
    activation: str
    epsilon: float
    used: int
    skip: int
    projected: int
    biased: bool
    keep: int | None = None
    keep_by: str = "ink"

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> ClipShape:
        """Read the shape from PulseConfig's fields.

        Raises:
            CheckpointError: the tower has something that the graph does not cover.
        """
        config = {**_DEFAULTS, **fields["vision_config"]}
        layers, feature = int(config["num_hidden_layers"]), fields.get("vision_feature_layer", -2)
        used = feature if isinstance(feature, int) and feature >= 0 else layers + 1 + int(feature)
        if config["hidden_act"] not in _ACTIVATIONS or not 0 <= used <= layers:
            raise CheckpointError(
                f"The vision tower has an activation {config['hidden_act']!r} and feature layer {feature!r} "
                f"of {layers}, which the exporter does not cover. Use a PULSE or LLaVA-1.6 checkpoint."
            )
        return cls(
            hidden=config["hidden_size"],
            mlp=config["intermediate_size"],
            layers=layers,
            heads=config["num_attention_heads"],
            image=config["image_size"],
            patch=config["patch_size"],
            activation=config["hidden_act"],
            epsilon=config["layer_norm_eps"],
            used=used,
            skip=1 if fields.get("vision_feature_select_strategy", "default") == "default" else 0,
            projected=fields["text_config"]["hidden_size"],
            biased=bool(fields.get("multimodal_projector_bias", True)),
            keep=fields.get("keep_tokens"),
            keep_by=fields.get("keep_by", "ink"),
        )

    @property
    def positions(self) -> int:
        """Patches of a tile, and the class token."""
        return exact_div(self.image, self.patch) ** 2 + 1

    @property
    def tokens(self) -> int:
        """Tokens that a tile becomes, before some are chosen."""
        return self.positions - self.skip

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Canonical names and shapes of all weights of the tower, unused layers included."""
        wide = self.hidden
        yield "vision.embeddings.class_embedding", (wide,)
        yield "vision.embeddings.patch_embedding.weight", (wide, 3, self.patch, self.patch)
        yield "vision.embeddings.position_embedding.weight", (self.positions, wide)
        norms = ["pre_layrnorm", "post_layernorm"]
        for i in range(self.layers):
            layer = f"encoder.layers.{i}"
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield f"vision.{layer}.self_attn.{part}.weight", (wide, wide)
                yield f"vision.{layer}.self_attn.{part}.bias", (wide,)
            for part, out, into in (("fc1", self.mlp, wide), ("fc2", wide, self.mlp)):
                yield f"vision.{layer}.mlp.{part}.weight", (out, into)
                yield f"vision.{layer}.mlp.{part}.bias", (out,)
        for norm in norms:
            yield f"vision.{norm}.weight", (wide,)
            yield f"vision.{norm}.bias", (wide,)


def plan_vision(
    path: Path, shape: ClipShape, weights: Weights, half: bool, integers: bool = False
) -> GraphWriter:
    """Write ``vision.onnx``: ``pixel_values`` float32 [5, 3, I, I] -> ``image_features`` float32 [5, T, H].

    Args:
        path: of the graph.
        shape: of the tower.
        weights: of the checkpoint.
        half: compute in float16.
        integers: compute the layers' products in 8 bits, by an operator of ONNX Runtime's own.

    Returns:
        The writer, whose ``fill`` makes the data.
    """
    writer = GraphWriter(path, "vision", OPSET)
    how = Precision("fp16", 16, np.float16) if half else Precision("fp32", 32, np.float32)
    clip = _Clip(writer, shape, weights, how)
    if integers:
        clip.rounded = Rounded(writer, weights, Precision("int8", 8, np.float32, "ort"))
    clip.write()
    writer.save()
    return writer


class _Clip:
    def __init__(self, writer: GraphWriter, shape: ClipShape, weights: Weights, how: Precision) -> None:
        self.w, self.s, self.weights, self.how = writer, shape, weights, how
        self.rounded: Rounded | None = None

    def write(self) -> None:
        w, s = self.w, self.s
        pixels = w.input("pixel_values", np.float32, [MAX_TILES, 3, s.image, s.image])
        kept = s.tokens if s.keep is None else exact_div(s.keep, MAX_TILES)
        w.output("image_features", np.float32, [MAX_TILES, kept, s.projected])
        x = self._norm(self._embed(pixels), "pre_layrnorm")
        for i in range(s.used):
            x = self._layer(x, f"encoder.layers.{i}")
        if s.skip:
            start, end, axis = (w.constant([v], np.int64) for v in (s.skip, s.positions, 1))
            x = w.op("Slice", x, start, end, axis, name="features")
        if s.keep is not None:
            x = choose_rows(w, pixels, x, s.tokens, s.hidden, s.image, s.keep, s.keep_by)
        x = self._linear(x, "projector.linear_1", "projector.linear_1", s.biased)
        x = self._linear(self._gelu(x, "projector"), "projector.linear_2", "projector.linear_2", s.biased)
        if self.how.compute is np.float16:
            w.cast(x, np.float32, "image_features")
        else:
            w.op("Identity", x, name="image_features")

    def _embed(self, pixels: str) -> str:
        """Patches, the class token before them, and the position of each."""
        w, s = self.w, self.s
        kernel = rows(
            w, "patches.weight", self.weights, "vision.embeddings.patch_embedding.weight", self.how.compute
        )
        x = w.op("Conv", self._narrow(pixels, "pixels"), kernel.name, name="patches", strides=[s.patch] * 2)
        shape = w.constant([MAX_TILES, s.hidden, s.positions - 1], np.int64)
        x = w.op("Reshape", x, shape, name="patches/flat")
        x = w.op("Transpose", x, name="patches/tokens", perm=[0, 2, 1])
        form = (MAX_TILES, 1, s.hidden)
        first = w.weight("class", self.how.compute, form, self._class_token)
        x = w.op("Concat", first, x, name="tokens", axis=1)
        places = vector(
            w,
            "positions.weight",
            self.weights,
            "vision.embeddings.position_embedding.weight",
            self.how.compute,
        )
        return w.op("Add", x, places, name="embedded")

    def _class_token(self) -> Any:
        key = "vision.embeddings.class_embedding"
        token = to_float32(self.weights.rows(key, 0, self.s.hidden), self.weights.kind(key))
        return np.broadcast_to(token, (MAX_TILES, 1, self.s.hidden))

    def _layer(self, x: str, name: str) -> str:
        w = self.w
        x = w.op(
            "Add", x, self._attention(self._norm(x, f"{name}.layer_norm1"), name), name=f"{name}.attended"
        )
        y = self._vision(self._norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        y = self._gelu(y, name) if self.s.activation == "gelu" else self._quick_gelu(y, name)
        return w.op("Add", x, self._vision(y, f"{name}.mlp.fc2"), name=f"{name}.out")

    def _attention(self, y: str, name: str) -> str:
        w, s, name = self.w, self.s, f"{name}.self_attn"
        width = exact_div(s.hidden, s.heads)
        apart = w.constant([MAX_TILES, s.positions, s.heads, width], np.int64)
        parts = []
        for part, perm in (("q_proj", [0, 2, 1, 3]), ("k_proj", [0, 2, 3, 1]), ("v_proj", [0, 2, 1, 3])):
            x = w.op("Reshape", self._vision(y, f"{name}.{part}"), apart, name=f"{name}.{part}/heads")
            parts.append(w.op("Transpose", x, name=f"{name}.{part}/first", perm=perm))
        scale = w.constant(width**-0.5, self.how.compute)
        query = w.op("Mul", parts[0], scale, name=f"{name}.q/scaled")
        scores = self._wide(w.op("MatMul", query, parts[1], name=f"{name}.scores"), f"{name}.scores/f32")
        mixed = self._narrow(w.op("Softmax", scores, name=f"{name}.softmax", axis=-1), f"{name}.weights")
        out = w.op("MatMul", mixed, parts[2], name=f"{name}.mixed")
        out = w.op("Transpose", out, name=f"{name}.mixed/tokens", perm=[0, 2, 1, 3])
        flat = w.constant([MAX_TILES, s.positions, s.hidden], np.int64)
        return self._vision(w.op("Reshape", out, flat, name=f"{name}.mixed/flat"), f"{name}.out_proj")

    def _quick_gelu(self, x: str, name: str) -> str:
        w = self.w
        steep = w.op("Mul", x, w.constant(1.702, self.how.compute), name=f"{name}.mlp.steep")
        return w.op("Mul", x, w.op("Sigmoid", steep, name=f"{name}.mlp.sigmoid"), name=f"{name}.mlp.gelu")

    def _gelu(self, x: str, name: str) -> str:
        w, kind = self.w, self.how.compute
        scaled = w.op("Mul", x, w.constant(2**-0.5, kind), name=f"{name}.gelu/scaled")
        shifted = w.op(
            "Add", w.op("Erf", scaled, name=f"{name}.gelu/erf"), w.constant(1, kind), name=f"{name}.gelu/up"
        )
        half = w.op("Mul", x, w.constant(0.5, kind), name=f"{name}.gelu/half")
        return w.op("Mul", half, shifted, name=f"{name}.gelu")

    def _norm(self, x: str, name: str) -> str:
        """Layer norm whose mean and variance are float32: in float16 squares of large channels overflow."""
        gain, shift = (
            vector(self.w, f"{name}.{part}", self.weights, f"vision.{name}.{part}", np.float32)
            for part in ("weight", "bias")
        )
        wide = self._wide(x, f"{name}/f32")
        y = self.w.op(
            "LayerNormalization", wide, gain, shift, name=f"{name}/normed", axis=-1, epsilon=self.s.epsilon
        )
        return self._narrow(y, name)

    def _vision(self, x: str, name: str) -> str:
        return self._linear(x, name, f"vision.{name}", True)

    def _linear(self, x: str, name: str, key: str, biased: bool) -> str:
        n, k = self.weights.shape(f"{key}.weight")
        if self.rounded is not None and key.startswith("vision."):
            form = Form(8, k, False, (n, k))
            y = self.rounded.product(x, name, f"{key}.weight", form, [MAX_TILES, self.s.positions])
        else:
            y = linear(self.w, x, name, self.weights, f"{key}.weight", self.how)
        if not biased:
            return y
        bias = vector(self.w, f"{name}.bias", self.weights, f"{key}.bias", self.how.compute)
        return self.w.op("Add", y, bias, name=f"{name}/biased")

    def _wide(self, x: str, name: str) -> str:
        return x if self.how.compute is np.float32 else self.w.cast(x, np.float32, name)

    def _narrow(self, x: str, name: str) -> str:
        return x if self.how.compute is np.float32 else self.w.cast(x, self.how.compute, name)
