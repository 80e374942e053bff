"""Weights that are stored compressed; every value equals that of coremltools' ``decompress_weights``.

A product of a half-precision scale and an integer is exact in float32, so that one rounding at the end gives
what numpy's own half precision gives, at many times its speed.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.blob import unpack
from pulse_edge.export.milrun.dtypes import BY_NAME
from pulse_edge.export.milrun.registry import Array, Ints, op


@op(moves=True)
def constexpr_blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """scale · (data - offset), each scale for a block of data.shape / scale.shape (iOS 18)."""
    blocks, whole = _blocks(data, scale.shape, "scale")
    values = _real(data).reshape(whole)
    if offset is not None:
        kind = np.result_type(scale.dtype, offset.dtype)
        shifted = values - _real(offset).reshape(blocks)
        values = shifted.to(torch.float16).float() if kind == np.float16 else shifted
    product = values * _real(scale).reshape(blocks)
    return _as(product, scale.dtype).reshape(data.shape)


@op(moves=True)
def constexpr_lut_to_dense(
    indices: Array, lut: Array, vector_axis: int | None = None, shape: Ints | None = None
) -> Array:
    """Entries of a look-up table.

    iOS 18: lut [*groups, entries, vector], with the groups dividing the lengths of the indices, and vectors
    laid out along ``vector_axis``. iOS 16: lut [entries], packed indices, and the ``shape`` that results.
    """
    if shape is not None:
        bits = int(math.log2(len(lut)))
        packed = BY_NAME["uint8" if bits == 8 else f"uint{bits}"]
        flat: Array = lut[unpack(indices.view(np.uint8), packed, math.prod(shape))]
        return flat.reshape(shape)
    if lut.ndim != indices.ndim + 2:
        raise BundleError(f"a table {list(lut.shape)} does not fit indices {list(indices.shape)}")
    *groups, entries, width = lut.shape
    each, whole = _blocks(indices, tuple(groups), "table")
    # the table of a group begins at the group's number times its entries
    first = (torch.arange(math.prod(groups)) * entries).reshape(each)
    picked = torch.from_numpy(indices.astype(np.int64)).reshape(whole) + first
    table = torch.from_numpy(_writable(lut).reshape(-1, width).view(_BITS[lut.itemsize]))
    found = table[picked.reshape(indices.shape)]
    if width == 1:
        return found.squeeze(-1).numpy().view(lut.dtype)
    if vector_axis is None:
        raise BundleError("a table of vectors needs an axis to lay them along")
    axis = vector_axis % indices.ndim
    joined = found.movedim(-1, axis + 1).flatten(axis, axis + 1)
    return joined.contiguous().numpy().view(lut.dtype)


@op(moves=True)
def constexpr_affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: int) -> Array:
    """scale · (data - zero point), for all or for each index of an axis (iOS 16)."""
    values = _real(quantized_data) - _along(_real(zero_point), quantized_data.ndim, axis)
    return _as(values * _along(_real(scale), quantized_data.ndim, axis), scale.dtype)


@op(moves=True)
def constexpr_sparse_to_dense(nonzero_data: Array, mask: Array, shape: Ints | None = None) -> Array:
    """Values where a mask has ones, zeros elsewhere; before iOS 18 the mask is packed and has no shape."""
    if shape is not None:
        mask = unpack(mask.view(np.uint8), BY_NAME["uint1"], math.prod(shape)).reshape(shape)
    return _spread(nonzero_data, mask)


@op(moves=True)
def constexpr_lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: int | None = None
) -> tuple[Array, Array]:
    """Entries of a table for the ones of a mask: the mask, widened by vectors, and the values."""
    dense = constexpr_lut_to_dense(_spread(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if vector_axis is not None and lut.shape[-1] > 1:
        mask = np.repeat(mask, lut.shape[-1], vector_axis)
    return mask, dense[mask != 0]


@op(moves=True)
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """scale · (data - offset) for the ones of a mask: the mask and the values."""
    dense = constexpr_blockwise_shift_scale(_spread(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


@op(moves=True)
def constexpr_cast(source_val: Array, output_dtype: str) -> Array:
    """The same values in float32."""
    if output_dtype != "fp32":
        raise BundleError(f"milrun does not know a stored cast to {output_dtype}")
    return source_val.astype(np.float32)


_BITS = {1: np.int8, 2: np.int16, 4: np.int32}


def _real(values: Array) -> torch.Tensor:
    return torch.from_numpy(_writable(values)).to(torch.float32)


def _writable(values: Array) -> Array:
    """Return values that torch takes; it warns of what the protobuf keeps to itself."""
    return values if values.flags.writeable else values.copy()


def _as(values: torch.Tensor, dtype: np.dtype[np.generic]) -> Array:
    return (values.to(torch.float16) if dtype == np.float16 else values).numpy()


def _along(values: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    shape = [1] * rank
    shape[axis] = values.numel()
    return values.reshape(shape)


def _blocks(data: Array, parts: tuple[int, ...], what: str) -> tuple[list[int], list[int]]:
    """Return shapes that broadcast: of what there is one per block, and of the data with blocks apart."""
    if len(parts) != data.ndim or any(n == 0 or d % n for d, n in zip(data.shape, parts, strict=True)):
        raise BundleError(f"a {what} {list(parts)} does not divide data {list(data.shape)}")
    each = [length for n in parts for length in (n, 1)]
    whole = [length for d, n in zip(data.shape, parts, strict=True) for length in (n, d // n)]
    return each, whole


def _spread(nonzero: Array, mask: Array) -> Array:
    ones = mask != 0
    if np.count_nonzero(ones) != nonzero.size:
        raise BundleError(f"a mask of {np.count_nonzero(ones)} ones does not fit {nonzero.size} values")
    dense = np.zeros(mask.shape, nonzero.dtype)
    dense[ones] = nonzero
    return dense
