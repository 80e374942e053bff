"""Ops that only move values: shapes, slices, order, gathering and scattering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

Check = Callable[..., None]
RNG = np.random.default_rng(0)


def _real(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def _int(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def test_shapes(check_cases: Check) -> None:
    x, y = _real(2, 3, 4), _real(2, 1, 3, 1)
    cases: list[Any] = [
        ("identity", {"x": x}, {}, None),
        ("reshape", {"x": x}, {"shape": [4, -1]}, None),
        ("reshape", {"x": x}, {"shape": [0, -1, 2]}, x.reshape(2, 6, 2)),
        ("reshape", {"x": x, "shape": _int(6, 4)}, {}, x.reshape(6, 4)),
        ("flatten2d", {"x": x}, {"axis": 1}, x.reshape(2, 12)),
        ("flatten2d", {"x": x}, {"axis": -1}, x.reshape(6, 4)),
        ("transpose", {"x": x}, {"perm": [2, 0, 1]}, None),
        ("transpose", {"x": x}, {"perm": [-1, -3, -2]}, None),
        ("expand_dims", {"x": x}, {"axes": [0, 2]}, None),
        ("expand_dims", {"x": x}, {"axes": [-1]}, None),
        ("squeeze", {"x": y}, {"axes": [1]}, None),
        ("squeeze", {"x": y}, {"axes": [-1, 1]}, None),
        ("squeeze", {"x": y}, {}, y.squeeze()),
        ("shape", {"x": x}, {}, np.array([2, 3, 4])),
        ("fill", {"shape": _int(2, 3)}, {"value": np.float32(1.5)}, np.full((2, 3), 1.5, np.float32)),
        ("fill_like", {"ref_tensor": x}, {"value": np.float32(2)}, np.full((2, 3, 4), 2, np.float32)),
        ("range_1d", {"start": _int(2), "end": _int(11), "step": _int(4)}, {}, np.array([2, 6, 10])),
        ("tile", {"x": x}, {"reps": [1, 2, 3]}, None),
        ("non_zero", {"x": np.array([[0, 2], [3, 0]], np.float32)}, {}, None),
        ("band_part", {"x": x}, {"lower": 1, "upper": 0}, None),
        ("band_part", {"x": x}, {"lower": -1, "upper": 1}, None),
    ]
    for axis in (-1, 0, 1):
        eye = np.moveaxis(np.where(np.eye(5)[[1, 4, 0]] > 0, 3.0, -1.0), -1, axis).astype(np.float32)
        cases.append(
            (
                "one_hot",
                {"indices": _int(1, 4, 0)},
                {
                    "one_hot_vector_size": 5,
                    "axis": axis,
                    "on_value": np.float32(3),
                    "off_value": np.float32(-1),
                },
                eye,
            )
        )
    reference = _real(6, 4)
    cases.append(
        (
            "reshape_like",
            {"x": reference, "ref_tensors": (_real(2, 3, 4), _real(1, 5, 8))},
            {"begins": (1, 2), "ends": (2, 0), "end_masks": (False, True)},
            reference.reshape(3, 8),
        )
    )
    check_cases(cases)


def test_slices(check_cases: Check) -> None:
    x = _real(3, 5, 7)
    everywhere = [True, True, True]
    cases: list[Any] = [
        ("slice_by_index", {"x": x}, {"begin": [0, 1, 2], "end": [3, 4, 7], "stride": [2, 1, 3]}, None),
        (
            "slice_by_index",
            {"x": x},
            {
                "begin": [0, -3, 0],
                "end": [0, -1, 0],
                "begin_mask": [True, False, True],
                "end_mask": [True, False, True],
            },
            None,
        ),
        (
            "slice_by_index",
            {"x": x},
            {
                "begin": [1, 4, 6],
                "end": [0, 0, 0],
                "stride": [1, -1, -2],
                "begin_mask": everywhere,
                "end_mask": everywhere,
            },
            None,
        ),
        (
            "slice_by_index",
            {"x": x},
            {
                "begin": [1, 0, -2],
                "end": [0, 0, 0],
                "end_mask": [False, True, False],
                "squeeze_mask": [True, False, True],
            },
            x[1, :, -2],
        ),
        ("slice_by_index", {"x": x, "begin": _int(0, 2, 1), "end": _int(2, 3, 6)}, {}, x[0:2, 2:3, 1:6]),
        ("slice_by_size", {"x": x}, {"begin": [1, 0, -3], "size": [2, -1, 2]}, x[1:3, :, 4:6]),
        ("slice_by_size", {"x": x, "begin": _int(0, 1, 2)}, {"size": [1, 2, 3]}, x[:1, 1:3, 2:5]),
        ("crop", {"x": x}, {"crop_height": [1, 2], "crop_width": [0, 3]}, x[:, 1:3, 0:4]),
        ("concat", {"values": (x, x + 1)}, {"axis": 1}, np.concatenate([x, x + 1], 1)),
        (
            "concat",
            {"values": (x, x + 1)},
            {"axis": 1, "interleave": True},
            np.stack([x, x + 1], 2).reshape(3, 10, 7),
        ),
        (
            "concat",
            {},
            {"values": (np.int32(4), np.int32(5)), "axis": 0},
            _int(4, 5),
        ),
        ("stack", {"values": (x, x + 1)}, {"axis": -1}, np.stack([x, x + 1], -1)),
        ("split", {"x": x}, {"split_sizes": [1, 4, 2], "axis": 2}, tuple(np.split(x, [1, 5], 2))),
        ("split", {"x": x}, {"num_splits": 3, "axis": 0}, tuple(np.split(x, 3, 0))),
        ("pad", {"x": x}, {"pad": [1, 0, 2, 3], "mode": "constant", "constant_val": np.float32(7)}, None),
        ("pad", {"x": x}, {"pad": [1, 1, 0, 2, 2, 2], "mode": "reflect"}, None),
        ("pad", {"x": x}, {"pad": [3, 1], "mode": "replicate"}, None),
    ]
    y = x.copy()
    y[0:2, 1, 2:7:2] = _update = _real(2, 3)
    arguments = {
        "begin": [0, 1, 2],
        "end": [2, 0, 7],
        "stride": [1, 1, 2],
        "squeeze_mask": [False, True, False],
    }
    cases.append(("slice_update", {"x": x, "update": _update}, arguments, y))
    z = x.copy()
    z[:, 2:4] = _wide = _real(3, 2, 7)
    arguments = {
        "begin": [0, 2, 0],
        "end": [0, 4, 0],
        "begin_mask": [True, False, True],
        "end_mask": [True, False, True],
    }
    cases.append(("slice_update", {"x": x, "update": _wide}, arguments, z))
    check_cases(cases)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_slice_is_that_of_numpy(data: Any) -> None:
    """The op itself, without the conversion: every begin, end, stride and mask."""
    from pulse_edge.export.milrun.ops.slicing import slice_by_index, slice_update

    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    slices, rows = [], []
    for length in shape:
        begin = data.draw(st.integers(-length, length - 1))
        end, step = (
            data.draw(st.integers(-length - 1, length + 1)),
            data.draw(st.sampled_from([-2, -1, 1, 2])),
        )
        masks = [data.draw(st.booleans()) for _ in range(2)]
        single = data.draw(st.booleans())
        rows.append((begin, end, step, *masks, single))
        slices.append(
            begin
            if single and not masks[0]
            else 0
            if single
            else slice(None if masks[0] else begin, None if masks[1] else end, step)
        )
    begin, end, step, open_begin, open_end, single = (list(row) for row in zip(*rows, strict=True))
    expected = x[tuple(slices)]
    got = slice_by_index(torch.from_numpy(x), begin, end, step, open_begin, open_end, single).numpy()
    np.testing.assert_array_equal(got, expected)
    y = x.copy()
    y[tuple(slices)] = -expected
    tensors = (torch.from_numpy(x), torch.from_numpy(-expected) if expected.ndim else torch.tensor(-expected))
    updated = slice_update(*tensors, begin, end, step, open_begin, open_end, single).numpy()
    np.testing.assert_array_equal(updated, y)
    np.testing.assert_array_equal(x, np.arange(x.size, dtype=np.float32).reshape(shape))


def test_order(check_cases: Check) -> None:
    x = RNG.permutation(24).reshape(2, 3, 4).astype(np.float32)
    image = _real(1, 8, 4, 6)
    t = torch.from_numpy(image)
    cases: list[Any] = [
        ("argsort", {"x": x}, {"axis": axis, "ascending": up}, None)
        for axis in (-1, 1)
        for up in (True, False)
    ]
    cases += [
        ("topk", {"x": x}, {"k": 2, "axis": axis, "ascending": up}, None)
        for axis in (-1, 0)
        for up in (True, False)
    ]
    cases += [("topk", {"x": x}, {"k": 3, "axis": 2, "return_indices": False}, np.sort(x, 2)[:, :, :0:-1])]
    for backwards in (False, True):
        cases.append(("cumsum", {"x": x}, {"axis": 1, "reverse": backwards}, None))
        flipped = x[:, ::-1] if backwards else x
        total = np.concatenate([np.zeros((2, 1, 4)), np.cumsum(flipped, 1)[:, :-1]], 1)
        cases.append(
            (
                "cumsum",
                {"x": x},
                {"axis": 1, "exclusive": True, "reverse": backwards},
                total[:, ::-1] if backwards else total,
            )
        )
    swapped = x.copy()
    swapped[0, :2], swapped[1] = x[0, 1::-1], x[1, ::-1]
    cases += [
        ("reverse", {"x": x}, {"axes": [0, -1]}, None),
        ("reverse", {"x": x}, {}, x[::-1, ::-1, ::-1]),
        ("reverse_sequence", {"x": x}, {"lengths": [2, 3], "seq_axis": 1, "batch_axis": 0}, swapped),
        ("sliding_windows", {"x": x}, {"axis": 2, "size": 3}, np.stack([x[..., :3], x[..., 1:]], 2)),
        ("pixel_shuffle", {"x": image}, {"upscale_factor": 2}, functional.pixel_shuffle(t, 2).numpy()),
        (
            "pixel_unshuffle",
            {"x": image},
            {"downscale_factor": np.uint32(2)},
            functional.pixel_unshuffle(t, 2).numpy(),
        ),
    ]
    # TensorFlow's order, written out place by place
    deep = np.zeros((1, 32, 2, 3), np.float32)
    wide = np.zeros((1, 2, 8, 12), np.float32)
    for i in range(2):
        for j in range(2):
            deep[:, (2 * i + j) * 8 : (2 * i + j + 1) * 8] = image[:, :, i::2, j::2]
            wide[:, :, i::2, j::2] = image[:, (2 * i + j) * 2 : (2 * i + j + 1) * 2]
    batch = np.concatenate([image[:, :, i::2, j::2] for i in range(2) for j in range(2)])
    cases += [
        ("space_to_depth", {"x": image}, {"block_size": 2}, deep),
        ("depth_to_space", {"x": image}, {"block_size": 2}, wide),
        (
            "space_to_batch",
            {"x": image},
            {"block_shape": [2, 2], "paddings": np.zeros((2, 2), np.int32)},
            batch,
        ),
        ("batch_to_space", {"x": batch}, {"block_shape": [2, 2], "crops": np.array([[0, 0], [0, 0]])}, image),
        (
            "batch_to_space",
            {"x": batch},
            {"block_shape": [2, 2], "crops": np.array([[1, 0], [0, 2]])},
            image[:, :, 1:, :-2],
        ),
    ]
    check_cases(cases)


def test_gathering(check_cases: Check) -> None:
    x = _real(3, 4, 5)
    index = np.array([[2, 0], [1, 2]], np.int32)
    points = np.array([[0, 3], [2, 1]], np.int32)
    along = RNG.integers(0, 4, (3, 2, 5)).astype(np.int32)
    cases = [
        ("gather", {"x": x, "indices": index}, {"axis": 0}, np.take(x, index, 0)),
        ("gather", {"x": x, "indices": index}, {"axis": -1}, np.take(x, index, 2)),
        ("gather", {"x": x, "indices": index[0]}, {"axis": 1}, np.take(x, index[0], 1)),
        ("gather", {"x": x[0, 0]}, {"indices": np.int32(3), "axis": 0}, x[0, 0, 3]),
        (
            "gather",
            {"x": x[:2], "indices": index},
            {"axis": 1, "batch_dims": 1},
            np.stack([x[0][[2, 0]], x[1][[1, 2]]]),
        ),
        (
            "gather",
            {"x": x[:2], "indices": index},
            {"axis": 2, "batch_dims": 1},
            np.stack([x[0][:, [2, 0]], x[1][:, [1, 2]]]),
        ),
        ("gather_along_axis", {"x": x, "indices": along}, {"axis": 1}, np.take_along_axis(x, along, 1)),
        ("gather_nd", {"x": x, "indices": points}, {}, x[[0, 2], [3, 1]]),
        (
            "gather_nd",
            {"x": x[:2], "indices": points[..., None]},
            {"batch_dims": 1},
            np.stack([x[0][[0, 3]], x[1][[2, 1]]]),
        ),
    ]
    check_cases(cases)


@pytest.mark.parametrize("mode", ["update", "add", "sub", "mul", "div", "max", "min"])
def test_scattering(mode: str, check_cases: Check) -> None:
    combine: dict[str, Callable[[Any, Any], Any]] = {
        "update": lambda old, new: new, "add": np.add, "sub": np.subtract, "mul": np.multiply,
        "div": np.divide, "max": np.maximum, "min": np.minimum,
    }  # fmt: skip
    data = _real(4, 3)
    index = np.array([3, 1], np.int32) if mode == "update" else np.array([3, 1, 3], np.int32)
    updates = _real(len(index), 3)
    rows, columns, points, slices = (data.copy() for _ in range(4))
    along = np.array([[2, 0], [1, 2], [0, 1], [2, 1]], np.int32)
    small = _real(4, 2)
    single = _real(len(index))
    by_column = _real(4, len(index) if mode == "update" else 3)
    at = np.array([2, 0], np.int32) if mode == "update" else np.array([2, 0, 2], np.int32)
    for k, i in enumerate(index):
        rows[i] = combine[mode](rows[i], updates[k])
        slices[i] = combine[mode](slices[i], updates[k])
        points[i, at[k]] = combine[mode](points[i, at[k]], single[k])
    for k, j in enumerate(at):
        columns[:, j] = combine[mode](columns[:, j], by_column[:, k])
    cells = data.copy()
    for i in range(4):
        for k in range(2):
            cells[i, along[i, k]] = combine[mode](cells[i, along[i, k]], small[i, k])
    cases = [
        ("scatter", {"data": data, "indices": index, "updates": updates}, {"axis": 0, "mode": mode}, rows),
        ("scatter", {"data": data, "indices": at, "updates": by_column}, {"axis": 1, "mode": mode}, columns),
        (
            "scatter_along_axis",
            {"data": data, "indices": along, "updates": small},
            {"axis": 1, "mode": mode},
            cells,
        ),
        ("scatter_nd", {"data": data, "indices": index[:, None], "updates": updates}, {"mode": mode}, slices),
        (
            "scatter_nd",
            {"data": data, "indices": np.stack([index, at], 1), "updates": single},
            {"mode": mode},
            points,
        ),
    ]
    check_cases(cases, tolerance=1e-5)


def test_an_index_outside_is_an_error(run_cases: Callable[..., Any]) -> None:
    from pulse_edge.errors import BundleError

    x = _real(3, 4)
    for bad in (3, -4):
        with pytest.raises(
            BundleError, match=r"op gather \(gather_0\) of the function main: the index -?\d lies"
        ):
            run_cases([("gather", {"x": x, "indices": _int(bad)}, {"axis": 0}, x[:1])])
    run_cases([("gather", {"x": x, "indices": _int(-3)}, {"axis": 0}, x[:1])])
