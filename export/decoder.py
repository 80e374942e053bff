"""The language model as one ONNX graph with its key-value cache going in and out.

Operators of the standard only (:mod:`.ort_decoder` writes the profile ``ort``, in ONNX Runtime's own).
The profile ``trt`` writes attention, norms and rotary embedding out, which both ONNX Runtime and every
TensorRT 10 take; ``trt10.15`` uses opset 23's Attention, RMSNormalization and RotaryEmbedding. Keys and
values are joined with their past outside of Attention, whose own past TensorRT does not take. Hazards of
half precision are met in the graph: norms, softmax and rotary embedding are computed in float32, and the
mask is -1e4, which float16 can hold. Covered are decoders of Llama's form (grouped-query attention and
biases included, so Qwen2's too) with plain rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pulse_edge.contract import exact_div
from pulse_edge.export.linear import chosen_form, holds_table, integer_rows, linear, rows, vector
from pulse_edge.export.onnx_writer import GraphWriter, Place
from pulse_edge.export.shape import DecoderShape, rotary_tables
from pulse_edge.export.weights import Precision, Weights
from pulse_edge.model.layouts import HEAD, TABLE

MASKED: Final = -1e4
EMBED: Final = "embed.onnx"


def plan_decoder(
    path: Path,
    shape: DecoderShape,
    weights: Weights,
    how: Precision,
    table: Sequence[Place] = (),
    head: GraphWriter | None = None,
) -> tuple[GraphWriter, list[str]]:
    """Write ``decoder.onnx`` and say what goes into its data.

    Inputs: ``inputs_embeds`` float32 [1, S, H] and for every layer ``past_key_values.i.key`` and
    ``.value`` [1, KV, P, D] in the computing type; S ≥ 1 and P ≥ 0 are dynamic, and the new tokens
    have the positions P to P + S - 1. Outputs: ``logits`` float32 [1, V] behind the last position, and
    ``present.i.key``/``.value`` [1, KV, P + S, D]. The profile ``ort`` has others: :mod:`.ort_decoder`.

    Args:
        path: of the graph.
        shape: of the decoder.
        weights: by canonical name, e.g. ``text.layers.0.self_attn.q_proj.weight``.
        how: precision of the linear layers.
        table: of a tied model, where the embedding table lies in embed.onnx's data, which is then shared:
            its rows, or its integers and scales.
        head: in the profile ``ort``, the other decoder of a bundle, which has the head's integers.

    Returns:
        The writer, whose ``fill`` makes the data, and the names of the layers that int4 does not fit,
        which are stored as float16.
    """
    from pulse_edge.export.ort_decoder import OrtDecoder

    writer = GraphWriter(path, path.stem, how.opset)
    decoder = (OrtDecoder if how.profile == "ort" else Decoder)(writer, shape, weights, how)
    if isinstance(decoder, OrtDecoder):
        decoder.head = head
    decoder.write(table)
    writer.save({"precision": how.name, "profile": how.profile, "context": str(shape.context)})
    return writer, decoder.kept


class Decoder:
    """Writes the graph of the profiles ``trt`` and ``trt10.15``.

    Attributes:
        kept: layers that int4 does not fit, once it is written.
    """

    def __init__(self, writer: GraphWriter, shape: DecoderShape, weights: Weights, how: Precision) -> None:
        self.w, self.shape, self.weights, self.how = writer, shape, weights, how
        self.compute = how.compute
        self.groups = exact_div(shape.heads, shape.kv_heads)
        self.kept: list[str] = []

    def write(self, table: Sequence[Place]) -> None:
        """Write all nodes; ``table`` as for :func:`plan_decoder`."""
        w, s = self.w, self.shape
        embeds = w.input("inputs_embeds", np.float32, [1, "S", s.hidden])
        caches = [
            [
                w.input(f"past_key_values.{i}.{part}", self.compute, [1, s.kv_heads, "P", s.head_dim])
                for part in ("key", "value")
            ]
            for i in range(s.layers)
        ]
        w.output("logits", np.float32, [1, s.vocab])
        self._positions(embeds, caches[0][0])
        x = self._narrow(embeds, "embeds")
        for i, (key, value) in enumerate(caches):
            x = self._layer(i, x, key, value)
        self._last(x, table)

    def _last(self, x: str, table: Sequence[Place]) -> None:
        """From the hidden states to the logits of the last position."""
        w = self.w
        minus_one, end, axis = (w.constant([v], np.int64) for v in (-1, np.iinfo(np.int64).max, 1))
        last = self._norm(w.op("Slice", x, minus_one, end, axis, name="last"), "norm")
        row = w.constant([1, self.shape.hidden], np.int64)
        self._head(w.op("Reshape", last, row, name="last/row"), table)

    def _head(self, last: str, table: Sequence[Place]) -> None:
        """Logits of one position [1, H]. The head is not rounded here: its error is not averaged out; the
        checkpoint's own integers are taken. Gemm takes it as the checkpoint has it, [V, H], so that a tied
        model's lies on disk once."""
        w, how = self.w, self.how
        half = self.compute is np.float16
        name, key = "lm_head" if half else "logits", HEAD if self.has(HEAD) else TABLE
        if not table and how.given and self.weights.form(key) is not None:
            logits = linear(w, last, name, self.weights, key, how)
        else:
            stored = [w.borrow(place, f"{EMBED}.data") for place in table] or [
                rows(w, "lm_head.weight", self.weights, key, how.table).name
            ]
            if len(stored) == 2:
                matrix = w.op("DequantizeLinear", *stored, name="lm_head.weight", axis=0)
            elif how.table is not how.compute:
                matrix = w.cast(stored[0], how.compute, "lm_head.weight/cast")
            else:
                matrix = stored[0]
            logits = w.op("Gemm", last, matrix, name=name, transB=1)
        if half:
            w.cast(logits, np.float32, "logits")

    def has(self, key: str) -> bool:
        """Whether the checkpoint has a weight."""
        try:
            self.weights.shape(key)
        except KeyError:
            return False
        return True

    def _positions(self, embeds: str, past: str) -> None:
        """Rotary tables and mask for positions P .. P + S - 1, from the shapes alone."""
        w, s = self.w, self.shape
        zero, one = w.constant(0, np.int64), w.constant(1, np.int64)
        length = w.op("Gather", w.op("Shape", embeds, name="embeds/shape"), one, name="S")
        offset = w.op("Gather", w.op("Shape", past, name="past/shape"), w.constant(2, np.int64), name="P")
        total = w.op("Add", offset, length, name="P+S")
        places = w.op("Range", offset, total, one, name="rows")
        columns = w.op("Range", zero, total, one, name="columns")
        width = exact_div(s.head_dim, 2) if self.how.fused else s.head_dim
        self.cos, self.sin = (self._rotary(k, name, width) for k, name in enumerate(("cos", "sin")))
        if self.how.fused:
            self.places = w.op("Unsqueeze", places, w.constant([0], np.int64), name="rows/batch")
        else:
            self.cos = w.op("Gather", self.cos, places, name="cos")
            self.sin = w.op("Gather", self.sin, places, name="sin")
            if self.groups > 1:  # the query heads that share a key head follow each other as rows
                places = w.op("Concat", *[places] * self.groups, name="rows/groups", axis=0)
        places = w.op("Unsqueeze", places, w.constant([1], np.int64), name="rows/column")
        seen = w.op("LessOrEqual", columns, places, name="seen")
        shown, hidden = w.constant(0.0, np.float32), w.constant(MASKED, np.float32)
        self.mask = w.op("Where", seen, shown, hidden, name="mask")
        if self.how.fused:
            mask = w.op("Unsqueeze", self.mask, w.constant([0, 1], np.int64), name="mask/4d")
            self.mask = self._narrow(mask, "mask/narrow")

    def _rotary(self, k: int, name: str, width: int) -> str:
        shape = self.shape
        form = (shape.context, width)
        return self.w.weight(f"rotary.{name}", np.float32, form, lambda: rotary_tables(shape)[k][:, :width])

    def _layer(self, i: int, x: str, key: str, value: str) -> str:
        w, name = self.w, f"layers.{i}"
        y = self._norm(x, f"{name}.input_layernorm")
        y = self._attention(i, y, key, value)
        x = w.op("Add", self._carried(i, x), y, name=f"{name}.attended")
        y = self._norm(x, f"{name}.post_attention_layernorm")
        gate, up = self._linear(y, f"{name}.mlp.gate_proj"), self._linear(y, f"{name}.mlp.up_proj")
        gate = w.op("Mul", gate, w.op("Sigmoid", gate, name=f"{name}.mlp.sigmoid"), name=f"{name}.mlp.silu")
        y = self._linear(w.op("Mul", gate, up, name=f"{name}.mlp.gated"), f"{name}.mlp.down_proj")
        return w.op("Add", x, y, name=f"{name}.out")

    def _carried(self, i: int, x: str) -> str:
        """What of the hidden states goes on beside a layer's attention."""
        return x

    def _attention(self, i: int, y: str, key: str, value: str) -> str:
        w, s, name = self.w, self.shape, f"layers.{i}.self_attn"
        scale = 1.0 if self.how.fused else s.head_dim**-0.5
        q = self._rotate(self._split(self._linear(y, f"{name}.q_proj"), s.heads), f"{name}.q", scale)
        k = self._rotate(self._split(self._linear(y, f"{name}.k_proj"), s.kv_heads), f"{name}.k")
        v = self._split(self._linear(y, f"{name}.v_proj"), s.kv_heads)
        k = w.op("Concat", key, k, name=f"present.{i}.key", axis=2)
        v = w.op("Concat", value, v, name=f"present.{i}.value", axis=2)
        for tensor in (k, v):
            w.output(tensor, self.compute, [1, s.kv_heads, "P+S", s.head_dim])
        if self.how.fused:
            out = w.op(
                "Attention", q, k, v, self.mask, name=f"{name}.mixed", scale=s.head_dim**-0.5,
                softmax_precision=1,
            )  # fmt: skip
        else:
            out = self._mix(name, q, k, v)
        out = w.op("Transpose", out, name=f"{name}.mixed/tokens", perm=[0, 2, 1, 3])
        flat = w.constant([1, -1, s.heads * s.head_dim], np.int64)
        return self._linear(w.op("Reshape", out, flat, name=f"{name}.mixed/flat"), f"{name}.o_proj")

    def _mix(self, name: str, q: str, k: str, v: str) -> str:
        """Attention in primitive operators; q is scaled."""
        w, s = self.w, self.shape
        if self.groups > 1:  # [1, heads, S, D] -> [1, kv_heads, groups * S, D]
            shared = w.constant([1, s.kv_heads, -1, s.head_dim], np.int64)
            q = w.op("Reshape", q, shared, name=f"{name}.q/groups")
        k = w.op("Transpose", k, name=f"{name}.keys/transposed", perm=[0, 1, 3, 2])
        scores = self._wide(w.op("MatMul", q, k, name=f"{name}.scores"), f"{name}.scores/f32")
        scores = w.op("Add", scores, self.mask, name=f"{name}.scores/masked")
        weights = self._narrow(w.op("Softmax", scores, name=f"{name}.softmax", axis=-1), f"{name}.weights")
        out = w.op("MatMul", weights, v, name=f"{name}.mixed")
        if self.groups > 1:
            apart = w.constant([1, s.heads, -1, s.head_dim], np.int64)
            out = w.op("Reshape", out, apart, name=f"{name}.mixed/heads")
        return out

    def _split(self, x: str, heads: int) -> str:
        shape = self.w.constant([1, -1, heads, self.shape.head_dim], np.int64)
        x = self.w.op("Reshape", x, shape, name=f"{x}/heads")
        return self.w.op("Transpose", x, name=f"{x}/first", perm=[0, 2, 1, 3])

    def _rotate(self, x: str, name: str, scale: float = 1.0) -> str:
        """Rotate pairs of channels by their position (Su et al., RoFormer, 2021), in float32, and scale."""
        w, half = self.w, exact_div(self.shape.head_dim, 2)
        x = self._wide(x, f"{name}/f32")
        if self.how.fused:
            x = w.op("RotaryEmbedding", x, self.cos, self.sin, self.places, name=f"{name}/rotated")
            return self._narrow(x, f"{name}/narrow")
        zero, middle, end, axis = (w.constant([v], np.int64) for v in (0, half, 2 * half, 3))
        low = w.op("Slice", x, zero, middle, axis, name=f"{name}/low")
        high = w.op("Slice", x, middle, end, axis, name=f"{name}/high")
        turned = w.op("Concat", w.op("Neg", high, name=f"{name}/neg"), low, name=f"{name}/turned", axis=3)
        a = w.op("Mul", x, self.cos, name=f"{name}/cos")
        b = w.op("Mul", turned, self.sin, name=f"{name}/sin")
        x = w.op("Add", a, b, name=f"{name}/rotated")
        if scale != 1.0:
            x = w.op("Mul", x, w.constant(scale, np.float32), name=f"{name}/scaled")
        return self._narrow(x, f"{name}/narrow")

    def _norm(self, x: str, name: str) -> str:
        """Divide by the root of the mean square (Zhang and Sennrich, RMSNorm, 2019), in float32."""
        w, epsilon = self.w, self.shape.epsilon
        x = self._wide(x, f"{name}/f32")
        gain = vector(w, f"{name}.weight", self.weights, f"text.{name}.weight", np.float32)
        if self.how.fused:
            unit = w.op("RMSNormalization", x, gain, name=f"{name}/scaled", axis=-1, epsilon=epsilon)
            return self._narrow(unit, name)
        square = w.op("Mul", x, x, name=f"{name}/square")
        mean = w.op("ReduceMean", square, w.constant([-1], np.int64), name=f"{name}/mean", keepdims=1)
        shifted = w.op("Add", mean, w.constant(epsilon, np.float32), name=f"{name}/shifted")
        unit = w.op("Div", x, w.op("Sqrt", shifted, name=f"{name}/root"), name=f"{name}/unit")
        return self._narrow(w.op("Mul", unit, gain, name=f"{name}/scaled"), name)

    def _linear(self, x: str, name: str) -> str:
        key = f"text.{name}.weight"
        if self.how.bits == 4 and chosen_form(self.weights, key, self.how) is None:
            self.kept.append(name)
        y = linear(self.w, x, name, self.weights, key, self.how)
        if name.rpartition(".")[2] not in self.shape.biased:
            return y
        bias = vector(self.w, f"{name}.bias", self.weights, f"text.{name}.bias", self.compute)
        return self.w.op("Add", y, bias, name=f"{name}/biased")

    def _wide(self, x: str, name: str) -> str:
        return x if self.compute is np.float32 else self.w.cast(x, np.float32, name)

    def _narrow(self, x: str, name: str) -> str:
        return x if self.compute is np.float32 else self.w.cast(x, self.compute, name)


