"""Convolutions, pools, products, norms, attention and quantisation, against torch in double precision."""

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


def _pad(x: NDArray[Any], *sides: tuple[int, int]) -> NDArray[Any]:
    return np.pad(x, [(0, 0), (0, 0), *sides])


def test_convolutions(check_cases: Check) -> None:
    x1, x2, x3 = _real(2, 4, 11), _real(2, 4, 9, 10), _real(1, 2, 5, 6, 7)
    w1, w2, w3, b = _real(6, 4, 3), _real(6, 4, 3, 2), _real(3, 2, 2, 3, 2), _real(6)
    deep = _real(8, 1, 3, 3)
    cases: list[Any] = [
        ("conv", {"x": x1}, {"weight": w1, "bias": b, "pad_type": "valid"}, _t(functional.conv1d, x1, w1, b)),
        (
            "conv",
            {"x": x2},
            {"weight": w2, "bias": b, "strides": [2, 3], "pad_type": "valid"},
            _t(functional.conv2d, x2, w2, b, stride=(2, 3)),
        ),
        (
            "conv",
            {"x": x2},
            {"weight": w2, "pad_type": "custom", "pad": [1, 1, 2, 2], "dilations": [2, 1]},
            _t(functional.conv2d, x2, w2, padding=(1, 2), dilation=(2, 1)),
        ),
        (
            "conv",
            {"x": x2},
            {"weight": w2, "pad_type": "custom", "pad": [1, 0, 0, 3]},
            _t(functional.conv2d, _pad(x2, (1, 0), (0, 3)), w2),
        ),
        (
            "conv",
            {"x": x2},
            {"weight": deep, "groups": 4, "pad_type": "custom", "pad": [1, 1, 1, 1]},
            _t(functional.conv2d, x2, deep, padding=1, groups=4),
        ),
        (
            "conv",
            {"x": x3},
            {"weight": w3, "strides": [1, 2, 1], "pad_type": "valid"},
            _t(functional.conv3d, x3, w3, stride=(1, 2, 1)),
        ),
        # 9 rows at stride 2 make 5: 2 rows are added; 10 columns at stride 1 and a kernel of 2: 1 column
        (
            "conv",
            {"x": x2},
            {"weight": w2, "strides": [2, 1], "pad_type": "same"},
            _t(functional.conv2d, _pad(x2, (1, 1), (0, 1)), w2, stride=(2, 1)),
        ),
        (
            "conv",
            {"x": x2},
            {"weight": w2, "strides": [2, 1], "pad_type": "same_lower"},
            _t(functional.conv2d, _pad(x2, (1, 1), (1, 0)), w2, stride=(2, 1)),
        ),
        ("conv", {"x": x2, "weight": w2}, {"pad_type": "valid"}, _t(functional.conv2d, x2, w2)),
    ]
    check_cases(cases, tolerance=1e-5)


def test_transposed_convolutions(check_cases: Check) -> None:
    x1, x2 = _real(2, 4, 6), _real(2, 4, 5, 6)
    w1, w2, b, grouped = _real(4, 3, 4), _real(4, 3, 3, 4), _real(3), _real(4, 2, 3, 3)
    whole = _t(functional.conv_transpose2d, x2, w2, b, stride=(2, 3))
    cases: list[Any] = [
        (
            "conv_transpose",
            {"x": x1},
            {"weight": w1, "strides": [3]},
            _t(functional.conv_transpose1d, x1, w1, stride=3),
        ),
        ("conv_transpose", {"x": x2}, {"weight": w2, "bias": b, "strides": [2, 3]}, whole),
        (
            "conv_transpose",
            {"x": x2},
            {"weight": w2, "bias": b, "strides": [2, 3], "pad_type": "custom", "pad": [1, 1, 2, 2]},
            _t(functional.conv_transpose2d, x2, w2, b, stride=(2, 3), padding=(1, 2)),
        ),
        (
            "conv_transpose",
            {"x": x2},
            {"weight": w2, "bias": b, "strides": [2, 3], "pad_type": "custom", "pad": [0, 2, 1, 0]},
            whole[:, :, :-2, 1:],
        ),
        (
            "conv_transpose",
            {"x": x2},
            {
                "weight": w2,
                "bias": b,
                "strides": [2, 3],
                "pad_type": "custom",
                "pad": [1, 1, 1, 1],
                "output_shape": [2, 3, 10, 18],
            },
            _t(functional.conv_transpose2d, x2, w2, b, stride=(2, 3), padding=1, output_padding=(1, 1)),
        ),
        (
            "conv_transpose",
            {"x": x2},
            {"weight": grouped, "groups": 2, "dilations": [2, 1]},
            _t(functional.conv_transpose2d, x2, grouped, groups=2, dilation=(2, 1)),
        ),
        (
            "conv_transpose",
            {"x": x2},
            {"weight": w2, "strides": [2, 2], "pad_type": "same"},
            _t(functional.conv_transpose2d, x2, w2, stride=2)[:, :, :10, 1:13],
        ),
    ]
    check_cases(cases, tolerance=1e-5)


