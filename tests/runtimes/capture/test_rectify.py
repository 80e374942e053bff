"""Rectification against hand-checked lattices of real photos and the exact maps of synthesised ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator

from pulse_edge.ecg.paper import Page, PaperStyle, render
from pulse_edge.ecg.photo import Fold, Photo, PhotoStyle, Wave, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.errors import ImageError
from pulse_edge.image_io import open_image
from pulse_edge.runtimes.capture.contrast import line_signal
from pulse_edge.runtimes.capture.frequency import find_seeds, spectra
from pulse_edge.runtimes.capture.lattice import linked
from pulse_edge.runtimes.capture.rectify import SEEN, Rectified, rectify

BENT = PhotoStyle(
    seed=4,
    tilt_deg=12,
    toward_deg=40,
    rotation_deg=-8,
    waves=(Wave(5.0, 220.0, 15.0, 30.0),),
    zoom=0.9,
    background="wood",
    raking=0.5,
    noise=0.01,
    jpeg=80,
)


@pytest.fixture(scope="module")
def page(root: Path) -> Page:
    record = read_record(root / "pulse_edge" / "assets" / "samples" / "00057.hea")
    return render(record, PaperStyle(header=("Name",)))


def off_mm(method: NDArray[Any], true: NDArray[Any]) -> NDArray[Any]:
    """What is left of the distances after one translation, quarter turn and scale: float64 [n]."""
    best = np.full(len(true), np.inf)
    wanted = true - true.mean(0)
    for quarter in range(4):
        turn = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), quarter)
        placed = (method - method.mean(0)) @ turn.T
        left = np.linalg.norm(placed * (placed * wanted).sum() / (placed**2).sum() - wanted, axis=1)
        best = left if (left**2).mean() < (best**2).mean() else best
    return best


def on_page(found: Rectified, photo: Photo) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Nodes on the page and in the picture: the mesh's millimetres, the true ones, the strength."""
    nodes = found.mesh.reshape(-1, 4)
    height, width = photo.image.shape[:2]
    true = photo.to_paper(nodes[:, 0], nodes[:, 1])
    inside = (nodes[:, :2] > 0).all(1) & (nodes[:, 0] < width - 1) & (nodes[:, 1] < height - 1)
    inside &= ((true > 1) & (true < np.array(photo.size_mm) - 1)).all(1)
    return nodes[inside, 2:], true[inside], found.strength.ravel()[inside]


@pytest.fixture(scope="module")
def real(shared: Path) -> list[dict[str, Any]]:
    """Every annotated picture, each turned by another quarter, rectified."""
    rows = []
    for k, entry in enumerate(json.loads((shared / "photos" / "annotations.json").read_text())):
        image = np.asarray(open_image(shared / "photos" / "images" / entry["file"]).convert("RGB"))
        lattice = json.loads((shared / "photos" / entry["lattice"]["file"]).read_text())
        nodes = np.array(lattice["points"], np.float64)
        x, y = nodes[:, 2], nodes[:, 3]
        height, width = image.shape[:2]
        turns = k % 4  # clockwise
        placed = {
            0: (x, y),
            1: (height - 1 - y, x),
            2: (width - 1 - x, height - 1 - y),
            3: (y, width - 1 - x),
        }
        found = rectify(np.ascontiguousarray(np.rot90(image, -turns)))
        mesh = found.mesh.reshape(-1, 4)
        mm = LinearNDInterpolator(mesh[:, :2], mesh[:, 2:])(np.stack(placed[turns], axis=1))
        known = np.isfinite(mm).all(1)
        rows.append(
            {
                "file": entry["file"],
                "kind": entry["kind"],
                "off": off_mm(mm[known], 5.0 * nodes[known, :2]),
                "covered": known.mean(),
                "turned": (found.rotation - 90 * turns - entry["grid_angle_deg"] + 180) % 360 - 180,
                "spacing": [found.px_per_mm[k] / entry[f"px_per_mm_{'xy'[k]}"] - 1 for k in range(2)],
            }
        )
    return rows


def test_real_pictures_are_flat_within_the_targets(real: list[dict[str, Any]]) -> None:
    rms = np.array([np.sqrt((row["off"] ** 2).mean()) for row in real])
    assert np.median(rms) <= 0.20
    assert rms.max() <= 1.0
    assert max(np.percentile(row["off"], 95) for row in real) <= 0.6
    assert min(row["covered"] for row in real) > 0.95


def test_real_pictures_have_their_true_scale(real: list[dict[str, Any]]) -> None:
    spacing = np.abs([row["spacing"] for row in real])
    assert np.median(spacing) <= 0.003
    assert spacing.max() <= 0.02


def test_real_pictures_are_put_upright_from_every_side(real: list[dict[str, Any]]) -> None:
    wrong = [row["file"] for row in real if abs(row["turned"]) > 45]
    assert not wrong


