"""The decoder of a bundle in ONNX Runtime with its key-value cache, in one of two forms.

Graphs of the profile ``ort`` write new keys and values into the memory that they read the old ones from:
the cache is reserved once for the whole context, and a token costs no copy of it. The portable graphs
join old and new in fresh memory with every run; their tensors stay with ONNX Runtime, at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Tokens from which on the graph for prompts is faster than the one for single tokens.
PROMPT: Final = 32
TOTAL: Final = "total_sequence_length"
_PAST, _PRESENT = "past_key_values.", "present."
_TYPES: Final = {"float": np.float32, "float16": np.float16}


def open_cache(
    session: Any, graph: Mapping[str, Any], context: int, prompt: Any = None
) -> SharedCache | GrowingCache:
    """Return the form of cache that a decoder takes.

    Args:
        session: of the decoder.
        graph: what the manifest says of it.
        context: most tokens.
        prompt: session of the same decoder in another form, for many tokens at once, if there is one.
    """
    if TOTAL in graph["inputs"]:
        return SharedCache(session, graph, context, prompt)
    return GrowingCache(session, graph)


class SharedCache:
    """Keys and values in memory that the graph appends to in place.

    Memory is reserved for the whole context, and in use, as far as the operating system lets it, for what
    was read. A step of one token runs with everything bound beforehand.

    Attributes:
        length: tokens in the cache.
    """

    def __init__(self, session: Any, graph: Mapping[str, Any], context: int, prompt: Any = None) -> None:
        from onnxruntime import OrtValue

        self._session, self._prompt, self.length = session, prompt, 0
        hidden, vocab = graph["inputs"]["inputs_embeds"]["shape"][2], graph["outputs"]["logits"]["shape"][1]
        self._row = np.zeros((1, 1, hidden), np.float32)
        self._total, self._logits = np.zeros(1, np.int32), np.zeros((1, vocab), np.float32)
        value = OrtValue.ortvalue_from_numpy  # which shares the array's memory
        fixed = {TOTAL: value(self._total)}
        self._outputs = {"logits": value(self._logits)}
        for name, entry in graph["inputs"].items():
            if name.startswith(_PAST):
                _, heads, _, width = entry["shape"]
                memory = np.zeros((1, heads, context, width), _TYPES[entry["dtype"]])
                fixed[name] = self._outputs[name.replace(_PAST, _PRESENT)] = value(memory)
        self._fixed = fixed
        self._step = self._bind(session, self._row)

    def read(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Read embeddings [S, H]; logits [V] behind the last."""
        session, binding = self._session, self._step
        if len(rows) == 1:
            self._row[0] = rows
        else:
            if self._prompt is not None and len(rows) >= PROMPT:
                session = self._prompt
            binding = self._bind(session, np.ascontiguousarray(rows[None]))
        self._total[0] = self.length + len(rows)
        session.run_with_iobinding(binding)
        self.length += len(rows)
        row: NDArray[np.float32] = self._logits[0].copy()
        return row

    def cut(self, length: int) -> None:
        """Forget what is behind the first ``length`` tokens."""
        self.length = length

    def _bind(self, session: Any, embeds: NDArray[np.float32]) -> Any:
        binding = session.io_binding()
        binding.bind_cpu_input("inputs_embeds", embeds)
        for name, value in self._fixed.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding


class GrowingCache:
    """Keys and values in fresh memory after every run.

    Attributes:
        length: tokens in the cache.
    """

    def __init__(self, session: Any, graph: Mapping[str, Any]) -> None:
        from onnxruntime import OrtValue

        self._session, self._value, self.length = session, OrtValue.ortvalue_from_numpy, 0
        self._entries = {n: e for n, e in graph["inputs"].items() if n.startswith(_PAST)}
        self._outputs = ["logits", *(name.replace(_PAST, _PRESENT) for name in self._entries)]
        self._past: dict[str, Any] = {}
        self._empty()

    def read(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Read embeddings [S, H]; logits [V] behind the last."""
        embeds = self._value(np.ascontiguousarray(rows[None]))
        logits, *present = self._session.run_with_ort_values(
            self._outputs, {"inputs_embeds": embeds, **self._past}
        )
        self._past = dict(zip(self._entries, present, strict=True))
        self.length += len(rows)
        row: NDArray[np.float32] = logits.numpy()[0]
        return row

    def cut(self, length: int) -> None:
        """Forget what is behind the first ``length`` tokens."""
        if length == 0:
            self._empty()
        elif length < self.length:
            self._past = {
                name: self._value(np.ascontiguousarray(value.numpy()[:, :, :length]))
                for name, value in self._past.items()
            }
        self.length = length

    def _empty(self) -> None:
        for name, entry in self._entries.items():
            _, heads, _, width = entry["shape"]
            self._past[name] = self._value(np.zeros((1, heads, 0, width), _TYPES[entry["dtype"]]))