def test_pools(check_cases: Check) -> None:
    x1, x2, x3 = _real(2, 3, 11), _real(2, 3, 9, 10), _real(1, 2, 5, 6, 7)
    custom = {"pad_type": "custom", "kernel_sizes": [3, 2], "strides": [2, 3], "pad": [1, 1, 1, 1]}
    valid = {"pad_type": "valid", "kernel_sizes": [2, 3], "strides": [2, 2]}
    torch_custom: dict[str, Any] = {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 1)}
    ceiled = {
        "kernel_sizes": [4, 3],
        "strides": [3, 3],
        "pad_type": "custom",
        "pad": [1, 1, 1, 1],
        "ceil_mode": True,
    }
    torch_ceiled: dict[str, Any] = {"kernel_size": (4, 3), "stride": 3, "padding": 1, "ceil_mode": True}
    asymmetric = {"pad_type": "custom", "kernel_sizes": [2, 2], "strides": [1, 1], "pad": [0, 1, 1, 0]}
    cases: list[Any] = [
        (
            "max_pool",
            {"x": x1},
            {"kernel_sizes": [3], "pad_type": "valid"},
            _t(functional.max_pool1d, x1, kernel_size=3, stride=1),
        ),
        ("max_pool", {"x": x2}, custom, _t(functional.max_pool2d, x2, **torch_custom)),
        ("max_pool", {"x": x2}, ceiled, _t(functional.max_pool2d, x2, **torch_ceiled)),
        (
            "max_pool",
            {"x": x2},
            asymmetric,
            _t(
                functional.max_pool2d,
                np.pad(x2, [(0, 0), (0, 0), (0, 1), (1, 0)], constant_values=-9),
                kernel_size=2,
                stride=1,
            ),
        ),
        (
            "max_pool",
            {"x": x3},
            {"kernel_sizes": [2, 2, 3], "strides": [2, 2, 2], "pad_type": "valid"},
            _t(functional.max_pool3d, x3, kernel_size=(2, 2, 3), stride=2),
        ),
        ("avg_pool", {"x": x2}, valid, _t(functional.avg_pool2d, x2, kernel_size=(2, 3), stride=2)),
        ("avg_pool", {"x": x2}, custom, _t(functional.avg_pool2d, x2, **torch_custom)),
        (
            "avg_pool",
            {"x": x2},
            {**custom, "exclude_padding_from_average": True},
            _t(functional.avg_pool2d, x2, **torch_custom, count_include_pad=False),
        ),
        ("avg_pool", {"x": x2}, ceiled, _t(functional.avg_pool2d, x2, **torch_ceiled)),
        (
            "avg_pool",
            {"x": x2},
            {**ceiled, "exclude_padding_from_average": True},
            _t(functional.avg_pool2d, x2, **torch_ceiled, count_include_pad=False),
        ),
        (
            "avg_pool",
            {"x": x1},
            {"kernel_sizes": [4], "strides": [4], "pad_type": "same", "exclude_padding_from_average": True},
            np.stack([x1[..., :4].mean(-1), x1[..., 4:8].mean(-1), x1[..., 8:].mean(-1)], -1),
        ),
        (
            "l2_pool",
            {"x": x2},
            valid,
            6**0.5 * _t(functional.avg_pool2d, x2**2, kernel_size=(2, 3), stride=2) ** 0.5,
        ),
    ]
    check_cases(cases, tolerance=1e-5)


def test_products(check_cases: Check) -> None:
    x, y, w, b = _real(2, 1, 3, 4), _real(5, 4, 6), _real(7, 4), _real(7)
    q, k, value = _real(2, 3, 4, 8), _real(2, 3, 5, 8), _real(2, 3, 5, 6)
    mask, allowed = _real(2, 1, 4, 5), RNG.random((4, 5)) > 0.3
    allowed[:, 0] = True
    attend = functional.scaled_dot_product_attention
    blocked = np.where(allowed, 0, -np.inf)
    left, right = _real(2, 3, 4, 5), _real(2, 5, 4, 6)
    cases: list[Any] = [
        ("linear", {"x": x[0]}, {"weight": w, "bias": b}, _t(functional.linear, x[0], w, b)),
        ("linear", {"x": x[0, 0]}, {"weight": w}, _t(functional.linear, x[0, 0], w)),
        ("matmul", {"x": x, "y": y}, {}, _t(torch.matmul, x, y)),
        (
            "matmul",
            {"x": x.swapaxes(-1, -2).copy(), "y": y.swapaxes(-1, -2).copy()},
            {"transpose_x": True, "transpose_y": True},
            _t(torch.matmul, x, y),
        ),
        (
            "einsum",
            {"values": (left, right)},
            {"equation": "nchw,nwhu->nchu"},
            np.einsum("nchw,nwhu->nchu", left, right),
        ),
        ("scaled_dot_product_attention", {"query": q, "key": k, "value": value}, {}, _t(attend, q, k, value)),
        (
            "scaled_dot_product_attention",
            {"query": q, "key": k, "value": value, "attn_mask": mask},
            {},
            _t(attend, q, k, value, mask),
        ),
        (
            "scaled_dot_product_attention",
            {"query": q, "key": k, "value": value, "attn_mask": allowed},
            {},
            _t(attend, q, k, value, blocked),
        ),
    ]
    check_cases(cases, tolerance=1e-5)


