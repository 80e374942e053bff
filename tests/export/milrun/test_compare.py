"""Where half precision goes astray, op by op."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pulse_edge.export.milrun.compare import compare_precisions

ct = pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')


def test_the_op_that_overflows_is_named(save: Callable[..., Path], tmp_path: Path) -> None:
    """A plain RMS norm on a channel of 900: its square does not fit; scaled down first, it does."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    def norm(x: Any, name: str) -> Any:
        square = mb.square(x=x, name=f"{name}_square")
        mean = mb.reduce_mean(x=square, axes=[-1], keep_dims=True, name=f"{name}_mean")
        return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-5), name=f"{name}_root"), name=name)

    kept = mb.StateTensorSpec((1, 64), dtype=types.fp16)

    @mb.program(input_specs=[mb.TensorSpec((1, 64), dtype=types.fp16), kept], opset_version=ct.target.iOS18)
    def program(x: Any, kept: Any) -> Any:
        y = mb.add(x=x, y=mb.read_state(input=kept), name="sum")
        scaled = mb.real_div(x=y, y=mb.reduce_max(x=mb.abs(x=y), axes=[-1], keep_dims=True), name="scaled")
        return norm(y, "plain"), norm(scaled, "safe")

    path = save(program, tmp_path / "norm.mlpackage", compute_precision=ct.precision.FLOAT16)
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float16)
    state = {"kept": np.zeros((1, 64), np.float32)}
    state["kept"][0, 5] = 900
    rows = {row.output.split("_cast")[0]: row for row in compare_precisions(path, None, {"x": x}, state)}
    first = next(row for row in rows.values() if row.overflow)
    assert (first.op, first.output.split("_cast")[0]) == ("square", "plain_square")
    assert first.scale > 65504
    assert math.isinf(first.error)
    assert not rows["plain"].overflow  # infinity's root is 0: the answer looks sound
    assert rows["plain"].error > 1
    assert rows["safe"].error < 0.01
    assert state["kept"].sum() == 900
