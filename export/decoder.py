"""The language model as one ONNX graph with its key-value cache going in and out.

Plain operators of opset 21 only, which both ONNX Runtime and TensorRT's parser take; the attention
is written out. Hazards of half precision are met in the graph: norms, softmax and the rotary tables
are float32, and the mask is -1e4, which float16 can hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import exact_div
from pulse_edge.errors import CheckpointError
from pulse_edge.export.onnx_writer import GraphWriter
from pulse_edge.export.weights import Precision, linear

Weights = Callable[[str], NDArray[np.float32]]
MASKED = -1e4


@dataclass(frozen=True)
class DecoderShape:
    """Shape of a Llama-like decoder.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, vocab: as in the configuration.
        context: longest sequence, image included.
        theta: base of the rotary embedding.
        epsilon: of the norms.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    theta: float
    epsilon: float


def decoder_shape(config: Any) -> DecoderShape:
    """Read the shape from a transformers Llama configuration.

    Raises:
        CheckpointError: the decoder has something that the graph does not cover.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config.model_type != "llama" or kind != "default" or config.hidden_act != "silu":
        raise CheckpointError(
            f"The exporter covers Llama decoders with plain rotary embeddings; this one is "
            f"{config.model_type!r} with rope {kind!r} and {config.hidden_act!r}. "
            "Export it with a later pulse-edge."
        )
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise CheckpointError("The exporter does not cover decoders with biases. Use a checkpoint without.")
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or exact_div(config.hidden_size, config.num_attention_heads),
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        theta=float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0),
        epsilon=config.rms_norm_eps,
    )


def write_decoder(
    path: Path, shape: DecoderShape, weights: Weights, how: Precision, tick: Callable[[], None] = lambda: None
) -> None:
    """Write ``decoder.onnx`` and its data.

    Inputs: ``inputs_embeds`` float32 [1, S, H] and for every layer ``past_key_values.i.key`` and
    ``.value`` [1, KV, P, D] in the computing type; S ≥ 1 and P ≥ 0 are dynamic. Outputs: ``logits``
    float32 [1, V] behind the last position, and ``present.i.key``/``.value`` [1, KV, P + S, D].

    Args:
        path: of the graph.
        shape: of the decoder.
        weights: gives a weight by its name inside the language model, e.g.
            ``layers.0.self_attn.q_proj.weight``, ``norm.weight``, ``lm_head.weight``; asked once for each.
        how: precision of the linear layers.
        tick: called after every layer.
    """
    with GraphWriter(path, "decoder") as writer:
        _Decoder(writer, shape, weights, how).write(tick)
        writer.save({"precision": how.name, "context": str(shape.context)})


class _Decoder:
    def __init__(self, writer: GraphWriter, shape: DecoderShape, weights: Weights, how: Precision) -> None:
        self.w, self.shape, self.weights, self.how = writer, shape, weights, how
        self.compute = how.compute
        self.kind = {np.float16: 10, np.float32: 1}[how.compute]  # TensorProto's numbers

    def write(self, tick: Callable[[], None]) -> None:
        w, s = self.w, self.shape
        embeds = w.input("inputs_embeds", np.float32, [1, "S", s.hidden])
        caches = [
            [
                w.input(f"past_key_values.{i}.{part}", self.compute, [1, s.kv_heads, "P", s.head_dim])
                for part in ("key", "value")
            ]
            for i in range(s.layers)
        ]
        self._positions(embeds, caches[0][0])
        x = w.op("Cast", embeds, name="embeds", to=self.kind)
        for i, (key, value) in enumerate(caches):
            x = self._layer(i, x, key, value)
            tick()
        minus_one, end, axis = (w.constant([v], np.int64) for v in (-1, np.iinfo(np.int64).max, 1))
        last = w.op("Slice", x, minus_one, end, axis, name="last")
        last = self._norm(last, "norm")
        head = linear(w, last, "lm_head", self.weights("lm_head.weight"), self.how, keep=True)
        logits = w.op("Cast", head, name="lm_head/f32", to=1)
        flat = w.op("Reshape", logits, w.constant([1, s.vocab], np.int64), name="logits/flat")
        w.output("logits", flat, np.float32, [1, s.vocab])

    def _positions(self, embeds: str, past: str) -> None:
        """Rotary tables and mask for positions P .. P + S - 1, from the shapes alone."""
        w, s = self.w, self.shape
        zero, one = w.constant(0, np.int64), w.constant(1, np.int64)
        length = w.op("Gather", w.op("Shape", embeds, name="embeds/shape"), one, name="S")
        offset = w.op("Gather", w.op("Shape", past, name="past/shape"), w.constant(2, np.int64), name="P")
        total = w.op("Add", offset, length, name="P+S")
        rows = w.op("Range", offset, total, one, name="rows")
        columns = w.op("Range", zero, total, one, name="columns")
        seen = w.op(
            "LessOrEqual",
            columns,
            w.op("Unsqueeze", rows, w.constant([1], np.int64), name="rows/column"),
            name="seen",
        )
        self.mask = w.op(
            "Where", seen, w.constant(0.0, np.float32), w.constant(MASKED, np.float32), name="mask"
        )
        cos, sin = rotary_tables(s)
        self.cos, self.sin = (
            w.op(
                "Cast",
                w.op("Gather", w.weight(f"rotary.{n}", t), rows, name=f"{n}/f32"),
                name=n,
                to=self.kind,
            )
            for n, t in (("cos", cos), ("sin", sin))
        )

    def _layer(self, i: int, x: str, key: str, value: str) -> str:
        w, name = self.w, f"layers.{i}"
        y = self._norm(x, f"{name}.input_layernorm")
        x = w.op("Add", x, self._attention(i, y, key, value), name=f"{name}.attended")
        y = self._norm(x, f"{name}.post_attention_layernorm")
        gate, up = self._linear(y, f"{name}.mlp.gate_proj"), self._linear(y, f"{name}.mlp.up_proj")
        gate = w.op("Mul", gate, w.op("Sigmoid", gate, name=f"{name}.mlp.sigmoid"), name=f"{name}.mlp.silu")
        y = self._linear(w.op("Mul", gate, up, name=f"{name}.mlp.gated"), f"{name}.mlp.down_proj")
        return w.op("Add", x, y, name=f"{name}.out")

    def _attention(self, i: int, y: str, key: str, value: str) -> str:
        w, s, name = self.w, self.shape, f"layers.{i}.self_attn"
        q = self._rotate(self._split(self._linear(y, f"{name}.q_proj"), s.heads), f"{name}.q")
        k = self._rotate(self._split(self._linear(y, f"{name}.k_proj"), s.kv_heads), f"{name}.k")
        v = self._split(self._linear(y, f"{name}.v_proj"), s.kv_heads)
        k = w.op("Concat", key, k, name=f"{name}.keys", axis=2)
        v = w.op("Concat", value, v, name=f"{name}.values", axis=2)
        for part, tensor in (("key", k), ("value", v)):
            w.output(f"present.{i}.{part}", tensor, self.compute, [1, s.kv_heads, "P+S", s.head_dim])
        groups = exact_div(s.heads, s.kv_heads)
        if groups > 1:  # query heads that share a key head are broadcast over it, not copied
            axis = w.constant([2], np.int64)
            split = w.constant([1, s.kv_heads, groups, -1, s.head_dim], np.int64)
            q = w.op("Reshape", q, split, name=f"{name}.q/groups")
            k = w.op("Unsqueeze", k, axis, name=f"{name}.keys/groups")
            v = w.op("Unsqueeze", v, axis, name=f"{name}.values/groups")
        order = [0, 1, 3, 2] if groups == 1 else [0, 1, 2, 4, 3]
        scale = w.constant(s.head_dim**-0.5, self.compute)
        q = w.op("Mul", q, scale, name=f"{name}.q/scaled")
        k = w.op("Transpose", k, name=f"{name}.keys/transposed", perm=order)
        scores = w.op("Cast", w.op("MatMul", q, k, name=f"{name}.scores"), name=f"{name}.scores/f32", to=1)
        scores = w.op("Add", scores, self.mask, name=f"{name}.scores/masked")
        weights = w.op("Softmax", scores, name=f"{name}.softmax", axis=-1)
        weights = w.op("Cast", weights, name=f"{name}.weights", to=self.kind)
        out = w.op("MatMul", weights, v, name=f"{name}.mixed")
        if groups > 1:
            joined = w.constant([1, s.heads, -1, s.head_dim], np.int64)
            out = w.op("Reshape", out, joined, name=f"{name}.mixed/heads")
        out = w.op("Transpose", out, name=f"{name}.mixed/tokens", perm=[0, 2, 1, 3])
        flat = w.constant([1, -1, s.heads * s.head_dim], np.int64)
        return self._linear(w.op("Reshape", out, flat, name=f"{name}.mixed/flat"), f"{name}.o_proj")

    def _split(self, x: str, heads: int) -> str:
        shape = self.w.constant([1, -1, heads, self.shape.head_dim], np.int64)
        x = self.w.op("Reshape", x, shape, name=f"{x}/heads")
        return self.w.op("Transpose", x, name=f"{x}/first", perm=[0, 2, 1, 3])

    def _rotate(self, x: str, name: str) -> str:
        w, half = self.w, exact_div(self.shape.head_dim, 2)
        zero, middle, end, axis = (w.constant([v], np.int64) for v in (0, half, 2 * half, 3))
        low = w.op("Slice", x, zero, middle, axis, name=f"{name}/low")
        high = w.op("Slice", x, middle, end, axis, name=f"{name}/high")
        turned = w.op("Concat", w.op("Neg", high, name=f"{name}/neg"), low, name=f"{name}/turned", axis=3)
        a = w.op("Mul", x, self.cos, name=f"{name}/cos")
        b = w.op("Mul", turned, self.sin, name=f"{name}/sin")
        return w.op("Add", a, b, name=f"{name}/rotated")

    def _norm(self, x: str, name: str) -> str:
        w = self.w
        wide = w.op("Cast", x, name=f"{name}/f32", to=1)
        square = w.op("Mul", wide, wide, name=f"{name}/square")
        mean = w.op("ReduceMean", square, w.constant([-1], np.int64), name=f"{name}/mean", keepdims=1)
        shifted = w.op("Add", mean, w.constant(self.shape.epsilon, np.float32), name=f"{name}/shifted")
        root = w.op("Sqrt", shifted, name=f"{name}/root")
        unit = w.op("Div", wide, root, name=f"{name}/unit")
        gain = w.weight(f"{name}.weight", self.weights(f"{name}.weight"))
        return w.op("Cast", w.op("Mul", unit, gain, name=f"{name}/scaled"), name=name, to=self.kind)

    def _linear(self, x: str, name: str) -> str:
        return linear(self.w, x, name, self.weights(f"{name}.weight"), self.how)


def rotary_tables(shape: DecoderShape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosine and sine, float32 [context, head_dim], computed in float64 (RoFormer, 2021)."""
    frequency = shape.theta ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    angle = np.arange(shape.context)[:, None] * frequency
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def write_embedding(path: Path, table: NDArray[np.float32], how: Precision) -> None:
    """Write ``embed.onnx``: ``input_ids`` int64 [1, S] -> ``inputs_embeds`` float32 [1, S, H]."""
    with GraphWriter(path, "embed") as w:
        ids = w.input("input_ids", np.int64, [1, "S"])
        stored = w.weight("embed_tokens.weight", table.astype(how.compute))
        rows = w.op("Gather", stored, ids, name="rows", axis=0)
        wide = w.op("Cast", rows, name="rows/f32", to=1)
        w.output("inputs_embeds", wide, np.float32, [1, "S", table.shape[1]])
        w.save()
