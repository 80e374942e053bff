"""Merging against the reference's token counts and against a plain loop."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from pulse_edge.errors import ImageError, UserError
from pulse_edge.model.merge import merge_features, merge_index, unpadded
from pulse_edge.model.preprocess import geometry


def by_loops(features, image_size, newline):
    """spatial_unpad, written as one would explain it."""
    side = round(features.shape[1] ** 0.5)
    across, down = geometry(*image_size).grid
    rows, columns = unpadded((down * side, across * side), image_size)
    out = list(features[0])
    for y in range(down * side)[rows]:
        for x in range(across * side)[columns]:
            tile = 1 + (y // side) * across + x // side
            out.append(features[tile, (y % side) * side + x % side])
        out.append(newline)
    return np.array(out)


def test_every_golden_size_gives_the_same_number_of_tokens(golden):
    with (golden / "preprocess/geometry.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            size = int(row["w"]), int(row["h"])
            place = geometry(*size)
            assert len(merge_index(place.views, 576, size, "flat")) == int(row["tokens_flat"])
            assert len(merge_index(place.views, 576, size, "spatial_unpad")) == int(
                row["tokens_spatial_unpad"]
            ), size
            shape = tuple(24 * side for side in reversed(place.grid))
            kept = np.empty(shape)[unpadded(shape, size)].shape
            assert kept == (int(row["unpad_rows"]), int(row["unpad_cols"])), size


@pytest.mark.parametrize("size", [(2200, 1700), (1700, 2200), (1000, 400), (400, 1000), (235, 1128)])
@pytest.mark.parametrize("side", [24, 7])
def test_spatial_unpad_equals_the_loops(size, side):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(geometry(*size).views, side * side, 3)).astype(np.float32)
    newline = rng.normal(size=3).astype(np.float32)
    merged = merge_features(features, size, "spatial_unpad", newline)
    np.testing.assert_array_equal(merged, by_loops(features, size, newline))


def test_flat_keeps_every_token_in_order():
    features = np.arange(5 * 49 * 2, dtype=np.float32).reshape(5, 49, 2)
    np.testing.assert_array_equal(
        merge_features(features, (2200, 1700), "flat", None), features.reshape(-1, 2)
    )


def test_wrong_number_of_tiles_is_refused():
    with pytest.raises(ImageError, match="has 5 tiles, not 4"):
        merge_features(np.zeros((4, 49, 2), np.float32), (2200, 1700), "flat", None)


def test_unknown_merge_and_missing_newline_are_refused():
    features = np.zeros((5, 49, 2), np.float32)
    with pytest.raises(UserError, match="Unknown merge 'spatial'"):
        merge_features(features, (2200, 1700), "spatial", None)
    with pytest.raises(UserError, match="image_newline"):
        merge_features(features, (2200, 1700), "spatial_unpad", None)
