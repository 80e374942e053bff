"""The language model in ONNX Runtime's own operators: the profile ``ort``, for CPUs.

Three operators stand for most of the nodes. ``GroupQueryAttention`` rotates, caches and attends; when its
past and its present are the same memory it appends in place, so that a token costs no copy of the cache.
``MatMulNBits`` multiplies integer weights as they lie in the file, [N, K / block, block]: nothing is
transposed when the bundle is opened, and a processor with 8-bit dot products uses them, for which
activations are rounded to 8 bits, a scale for every block (``accuracy_level`` 4). It is made for one token:
over many it is no faster than float32. ``MatMulIntegerToFloat``, over 8-bit weights with a scale for each
column and activations with one for each token, is three times as fast there. So int8 uses the latter, and
int4 the former for generating beside a second graph, the int8 one, for reading. Everything else is standard
ONNX, in forms that ONNX Runtime fuses. How long the sequence is comes in as an input, since the cache, which
may be longer, does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import exact_div
from pulse_edge.errors import UserError
from pulse_edge.export.decoder import Decoder
from pulse_edge.export.linear import by_column, read_rows, steps, vector
from pulse_edge.export.onnx_writer import GraphWriter, Kind, Place, Shape, Sink
from pulse_edge.export.rounded import Rounded
from pulse_edge.export.rounding import pack_pairs, to_float32
from pulse_edge.export.shape import DecoderShape
from pulse_edge.export.weights import Precision, Weights
from pulse_edge.model.layouts import HEAD, TABLE
from pulse_edge.model.shards import Form

HEAD_CHUNK: Final = "logits"
TOTAL: Final = "total_sequence_length"
BLOCKS: Final = (128, 64, 32, 16)  # that MatMulNBits takes; the largest that divides K is the smallest file
_INT8: Final = 4  # accuracy_level: activations as 8-bit integers
HEAD_MULTIPLE: Final = 16  # GroupQueryAttention takes heads whose width is a multiple of it
_QKV: Final = ("q_proj", "k_proj", "v_proj")


class OrtDecoder(Decoder):
    """Writes the graph of the profile ``ort``.

    Inputs: ``inputs_embeds`` float32 [1, S, H]; ``total_sequence_length`` int32 [1], with the new tokens; for
    every layer ``past_key_values.i.key`` and ``.value`` float32 [1, KV, P, D], of which the first
    ``total_sequence_length`` - S entries hold. Outputs: ``logits`` float32 [1, V] behind the last position;
    ``present.i.key``/``.value`` [1, KV, T, D], T the larger of P and ``total_sequence_length``.

    Attributes:
        head: a decoder of the same model that holds the integers of the head, which are then shared.
    """

    head: GraphWriter | None = None

    def write(self, table: Sequence[Place]) -> None:
        """Write all nodes; ``table`` as for :func:`.decoder.plan_decoder`.

        Raises:
            UserError: the operators do not take the width of the heads.
        """
        w, s = self.w, self.shape
        if not takes(s):
            raise UserError(
                f"The model's attention heads are {s.head_dim} wide, and ONNX Runtime's operator takes "
                f"multiples of {HEAD_MULTIPLE}. Use --profile trt."
            )
        x = w.input("inputs_embeds", np.float32, [1, "S", s.hidden])
        self.total = w.input(TOTAL, np.int32, [1])
        self.lead: Shape = [1, "S"]  # of the hidden states
        self.rounded = Rounded(w, self.weights, self.how)
        self.last = w.op("Sub", self.total, w.constant([1], np.int32), name="seqlens_k")
        half = exact_div(s.head_dim, 2)
        self.cos, self.sin = (self._rotary(k, name, half) for k, name in enumerate(("cos", "sin")))
        for i in range(s.layers):
            caches = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
            for name in caches:
                w.input(name, np.float32, [1, s.kv_heads, "P", s.head_dim])
            x = self._layer(i, x, *caches)
        w.output("logits", np.float32, [1, s.vocab])
        for i in range(s.layers):
            for part in ("key", "value"):
                w.output(f"present.{i}.{part}", np.float32, [1, s.kv_heads, "T", s.head_dim])
        self._last(x, table)

    def _attention(self, i: int, y: str, key: str, value: str) -> str:
        w, s, name = self.w, self.shape, f"layers.{i}.self_attn"
        cache: Shape = [1, s.kv_heads, "T", s.head_dim]
        out = w.contrib(
            "GroupQueryAttention", *self._project(y, name), key, value, self.last, self.total, self.cos,
            self.sin, names=[f"{name}.mixed", f"present.{i}.key", f"present.{i}.value"], dtype=np.float32,
            shapes=[[1, "S", s.heads * s.head_dim], cache, cache],
            num_heads=s.heads, kv_num_heads=s.kv_heads, do_rotary=1, scale=s.head_dim**-0.5,
        )  # fmt: skip
        return self._linear(self._carried(i, out), f"{name}.o_proj")

    def _carried(self, i: int, x: str) -> str:
        """Behind the last layer's attention only the last token is needed."""
        if i < self.shape.layers - 1:
            return x
        self.lead = [1, 1]
        end, axis = (self.w.constant([v], np.int64) for v in (np.iinfo(np.int64).max, 1))
        return self.w.op("Slice", x, self.w.constant([-1], np.int64), end, axis, name=f"{x}/last")

    def _project(self, y: str, name: str) -> tuple[str, str, str]:
        """Queries, keys and values: one product where they are integers of one form, else three."""
        names = [f"{name}.{part}" for part in _QKV]
        forms = [self._form(f"text.{part}.weight") for part in names]
        alike = {(form.bits, form.group, form.zero) if form else None for form in forms}
        if len(alike) == 1 and forms[0] is not None and not by_column(forms[0]):
            return self._integers(y, f"{name}.qkv_proj", names), "", ""
        query, keys, values = (self._linear(y, part) for part in names)
        return query, keys, values

    def _norm(self, x: str, name: str) -> str:
        """Root mean square norm in the one form that ONNX Runtime fuses: the square is a power."""
        w = self.w
        gain = vector(w, f"{name}.weight", self.weights, f"text.{name}.weight", np.float32)
        square = w.op("Pow", x, w.constant(2.0, np.float32), name=f"{name}/square")
        mean = w.op("ReduceMean", square, w.constant([-1], np.int64), name=f"{name}/mean", keepdims=1)
        shifted = w.op("Add", mean, w.constant(self.shape.epsilon, np.float32), name=f"{name}/shifted")
        unit = w.op("Div", x, w.op("Sqrt", shifted, name=f"{name}/root"), name=f"{name}/unit")
        return w.op("Mul", unit, gain, name=name)

    def _linear(self, x: str, name: str) -> str:
        form = self._form(f"text.{name}.weight")
        if form is None:
            return super()._linear(x, name)
        if not by_column(form):
            return self._integers(x, name, [name])
        w, key = self.w, f"text.{name}.weight"
        y = self.rounded.product(x, name, key, form, self.lead)
        if name.rpartition(".")[2] not in self.shape.biased:
            return y
        return w.op("Add", y, self._biases(name, [name], form.shape[0]), name=f"{name}/biased")

    def _head(self, last: str, table: Sequence[Place]) -> None:
        """Logits of one position [1, H]. The head is a third of what a token of a small model reads: with
        integer weights it is 8 bits, whatever the layers are: the checkpoint's own, or rounded here."""
        block = _block(self.shape.hidden)
        if self.how.bits >= 16 or block is None:
            return super()._head(last, table)
        key = HEAD if self.has(HEAD) else TABLE
        form = self.weights.form(key) if self.how.given else None
        form = form or Form(8, block, False, (self.shape.vocab, self.shape.hidden))
        self._product(last, HEAD_CHUNK, [key], [form], [1, self.shape.vocab])
        return None

    def _form(self, key: str) -> Form | None:
        """How a layer's weight is stored as integers; the group is one that MatMulNBits takes."""
        if self.how.given:
            form = self.weights.form(key)
        elif self.how.bits >= 16:
            return None
        else:
            n, k = self.weights.shape(key)
            form = Form(self.how.bits, (_block(k) or k) if self.how.bits == 4 else k, False, (n, k))
        return form if form is not None and _block(form.group) is not None else None

    def _integers(self, x: str, name: str, parts: Sequence[str]) -> str:
        """Add the product with the rows of all ``parts``, one behind the other, and their biases."""
        w, keys = self.w, [f"text.{part}.weight" for part in parts]
        forms = [form for form in map(self._form, keys) if form is not None]
        width = sum(form.shape[0] for form in forms)
        y = self._product(x, name, keys, forms, [*self.lead, width])
        if parts[0].rpartition(".")[2] not in self.shape.biased:
            return y
        return w.op("Add", y, self._biases(name, parts, width), name=f"{name}/biased")

    def _biases(self, name: str, parts: Sequence[str], width: int) -> str:
        weights, keys = self.weights, [f"text.{part}.bias" for part in parts]

        def make() -> NDArray[np.float32]:
            rows = [weights.rows(key, 0, weights.shape(key)[0]) for key in keys]
            return np.concatenate([to_float32(r, weights.kind(k)) for r, k in zip(rows, keys, strict=True)])

        return self.w.weight(f"{name}.bias", np.float32, (width,), make)

    def _product(self, x: str, name: str, keys: Sequence[str], forms: Sequence[Form], shape: Shape) -> str:
        w, weights, how, form = self.w, self.weights, self.how, forms[0]
        n, k, block = sum(f.shape[0] for f in forms), form.shape[1], _block(form.group) or form.group
        blocks = exact_div(k, block)
        tensors: list[tuple[str, Kind, tuple[int, ...]]] = [
            (f"{name}.integers", np.uint8, (n, blocks, exact_div(block * form.bits, 8))),
            (f"{name}.scale", np.float32, (n, blocks)),
        ]
        if form.zero:
            tensors.append((f"{name}.zero", np.uint8, (n, -(-blocks * form.bits // 8))))

        def fill(sinks: Sequence[Sink]) -> None:
            _fill(weights, how, list(zip(keys, forms, strict=True)), blocks, sinks)

        if name == HEAD_CHUNK and self.head is not None:
            stored = [w.borrow(place, self.head.data.name) for place in self.head.chunk(HEAD_CHUNK).places]
        else:
            stored = w.weights(name, tensors, fill)
        return w.contrib(
            "MatMulNBits", x, *stored, names=[name], dtype=np.float32, shapes=[shape],
            K=k, N=n, bits=form.bits, block_size=block, accuracy_level=_INT8,
        )  # fmt: skip


def takes(shape: DecoderShape) -> bool:
    """Whether ONNX Runtime's own operators take a decoder."""
    return shape.head_dim % HEAD_MULTIPLE == 0


def _block(length: int) -> int | None:
    """The block for rows, or groups, of a length."""
    return next((block for block in BLOCKS if length % block == 0), None)


def _fill(
    weights: Weights, how: Precision, parts: Sequence[tuple[str, Form]], blocks: int, sinks: Sequence[Sink]
) -> None:
    """Write weights behind each other as unsigned integers, 8 or 128 above the signed ones, then scales."""
    bits, k = parts[0][1].bits, parts[0][1].shape[1]
    scales, zeros, at = [], [], 0
    for key, form in parts:
        for start, stop in steps(0, form.shape[0], k):
            low, scale, zero = read_rows(weights, key, how, form, start, stop)
            packed = _unsigned(low, bits)
            sinks[0].write(at, packed)
            at += packed.nbytes
            repeat = blocks // scale.shape[1]
            scales.append(np.repeat(scale, repeat, axis=1))
            if zero is not None:
                zeros.append(_unsigned(np.repeat(zero, repeat, axis=1), bits))
    sinks[1].write(0, np.concatenate(scales))
    if zeros:
        sinks[2].write(0, np.concatenate(zeros))


def _unsigned(low: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Signed integers' low bytes [n, K] -> unsigned ones, those of 4 bits two to a byte along K."""
    if bits == 8:
        return low ^ np.uint8(0x80)
    if low.shape[1] % 2:
        low = np.pad(low, ((0, 0), (0, 1)))
    return pack_pairs(low.T).T ^ np.uint8(0x88)