@pytest.mark.parametrize("quarter_turns", [0, 3])
def test_a_bent_sheet_on_a_table_is_flat_and_upright(page: Page, quarter_turns: int) -> None:
    size = (1500, 1125) if quarter_turns % 2 == 0 else (1125, 1500)
    photo = photograph(page.image, page.px_per_mm, replace(BENT, quarter_turns=quarter_turns), size)
    found = rectify(photo.image)
    mm, true, _ = on_page(found, photo)
    assert len(mm) > 1500  # of about 2,400 nodes on the page
    assert np.sqrt((off_mm(mm, true) ** 2).mean()) < 0.2
    # Upright: the mesh's x runs along the paper's, and not only up to a quarter turn.
    assert np.linalg.lstsq(mm - mm.mean(0), true - true.mean(0))[0] == pytest.approx(np.eye(2), abs=0.01)


def test_no_node_slips_to_the_next_line_at_a_fold(page: Page) -> None:
    folded = PhotoStyle(
        seed=2, tilt_deg=10, folds=(Fold(9.0, 0.0, 20.0, 40.0, 2.0), Fold(-6.0, 90.0, -15.0, 30.0, 2.0))
    )
    photo = photograph(page.image, page.px_per_mm, folded, (1400, 1080))
    mm, true, strength = on_page(rectify(photo.image), photo)
    off = true - mm
    off -= np.median(off, axis=0)
    assert np.abs(off[strength > SEEN]).max() < 0.6


def test_nodes_lie_on_the_5_mm_lines(page: Page) -> None:
    photo = photograph(page.image, page.px_per_mm, BENT, (1500, 1125))
    mm, true, strength = on_page(rectify(photo.image), photo)
    assert np.allclose(mm % 5, 0)
    away = (true[strength > SEEN] + 2.5) % 5 - 2.5
    assert np.percentile(np.abs(away), 95) < 0.3


def _ruled(page: Page, minor: float, major: float, dotted: bool = False) -> NDArray[np.uint8]:
    """A page without a grid, ruled anew: darkness of the lines every 1 mm and every 5 mm."""
    height, width = page.image.shape[:2]
    mm = [(np.arange(n) + 0.5) / page.px_per_mm for n in (width, height)]
    lines = [{step: np.abs((at + step / 2) % step - step / 2) < 0.1 for step in (1, 5)} for at in mm]
    image = page.image.astype(np.float64)
    for step, dark in ((1, minor), (5, major)):
        across, down = lines[0][step][None, :], lines[1][step][:, None]
        marks = across & down if dotted and step == 1 else across | down
        image = np.minimum(image, np.where(marks, 255 - dark, 255)[..., None])
    return image.astype(np.uint8)


@pytest.mark.parametrize(
    ("minor", "major", "dotted", "style"),
    [
        (25, 60, False, replace(BENT, rotation_deg=19.0)),
        (110, 60, True, replace(BENT, rotation_deg=-27.0)),
        (0, 90, False, replace(BENT, rotation_deg=19.0)),
        (90, 0, False, PhotoStyle(tilt_deg=5.0, rotation_deg=4.0, jpeg=85)),
    ],
)
def test_other_grids(root: Path, minor: float, major: float, dotted: bool, style: PhotoStyle) -> None:
    record = read_record(root / "pulse_edge" / "assets" / "samples" / "00299.hea")
    page = render(record, PaperStyle(grid=None))
    ruled = _ruled(page, minor, major, dotted)
    photo = photograph(ruled, page.px_per_mm, style, (1500, 1125))
    found = rectify(photo.image)
    mm, true, _ = on_page(found, photo)
    assert found.grid_found
    assert np.sqrt((off_mm(mm, true) ** 2).mean()) < 0.3


def test_a_page_without_a_grid_takes_its_outline(root: Path) -> None:
    record = read_record(root / "pulse_edge" / "assets" / "samples" / "00299.hea")
    page = render(record, PaperStyle(grid=None))
    style = PhotoStyle(seed=1, tilt_deg=15, rotation_deg=6, zoom=0.8, background="plain")
    photo = photograph(page.image, page.px_per_mm, style, (1200, 900))
    found = rectify(photo.image)
    assert not found.grid_found
    assert not found.strength.any()
    corners = photo.to_paper(
        found.mesh[[0, 0, -1, -1], [0, -1, 0, -1], 0], found.mesh[[0, 0, -1, -1], [0, -1, 0, -1], 1]
    )
    width, height = photo.size_mm
    assert np.abs(corners - [[0, 0], [width, 0], [0, height], [width, height]]).max() < 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (700, 3), (16, 16), (40, 1500), (720, 1280)])
