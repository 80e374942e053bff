"""Meshes and fields of the graph against the numpy path's."""

from __future__ import annotations

import numpy as np
import torch

from pulse_edge.export.capture_graph.field import continue_mesh, smooth_field
from pulse_edge.export.capture_graph.mesh import NODES, Span, moved
from pulse_edge.export.capture_graph.plain import array
from pulse_edge.export.capture_graph.region import linked
from pulse_edge.runtimes.capture import field, lattice

TOP, LEFT, ROWS, COLUMNS = 5, 9, 33, 51
SPAN = Span(array([TOP, LEFT]), array([TOP + ROWS, LEFT + COLUMNS]))


def bent(seed: int) -> np.ndarray:
    """A page of about 20 px a node in perspective, with bends: float64 [ROWS, COLUMNS, 2]."""
    rng = np.random.default_rng(seed)
    r, c = np.indices((ROWS, COLUMNS), dtype=np.float64)
    x, y = 20 * c + 3 * r + 6 * np.sin(c / 9 + 1), 21 * r - 2 * c + 8 * np.sin(r / 7) * np.cos(c / 11)
    return np.stack([x, y], -1) / (1 + 0.002 * c - 0.001 * r)[..., None] + rng.normal(
        0, 0.1, (ROWS, COLUMNS, 2)
    )


def placed(values: np.ndarray) -> torch.Tensor:
    """Channels last [ROWS, COLUMNS, k] -> [k, N, N] in the span, nonsense elsewhere."""
    square = np.full((values.shape[-1], NODES, NODES), 7.0)
    square[:, TOP : TOP + ROWS, LEFT : LEFT + COLUMNS] = np.moveaxis(values, -1, 0)
    return array(square)


def cut(values: torch.Tensor) -> np.ndarray:
    return np.moveaxis(values.numpy()[..., TOP : TOP + ROWS, LEFT : LEFT + COLUMNS], 0, -1)


def test_nodes_move_as_the_reference_moves_them():
    mesh = bent(0)
    shift = np.random.default_rng(1).uniform(-2.5, 2.5, mesh.shape)
    found = cut(moved(SPAN.continued(placed(mesh)), placed(shift), SPAN))
    assert np.abs(found - lattice._moved(mesh, shift)).max() < 2e-3


def test_what_hangs_together_is_the_reference_s():
    rng = np.random.default_rng(3)
    mesh = bent(3)
    mesh[:7, :, 1] += 21  # a line was passed over
    mesh[20, 10:30, 1] -= 6  # a trace was taken for one
    mesh[:, 40:, 0] += 0.15 * 20 * np.arange(11)  # beyond a fold, and all right
    good = np.ones((ROWS, COLUMNS), bool)
    good[12:16, 20:30] = rng.random((4, 10)) < 0.5
    wanted = lattice.linked(mesh, good)
    assert 0.6 < wanted.mean() < 0.8
    found = linked(SPAN.continued(placed(mesh)), placed(good[..., None])[0] * SPAN.real, SPAN)
    assert np.array_equal(cut(found[None])[..., 0] > 0.5, wanted)


def test_smooth_fields_are_the_reference_s():
    rng = np.random.default_rng(2)
    r, c = np.indices((ROWS, COLUMNS))
    values = np.stack([np.sin(r / 9) * np.cos(c / 13), 0.4 * np.cos(r / 5)], -1) + rng.normal(
        0, 0.05, (ROWS, COLUMNS, 2)
    )
    values[rng.random((ROWS, COLUMNS)) < 0.1] = 2.0
    weight = rng.uniform(0, 1, (ROWS, COLUMNS, 2))
    for stiffness in (300.0, 2.0):
        smooth, off = smooth_field(placed(values), placed(weight), stiffness, SPAN)
        for family in range(2):
            wanted = field.smooth_field(values[..., family], weight[..., family], stiffness)
            assert np.abs(cut(smooth)[..., family] - wanted[0]).max() < 2e-3
            assert np.abs(cut(off)[..., family] - wanted[1]).max() < 2e-3


def test_meshes_are_continued_as_the_reference_continues_them():
    mesh = bent(3)
    held = np.zeros((ROWS, COLUMNS), bool)
    held[4:25, 8:40] = True
    held[10:14, 20:26] = False
    found = cut(continue_mesh(placed(mesh), placed(held[..., None].astype(float))[0] * SPAN.real))
    off = np.hypot(*np.moveaxis(found - field.continued(mesh, held), -1, 0))
    grown = np.zeros_like(held)
    grown[2:27, 6:42] = True  # where growing looks next
    assert off[grown].max() < 0.1  # pixels, of which a millimetre has four
    assert off.max() < 2
