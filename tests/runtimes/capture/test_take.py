"""Picture files of every kind through the whole path: a result or one sentence, never anything else."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pulse_edge.errors import ImageError
from pulse_edge.runtimes.capture import take as module
from pulse_edge.runtimes.capture.take import take, take_file, write_grid, write_page

ORIENTATION = 0x0112
KEYS = ["grade", "reasons", "px_per_mm", "rotation", "residual_mm", "timing_ms"]


def check(result):
    """The form of a result, which other programs read."""
    assert list(result) == KEYS
    assert result["grade"] in ("good", "usable", "refuse")
    assert (result["grade"] == "good") == (result["reasons"] == [])
    assert all(text.endswith(".") and text[0].isupper() for text in result["reasons"])
    assert len(result["px_per_mm"]) == 2
    assert 0 <= result["rotation"] <= 360
    json.dumps(result, allow_nan=False)
    return result


def save(path, image, **more):
    Image.fromarray(image).save(path, **more)
    return path


def off_mm(grid, photo, scale=1.0):
    """Median distance of a grid's nodes on the page from the truth, in mm; origin and quarter turn aside."""
    nodes = np.array(grid)
    pixels = (nodes[:, :2] + 0.5) / scale - 0.5
    width, height = photo.image.shape[1], photo.image.shape[0]
    inside = np.all((pixels > 2) & (pixels < (width - 3, height - 3)), axis=1)
    true = photo.to_paper(pixels[inside, 0], pixels[inside, 1])
    on_page = np.all((true > 3) & (true < np.array(photo.size_mm) - 3), axis=1)
    best = []
    for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        away = (true - nodes[inside, 2:] @ np.array([[cos, -sin], [sin, cos]]))[on_page]
        best.append(float(np.median(np.linalg.norm(away - np.median(away, axis=0), axis=1))))
    return min(best)


def test_a_photo_gives_a_page_and_a_grid_that_is_true(plain, tmp_path):
    photo, _ = plain
    taken = take_file(save(tmp_path / "p.png", photo.image))
    result = check(taken.result())
    assert result["grade"] == "good", result["reasons"]
    assert result["px_per_mm"] == pytest.approx([photo.px_per_mm] * 2, rel=0.05)
    assert {"decode", "quality", "total"} <= set(result["timing_ms"])
    write_grid(taken, tmp_path / "grid.json")
    write_page(taken, tmp_path / "page.png")
    assert off_mm(json.loads((tmp_path / "grid.json").read_text()), photo) < 0.2
    with Image.open(tmp_path / "page.png") as page:
        np.testing.assert_array_equal(np.asarray(page), taken.found.page)


def test_the_grid_is_of_the_picture_as_exif_turns_it(plain, tmp_path):
    """Stored lying on its side with the mark that says so, as phones do: the nodes are those of the upright
    picture, as OpenCV decodes it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown after a turn of 90 degrees clockwise
    stored = np.ascontiguousarray(np.rot90(plain[0].image))
    path = save(tmp_path / "p.jpg", stored, exif=exif, quality=95)
    assert cv2.imread(str(path)).shape == plain[0].image.shape
    assert off_mm(take_file(path).grid(), plain[0]) < 0.2


def test_the_grid_of_a_large_picture_is_in_its_own_pixels(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONG_SIDE", 1300)
    large = cv2.resize(plain[0].image, None, fx=2.5, fy=2.5, interpolation=cv2.INTER_LINEAR)
    taken = take_file(save(tmp_path / "p.jpg", large, quality=92))
    assert taken.scale == pytest.approx((2.5, 2.5), rel=1e-3)
    assert taken.result()["px_per_mm"] == pytest.approx([2.5 * plain[0].px_per_mm] * 2, rel=0.05)
    assert off_mm(taken.grid(), plain[0], 2.5) < 0.2


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "CMYK"])
def test_other_modes_are_read_as_they_look(plain, tmp_path, mode):
    image = Image.fromarray(plain[0].image)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "p.tiff")
    result = check(take_file(tmp_path / "p.tiff").result())
    assert result["grade"] == "good", result["reasons"]


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 500), (16, 16), (16, 3000), (40, 40), (64, 64), (300, 300), (257, 1500)]
)
@pytest.mark.parametrize("value", [0, 255])
def test_pictures_without_content_are_refused(shape, value):
    assert check(take(np.full((*shape, 3), value, np.uint8)).result())["grade"] == "refuse"


def test_a_truncated_photo(plain, tmp_path):
    path = save(tmp_path / "p.jpg", plain[0].image, quality=90)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(ImageError, match=r"damaged or cut short .* Copy or photograph it again"):
        take_file(path)


def small_files():
    """A page too small to read, in the usual kinds of file."""
    rng = np.random.default_rng(0)
    page = np.full((90, 120, 3), 250, np.uint8)
    page[::5] = page[:, ::5] = (240, 150, 150)
    page[40:44, 5:115] = rng.integers(0, 60, (4, 110, 3))
    files = []
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(page).save(stream, kind)
        files.append(stream.getvalue())
    return files


@settings(max_examples=30, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(
    data=st.sampled_from(small_files()),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_bytes_are_graded_or_refused(tmp_path, data, changes, cut):
    damaged = bytearray(data)
    for place, piece in changes:
        at = int(place * (len(damaged) - 1))
        damaged[at : at + len(piece)] = piece
    path = tmp_path / "p"
    path.write_bytes(damaged[: int(cut * len(damaged))])
    try:
        taken = take_file(path)
    except ImageError:
        return
    check(taken.result())


@settings(max_examples=6, deadline=20_000)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(17, 400), (64, 64), (90, 200), (301, 283)]))
def test_noise_of_any_size_is_refused(seed, shape):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert check(take(image).result())["grade"] == "refuse"


@pytest.mark.parametrize("turns", [1, 2])
def test_a_page_that_lies_on_its_side_or_head_is_turned(plain, turns):
    """The grid's millimetres run as on the upright page, and the angle is the one it was turned by."""
    photo, _ = plain
    turned = np.ascontiguousarray(np.rot90(photo.image, -turns))  # clockwise
    taken = take(turned)
    assert taken.result()["grade"] == "good", taken.result()["reasons"]
    assert taken.found.rotation == pytest.approx(90 * turns + 2, abs=2)
    nodes = np.array(taken.grid())
    height, width = turned.shape[:2]
    back_x, back_y = width - 1 - nodes[:, 0], height - 1 - nodes[:, 1]
    x, y = (nodes[:, 1], back_x) if turns == 1 else (back_x, back_y)
    inside = (x > 2) & (y > 2) & (x < photo.image.shape[1] - 3) & (y < photo.image.shape[0] - 3)
    true = photo.to_paper(x[inside], y[inside])
    on_page = np.all((true > 3) & (true < np.array(photo.size_mm) - 3), axis=1)
    away = (true - nodes[inside, 2:])[on_page]
    assert np.median(np.linalg.norm(away - np.median(away, axis=0), axis=1)) < 0.2
