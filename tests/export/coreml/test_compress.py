"""What is stored: the integers of the other targets, those of a checkpoint, palettes, and no silent layer."""

from __future__ import annotations

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from pulse_edge.errors import CheckpointError, GateError
from pulse_edge.export.coreml.compress import check_compressed, encode, matrix, take_integers
from pulse_edge.export.coreml.package import FLOOR, convert, finish, program
from pulse_edge.export.milrun import load_package
from pulse_edge.export.weights import precision, quantize
from pulse_edge.model.quantized import QuantizedWeight


def how(name):
    return precision(name, "coreml")


def weight(rows=64, columns=128):
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def stored(encoded, folder):
    """Write one linear layer; return its matrix as the package gives it back, and the package's path."""
    columns = encoded.values.shape[1]
    with Function({"x": mb.TensorSpec((1, columns, columns), types.fp32)}, FLOOR) as one:
        dense = mb.cast(x=matrix("layer", encoded), dtype="fp32")
        one.set_outputs([mb.matmul(x=one.inputs["x"], y=dense, transpose_y=True, name="y")])
    path = folder / "one.mlpackage"
    finish(convert(program({"main": one}), path), path)
    given = np.eye(columns, dtype=np.float32)[None]
    return load_package(path, "fp32").run(None, {"x": given})["y"][0].T, path


@pytest.mark.parametrize(("name", "block", "levels"), [("int8", 128, 127), ("int4", 128, 7)])
def test_the_integers_are_those_of_the_other_targets(name, block, levels, tmp_path):
    integers, scale = quantize(weight().T, block, levels)
    expected = (integers.astype(np.float32) * np.repeat(scale, block, axis=0)).T
    made, path = stored(encode("layer", weight(), how(name)), tmp_path)
    assert np.abs(made - expected).max() < 1e-3 * np.abs(expected).max()  # a product in float16 at most
    check_compressed(path, {"layer": name})
    with pytest.raises(GateError, match="other_layer"):
        check_compressed(path, {"layer": name, "other_layer": name})


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_checkpoints_own_integers_are_stored_as_they_are(bits, zeros, tmp_path):
    rng = np.random.default_rng(1)
    top = 127 if bits == 8 else 7
    own = QuantizedWeight(
        bits,
        rng.integers(-top - 1, top + 1, (48, 64)).astype(np.int8),
        rng.uniform(0.01, 0.1, (48, 2)).astype(np.float16),
        rng.integers(-3, 4, (48, 2)).astype(np.int8) if zeros else None,
    )
    made, path = stored(take_integers(own, how(f"int{bits}")), tmp_path)
    assert np.abs(made - own.dequantize()).max() < 1e-3 * np.abs(made).max()
    check_compressed(path, {"layer": f"int{bits}"})


def test_a_palette_has_sixteen_values_for_every_sixteen_rows_and_beats_even_steps(tmp_path):
    made, path = stored(encode("layer", weight(), how("palette4")), tmp_path)
    for group, original in zip(made.reshape(4, -1), weight().reshape(4, -1), strict=True):
        values = np.unique(group)
        assert len(values) <= 16
        # Every weight took the nearest of the values.
        assert np.abs(np.abs(original[:, None] - values).min(axis=1) - np.abs(original - group)).max() < 2e-3
        even = np.linspace(original.min(), original.max(), 16)
        rounded = even[np.abs(original[:, None] - even).argmin(axis=1)]
        assert ((group - original) ** 2).mean() < 0.8 * ((rounded - original) ** 2).mean()
    check_compressed(path, {"layer": "palette4"})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("int4", (16, 100), r"int4 does not fit the layer layers\.0\.mlp.* 100 inputs"),
        ("palette4", (24, 64), r"palette4 does not fit the layer layers\.0\.mlp.* 24 outputs"),
    ],
)
def test_a_layer_that_does_not_fit_is_an_error_that_names_it(name, shape, message):
    with pytest.raises(CheckpointError, match=message):
        encode("layers.0.mlp", weight(*shape), how(name))


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "palette4"])
def test_a_weight_that_overflows_is_refused(name):
    broken = weight()
    broken[3, 5] = np.inf
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp is not finite"):
        encode("layers.0.mlp", broken, how(name))


def test_a_small_block_serves_where_the_usual_ones_do_not_divide():
    assert encode("layer", weight(16, 96), how("int4")).table.shape == (16, 3)
