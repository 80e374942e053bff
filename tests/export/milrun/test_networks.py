"""Convolutions, pools, products, norms, attention and quantisation, against torch in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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
