"""Preprocessing as a package of its own: a picture of any size in, PULSE's tiles as one tall picture out.

Core ML has no bicubic filter, and its resizing does not widen the filter when it shrinks, as Pillow does.
But resizing is linear: a matrix product for each direction. The matrices are computed in the graph from
the picture's size, in integers as far as they go, so any size gives Pillow's coefficients to float32,
rounded to grey levels between the two passes as Pillow rounds. Everything is float32, whose sums of 0 to
255 are off by some 3e-5: about so many pixels meet a rounding from the wrong side. Half precision would be
wrong by a fifth of a grey level.

The choice of the grid follows `model.preprocess`, where Python computes in float64. That is repeated
exactly too: products of float64 differ from whole numbers only where the true product is whole, and then
by the rounding of one quotient, which a table holds for each side length.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, get_new_symbol, types
from numpy.typing import NDArray

from pulse_edge.contract import GRID_PINPOINTS, MAX_TILES, TILE_SIZE, exact_div
from pulse_edge.export.coreml.package import FLOOR, convert, program

SIDES: Final = (16, 8192)  # pixels; the least is what pulse-edge opens, the most holds 48 megapixels
_FIXED: Final = 1 << 22  # Pillow's coefficients for 8-bit pictures are whole multiples of its inverse
_USUAL: Final = 2200, 1700  # of the description only: a page at 200 dpi
_TARGETS: Final = tuple(sorted({side for pair in GRID_PINPOINTS for side in pair}))
_ACROSS: Final = tuple(exact_div(width, TILE_SIZE) for width, _ in GRID_PINPOINTS)
_DOWN: Final = tuple(exact_div(height, TILE_SIZE) for _, height in GRID_PINPOINTS)


def convert_preprocess(path: Path, half: bool) -> Any:
    """Convert the preprocessing to a package.

    Input: ``image``, RGB, 16 to 8,192 pixels a side, upright. Outputs: ``tiles``, RGB, 336 wide and 1,680
    high: five tiles, the base view first, black where a page has fewer; ``shown`` [5], 1 for a tile and 0
    for filling, float16 if ``half``. Both are what the vision package takes.

    Returns:
        The model, for `package.finish`.
    """
    picture = mb.TensorSpec((1, 3, get_new_symbol(), get_new_symbol()), types.fp32)
    with Function({"image": picture}, FLOOR) as cut:
        cut.set_outputs(_cut(cut.inputs["image"], half))
    rgb = ct.colorlayout.RGB
    cut.set_output_types([ct.ImageType(name="tiles", color_layout=rgb), ct.TensorType(name="shown")])
    height, width = (ct.RangeDim(*SIDES, default=usual) for usual in _USUAL)
    image = ct.ImageType(name="image", shape=(1, 3, height, width), color_layout=rgb)
    return convert(program({"main": cut}), path, inputs=[image])


def _cut(image: Any, half: bool) -> list[Any]:
    sides = mb.shape(x=image)
    height, width = (mb.slice_by_size(x=sides, begin=[axis], size=[1]) for axis in (2, 3))
    resized, pasted, across, down = _place(width, height)
    views = mb.add(x=mb.mul(x=across, y=down), y=_ints(1))
    number = _ints(*range(MAX_TILES))
    shown = mb.less(x=number, y=views)
    # Tile 0 is the page squashed to one tile; the others follow row by row.
    rest = mb.maximum(x=mb.sub(x=number, y=_ints(1)), y=_ints(0))
    row = mb.floor_div(x=rest, y=across)
    column = mb.sub(x=rest, y=mb.mul(x=row, y=across))
    horizontal, vertical = (
        _coefficients(side, *_along(number, place, size, offset), shown)
        for side, place, size, offset in zip((width, height), (column, row), resized, pasted, strict=True)
    )
    tiles = _levels(mb.matmul(x=image, y=horizontal, transpose_y=True))  # [5, 3, H, 336]
    tiles = _levels(mb.matmul(x=vertical, y=tiles))  # [5, 3, 336, 336]
    tall = mb.transpose(x=tiles, perm=[1, 0, 2, 3])
    tall = mb.reshape(x=tall, shape=[1, 3, MAX_TILES * TILE_SIZE, TILE_SIZE], name="tiles")
    return [tall, mb.cast(x=shown, dtype="fp16" if half else "fp32", name="shown")]


def _along(number: Any, place: Any, size: Any, offset: Any) -> tuple[Any, Any]:
    """Size of the resized picture in one direction, and where each tile begins on it, int32 [5] each."""
    base, none = mb.equal(x=number, y=_ints(0)), _ints(*[0] * MAX_TILES)
    first = mb.sub(x=mb.mul(x=place, y=_ints(TILE_SIZE)), y=offset)
    size = mb.select(cond=base, a=_ints(*[TILE_SIZE] * MAX_TILES), b=mb.add(x=size, y=none))
    return size, mb.select(cond=base, a=none, b=first)


def _place(width: Any, height: Any) -> tuple[tuple[Any, Any], tuple[Any, Any], Any, Any]:
    """Choose the grid as ``model.preprocess.geometry`` does; return size, offset, tiles across and down."""
    wide, high = (_ints(*values) for values in zip(*GRID_PINPOINTS, strict=True))
    by_width = mb.less(x=mb.mul(x=height, y=wide), y=mb.mul(x=width, y=high))
    side = mb.select(cond=by_width, a=wide, b=high)
    whole = _ints(*[0] * len(wide))
    divisor = mb.select(cond=by_width, a=mb.add(x=width, y=whole), b=mb.add(x=height, y=whole))
    slot = mb.sub(x=mb.floor_div(x=side, y=_ints(TILE_SIZE)), y=_ints(1))
    slack = mb.gather_nd(x=_slack(), indices=mb.stack(values=[slot, divisor], axis=1))
    (floor_w, ceil_w), (floor_h, ceil_h) = (
        _product(length, side, divisor, slack) for length in (width, height)
    )
    useful = mb.minimum(x=mb.mul(x=floor_w, y=floor_h), y=mb.mul(x=width, y=height))
    # Most useful pixels; of equals the grid with fewer tiles, and of those the first.
    order = sorted(range(len(wide)), key=lambda i: (-_ACROSS[i] * _DOWN[i], -i))
    rank = _ints(*[order.index(i) for i in range(len(wide))])
    score = mb.add(x=mb.mul(x=useful, y=_ints(len(wide))), y=rank)
    best = mb.reduce_argmax(x=mb.cast(x=score, dtype="fp32"), axis=0, keep_dims=True)
    resized_w = mb.select(cond=by_width, a=wide, b=mb.minimum(x=ceil_w, y=wide))
    resized_h = mb.select(cond=by_width, a=mb.minimum(x=ceil_h, y=high), b=high)
    chosen = [
        mb.gather(x=values, indices=best, axis=0)
        for values in (wide, high, resized_w, resized_h, _ints(*_ACROSS), _ints(*_DOWN))
    ]
    pasted = [mb.floor_div(x=mb.sub(x=chosen[i], y=chosen[i + 2]), y=_ints(2)) for i in range(2)]
    return (chosen[2], chosen[3]), (pasted[0], pasted[1]), chosen[4], chosen[5]


def _product(length: Any, side: Any, divisor: Any, slack: Any) -> tuple[Any, Any]:
    """Floor and ceiling of the float64 product ``length * (side / divisor)``, as int32 [5]."""
    times = mb.mul(x=length, y=side)
    floor = mb.floor_div(x=times, y=divisor)
    exact = mb.equal(x=mb.mul(x=floor, y=divisor), y=times)
    # Beyond the tables nothing counts: with the smaller scale both sides stay within the grid.
    known = mb.minimum(x=floor, y=_ints(_TARGETS[-1]))
    least, most = (mb.gather(x=table, indices=known, axis=0) for table in _steps())
    below = mb.logical_and(x=exact, y=mb.less(x=slack, y=least))
    above = mb.logical_or(x=mb.logical_not(x=exact), y=mb.greater(x=slack, y=most))
    return (
        mb.sub(x=floor, y=mb.cast(x=below, dtype="int32")),
        mb.add(x=floor, y=mb.cast(x=above, dtype="int32")),
    )


def _slack() -> NDArray[np.float32]:
    """Relative error of the float64 quotient ``side / n`` in units of 2^-53, [sides, 8193]."""
    table = np.zeros((len(_TARGETS), SIDES[1] + 1), np.float32)
    for row, side in zip(table, _TARGETS, strict=True):
        for n in range(1, len(row)):
            mantissa, exponent = math.frexp(side / n)
            true = side << (53 - exponent)  # of a mantissa in whole numbers, times n
            row[n] = ((int(mantissa * 2**53) * n - true) << 53) / true
    return table


def _steps() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slack beyond which ``q * (1 + slack / 2^53)`` rounds to the float64 below ``q`` or above, [1009]."""
    whole = np.arange(1, _TARGETS[-1] + 1)
    most = np.array([1.0, *(2.0 ** math.floor(math.log2(q)) / q for q in whole)])
    least = np.where(most == 1.0, -0.5, -most)  # below a power of two the floats lie twice as dense
    return least.astype(np.float32), most.astype(np.float32)


