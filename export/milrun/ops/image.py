"""Resizing and sampling pictures. Places are computed in float64, weights in float32.

How Core ML picks its sampling points is known from coremltools' documentation and from the values that its
own tests expect of a Mac; what neither says (``crop_resize`` with the modes DEFAULT and UNALIGN_CORNERS)
is refused rather than guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.registry import Ints, Tensor, op


def _steps(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


def _aligned(length: int, count: int) -> Tensor:
    return _steps(count) * ((length - 1) / max(1, count - 1))


def _centred(length: int, count: int) -> Tensor:
    return _aligned(length, count) if count > 1 else torch.full((1,), (length - 1) / 2, dtype=torch.float64)


GRIDS: Final[dict[str, Callable[[int, int], Tensor]]] = {
    "STRICT_ALIGN_CORNERS": _aligned,
    "ALIGN_CORNERS": _centred,
    "DEFAULT": lambda length, count: _steps(count) * (length / count),
    "OFFSET_CORNERS": lambda length, count: (_steps(count) + 0.5) * (max(1, length - 1) / count),
    "UNALIGN_CORNERS": lambda length, count: (_steps(count) + 0.5) * (length / count) - 0.5,
}


def _grid(mode: str, length: int, count: int) -> Tensor:
    """Return the ``count`` places, within [0, length - 1], at which a dimension is sampled."""
    if mode not in GRIDS:
        raise BundleError(f"there is no sampling mode {mode!r}")
    return GRIDS[mode](length, count).clamp(0, length - 1)


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Interpolate linearly along one axis."""
    below = places.floor()
    weight = (places - below).to(torch.float32)
    lower = below.to(torch.int64)
    upper = (lower + 1).clamp(max=x.shape[axis] - 1)
    if not weight.any():
        return x.index_select(axis, lower)
    shape = [1] * x.ndim
    shape[axis] = -1
    low, high = x.index_select(axis, lower), x.index_select(axis, upper)
    return torch.lerp(low, high, weight.reshape(shape))


def _nearest(x: Tensor, axis: int, count: int) -> Tensor:
    index = (_steps(count) * (x.shape[axis] / count)).floor().to(torch.int64)
    return x.index_select(axis, index)


@op()
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last two dimensions at another size."""
    y = _linear(x, x.ndim - 2, _grid(sampling_mode, x.shape[-2], target_size_height))
    return _linear(y, x.ndim - 1, _grid(sampling_mode, x.shape[-1], target_size_width))


@op()
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """The last two dimensions times a factor; the step between samples follows from the size that results."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise BundleError("corners cannot be aligned and pixels centred at once")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    return resize_bilinear(x, height, width, mode)


