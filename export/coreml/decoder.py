"""The language model as a stateful package: two functions, ``prefill`` and ``decode``, on one cache.

Every shape is static. On the Neural Engine, states with flexible inputs fall back to the CPU
(coremltools issue 2600), and PULSE's prompt is nearly all image, so that attending to the whole cache
wastes little: a mask hides what was not written. ``prefill`` reads ``Layout.prefill`` rows at
once, ``decode`` one; what is too many is padded behind, masked, and overwritten by what comes next.

Float16 hazards are met as the Neural Engine, which has nothing else, can meet them: rotary tables are
computed in float32 and only then rounded, and norms divide by the largest channel before they square.
Large models are cut into chunks of whole layers, each a package with its own cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types
from numpy.typing import NDArray

from pulse_edge.contract import exact_div
from pulse_edge.export.coreml.compress import Encoded, constant, encode, matrix, take_integers
from pulse_edge.export.coreml.layout import Chunk, Layout, Source
from pulse_edge.export.coreml.package import FLOOR
from pulse_edge.export.shape import DecoderShape, rotary_tables
from pulse_edge.export.weights import Precision

MASKED: Final = -1e4  # float16 holds it, and no score comes near


def build_chunk(
    layout: Layout, chunk: Chunk, source: Source, how: Precision
) -> tuple[dict[str, Function], dict[str, str]]:
    """Build the functions of a chunk.

    Inputs of both: ``inputs_embeds`` (in the first chunk) or ``hidden`` [1, T, H], ``position`` int32 [1]:
    tokens read before, ``mask`` [1, 1, T, cache]: 0 where a row may look, -1e4 where not; ``prefill`` of the
    last chunk also ``last`` int32 [1]: the row whose logits are wanted. States ``k_cache`` and ``v_cache``
    float16 [layers, KV, cache, D], in float32 packages also ``k_rest`` and ``v_rest``. Output: ``hidden_out``
    [1, T, H] or, of the last chunk, ``logits`` [1, V].

    Args:
        layout: of the decoder.
        chunk: which of its layers.
        source: of its weights; each is asked for once.
        how: precision of the linear layers.

    Returns:
        The functions by name, and the kinds of the matrices that are compressed, by name.

    Raises:
        CheckpointError: a layer does not fit the precision.
    """
    store = _Store(layout.shape, source, how)
    functions = {
        name: _Builder(layout, chunk, store, how, rows).function()
        for name, rows in (("prefill", layout.prefill), ("decode", 1))
    }
    kinds = {name: held.kind for name, held in store.matrices.items() if held.table is not None}
    return functions, kinds


@dataclass
class _Store:
    """Weights of a chunk, read and encoded once for both functions."""

    shape: DecoderShape
    source: Source
    how: Precision
    tables: list[NDArray[np.floating]] = field(default_factory=list)
    matrices: dict[str, Encoded] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.floating]] = field(default_factory=dict)

    def matrix(self, name: str, keep: bool = False) -> Any:
        """Add a linear layer's matrix; ``keep``: not rounded to integers unless the checkpoint did."""
        if name not in self.matrices:
            self.matrices[name] = self._encode(name, keep)
        return matrix(name, self.matrices[name])

    def _encode(self, name: str, keep: bool) -> Encoded:
        own = self.source.integers.get(f"{name}.weight")
        if own is not None:
            return take_integers(own, self.how)
        held = self.source.weights(f"{name}.weight")
        # A checkpoint with integers was quantised on purpose: what it left dense stays dense.
        return encode(name, held, self.how, dense=keep or bool(self.source.integers))

    def rotary(self, length: int) -> Iterator[Any]:
        """Add the cosine and sine tables, [length, D / 2]."""
        if not self.tables:
            half = self.shape.head_dim // 2
            longer = replace(self.shape, context=length)
            self.tables = [t[:, :half].astype(self.how.compute) for t in rotary_tables(longer)]
        yield from (constant(f"rotary.{n}", t) for n, t in zip(("cos", "sin"), self.tables, strict=True))

    def vector(self, name: str) -> Any:
        if name not in self.vectors:
            self.vectors[name] = self.source.weights(name).astype(self.how.compute)
        return constant(name, self.vectors[name])


