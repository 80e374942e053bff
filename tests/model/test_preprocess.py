"""Preprocessing against the PULSE reference code's own tiles and pixel values."""

from __future__ import annotations

import csv
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pulse_edge.contract import GRID_PINPOINTS, TILE_SIZE
from pulse_edge.errors import ImageError
from pulse_edge.model.preprocess import geometry, normalize, preprocess, tiles


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_every_golden_image_gives_identical_tiles_and_pixels(golden, gold):
    seen = 0
    for entry in gold("preprocess/gold.json")["images"]:
        file = golden / "preprocess/images" / entry["file"]
        if not file.exists():
            continue
        with Image.open(file) as image:
            cut = tiles(image)
        pixels = normalize(cut)
        assert sha256(cut) == entry["tiles_u8_sha256"], entry["file"]
        assert sha256(pixels) == entry["pixel_values"]["sha256"], entry["file"]
        assert list(pixels.shape) == entry["pixel_values"]["shape"]
        assert pixels.dtype == np.float32
        assert pixels.flags.c_contiguous
        stored = golden / "preprocess/tiles_u8" / f"{file.stem}.npz"
        if stored.exists():
            np.testing.assert_array_equal(cut, np.load(stored)["tiles_u8"])
        seen += 1
    assert seen >= 15


def test_every_golden_size_gives_the_same_geometry(golden):
    with (golden / "preprocess/geometry.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2600
    names = ("best_w", "best_h", "resized_w", "resized_h", "paste_x", "paste_y", "n_tiles")
    for row in rows:
        place = geometry(int(row["w"]), int(row["h"]))
        expected = [int(row[name]) for name in names]
        assert [*place.best, *place.resized, *place.paste, place.views - 1] == expected, row


def test_a_file_is_read_as_the_reference_reads_it(golden, gold):
    """By path, too, EXIF orientation is ignored."""
    by_name = {entry["file"]: entry for entry in gold("preprocess/gold.json")["images"]}
    name = "14_exif6_1600x1200.jpg"
    assert sha256(tiles(golden / "preprocess/images" / name)) == by_name[name]["tiles_u8_sha256"]


def test_a_missing_file_is_an_image_error(tmp_path):
    with pytest.raises(ImageError):
        tiles(tmp_path / "none.png")


def test_arrays_equal_pictures():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (500, 700, 3), np.uint8)
    np.testing.assert_array_equal(tiles(rgb), tiles(Image.fromarray(rgb)))
    gray = rgb[..., 0]
    np.testing.assert_array_equal(tiles(gray), tiles(np.repeat(gray[..., None], 3, axis=2)))
    np.testing.assert_array_equal(preprocess(rgb), normalize(tiles(rgb)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 336, 336), np.float32),  # already normalised, the common mistake
        np.zeros((336, 336), np.float64),
        np.zeros((5, 336, 336, 3), np.uint8),
        np.zeros((100, 100, 4), np.uint8),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError, match="not a picture"):
        tiles(array)


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_geometry_keeps_aspect_and_fills_one_side(width, height):
    place = geometry(width, height)
    assert place.best in GRID_PINPOINTS
    assert place.resized[0] == place.best[0] or place.resized[1] == place.best[1]
    scale = min(place.best[0] / width, place.best[1] / height)
    for side, resized in zip((width, height), place.resized, strict=True):
        assert math.isclose(resized, side * scale, abs_tol=1.0)
    for start, resized, whole in zip(place.paste, place.resized, place.best, strict=True):
        assert 0 <= start <= whole - resized - start <= start + 1
    assert (place.grid[0] * TILE_SIZE, place.grid[1] * TILE_SIZE) == place.best


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ImageError, match="0x5"):
        geometry(0, 5)


def test_padding_is_black_and_the_base_view_is_the_whole_page():
    page = np.full((1700, 2200, 3), 200, np.uint8)
    cut = tiles(page)
    assert cut.shape == (5, TILE_SIZE, TILE_SIZE, 3)
    assert (cut[0] == 200).all()
    assert (cut[1, :76] == 0).all()  # (672 - 520) / 2 rows above the page
    assert (cut[1, 76:] == 200).all()
