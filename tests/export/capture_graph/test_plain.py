"""The graph's tools against numpy and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from pulse_edge.export.capture_graph import plain
from pulse_edge.export.capture_graph.region import largest

NONE = torch.zeros(84, 84)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(float(value))


def test_solve_is_linear_algebra_s():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 20, 30))
    matrix, right = root @ root.transpose(0, 2, 1), rng.normal(size=(3, 20, 2))
    found = plain.solve(plain.array(matrix), plain.array(right)).numpy()
    assert np.allclose(found, np.linalg.solve(matrix, right), atol=1e-4)


@pytest.mark.parametrize("kept", [1, 2, 7, 40, 99])
def test_median_of_what_a_mask_keeps(kept):
    rng = np.random.default_rng(kept)
    values = rng.normal(size=(2, 99))
    mask = np.stack([rng.permutation(99) < kept for _ in range(2)])
    found = plain.median(plain.array(values), plain.array(mask)).numpy()[:, 0]
    assert np.allclose(found, [np.median(row[m]) for row, m in zip(values, mask, strict=True)], atol=1e-6)


def test_median_of_nothing_is_far_away():
    assert plain.median(torch.ones(1, 5), torch.zeros(1, 5)).item() == -plain.FAR


def test_quantile_is_near_the_percentile():
    values = np.random.default_rng(0).gamma(2, size=(1, 5000))
    found = plain.quantile(plain.array(values), 5000, 0.985, plain.array([[values.max()]])).item()
    assert found == pytest.approx(np.percentile(values, 98.5), rel=2e-3)


@pytest.mark.parametrize(("side", "cells"), [(100, 33), (97, 97), (64, 16), (50, 13)])
def test_reducing_and_enlarging_are_opencv_s(side, cells):
    picture = np.random.default_rng(side).normal(size=(side, side)).astype(np.float32)
    down = plain.area(scalar(side), scalar(cells), 100, 120).numpy()[:cells, :side]
    small = cv2.resize(picture, (cells, cells), interpolation=cv2.INTER_AREA)
    assert np.abs(down @ picture @ down.T - small).max() < 1e-5
    up = plain.linear(scalar(side), scalar(cells), 100, 120).numpy()[:side, :cells]
    large = cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)
    assert np.abs(up @ small @ up.T - large).max() < 1e-4


@pytest.mark.parametrize("side", [9, 40, 100])
def test_blurring_is_opencv_s(side):
    picture = np.random.default_rng(side).normal(size=(side, side)).astype(np.float32)
    matrix = plain.folded(plain.gaussian(scalar(2), scalar(8)), scalar(side), 120).numpy()[:side, :side]
    wanted = cv2.GaussianBlur(picture, (17, 17), 2, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(matrix @ picture @ matrix.T - wanted).max() < 1e-5


def test_the_largest_part_is_opencv_s():
    rng = np.random.default_rng(0)
    for _ in range(8):
        noise = cv2.GaussianBlur(rng.normal(size=(84, 84)), (0, 0), 5)
        mask = (noise > np.quantile(noise, 0.3)).astype(np.uint8)  # with holes and bays
        _, label, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        wanted = label == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        assert np.array_equal(largest(plain.array(mask), NONE, NONE).numpy() > 0.5, wanted)
    assert not largest(NONE, NONE, NONE).any()
