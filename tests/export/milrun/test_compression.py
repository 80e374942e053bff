"""Compressed weights: every value equals that of coremltools' own ``decompress_weights``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ct = pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')
cto = ct.optimize.coreml
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def model(save: Callable[..., Path], tmp_path_factory: Any) -> Callable[[Any, str], Any]:
    """A product and a convolution with weights of every size that the methods care about."""
    from coremltools.converters.mil import Builder as mb

    linear = RNG.standard_normal((64, 96)).astype(np.float32)
    linear[RNG.random(linear.shape) < 0.4] = 0
    kernel = RNG.standard_normal((32, 8, 3, 3)).astype(np.float32)
    made: dict[Any, Any] = {}

    def get(target: Any, precision: str) -> Any:
        if (target, precision) not in made:

            @mb.program(
                input_specs=[mb.TensorSpec((2, 96)), mb.TensorSpec((1, 8, 6, 6))], opset_version=target
            )
            def program(x: Any, picture: Any) -> Any:
                return mb.linear(x=x, weight=linear), mb.conv(x=picture, weight=kernel, pad_type="valid")

            path = save(
                program,
                tmp_path_factory.mktemp("plain") / "plain.mlpackage",
                compute_precision=getattr(ct.precision, precision),
                minimum_deployment_target=target,
            )
            made[target, precision] = ct.models.MLModel(str(path), skip_model_load=True)
        return made[target, precision]

    return get


def _quiet(function: Callable[..., Any], *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def _weights(path: Path) -> dict[str, NDArray[Any]]:
    """Every weight of a package that the products and convolutions use, as milrun decodes it."""
    from pulse_edge.export.milrun import load_package
    from pulse_edge.export.milrun.steps import ComputeStep

    found = {}
    for step, _ in load_package(path).plan().steps:
        if isinstance(step, ComputeStep) and "weight" in step.fixed:
            found[step.op.name] = step.fixed["weight"].numpy().copy()
    return found


def _quantised(
    dtype: str, granularity: str = "per_channel", mode: str = "linear_symmetric", **more: Any
) -> Any:
    config = cto.OpLinearQuantizerConfig(
        mode=mode, dtype=dtype, granularity=granularity, weight_threshold=0, **more
    )
    return cto.linear_quantize_weights, cto.OptimizationConfig(config)


def _palettised(nbits: int, granularity: str = "per_tensor", **more: Any) -> Any:
    mode = more.pop("mode", "uniform")
    config = cto.OpPalettizerConfig(
        mode=mode, nbits=nbits, granularity=granularity, weight_threshold=0, **more
    )
    return cto.palettize_weights, cto.OptimizationConfig(config)


def _pruned() -> Any:
    config = cto.OpThresholdPrunerConfig(threshold=0.5, minimum_sparsity_percentile=0.1, weight_threshold=0)
    return cto.prune_weights, cto.OptimizationConfig(config)


IOS18 = {
    "int8 by channel": (lambda: [_quantised("int8")], {"constexpr_blockwise_shift_scale"}),
    "uint8 with offset": (lambda: [_quantised("uint8", mode="linear")], {"constexpr_blockwise_shift_scale"}),
    "int4 by tensor": (lambda: [_quantised("int4", "per_tensor")], {"constexpr_blockwise_shift_scale"}),
    "int4 by block": (
        lambda: [_quantised("int4", "per_block", block_size=8)],
        {"constexpr_blockwise_shift_scale"},
    ),
    "uint4 by block with offset": (
        lambda: [_quantised("uint4", "per_block", "linear", block_size=8)],
        {"constexpr_blockwise_shift_scale"},
    ),
    "palette of 1 bit": (lambda: [_palettised(1)], {"constexpr_lut_to_dense"}),
    "palette of 2 bits": (lambda: [_palettised(2)], {"constexpr_lut_to_dense"}),
    "palette of 3 bits": (lambda: [_palettised(3)], {"constexpr_lut_to_dense"}),
    "palette of 4 bits by group": (
        lambda: [_palettised(4, "per_grouped_channel", group_size=8)],
        {"constexpr_lut_to_dense"},
    ),
    "palette of 6 bits": (lambda: [_palettised(6)], {"constexpr_lut_to_dense"}),
    "palette of 8 bits": (lambda: [_palettised(8)], {"constexpr_lut_to_dense"}),
    "palette of vectors": (
        lambda: [_palettised(4, mode="kmeans", cluster_dim=4)],
        {"constexpr_lut_to_dense"},
    ),
    "sparse": (lambda: [_pruned()], {"constexpr_sparse_to_dense"}),
    "sparse and int8": (
        lambda: [_pruned(), _quantised("int8")],
        {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
    ),
    "sparse and palette": (
        lambda: [_pruned(), _palettised(4)],
        {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"},
    ),
    "palette of int8": (
        lambda: [_palettised(4), _quantised("int8", "per_tensor")],
        {"constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"},
    ),
}
IOS16 = {
    "int8 by channel": (lambda: [_quantised("int8")], {"constexpr_affine_dequantize"}),
    "uint8 with offset": (lambda: [_quantised("uint8", mode="linear")], {"constexpr_affine_dequantize"}),
    "palette of 1 bit": (lambda: [_palettised(1)], {"constexpr_lut_to_dense"}),
    "palette of 4 bits": (lambda: [_palettised(4)], {"constexpr_lut_to_dense"}),
    "palette of 6 bits": (lambda: [_palettised(6)], {"constexpr_lut_to_dense"}),
    "palette of 8 bits": (lambda: [_palettised(8)], {"constexpr_lut_to_dense"}),
    "sparse": (lambda: [_pruned()], {"constexpr_sparse_to_dense"}),
}
ALL = [(ct.target.iOS18, name, *entry) for name, entry in IOS18.items()]
ALL += [(ct.target.iOS16, name, *entry) for name, entry in IOS16.items()]


@pytest.mark.parametrize("precision", ["FLOAT16", "FLOAT32"])
@pytest.mark.parametrize(("target", "name", "steps", "ops"), ALL, ids=[f"{t.name} {n}" for t, n, *_ in ALL])
def test_weights_are_those_of_decompress_weights(
    target: Any,
    name: str,
    steps: Callable[[], Any],
    ops: set[str],
    precision: str,
    model: Any,
    tmp_path: Path,
) -> None:
    from pulse_edge.export.milrun import load_package

    compressed = model(target, precision)
    for i, (method, config) in enumerate(steps()):
        arguments = (True,) if i else ()  # a second method works on what the first one left
        compressed = _quiet(method, compressed, config, *arguments)
    compressed.save(str(tmp_path / "compressed.mlpackage"))
    _quiet(cto.decompress_weights, compressed).save(str(tmp_path / "plain.mlpackage"))
    used = {op for op in load_package(tmp_path / "compressed.mlpackage").operations() if "constexpr" in op}
    assert used == ops
    got, expected = (_weights(tmp_path / f"{which}.mlpackage") for which in ("compressed", "plain"))
    assert set(got) == set(expected) == {"linear", "conv"}
    for op in expected:
        np.testing.assert_array_equal(got[op], expected[op])


def test_a_stored_cast(tmp_path: Path) -> None:
    from pulse_edge.export.milrun.ops.constexpr import constexpr_cast

    half = RNG.standard_normal(9).astype(np.float16)
    np.testing.assert_array_equal(constexpr_cast(half, "fp32"), half.astype(np.float32))


@pytest.mark.parametrize("name", ["uint1", "uint2", "uint3", "int4", "uint4", "uint6"])
@pytest.mark.parametrize("count", [1, 7, 8, 61])
def test_packed_numbers_are_read_as_coremltools_writes_them(name: str, count: int, tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    from pulse_edge.export.milrun.blob import BlobFile
    from pulse_edge.export.milrun.dtypes import BY_NAME

    dtype = BY_NAME[name]
    low, high = (-8, 8) if name == "int4" else (0, 1 << dtype.bits)
    values = RNG.integers(low, high, count).astype(dtype.stored)
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"))
    offsets = [getattr(writer, f"write_{name}_data")(values) for _ in range(2)]
    del writer
    for offset in offsets:
        np.testing.assert_array_equal(BlobFile(tmp_path / "weight.bin").read(offset, dtype, (count,)), values)