def plan_embedding(path: Path, weights: Weights, how: Precision) -> tuple[GraphWriter, tuple[Place, ...]]:
    """Write ``embed.onnx``: ``input_ids`` int64 [1, S] -> ``inputs_embeds`` float32 [1, S, H].

    Its data is the table alone, row by row, so that a runtime may also map the file and look up itself. Of a
    checkpoint whose table stands as 8 bits, it is the integers and behind them a scale for every row.

    Returns:
        The writer, whose ``fill`` makes the data, and the place of the table, or of integers and scales.
    """
    w = GraphWriter(path, "embed", opset=18)
    ids = w.input("input_ids", np.int64, [1, "S"])
    if holds_table(weights, TABLE, how):
        places = integer_rows(w, "embed_tokens.weight", weights, TABLE, how)
        found, scale = (
            w.op("Gather", place.name, ids, name=name, axis=0)
            for place, name in zip(places, ("rows", "scales"), strict=True)
        )
        scale = w.op("Unsqueeze", scale, w.constant([2], np.int64), name="scales/column")
        w.op("Mul", w.cast(found, np.float32, "rows/f32"), scale, name="inputs_embeds")
    else:
        places = (rows(w, "embed_tokens.weight", weights, TABLE, how.table),)
        half = how.table is np.float16
        found = w.op("Gather", places[0].name, ids, name="rows" if half else "inputs_embeds", axis=0)
        if half:
            w.cast(found, np.float32, "inputs_embeds")
    w.output("inputs_embeds", np.float32, [1, "S", places[0].shape[1]])
    w.save()
    return w, places
