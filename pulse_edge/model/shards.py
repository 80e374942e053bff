"""Read a checkpoint's safetensors by the row, without torch and without holding any of them.

The format is that of https://github.com/huggingface/safetensors: eight bytes with the length of a JSON
header, the header with type, shape and place of every tensor, and their bytes. Rows are read with plain
reads rather than a mapping: mapped pages count as the process's memory for as long as they stay, and on a
laptop the limit of an export is its memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import CheckpointError
from pulse_edge.model.layouts import canonical, computed
from pulse_edge.model.quantized import (
    INTEGERS,
    SCALE,
    ZERO,
    QuantizedWeight,
    quantized_names,
    quantized_weight,
)
from pulse_edge.model.weights import refuse, weight_files

# Type in the file -> how numpy reads it; bfloat16, which numpy lacks, comes as its 16 bits.
TYPES: Final[dict[str, type[np.generic]]] = {
    "BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8,
    "U8": np.uint8, "I16": np.int16, "U16": np.uint16, "I32": np.int32, "U32": np.uint32, "I64": np.int64,
    "BOOL": np.bool_,
}  # fmt: skip
FLOATS: Final = ("BF16", "F16", "F32")
_LONGEST_HEADER: Final = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Form:
    """How a weight [N, K] stands as integers (:mod:`.quantized`).

    Attributes:
        bits: 8 or 4.
        group: neighbours of a row that share a scale.
        zero: whether there are zero points.
        shape: (N, K).
    """

    bits: int
    group: int
    zero: bool
    shape: tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """One tensor in a file.

    Attributes:
        file: that holds it.
        kind: type as safetensors names it, e.g. ``BF16``.
        shape: of the tensor.
        offset: of its first byte in the file.
    """

    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(TYPES[self.kind]).itemsize

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(TYPES[self.kind]).itemsize


class Shards:
    """All weights of a checkpoint folder, by canonical name; nothing is read until it is asked for.

    Args:
        folder: with ``model.safetensors``, or shards and their index.

    Raises:
        CheckpointError: a file or a weight is missing, cut short, damaged or there twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files, promised = weight_files(folder)
        self.stored: dict[str, Stored] = {}
        self._handles: dict[Path, int] = {}
        seen: set[str] = set()
        for file in self.files:
            for name, entry in _entries(file):
                seen.add(name)
                if computed(name):
                    continue
                if canonical(name) in self.stored:
                    raise CheckpointError(f"{folder} holds {name} twice. Download it again.")
                self.stored[canonical(name)] = entry
        refuse(folder, "lacks", seen, promised, "Download it again, completely.")
        self.forms: dict[str, Form] = {name: self._form(name) for name in quantized_names(self.stored)}
        self._parts = {
            name: {
                part: self.stored.pop(name + part)
                for part in (INTEGERS, SCALE, ZERO)
                if name + part in self.stored
            }
            for name in self.forms
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight by name, those that stand as integers included."""
        plain = {name: entry.shape for name, entry in self.stored.items()}
        return {**plain, **{name: form.shape for name, form in self.forms.items()}}

    def form(self, name: str) -> Form | None:
        """How a weight stands as integers, or None where it does not."""
        return self.forms.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self.forms[name].shape if name in self.forms else self.stored[name].shape

    def kind(self, name: str) -> str:
        """Type of a weight as :meth:`rows` gives it and safetensors names it; ``BF16`` comes as uint16."""
        return "F32" if name in self.forms else self.stored[name].kind

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read the entries ``start`` to ``stop`` along the first axis, in the type of :data:`TYPES`.

        Integers come as the values that they stand for.

        Raises:
            CheckpointError: the file cannot be read, or became shorter.
        """
        if name in self.forms:
            return self.integers(name, start, stop).dequantize()
        return self._rows(self.stored[name], start, stop)

    def integers(self, name: str, start: int, stop: int) -> QuantizedWeight:
        """Read the rows ``start`` to ``stop`` of a weight that stands as integers.

        Raises:
            CheckpointError: the file cannot be read, or became shorter.
        """
        arrays = {name + part: self._rows(entry, start, stop) for part, entry in self._parts[name].items()}
        return quantized_weight(name, arrays)

    def _form(self, name: str) -> Form:
        parts = {part: self.stored.get(name + part) for part in (INTEGERS, SCALE, ZERO)}
        found = {name + part: entry for part, entry in parts.items() if entry is not None}
        heights = {entry.shape[:1] for entry in found.values()}
        few = {part: self._rows(entry, 0, min(1, *entry.shape[:1])) for part, entry in found.items()}
        sample = quantized_weight(name, few)
        if len(heights) != 1:
            raise CheckpointError(
                f"{self.folder} holds {name} in parts of different heights. Quantise it again."
            )
        return Form(sample.bits, sample.group, sample.zero is not None, (heights.pop()[0], sample.shape[1]))

    def _rows(self, entry: Stored, start: int, stop: int) -> NDArray[Any]:
        out = np.empty((stop - start, *entry.shape[1:]), TYPES[entry.kind])
        self._read(entry, entry.offset + start * entry.row_bytes, out.reshape(-1).view(np.uint8).data)
        return out

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _read(self, entry: Stored, offset: int, into: memoryview) -> None:
        try:
            if entry.file not in self._handles:
                self._handles[entry.file] = os.open(entry.file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            done = 0
            while done < len(into):
                count = os.preadv(self._handles[entry.file], [into[done:]], offset + done)
                if not count:
                    raise _cut(entry.file)
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{entry.file} cannot be read: {error.strerror}. Check the disk, or copy the file again."
            ) from error


def _entries(file: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors that a file's header lists, once the file is as long as they need."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise _cut(file)
            header = json.loads(stream.read(length))
        entries = {name: _entry(file, 8 + length, e) for name, e in header.items() if name != "__metadata__"}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is missing, though the index lists it. Download the checkpoint again, completely."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. Check its rights.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is damaged: its header is not valid. Download this file again."
        ) from error
    end = max((entry.offset + entry.bytes for entry in entries.values()), default=8 + length)
    if size < end:
        raise CheckpointError(
            f"{file} is cut short: {size:,} bytes of the {end:,} that its header lists. "
            "Download this file again."
        )
    if size > end:
        raise CheckpointError(
            f"{file} is damaged: {size - end:,} bytes that its header does not list. "
            "Download this file again."
        )
    yield from entries.items()


def _entry(file: Path, base: int, raw: Any) -> Stored:
    begin, end = (int(place) for place in raw["data_offsets"])
    kind, shape = str(raw["dtype"]), tuple(int(n) for n in raw["shape"])
    if kind not in TYPES:
        raise CheckpointError(
            f"{file} holds weights of type {kind}; pulse-edge reads {', '.join(FLOATS)}. "
            "Convert the checkpoint to bfloat16."
        )
    stored = Stored(file, kind, shape, base + begin)
    if begin < 0 or any(n < 0 for n in shape) or stored.bytes != end - begin:
        raise ValueError(f"place and shape of {raw} do not agree")
    return stored


def _cut(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or cut short. Download this file again.")


def describe_kinds(kinds: Iterable[str]) -> dict[str, int]:
    """How many weights there are of each type, most first."""
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