def test_products_with_vectors() -> None:
    """coremltools declares their results wrongly, so a program cannot be built: the op itself."""
    from pulse_edge.export.milrun.ops.linear import matmul

    x, y, v = (torch.from_numpy(_real(*shape)) for shape in ((2, 3, 4), (5, 4, 6), (4,)))
    torch.testing.assert_close(matmul(v, y), torch.einsum("k,bkn->bn", v, y))
    torch.testing.assert_close(matmul(x, v, transpose_y=True), torch.einsum("bmk,k->bm", x, v))


def test_norms(check_cases: Check) -> None:
    x = 3 * _real(2, 4, 3, 5) + 1
    mean, variance, gamma, beta = _real(4), np.abs(_real(4)) + 0.1, _real(4), _real(4)
    scales, shifts = _real(3, 5), _real(3, 5)
    middle = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3)
    eps = {"epsilon": np.float32(1e-3)}
    neighbours = functional.local_response_norm
    cases: list[Any] = [
        (
            "batch_norm",
            {"x": x},
            {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta, **eps},
            _t(functional.batch_norm, x, mean, variance, gamma, beta, eps=1e-3),
        ),
        (
            "batch_norm",
            {"x": x[:, :, 0]},
            {"mean": mean, "variance": variance},
            _t(functional.batch_norm, x[:, :, 0], mean, variance),
        ),
        (
            "instance_norm",
            {"x": x},
            {"gamma": gamma, "beta": beta, **eps},
            _t(functional.instance_norm, x, None, None, gamma, beta, eps=1e-3),
        ),
        (
            "layer_norm",
            {"x": x},
            {"axes": [2, 3], "gamma": scales, "beta": shifts, **eps},
            _t(functional.layer_norm, x, normalized_shape=(3, 5), eps=1e-3) * scales + shifts,
        ),
        ("layer_norm", {"x": x}, {"axes": [-1]}, _t(functional.layer_norm, x, normalized_shape=(5,))),
        ("layer_norm", {"x": x}, {"axes": [1], "gamma": gamma, **eps}, middle * gamma.reshape(4, 1, 1)),
        (
            "l2_norm",
            {"x": x},
            eps,
            x / np.sqrt((x.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True) + 1e-3),
        ),
        (
            "local_response_norm",
            {"x": x},
            {"size": 3, "alpha": np.float32(0.2), "beta": np.float32(0.6), "k": np.float32(1.5)},
            _t(neighbours, x, size=3, alpha=0.2, beta=0.6, k=1.5),
        ),
    ]
    check_cases(cases, tolerance=1e-5)


def test_quantised_activations(check_cases: Check) -> None:
    x, codes = 3 * _real(3, 4), RNG.integers(-128, 128, (3, 4)).astype(np.int8)
    scale, zero = np.array([0.1, 0.02, 0.5], np.float32), np.array([-3, 7, 0], np.int8)
    by_row = {"scale": scale, "zero_point": zero, "axis": 0}
    cases: list[Any] = [
        ("quantize", {"input": x}, {"scale": np.float32(0.03), "output_dtype": "int8"}, None),
        (
            "quantize",
            {"input": x},
            {"scale": np.float32(0.02), "zero_point": np.uint8(120), "output_dtype": "uint8"},
            None,
        ),
        ("quantize", {"input": x}, {**by_row, "output_dtype": "int8"}, None),
        ("dequantize", {"input": codes}, by_row, scale[:, None] * (codes.astype(np.float32) - zero[:, None])),
        ("dequantize", {"input": codes}, {"scale": np.float32(0.3)}, codes * np.float32(0.3)),
    ]
    check_cases(cases)


# values of this class come from what coremltools' own tests expect of a Mac
# (apple/coremltools, converters/mil/mil/ops/tests/iOS14, iOS15 and iOS17/test_image_resizing.py)
class TestPictures:
    def test_resizing(self, check_cases: Check) -> None:
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
    def test_resizing_is_that_of_torch(self, scale: tuple[float, float], check_cases: Check) -> None:
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

    def test_boxes(self, check_cases: Check) -> None:
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

    def test_boxes_before_ios_17(self, check_cases: Check) -> None:
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

    def test_sampling(self, check_cases: Check) -> None:
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

    def test_an_unknown_sampling_is_refused(self, run_cases: Callable[..., Any]) -> None:
        from pulse_edge.errors import BundleError

        x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
        box = np.array([[1, 1, 2, 2]], np.float32)
        with pytest.raises(BundleError, match="does not know where crop_resize samples with UNALIGN_CORNERS"):
            run_cases([("crop_resize", {"x": x}, {"boxes": box, "sampling_mode": "UNALIGN_CORNERS"}, x)])
