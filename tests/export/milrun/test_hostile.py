"""Bytes turned over at random: a package gives an error of ours or runs, and never anything else."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.errors import PulseEdgeError
from pulse_edge.export.milrun import load_package

ct = pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')

LIMITS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLIPS = st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def package(save: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """Compressed weights, a slice, a state and a convolution in one small program."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    codes = np.arange(-8, 8, dtype=np.int8).repeat(8).reshape(8, 16)

    @mb.program(
        input_specs=[mb.TensorSpec((1, 16), dtype=types.fp16), mb.StateTensorSpec((2, 8), dtype=types.fp16)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, kept: Any) -> Any:
        scale = np.full((8, 4), 0.25, np.float16)
        weight = mb.constexpr_blockwise_shift_scale(data=codes.astype(types.np_int4_dtype), scale=scale)
        y = mb.linear(x=x, weight=weight)
        new = mb.slice_update(x=mb.read_state(input=kept), update=y, begin=[1, 0], end=[2, 8])
        z = mb.coreml_update_state(state=kept, value=new)
        kernel = np.ones((3, 2, 3), np.float16)
        picture = mb.expand_dims(x=z, axes=[0])
        return mb.conv(x=picture, weight=kernel, pad_type="same", bias=np.arange(3, dtype=np.float16))

    path = save(
        program, tmp_path_factory.mktemp("hostile") / "p.mlpackage", compute_precision=ct.precision.FLOAT16
    )
    assert "constexpr_blockwise_shift_scale" in load_package(path).operations()
    return path


def _run(path: Path) -> None:
    opened = load_package(path, "fp16")
    for name in opened.functions:
        state = opened.new_state(name)
        fed = {key: np.ones(feature.shape, feature.dtype) for key, feature in opened.inputs(name).items()}
        opened.run(name, fed, state)


@LIMITS
@given(flips=FLIPS, which=st.sampled_from(["model.mlmodel", "weights/weight.bin"]))
def test_bytes_turned_over(flips: list[tuple[int, int]], which: str, package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mlpackage"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(package, copy)
    file = copy / "Data" / "com.apple.CoreML" / which
    content = bytearray(file.read_bytes())
    for at, value in flips:
        content[at % len(content)] ^= value
    file.write_bytes(content)
    with contextlib.suppress(PulseEdgeError):
        _run(copy)


def test_the_package_itself_runs(package: Path) -> None:
    _run(package)
