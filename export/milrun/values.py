"""Constants of a program: read from the protobuf or the weight file once, and shared by all that use them."""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.blob import BlobFile, unpack
from pulse_edge.export.milrun.dtypes import DType, TensorType, of_code
from pulse_edge.export.milrun.registry import Array, Tensor, as_array, hand_over

_IMMEDIATE = ("floats", "ints", "bools", "strings", "longInts", "doubles")  # beside "bytes"
_MODEL_PATH = "@model_path/"


class Constant:
    """A value known before the program runs, held once: as stored, or as the tensor it is computed with.

    Args:
        dtype: of the elements.
        value: as an array of ``dtype.stored`` or a tensor of ``dtype.computed``.
        key: equal for equal constants; None where that is not known.
    """

    __slots__ = ("_value", "dtype", "key")

    def __init__(self, dtype: DType, value: Array | Tensor, key: Hashable = None) -> None:
        self.dtype, self.key = dtype, key
        self._value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its dimensions."""
        return tuple(self._value.shape)

    def array(self) -> Array:
        """Return it as stored. Half floats that were computed come back exactly: they were rounded."""
        if isinstance(self._value, Tensor):
            return as_array(self._value).astype(self.dtype.stored)
        return self._value

    def tensor(self) -> Tensor:
        """Return it as the tensor it is computed with; the stored form is let go."""
        if not isinstance(self._value, Tensor):
            self._value = to_tensor(self._value, self.dtype)
        return self._value

    def as_kind(self, kind: str) -> Any:
        """Return it as a parameter of ``kind`` takes it."""
        if kind == "Tensor":
            return self.tensor()
        return hand_over(kind, self.array() if kind == "Array" else self._value)


def to_tensor(array: Array, dtype: DType) -> Tensor:
    """Return an array as the tensor that its type is computed with, on the same memory if it can be."""
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
    if array.dtype in (np.uint32, np.uint64):
        array = array.astype(np.int64)
    elif array.dtype == np.uint16:
        array = array.astype(np.int32)
    return torch.from_numpy(array).to(dtype.computed)


class ConstantReader:
    """Reads the constants of a package; equal ones, in whichever function, are one object.

    Args:
        folder: that holds the model file, which programs call ``@model_path``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BlobFile] = {}
        self._known: dict[Hashable, Constant] = {}

    def share(self, constant: Constant) -> Constant:
        """Return the constant that was first seen with this key, which may be the given one."""
        return constant if constant.key is None else self._known.setdefault(constant.key, constant)

    def known(self, key: Hashable) -> Constant | None:
        """Return the constant with this key if there was one."""
        return self._known.get(key)

    def read(self, value: Any, where: str) -> Constant:
        """Read a ``Value`` of the protobuf.

        Args:
            value: the message.
            where: what to name in an error.

        Raises:
            BundleError: the value is damaged, or not a tensor.
        """
        declared = tensor_type(value.type, where)
        shape = tuple(length or 0 for length in declared.shape)
        if value.WhichOneof("value") == "blobFileValue":
            name, offset = value.blobFileValue.fileName, value.blobFileValue.offset
            key = (name, offset, declared)
            return self.known(key) or self.share(
                Constant(declared.dtype, self._file(name).read(offset, declared.dtype, shape), key)
            )
        array = _immediate(value.immediateValue.tensor, declared.dtype, shape, where)
        return self.share(Constant(declared.dtype, array, (declared, array.tobytes())))

    def _file(self, name: str) -> BlobFile:
        if name not in self._files:
            parts = Path(name.removeprefix(_MODEL_PATH)).parts
            if not name.startswith(_MODEL_PATH) or ".." in parts or Path(*parts).is_absolute():
                raise BundleError(f"The weight file {name!r} lies outside its package; do not use it.")
            self._files[name] = BlobFile(self._folder.joinpath(*parts))
        return self._files[name]


def tensor_type(value_type: Any, where: str) -> TensorType:
    """Read a ``ValueType``; of a state, the type of what it holds.

    Raises:
        BundleError: it is neither a tensor nor a state, or damaged.
    """
    if value_type.WhichOneof("type") == "stateType":
        value_type = value_type.stateType.wrappedType
    if value_type.WhichOneof("type") != "tensorType":
        raise BundleError(
            f"{where} is a {value_type.WhichOneof('type') or 'value without a type'}; milrun executes "
            "tensors and states only. Convert the model without lists, dictionaries and class labels."
        )
    tensor = value_type.tensorType
    if tensor.rank not in (-1, len(tensor.dimensions)):
        raise BundleError(f"{where} has a damaged type. Copy or export the package again.")
    lengths = [
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions
    ]
    return TensorType(of_code(tensor.dataType, where), tuple(lengths))


def _immediate(tensor: Any, dtype: DType, shape: tuple[int, ...], where: str) -> Array:
    field = tensor.WhichOneof("value")
    count = math.prod(shape)
    try:
        if field == "bytes":
            raw = np.frombuffer(tensor.bytes.values, np.uint8)
            if len(raw) != -(-count * dtype.bits // 8):
                raise ValueError(f"{len(raw)} bytes for {count} elements")
            return unpack(raw, dtype, count).reshape(shape)
        if field not in _IMMEDIATE:
            raise ValueError(f"a field {field}")
        values = getattr(tensor, field).values
        return np.array(values, None if dtype.name == "string" else dtype.stored).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BundleError(
            f"The constant {where} is damaged ({error}). Copy or export the package again."
        ) from error