@pytest.mark.parametrize("kind", ["grey", "noise", "black"])
def test_any_picture_gives_a_page(shape: tuple[int, int], kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = {"grey": np.full_like(noise, 130), "noise": noise, "black": np.zeros_like(noise)}[kind]
    found = rectify(image)
    assert not found.grid_found
    assert np.isfinite(found.mesh).all()
    assert found.page.dtype == np.uint8
    assert min(found.page.shape[:2]) >= 16


@pytest.mark.parametrize(
    "image", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3)), np.zeros((0, 9, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"not uint8 \[height, width, 3\]"):
        rectify(image)


def test_the_page_shows_what_the_mesh_says(page: Page) -> None:
    photo = photograph(page.image, page.px_per_mm, BENT, (1500, 1125))
    found = rectify(photo.image)
    rows, columns = found.mesh.shape[:2]
    assert found.page.shape == (round((rows - 1) * 5 * 6.0), round((columns - 1) * 5 * 6.0), 3)
    # The flat page agrees with the page that was photographed, moved to where the mesh has it.
    mm, true, strength = on_page(found, photo)
    shift = np.median((mm - true)[strength > SEEN], axis=0)
    scale = page.px_per_mm / 6.0
    matrix = np.array([[scale, 0, scale * 0.5 - 0.5], [0, scale, scale * 0.5 - 0.5]])
    matrix[:, 2] -= shift * page.px_per_mm
    how = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    wanted = cv2.warpAffine(page.image, matrix, found.page.shape[1::-1], flags=how, borderValue=(255,) * 3)
    middle = (slice(200, -200), slice(200, -200))
    dark = [
        cv2.GaussianBlur(255 - p.max(-1)[middle].astype(np.float32), (0, 0), 1.5)
        for p in (wanted, found.page)
    ]
    assert np.corrcoef(dark[0].ravel(), dark[1].ravel())[0, 1] > 0.9


def test_no_line_is_taken_for_its_neighbour_on_a_faint_grid(root: Path) -> None:
    record = read_record(root / "pulse_edge" / "assets" / "samples" / "00299.hea")
    page = render(record, PaperStyle(grid=None))
    style = replace(BENT, rotation_deg=2.0, cover=0.9, zoom=1.0, noise=0.035, jpeg=70)
    photo = photograph(_ruled(page, 12, 24), page.px_per_mm, style, (1500, 1125))
    mm, true, strength = on_page(rectify(photo.image), photo)
    off = true - mm
    off -= np.median(off, axis=0)
    slipped = np.abs(off[strength > SEEN]).max(1) > 0.5
    assert strength[strength > 0].mean() < 0.8  # faint it is
    assert slipped.mean() < 0.05


def test_every_spacing_gets_its_turn(page: Page) -> None:
    """A screen's pixels, or a weave, are a clearer grid than the printed one, and in many places."""
    photo = photograph(page.image, page.px_per_mm, replace(BENT, rotation_deg=3.0), (1500, 1125))
    y, x = np.mgrid[: photo.image.shape[0], : photo.image.shape[1]]
    raster = 1 - 0.4 * ((x % 3 == 0) | (y % 3 == 0))
    grey = cv2.cvtColor((photo.image * raster[..., None]).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    spacings = [1 / np.hypot(*seed.frequency.T) for seed in find_seeds(spectra(line_signal(grey)))]
    assert spacings[0] == pytest.approx([3, 3], rel=0.02)
    assert spacings[1] == pytest.approx([photo.px_per_mm] * 2, rel=0.1)


# --- what holds a mesh together -------------------------------------------------------------------


def _flat(rows: int, columns: int) -> NDArray[np.float64]:
    r, c = np.indices((rows, columns), dtype=np.float64)
    return np.stack([30 * c + 3 * r, 28 * r - 2 * c], axis=-1)


def test_regular_nodes_are_linked_across_a_bend() -> None:
    mesh = _flat(20, 30)
    mesh[..., 0] += 0.4 * np.maximum(mesh[..., 0] - 400, 0) / 4  # a tenth wider beyond a fold
    assert linked(mesh, np.ones((20, 30), bool)).all()


def test_what_lies_beyond_a_lost_line_is_not_linked() -> None:
    mesh = _flat(20, 30)
    mesh[:5, :, 1] -= 28  # a whole cell was passed over
    held = linked(mesh, np.ones((20, 30), bool))
    assert held[5:].all()
    assert not held[:5].any()


def test_nodes_that_stopped_at_a_trace_are_not_linked() -> None:
    mesh = _flat(20, 30)
    mesh[9, 4:20, 1] += 0.25 * 28
    expected = np.ones((20, 30), bool)
    expected[9, 4:20] = False
    assert (linked(mesh, np.ones((20, 30), bool))[:, 5:19] == expected[:, 5:19]).all()


def test_islands_and_holes() -> None:
    good = np.zeros((20, 30), bool)
    good[2:5, 2:5] = good[10:18, 10:25] = True
    held = linked(_flat(20, 30), good)
    assert (held == (good & (np.arange(20) >= 10)[:, None])).all()
    assert not linked(_flat(20, 30), np.zeros((20, 30), bool)).any()
