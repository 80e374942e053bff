"""Elementwise ops, activations and reductions, against coremltools' numpy and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

UNARY = [
    "abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round",
    "sign", "sin", "sinh", "square", "tan", "tanh",
]  # fmt: skip
POSITIVE = ["sqrt", "rsqrt", "log", "inverse"]
BINARY = ["add", "floor_div", "maximum", "minimum", "mod", "mul", "real_div", "sub"]
COMPARE = ["equal", "greater", "greater_equal", "less", "less_equal", "not_equal"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
PLAIN = ["relu", "relu6", "sigmoid", "silu", "softsign"]
REDUCE = [
    "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_max", "reduce_mean",
    "reduce_min", "reduce_prod", "reduce_sum", "reduce_sum_square",
]  # fmt: skip
Check = Callable[..., None]


def _real(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.95, 0.95, shape).astype(np.float32)


def _whole(seed: int, *shape: int, low: int = -9, high: int = 9) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def _t(function: Any, *arrays: Any, **options: Any) -> NDArray[Any]:
    """Compute with torch in double precision."""
    return function(*(torch.from_numpy(np.asarray(a, np.float64)) for a in arrays), **options).numpy()


def test_one_tensor(check_cases: Check) -> None:
    x = _real(0, 3, 4)
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    cases = [(name, {"x": 3 * x if name not in ("acos", "asin", "atanh") else x}, {}, None) for name in UNARY]
    cases += [(name, {"x": np.abs(x) + 0.1}, {}, None) for name in POSITIVE]
    cases += [(name, {"x": np.abs(x) + 0.1}, {"epsilon": np.float32(0.25)}, None) for name in POSITIVE[1:]]
    cases += [
        ("round", {"x": halves}, {}, np.array([-2, -2, 0, 0, 2, 2])),
        ("abs", {"x": _whole(1, 5)}, {}, None),
        ("sign", {"x": np.array([-2, 0, 3], np.float32)}, {}, np.array([-1, 0, 1])),
        ("logical_not", {"x": np.array([True, False])}, {}, np.array([0, 1])),
        ("clip", {"x": 3 * x}, {"alpha": np.float32(-1), "beta": np.float32(0.5)}, None),
        ("threshold", {"x": x}, {"alpha": np.float32(0.25)}, None),
    ]
    check_cases(cases)


def test_two_tensors_broadcast(check_cases: Check) -> None:
    x, y = _real(2, 2, 1, 4), _real(3, 3, 1)
    y[np.abs(y) < 0.1] = 0.5
    m, n = _whole(4, 2, 5), _whole(5, 5)
    n[n == 0] = 7
    cases: list[Any] = [(name, {"x": x, "y": y}, {}, None) for name in (*BINARY, *COMPARE)]
    cases += [(name, {"x": m, "y": n}, {}, None) for name in (*BINARY, *COMPARE) if name != "real_div"]
    cases += [("real_div", {"x": np.abs(m), "y": np.abs(n)}, {}, np.abs(m) // np.abs(n))]
    cases += [("pow", {"x": np.abs(x), "y": y}, {}, None), ("pow", {"x": x}, {"y": np.float32(2)}, None)]
    cases += [(name, {"x": m > 0, "y": n > 0}, {}, None) for name in LOGICAL]
    cases += [("select", {"cond": m > 0, "a": m, "b": n}, {}, None)]
    check_cases(cases)


def test_casts(check_cases: Check) -> None:
    x = np.array([-3.7, -0.2, 0.0, 0.9, 200.4], np.float32)
    wide = np.array([-129, -1, 0, 200, 70000], np.int32)
    cases = [
        ("cast", {"x": x}, {"dtype": "int32"}, np.array([-3, 0, 0, 0, 200])),
        ("cast", {"x": x}, {"dtype": "bool"}, np.array([1, 1, 0, 1, 1])),
        ("cast", {"x": wide}, {"dtype": "fp32"}, wide.astype(np.float32)),
        ("cast", {"x": wide}, {"dtype": "int8"}, wide.astype(np.int8)),
        ("cast", {"x": wide}, {"dtype": "uint8"}, wide.astype(np.uint8)),
        ("cast", {"x": wide}, {"dtype": "int16"}, wide.astype(np.int16)),
        ("cast", {"x": wide}, {"dtype": "uint16"}, wide.astype(np.uint16)),
    ]
    check_cases(cases)


def test_activations(check_cases: Check) -> None:
    x = 8 * _real(6, 2, 3, 4)
    alpha, beta = np.array([0.1, 0.5, 2], np.float32), np.array([1, 0.3, 2], np.float32)
    channels = [v.reshape(3, 1) for v in (alpha, beta)]
    both = {"alpha": np.float32(0.3), "beta": np.float32(0.7)}
    cases: list[Any] = [(name, {"x": x}, {}, _t(getattr(functional, name), x)) for name in PLAIN]
    cases += [
        ("softplus", {"x": 9 * x}, {}, np.logaddexp(9 * x.astype(np.float64), 0)),
        ("elu", {"x": x}, {"alpha": np.float32(0.3)}, _t(functional.elu, x, alpha=0.3)),
        (
            "leaky_relu",
            {"x": x},
            {"alpha": np.float32(0.3)},
            _t(functional.leaky_relu, x, negative_slope=0.3),
        ),
        ("thresholded_relu", {"x": x}, {"alpha": np.float32(1.5)}, np.where(x >= 1.5, x, 0)),
        ("clamped_relu", {"x": x}, both, np.minimum(np.where(x >= 0, x, 0.3 * x), 0.7)),
        ("linear_activation", {"x": x}, both, None),
        ("scaled_tanh", {"x": x}, both, None),
        ("sigmoid_hard", {"x": x}, both, None),
        ("prelu", {"x": x[..., None]}, {"alpha": alpha}, np.where(x > 0, x, x * channels[0])[..., None]),
        (
            "softplus_parametric",
            {"x": x[..., None]},
            {"alpha": alpha, "beta": beta},
            (channels[0] * np.logaddexp(channels[1] * x.astype(np.float64), 0))[..., None],
        ),
        ("gelu", {"x": x}, {"mode": "EXACT"}, _t(functional.gelu, x)),
        ("gelu", {"x": x}, {"mode": "TANH_APPROXIMATION"}, _t(functional.gelu, x, approximate="tanh")),
        ("gelu", {"x": x}, {"mode": "SIGMOID_APPROXIMATION"}, x / (1 + np.exp(-1.702 * x))),
    ]
    cases += [("softmax", {"x": x}, {"axis": axis}, _t(torch.softmax, x, dim=axis)) for axis in (-1, 0, 1)]
    check_cases(cases)


def test_reductions(check_cases: Check) -> None:
    x = np.abs(_real(7, 2, 3, 4, 2)) + 0.2
    cases: list[Any] = []
    for name in REDUCE:
        for axes in ([0], [-1, 1], [0, 1, 2, 3]):
            cases += [(name, {"x": x}, {"axes": axes, "keep_dims": keep}, None) for keep in (False, True)]
    cases += [
        (name, {"x": _whole(8, 3, 4, low=1)}, {"axes": [1]}, None) for name in REDUCE if "log" not in name
    ]
    for name in ("reduce_argmax", "reduce_argmin"):
        cases += [(name, {"x": x}, {"axis": axis, "keep_dims": axis < 0}, None) for axis in (-1, 0, 2)]
    check_cases(cases)


def test_all_axes_are_reduced_by_default(check_cases: Check) -> None:
    x = _real(9, 2, 3)
    check_cases([(name, {"x": np.abs(x)}, {"axes": None}, None) for name in REDUCE])


@pytest.mark.parametrize("name", ["exp", "sigmoid", "square", "tanh", "silu"])
def test_results_are_rounded_to_half_precision(name: str, save: Callable[..., Any], tmp_path: Any) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    from pulse_edge.export.milrun import load_package

    @mb.program(input_specs=[mb.TensorSpec((64,), dtype=types.fp16)], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        return getattr(mb, name)(x=x)

    path = save(program, tmp_path / "half.mlpackage")
    x = (9 * _real(10, 64)).astype(np.float16)
    (half,) = load_package(path, "fp16").run(None, {"x": x}).values()
    (full,) = load_package(path, "fp32").run(None, {"x": x}).values()
    assert half.dtype == np.float16
    assert full.dtype == np.float32
    np.testing.assert_array_equal(half, full.astype(np.float16))
    assert (half != full).any()  # so that the test could fail