def _coefficients(side: Any, size: Any, first: Any, shown: Any) -> Any:
    """Pillow's bicubic coefficients for the pixels of one direction of every tile, [5, 1, 336, side].

    Args:
        side: of the picture, int32 [1].
        size: of the resized picture, int32 [5].
        first: where the tile begins on it, int32 [5]; what lies beside it is black.
        shown: whether there is such a tile, [5].
    """
    size, first = (mb.expand_dims(x=value, axes=[1]) for value in (size, first))
    pixel = mb.add(x=first, y=_ints(*range(TILE_SIZE))[None])  # [5, 336]
    inside = mb.logical_and(x=mb.greater_equal(x=pixel, y=_ints(0)), y=mb.less(x=pixel, y=size))
    inside = mb.logical_and(x=inside, y=mb.expand_dims(x=shown, axes=[1]))
    source = mb.range_1d(start=np.int32(0), end=mb.squeeze(x=side, axes=[0]), step=np.int32(1))
    # Twice the distance of source pixel j from the centre of pixel i, in units of 1 / size.
    here = mb.mul(x=_odd(mb.expand_dims(x=source, axes=[0, 1])), y=mb.expand_dims(x=size, axes=[2]))
    there = mb.expand_dims(x=mb.mul(x=_odd(pixel), y=side), axes=[2])
    distance = mb.cast(x=mb.abs(x=mb.sub(x=here, y=there)), dtype="fp32")
    span = mb.mul(
        x=mb.maximum(x=size, y=side), y=_ints(2)
    )  # a filter that shrinks is as wide as what it joins
    span = mb.cast(x=mb.expand_dims(x=span, axes=[2]), dtype="fp32")
    weight = _cubic(mb.real_div(x=distance, y=span))
    weight = mb.mul(x=weight, y=mb.cast(x=mb.expand_dims(x=inside, axes=[2]), dtype="fp32"))
    total = mb.maximum(x=mb.reduce_sum(x=weight, axes=[2], keep_dims=True), y=np.float32(0.25))  # 0 outside
    weight = mb.mul(x=mb.real_div(x=weight, y=total), y=np.float32(_FIXED))
    weight = mb.floor(x=mb.add(x=weight, y=np.float32(0.5)))
    return mb.expand_dims(x=mb.mul(x=weight, y=np.float32(1 / _FIXED)), axes=[1])


def _cubic(x: Any) -> Any:
    """Keys' cubic kernel (1981) with a = -0.5, as Pillow has it, for ``x >= 0``."""
    near = _polynomial(x, (1.5, -2.5, 0.0, 1.0))
    far = _polynomial(x, (-0.5, 2.5, -4.0, 2.0))
    far = mb.mul(x=far, y=mb.cast(x=mb.less(x=x, y=np.float32(2)), dtype="fp32"))
    return mb.select(cond=mb.less(x=x, y=np.float32(1)), a=near, b=far)


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    value: Any = np.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = mb.mul(x=x, y=value)
        if coefficient:
            value = mb.add(x=value, y=np.float32(coefficient))
    return value


def _levels(x: Any) -> Any:
    """Round to grey levels, halves up, as Pillow does after each pass."""
    return mb.clip(x=mb.floor(x=mb.add(x=x, y=np.float32(0.5))), alpha=np.float32(0), beta=np.float32(255))


def _odd(x: Any) -> Any:
    return mb.add(x=mb.mul(x=x, y=_ints(2)), y=_ints(1))


def _ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)
