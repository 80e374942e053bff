"""Integer weights in a checkpoint: packing, what they stand for, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pulse_edge.errors import CheckpointError
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.layouts import canonical
from pulse_edge.model.quantized import QuantizedWeight, pack_int4, quantized_weight, unpack_int4

nibbles = arrays(
    np.int8, st.tuples(st.integers(1, 5), st.integers(1, 6).map(lambda k: 2 * k)), elements=st.integers(-8, 7)
)


@given(nibbles)
def test_packing_is_that_of_onnx(integers) -> None:
    packed = pack_int4(integers)
    flat = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, integers.shape, integers.ravel())
    assert packed.tobytes() == flat.raw_data or packed.ravel().tolist() == [
        value & 0xFF for value in flat.int32_data
    ]
    assert np.array_equal(unpack_int4(packed), integers)


def test_what_the_integers_stand_for() -> None:
    weight = QuantizedWeight(
        4,
        np.array([[1, -2, 3, -8], [0, 7, -7, 5]], np.int8),
        np.array([[0.5, 2.0], [1.0, 0.25]], np.float16),
        np.array([[1, 0], [0, -1]], np.int8),
    )
    assert weight.group == 2
    assert weight.dequantize().tolist() == [[0.0, -1.5, 6.0, -16.0], [0.0, 7.0, -1.5, 1.5]]
    back = quantized_weight("w", weight.stored("w"))
    assert (back.bits, back.group) == (4, 2)
    assert np.array_equal(back.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (".scale", None),
        (".scale", np.ones((2, 3), np.float16)),
        (".scale", np.ones((2, 2), np.float32)),
        (".integers", np.ones((2, 2), np.int16)),
        (".zero", np.ones((2, 1), np.int8)),
    ],
)
def test_another_form_is_refused(part, value) -> None:
    stored = QuantizedWeight(8, np.ones((2, 4), np.int8), np.ones((2, 2), np.float16)).stored("w")
    stored = {name: array for name, array in {**stored, f"w{part}": value}.items() if array is not None}
    with pytest.raises(CheckpointError, match="w "):
        quantized_weight("w", stored)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_with_integers_loads_as_what_they_stand_for(small_checkpoint, tmp_path, bits) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_checkpoint, tmp_path / "quantised")
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("layers.1.mlp.up_proj.weight"))
    rng = np.random.default_rng(0)
    rows, columns = weights.pop(name).shape
    levels = 127 if bits == 8 else 7
    weight = QuantizedWeight(
        bits,
        rng.integers(-levels, levels + 1, (rows, columns), np.int8),
        rng.uniform(0.001, 0.01, (rows, columns // 8)).astype(np.float16),
    )
    stored = {key: torch.from_numpy(value) for key, value in weight.stored(name).items()}
    save_file({**weights, **stored}, folder / "model.safetensors", {"format": "pt"})
    model = load_model(folder, "float32")
    loaded = {canonical(key): value for key, value in model.state_dict().items()}[canonical(name)].numpy()
    assert np.array_equal(loaded, weight.dequantize())
    kept = load_model(small_checkpoint).get_input_embeddings().weight.dtype
    assert {tensor.dtype for tensor in load_model(folder).parameters()} == {kept}
