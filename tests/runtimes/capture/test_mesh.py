"""The mesh: interpolation, continuation and the smooth field, against what can be computed otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline

from pulse_edge.runtimes.capture.field import continued, smooth_field
from pulse_edge.runtimes.capture.mesh import cubic, pixel_maps, sample


def test_interpolation_is_the_spline_with_central_slopes() -> None:
    values = np.random.default_rng(0).normal(size=9)
    long = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    spline = CubicHermiteSpline(np.arange(9.0), values, (long[2:] - long[:-2]) / 2)
    at = np.linspace(0, 8, 101)
    assert cubic(at, 9) @ values == pytest.approx(spline(at), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(-3, 12), st.floats(-3, 9), st.integers(2, 9), st.integers(2, 7))
def test_a_plane_stays_a_plane_and_goes_on_beyond_the_ends(
    c: float, r: float, columns: int, rows: int
) -> None:
    rr, cc = np.indices((rows, columns), dtype=np.float64)
    mesh = np.stack([3 + 2 * cc - rr, 1 + 0.5 * cc + 4 * rr], axis=-1)
    found = sample(mesh, np.array([c]), np.array([r]))[0]
    assert found == pytest.approx([3 + 2 * c - r, 1 + 0.5 * c + 4 * r], abs=1e-9)
    assert cubic(np.array([c]), columns) @ np.arange(columns) == pytest.approx([c], abs=1e-9)


def test_pixels_of_the_page_are_where_the_mesh_says() -> None:
    mesh = np.random.default_rng(1).normal(size=(5, 7, 2)) + 40.0 * np.stack(
        np.indices((5, 7))[::-1], axis=-1
    )
    x, y = pixel_maps(mesh, 4.0)
    assert x.shape == (80, 120)
    for row, column in ((0, 0), (33, 71), (79, 119)):
        expected = sample(mesh, np.array([(column + 0.5) / 20]), np.array([(row + 0.5) / 20]))[0]
        assert (x[row, column], y[row, column]) == pytest.approx(tuple(expected), abs=1e-3)


def test_a_mesh_seen_in_perspective_goes_on_exactly() -> None:
    r, c = np.indices((20, 30), dtype=np.float64)
    depth = 1 + 0.01 * c + 0.02 * r
    mesh = np.stack([(20 * c + 3 * r) / depth, (21 * r - 2 * c) / depth], axis=-1)
    held = np.zeros((20, 30), bool)
    held[5:15, 4:20] = True
    assert np.abs(continued(mesh, held) - mesh).max() < 1e-3


def test_the_smooth_field_leaves_slipped_nodes_out() -> None:
    rng = np.random.default_rng(0)
    r, c = np.indices((24, 36), dtype=np.float64)
    true = 0.3 * np.sin(c / 9) + 0.2 * np.cos(r / 7)
    values = true + rng.normal(0, 0.02, true.shape)
    slipped = rng.random(true.shape) < 0.1
    values[slipped] += 1.0
    field, off = smooth_field(values, np.ones_like(true), 2.0)
    assert np.abs(field - true)[2:-2, 2:-2].max() < 0.1
    assert (np.abs(off[slipped]) > 0.7).all()