@op(moves=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """The last two dimensions at another size, each value that of the pixel it falls into."""
    return _nearest(_nearest(x, x.ndim - 2, target_size_height), x.ndim - 1, target_size_width)


@op(moves=True)
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """The last two dimensions times a factor, each value that of the pixel it falls into."""
    return resize_nearest_neighbor(x, *_scaled(x, scale_factor_height, scale_factor_width))


@op()
def resize(
    x: Tensor,
    shape: Ints,
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` dimensions at the sizes that end ``shape``; 0 keeps one.

    NEAREST_NEIGHBOR takes the pixel nearest to the place that the sampling mode gives, as Core ML does.
    """
    y = x if x.is_floating_point() else x.to(torch.float32)
    for axis, count in zip(range(x.ndim - resized_dims, x.ndim), shape[-resized_dims:], strict=True):
        places = _grid(sampling_mode, x.shape[axis], count or x.shape[axis])
        y = _linear(y, axis, places.round() if interpolation_mode == "NEAREST_NEIGHBOR" else places)
    return y.to(x.dtype)


@op()
def crop_resize(
    x: Tensor,
    boxes: Tensor | None = None,
    box_indices: Ints | None = None,
    roi: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes out of x [B, C, H, W], each at one size.

    Since iOS 17 boxes [N, 4] with the index of each one's picture, giving [N, C, h, w]; before, ``roi``
    [N, 1, 4 or 5, 1, 1], giving [N, B or 1, C, h, w]. Outside the picture all is ``pad_value``.
    """
    if boxes is None and roi is None:
        raise BundleError("neither boxes nor roi are given")
    if sampling_mode not in ("ALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "OFFSET_CORNERS"):
        raise BundleError(f"milrun does not know where crop_resize samples with {sampling_mode}")
    size = (target_height, target_width)
    corners = roi.reshape(roi.shape[0], -1) if boxes is None and roi is not None else boxes
    listed = corners.tolist() if corners is not None else []
    crops = []
    for i, box in enumerate(listed):
        if boxes is not None:
            picture = x[box_indices[i] if box_indices else i]
        else:
            picture = x if len(box) == 4 else x[int(box[0])].unsqueeze(0)
        y, x_ = _box_places(
            box[-4:],
            x.shape[-2:],
            size,
            normalized_coordinates,
            spatial_scale,
            box_coordinate_mode,
            sampling_mode,
        )
        crops.append(_sample_rows_and_columns(picture, y, x_, pad_value))
    return torch.stack(crops)


def _box_places(
    box: list[float],
    picture: torch.Size,
    size: tuple[int, int],
    normalized: bool,
    scale: float,
    coordinates: str,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns at which a box is sampled, in pixels."""
    if "CORNERS" in coordinates:
        first, second, third, fourth = box
    else:
        first, second = box[0] - box[2] / 2, box[1] - box[3] / 2
        third, fourth = first + box[2], second + box[3]
    sides = [(first, third), (second, fourth)]
    if coordinates.endswith("WIDTH_FIRST"):
        sides.reverse()
    places = []
    for (start, end), length, count in zip(sides, picture, size, strict=True):
        factor = scale * ((length - 1) if normalized else 1)
        start, extent = start * factor, (end - start) * factor
        if mode == "OFFSET_CORNERS":
            places.append(start + (_steps(count) + 0.5) * (max(1.0, extent) / count))
        elif count > 1 or mode == "STRICT_ALIGN_CORNERS":
            places.append(start + _steps(count) * (extent / max(1, count - 1)))
        else:
            places.append(torch.full((1,), start + extent / 2, dtype=torch.float64))
    return places[0], places[1]


def _sample_rows_and_columns(x: Tensor, rows: Tensor, columns: Tensor, outside: float) -> Tensor:
    y, beyond = x, []
    for axis, places in ((x.ndim - 2, rows), (x.ndim - 1, columns)):
        last = x.shape[axis] - 1
        # float32 coordinates miss the edge by a hair
        beyond.append((places < -1e-4) | (places > last + 1e-4))
        y = _linear(y, axis, places.clamp(0, last))
    return y.masked_fill(beyond[0].unsqueeze(1) | beyond[1], outside)


@op()
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at the points (x, y) of ``coordinates`` [B, h, w, 2]."""
    height, width = x.shape[-2:]
    columns, rows = (
        _pixels(coordinates[..., i].double(), length, coordinates_mode, align_corners)
        for i, length in enumerate((width, height))
    )
    if padding_mode not in ("constant", "border", "reflection", "symmetric"):
        raise BundleError(f"there is no padding mode {padding_mode!r}")
    rows, columns = _folded(rows, height, padding_mode), _folded(columns, width, padding_mode)
    if sampling_mode == "nearest":
        return _pick(x, rows.round(), columns.round(), padding_mode, padding_value)
    top, left = rows.floor(), columns.floor()
    down, across = ((part.float()).unsqueeze(1) for part in (rows - top, columns - left))
    corner = [_pick(x, top + i, left + j, padding_mode, padding_value) for i in (0, 1) for j in (0, 1)]
    return torch.lerp(
        torch.lerp(corner[0], corner[1], across), torch.lerp(corner[2], corner[3], across), down
    )


@op()
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x [B, C, H, W] at x' = a₀x + a₁y + a₂, y' = b₀x + b₁y + b₂ with [a, b] [B or 1, 6]."""
    rows, columns = (_steps(n) * (2 / max(1, n - 1)) - 1 for n in (output_height, output_width))
    y, x_ = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack([x_, y, torch.ones_like(x_)], -1)
    matrix = transform_matrix.double().reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    grid = torch.einsum("hwk,bik->bhwi", points, matrix)
    return resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    # a factor like 2.6 is stored in float32, and 5 · 2.6 must not become 12
    return math.floor(x.shape[-2] * height + 1e-5), math.floor(x.shape[-1] * width + 1e-5)


def _pixels(places: Tensor, length: int, mode: str, align_corners: bool) -> Tensor:
    if mode == "unnormalized":
        return places
    if mode not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise BundleError(f"there is no coordinates mode {mode!r}")
    part = (places + 1) / 2 if mode == "normalized_minus_one_to_one" else places
    return part * (length - 1) if align_corners else part * length - 0.5


def _folded(places: Tensor, length: int, mode: str) -> Tensor:
    """Bring places outside a dimension into it, by the padding's rule; a constant stays outside."""
    if mode == "constant":
        return places
    if mode in ("reflection", "symmetric"):
        edge = 0.5 if mode == "symmetric" else 0.0
        span = length - 1 + 2 * edge
        turned = torch.remainder(places + edge, 2 * span) if span else torch.zeros_like(places)
        places = torch.where(turned > span, 2 * span - turned, turned) - edge
    return places.clamp(0, length - 1)


def _pick(x: Tensor, rows: Tensor, columns: Tensor, mode: str, outside: float) -> Tensor:
    height, width = x.shape[-2:]
    row, column = rows.clamp(0, height - 1).long(), columns.clamp(0, width - 1).long()
    picked = torch.stack([x[b][:, row[b], column[b]] for b in range(x.shape[0])])
    if mode != "constant":
        return picked
    beyond = (rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)
    return picked.masked_fill(beyond.unsqueeze(1), outside)
