"""Resizing and sampling pictures, against torch and against values that Apple measured on a Mac.

The latter are those that coremltools' own tests expect (apple/coremltools,
converters/mil/mil/ops/tests/iOS14, iOS15 and iOS17/test_image_resizing.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

Check = Callable[..., None]
RNG = np.random.default_rng(1)


def _real(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def _t(function: Any, *arrays: Any, **options: Any) -> NDArray[Any]:
    """Compute with torch in double precision."""
    doubles = [None if a is None else torch.from_numpy(np.asarray(a, np.float64)) for a in arrays]
    return np.asarray(function(*doubles, **options).numpy())


def test_resizing(check_cases: Check) -> None:
    line = np.array([0, 1], np.float32).reshape(1, 1, 2)
    one_row = {"target_size_height": 1, "target_size_width": 5}
    expected = {
        "STRICT_ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "ALIGN_CORNERS": [0, 0.25, 0.5, 0.75, 1],
        "DEFAULT": [0, 0.4, 0.8, 1, 1],
        "OFFSET_CORNERS": [0.1, 0.3, 0.5, 0.7, 0.9],
        "UNALIGN_CORNERS": [0, 0.1, 0.5, 0.9, 1],
    }
    cases: list[Any] = [
        (
            "resize_bilinear",
            {"x": line},
            {**one_row, "sampling_mode": mode},
            np.reshape(values, (1, 1, 5)),
        )
        for mode, values in expected.items()
    ]
    two = np.array([-6.174, 9.371], np.float32)
    near = {
        "resized_dims": np.uint32(2),
        "interpolation_mode": "NEAREST_NEIGHBOR",
        "sampling_mode": "DEFAULT",
    }
    six = np.array([-6.174, -6.174, 9.371, 9.371, 9.371, 9.371]).reshape(1, 1, 3, 2)
    three = np.array([1.5, -2.5, 3.5], np.float32).reshape(1, 1, 1, 3)
    cases += [
        (
            "resize",
            {"x": line},
            {"shape": [1, 1, 5], "resized_dims": np.uint32(2), "sampling_mode": "DEFAULT"},
            np.reshape(expected["DEFAULT"], (1, 1, 5)),
        ),
        ("resize", {"x": two.reshape(1, 1, 2, 1)}, {"shape": [1, 1, 3, 2], **near}, six),
        (
            "upsample_bilinear",
            {"x": line},
            {
                "scale_factor_height": 1,
                "scale_factor_width": 3,
                "align_corners": True,
                "half_pixel_centers": False,
            },
            np.reshape([0, 0.2, 0.4, 0.6, 0.8, 1], (1, 1, 6)),
        ),
        (
            "upsample_bilinear",
            {"x": line},
            {"scale_factor_height": 1.0, "scale_factor_width": 2.6, "align_corners": False},
            np.reshape([0, 0.1, 0.5, 0.9, 1], (1, 1, 5)),
        ),
        (
            "upsample_nearest_neighbor",
            {"x": three},
            {"scale_factor_height": 2.0, "scale_factor_width": 2.0},
            np.repeat(np.repeat(three, 2, 2), 2, 3),
        ),
        (
            "upsample_nearest_neighbor",
            {"x": three},
            {"scale_factor_height": 3.17, "scale_factor_width": 0.67},
            np.tile(three[..., :2], (3, 1)),
        ),
        (
            "resize_nearest_neighbor",
            {"x": np.reshape(np.float32([0.37, 6.17]), (1, 1, 2, 1))},
            {"target_size_height": 2, "target_size_width": 3},
            np.reshape([0.37, 0.37, 0.37, 6.17, 6.17, 6.17], (1, 1, 2, 3)),
        ),
    ]
    check_cases(cases, tolerance=1e-5)


@pytest.mark.parametrize("scale", [(3, 4), (2.5, 2.0), (0.5, 0.75)])
def test_resizing_is_that_of_torch(scale: tuple[float, float], check_cases: Check) -> None:
    x = 100 * _real(2, 5, 10, 22)
    cases: list[Any] = []
    for align in (True, False):
        options = {"scale_factor": scale, "mode": "bilinear", "recompute_scale_factor": True}
        expected = _t(functional.interpolate, x, align_corners=align, **options)
        arguments = {
            "scale_factor_height": scale[0],
            "scale_factor_width": scale[1],
            "align_corners": align,
            "half_pixel_centers": not align,
        }
        cases.append(("upsample_bilinear", {"x": x}, arguments, expected))
    check_cases(cases, tolerance=2e-5)


def test_boxes(check_cases: Check) -> None:
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    boxes = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)
    inside = np.array([[1, 1, 2, 2]], np.float32)
    shared: dict[str, Any] = {
        "target_width": 2,
        "target_height": 2,
        "sampling_mode": "ALIGN_CORNERS",
        "pad_value": np.float32(10),
    }
    by_corner = {**shared, "box_coordinate_mode": "CORNERS_HEIGHT_FIRST"}
    cases: list[Any] = [
        (
            "crop_resize",
            {"x": x},
            {"boxes": inside, **by_corner},
            np.reshape([6, 7, 10, 11], (1, 1, 2, 2)),
        ),
        (
            "crop_resize",
            {"x": x},
            {"boxes": inside[:, ::-1].copy(), **by_corner},
            np.reshape([11, 10, 7, 6], (1, 1, 2, 2)),
        ),
        (
            "crop_resize",
            {"x": x},
            {"boxes": inside, **by_corner, "target_width": 1, "target_height": 1},
            np.reshape([8.5], (1, 1, 1, 1)),
        ),
        (
            "crop_resize",
            {"x": x},
            {
                "boxes": boxes,
                "box_indices": np.zeros(3, np.int32),
                "normalized_coordinates": True,
                **by_corner,
            },
            np.reshape([3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3], (3, 1, 2, 2)),
        ),
        (
            "crop_resize",
            {"x": x},
            {
                "boxes": np.array([[1.5, 1.0, 1, 2]], np.float32),
                "box_coordinate_mode": "CENTER_SIZE_WIDTH_FIRST",
                **shared,
            },
            np.reshape([2, 3, 10, 11], (1, 1, 2, 2)),
        ),
    ]
    check_cases(cases, tolerance=1e-5)


def test_boxes_before_ios_17(check_cases: Check) -> None:
    import coremltools as ct

    x = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    shared = {
        "target_width": 2,
        "target_height": 2,
        "box_coordinate_mode": "CORNERS_HEIGHT_FIRST",
        "sampling_mode": "ALIGN_CORNERS",
    }
    roi = np.array([1, 1, 2, 2], np.float32).reshape(1, 1, 4, 1, 1)
    indexed = np.array([0, 0, 0, 1 / 3, 1 / 3], np.float32).reshape(1, 1, 5, 1, 1)
    cases: list[Any] = [
        ("crop_resize", {"x": x}, {"roi": roi, **shared}, np.reshape([6, 7, 10, 11], (1, 1, 1, 2, 2))),
        (
            "crop_resize",
            {"x": x},
            {"roi": indexed, "normalized_coordinates": True, **shared},
            np.reshape([1, 2, 5, 6], (1, 1, 1, 2, 2)),
        ),
    ]
    check_cases(cases, tolerance=1e-5, target=ct.target.iOS16)


def test_sampling(check_cases: Check) -> None:
    x = np.array([11, 22, 33, 44], np.float32).reshape(1, 1, 2, 2)
    places = np.array([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
    matrix = np.array([[-1, -2, -3.7, -1, 3.5, 1.2]], np.float32)
    rows = [
        ("bilinear", "constant", 6.17, "normalized_minus_one_to_one", True, [8.585, 6.17, 27.5, 6.17]),
        ("nearest", "border", -1, "unnormalized", False, [11, 11, 11, 44]),
        ("bilinear", "reflection", -1, "normalized_zero_to_one", True, [22, 36.3, 11, 34.1]),
        ("nearest", "symmetric", -1, "normalized_zero_to_one", False, [22, 33, 11, 33]),
    ]
    cases: list[Any] = [
        (
            "resample",
            {"x": x, "coordinates": places},
            {
                "sampling_mode": sampling,
                "padding_mode": padding,
                "padding_value": np.float32(value),
                "coordinates_mode": mode,
                "align_corners": align,
            },
            np.reshape(expected, (1, 1, 2, 2)),
        )
        for sampling, padding, value, mode, align, expected in rows
    ]
    shared = {
        "sampling_mode": "bilinear",
        "padding_mode": "constant",
        "padding_value": np.float32(0),
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": True,
    }
    nine = np.reshape([10.7525, 2.5025, 0, 1.98, 0, 0, 0, 0, 0], (1, 1, 3, 3))
    ten = np.reshape([10.7525, 5.94, 2.5025, 0.44, 0, 0, 0, 0, 0, 0], (1, 1, 2, 5))
    for height, width, expected in ((3, 3, nine), (2, 5, ten)):
        size = {"output_height": height, "output_width": width}
        cases.append(("affine", {"x": x, "transform_matrix": matrix}, {**size, **shared}, expected))
    check_cases(cases, tolerance=1e-4)


def test_an_unknown_sampling_is_refused(run_cases: Callable[..., Any]) -> None:
    from pulse_edge.errors import BundleError

    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    box = np.array([[1, 1, 2, 2]], np.float32)
    with pytest.raises(BundleError, match="does not know where crop_resize samples with UNALIGN_CORNERS"):
        run_cases([("crop_resize", {"x": x}, {"boxes": box, "sampling_mode": "UNALIGN_CORNERS"}, x)])