class _Builder:
    """Builds one function; its methods add operators to the function whose body is open."""

    def __init__(self, layout: Layout, chunk: Chunk, store: _Store, how: Precision, rows: int) -> None:
        self.layout, self.chunk, self.store, self.rows = layout, chunk, store, rows
        self.shape, self.float = layout.shape, how.compute
        self.groups = exact_div(self.shape.heads, self.shape.kv_heads)
        self.names = ("k_cache", "v_cache", *(("k_rest", "v_rest") if how.compute is np.float32 else ()))

    def function(self) -> Function:
        """Build the function."""
        s, chunk = self.shape, self.chunk
        kind = types.fp16 if self.float is np.float16 else types.fp32
        cache = (chunk.stop - chunk.start, s.kv_heads, self.layout.cache, s.head_dim)
        specs: dict[str, Any] = {
            "hidden" if chunk.start else "inputs_embeds": mb.TensorSpec((1, self.rows, s.hidden), kind),
            "position": mb.TensorSpec((1,), types.int32),
            "mask": mb.TensorSpec((1, 1, self.rows, self.layout.cache), kind),
        }
        if chunk.last and self.rows > 1:
            specs["last"] = mb.TensorSpec((1,), types.int32)
        specs |= {name: mb.StateTensorSpec(cache, types.fp16) for name in self.names}
        with Function(specs, FLOOR) as made:
            made.set_outputs([self._body(made.inputs)])
        return made

    def _body(self, given: Mapping[str, Any]) -> Any:
        self.states = {name: given[name] for name in self.names}
        self.held = {name: mb.read_state(input=state) for name, state in self.states.items()}
        self.position = given["position"]
        self.end = mb.add(x=self.position, y=np.array([self.rows], np.int32), name="end")
        # The query heads that share a key head follow each other as rows, and so does their mask.
        self.mask = (
            given["mask"] if self.groups == 1 else mb.concat(values=[given["mask"]] * self.groups, axis=2)
        )
        self._turn()
        x = given["hidden" if self.chunk.start else "inputs_embeds"]
        for i in range(self.chunk.start, self.chunk.stop):
            x = self._layer(i, x)
        if not self.chunk.last:
            return mb.identity(x=x, name="hidden_out")
        if self.rows > 1:
            begin = mb.concat(values=[_ints(0), given["last"], _ints(0)], axis=0)
            x = mb.slice_by_size(x=x, begin=begin, size=[1, 1, self.shape.hidden])
        x = mb.linear(x=self._norm(x, "norm.weight"), weight=self.store.matrix("lm_head", keep=True))
        return mb.reshape(x=x, shape=[1, self.shape.vocab], name="logits")

    def _turn(self) -> None:
        """Cut the rows of the rotary tables that belong to this call; float32 tables, rounded once."""
        half = exact_div(self.shape.head_dim, 2)
        begin = mb.concat(values=[self.position, _ints(0)], axis=0)
        self.cos, self.sin = (
            mb.slice_by_size(x=table, begin=begin, size=[self.rows, half])
            for table in self.store.rotary(self.layout.cache)
        )

    def _layer(self, i: int, x: Any) -> Any:
        y = self._norm(x, f"layers.{i}.input_layernorm.weight")
        x = mb.add(x=x, y=self._attention(i, y))
        y = self._norm(x, f"layers.{i}.post_attention_layernorm.weight")
        gate = mb.silu(x=self._linear(i, "mlp.gate_proj", y))
        y = mb.mul(x=gate, y=self._linear(i, "mlp.up_proj", y))
        return mb.add(x=x, y=self._linear(i, "mlp.down_proj", y))

    def _attention(self, i: int, y: Any) -> Any:
        s, rows = self.shape, self.rows
        q = self._rotate(self._queries(self._linear(i, "self_attn.q_proj", y)))
        q = mb.reshape(x=q, shape=[1, s.kv_heads, self.groups * rows, s.head_dim])
        at = i - self.chunk.start
        # Where this layer's new keys and values go, in all states alike.
        self.begin = mb.concat(values=[_ints(at, 0), self.position, _ints(0)], axis=0)
        self.stop = mb.concat(values=[_ints(at + 1, s.kv_heads), self.end, _ints(s.head_dim)], axis=0)
        k = self._remember("k", i, self._rotate(self._keys(self._linear(i, "self_attn.k_proj", y))))
        v = self._remember("v", i, self._keys(self._linear(i, "self_attn.v_proj", y)))
        out = mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=self.mask)
        if rows > 1:
            out = mb.reshape(x=out, shape=[1, s.heads, rows, s.head_dim])
            out = mb.transpose(x=out, perm=[0, 2, 1, 3])
        out = mb.reshape(x=out, shape=[1, rows, s.heads * s.head_dim])
        return self._linear(i, "self_attn.o_proj", out)

    def _queries(self, x: Any) -> Any:
        """[1, T, heads * D] -> [1, heads, T, D]."""
        s = self.shape
        if self.rows == 1:
            return mb.reshape(x=x, shape=[1, s.heads, 1, s.head_dim])
        return mb.transpose(x=mb.reshape(x=x, shape=[1, self.rows, s.heads, s.head_dim]), perm=[0, 2, 1, 3])

    def _keys(self, x: Any) -> Any:
        """[1, T, KV * D] -> [1, KV, T, D], without the reshape and transpose that, in front of a state,
        made models of several rows unloadable (coremltools issues 2275 and 2278)."""
        s = self.shape
        if self.rows == 1 or s.kv_heads == 1:
            return mb.reshape(x=x, shape=[1, s.kv_heads, self.rows, s.head_dim])
        return mb.stack(values=mb.split(x=x, num_splits=s.kv_heads, axis=-1), axis=1)

    def _remember(self, part: str, i: int, x: Any) -> Any:
        """Write layer ``i``'s new rows into a cache; return what it may look at, [1, KV, cache, D].

        Core ML's states are float16. A float32 package keeps what rounding takes in a second state.
        """
        if self.float is np.float16:
            return self._write(f"{part}_cache", i, x)
        near = mb.cast(x=x, dtype="fp16")
        rest = mb.cast(x=mb.sub(x=x, y=mb.cast(x=near, dtype="fp32")), dtype="fp16")
        both = self._write(f"{part}_cache", i, near), self._write(f"{part}_rest", i, rest)
        return mb.add(x=mb.cast(x=both[0], dtype="fp32"), y=mb.cast(x=both[1], dtype="fp32"))

    def _write(self, state: str, i: int, x: Any) -> Any:
        s, at = self.shape, i - self.chunk.start
        whole = mb.slice_update(x=self.held[state], update=x, begin=self.begin, end=self.stop)
        # What the update returns is read from now on: of two reads of a state coremltools drops the second.
        self.held[state] = mb.coreml_update_state(state=self.states[state], value=whole)
        size = [1, s.kv_heads, self.layout.cache, s.head_dim]
        return mb.slice_by_size(x=self.held[state], begin=[at, 0, 0, 0], size=size)

    def _rotate(self, x: Any) -> Any:
        """Rotate pairs of channels by their position (Su et al., RoFormer, 2021)."""
        low, high = mb.split(x=x, num_splits=2, axis=-1)
        turned = mb.sub(x=mb.mul(x=low, y=self.cos), y=mb.mul(x=high, y=self.sin))
        other = mb.add(x=mb.mul(x=high, y=self.cos), y=mb.mul(x=low, y=self.sin))
        return mb.concat(values=[turned, other], axis=-1)

    def _norm(self, x: Any, name: str) -> Any:
        """Root mean square norm (Zhang and Sennrich, 2019) of ``x / max|x|``, which float16 can square."""
        root = float(np.sqrt(self.shape.epsilon))
        top = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
        top = mb.maximum(x=top, y=self.float(root / 16))  # below that the norm's epsilon decides alone
        y = mb.real_div(x=x, y=top)
        share = mb.real_div(x=self.float(root), y=top)
        square = mb.reduce_mean(x=mb.mul(x=y, y=y), axes=[-1], keep_dims=True)
        scale = mb.rsqrt(x=mb.add(x=square, y=mb.mul(x=share, y=share)), epsilon=self.float(0))
        return mb.mul(x=mb.mul(x=y, y=scale), y=self.store.vector(name))

    def _linear(self, i: int, name: str, x: Any) -> Any:
        layer = f"layers.{i}.{name}"
        if name.rpartition(".")[2] in self.shape.biased:
            return mb.linear(x=x, weight=self.store.matrix(layer), bias=self.store.vector(f"{layer}.bias"))
        return mb.linear(x=x, weight=self.store.matrix(layer))


def _ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)
