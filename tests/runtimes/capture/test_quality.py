"""The gate on photos with one known defect each: the grade, and that the reason names what was done."""

from __future__ import annotations

import dataclasses
import re

import cv2
import numpy as np
import pytest

from pulse_edge.ecg.paper import PaperStyle, blank
from pulse_edge.ecg.photo import photograph
from pulse_edge.image_io import open_image
from pulse_edge.runtimes.capture.focus import sharpness
from pulse_edge.runtimes.capture.framing import find_cuts
from pulse_edge.runtimes.capture.ink import Row, find_ink
from pulse_edge.runtimes.capture.layout import find_layout, spoken
from pulse_edge.runtimes.capture.quality import judge
from pulse_edge.runtimes.capture.rectify import rectify
from pulse_edge.runtimes.capture.sheet import SCALE, flatten

from .conftest import PLAIN, true_mesh


@pytest.fixture(autouse=True)
def _pages_lie_as_they_are(monkeypatch):
    """All pages here stand upright: which way up a page is has tests of its own."""
    monkeypatch.setattr("pulse_edge.runtimes.capture.rectify.quarter_turns", lambda page, scale: (0, 1.0))


def verdict(image):
    return judge(image, rectify(image))


# --- parts, on the true mesh: nothing here depends on how well a page is rectified -----------------


@pytest.mark.parametrize("layout", ["3x4+1", "3x4", "6x2", "12x1"])
@pytest.mark.parametrize("grid", ["red", "grey", None])
def test_rows_of_traces_are_where_they_were_drawn(shoot, layout, grid):
    photo, page = shoot(paper={"layout": layout, "grid": grid})
    ink = find_ink(flatten(photo.image, true_mesh(photo)))
    true = sorted({(strip.y + 0.5) / page.px_per_mm for strip in page.strips})
    inner = [row for row in ink.rows if 5 < row.y_mm < photo.size_mm[1] - 5]  # others are the sheet's edges
    assert len(inner) == len(true)
    for row, y in zip(inner, true, strict=True):
        assert row.y_mm == pytest.approx(y, abs=2.5)
        assert row.x_mm[0] == pytest.approx(14.7 - 7, abs=8)  # the calibration pulse may be joined to it
        assert row.x_mm[1] == pytest.approx(14.7 + 250, abs=2)
        assert row.covered > 0.9


def test_blank_paper_has_no_traces():
    image = blank(PaperStyle(dpi=150))
    photo = photograph(image, 150 / 25.4, PLAIN, (1000, 773))
    ink = find_ink(flatten(photo.image, true_mesh(photo)))
    assert [row for row in ink.rows if 5 < row.y_mm < photo.size_mm[1] - 5] == []


def test_a_sheet_is_flat_and_in_millimetres(plain):
    """What the sheet shows at a place is what the photo shows where the truth puts that place."""
    photo, _ = plain
    sheet = flatten(photo.image, true_mesh(photo))
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(40, side - 40, 300) for side in sheet.seen.shape)
    mm = np.stack([columns, rows], axis=1) / SCALE + sheet.origin_mm
    there = photo.to_photo(mm[:, 0], mm[:, 1])
    np.testing.assert_allclose(sheet.to_photo[rows, columns], there, atol=0.15)
    assert sheet.seen[rows, columns].all()
    where = sheet.box(10, 20, 30, 50)
    assert sheet.image[where].shape[:2] == (30 * SCALE, 20 * SCALE)


def test_sharpness_falls_with_every_blur_and_with_nothing_else(shoot, plain):
    def sharp(**changes):
        photo, _ = shoot(**changes)
        return sharpness(find_ink(flatten(photo.image, true_mesh(photo))))

    clear = sharp()
    soft = [sharp(defocus_mm=d) for d in (0.25, 0.5, 0.8)]
    assert clear > soft[0] > soft[1] > soft[2]
    assert sharp(motion_mm=1.2, motion_deg=0) < 0.8 * clear
    assert sharp(motion_mm=1.2, motion_deg=90) < 0.8 * clear
    for harmless in ({"exposure": 0.6}, {"shadow": 0.5}, {"paper": {"grid": "blue"}}, {"noise": 0.02}):
        assert sharp(**harmless) == pytest.approx(clear, rel=0.12)


@pytest.mark.parametrize(
    ("shift", "edge"), [((0.16, 0.0), "right"), ((-0.16, 0.0), "left"), ((0.0, 0.0), None)]
)
def test_cut_rows_are_found_at_their_edge(shoot, shift, edge):
    photo, page = shoot(shift=shift)
    sheet = flatten(photo.image, true_mesh(photo))
    cuts = [cut for cut in find_cuts(sheet, find_ink(sheet)) if 5 < cut.at_mm[1] < photo.size_mm[1] - 5]
    assert {cut.edge for cut in cuts} == ({edge} if edge else set())
    if edge:
        assert len(cuts) == len({strip.y for strip in page.strips})
        # Where the frame stands on the paper, by the photo's own map.
        x = photo.image.shape[1] - 1 if edge == "right" else 0
        for cut in cuts:
            line = photo.to_paper(np.full(200, x), np.linspace(0, photo.image.shape[0] - 1, 200))
            frame = line[np.argmin(np.abs(line[:, 1] - cut.at_mm[1])), 0]
            assert cut.at_mm[0] == pytest.approx(frame, abs=2.5)


def test_leads_are_named_by_place():
    def layout(heights, begin=20.0, end=270.0):
        rows = [Row(y, (begin, end), 1.0, 8.0, 1.0, 0.0) for y in heights]
        return find_layout(rows, False, False)

    page = layout([30, 70, 110, 150])
    assert page.lead_at(30, 28) == "I"
    assert page.lead_at(100, 75) == "aVL"
    assert page.lead_at(265, 112) == "V6"
    assert page.lead_at(100, 149) == "the rhythm strip"
    assert layout([30, 70, 110]).lead_at(150, 31) == "V1"
    assert layout(range(20, 200, 15)).lead_at(150, 185) == "V6"
    assert layout([20, 45, 70, 95, 120, 145]).lead_at(250, 30) == "the upper right"  # 6x2 or 3x4 and three?
    rows = [Row(y, (20.0, 180.0), 1.0, 8.0, 1.0, 0.0) for y in (30, 70, 110, 150)]
    assert find_layout(rows, False, True).lead_at(175, 30) == "V1"  # of four columns the third, cut
    assert find_layout(rows, True, False).lead_at(175, 30) == "V4"
    assert spoken(["V6", "V4", "V5", "V4"]) == "V4, V5 and V6"
    assert spoken(["aVF"]) == "aVF"


# --- the whole gate ------------------------------------------------------------------------------


def test_a_sound_photo_is_good(plain):
    result = verdict(plain[0].image)
    assert (result.grade, result.reasons) == ("good", ())
    assert result.measures.layout.columns == 4


@pytest.mark.parametrize(
    ("changes", "grade", "reason"),
    [
        (
            {"size": (930, 719)},
            "usable",
            r"^Move closer: 2\.9 px/mm, at least 4 needed\.$|^Move closer: 3\.0",
        ),
        ({"defocus_mm": 0.55}, None, r"^Hold still and let the camera focus: the traces are blurred\.$"),
        ({"motion_mm": 1.5, "motion_deg": 30}, None, r"^Hold still"),
        ({"glare": 1.7, "glare_size": 0.1}, "usable", r"^Glare over .+: tilt the page or move the lamp\.$"),
        ({"shadow": 0.7, "shadow_soft": 0.05}, "usable", r"^Shadow over .+: let the light fall evenly\.$"),
        (
            {"shift": (0.16, 0.0)},
            "usable",
            r"^Leads V4, V5 and V6 are cut off at the right edge\.$",
        ),
        ({"paper": {"grid": None}}, "usable", r"^No grid was found"),
    ],
)
def test_a_defect_is_named(shoot, changes, grade, reason):
    photo, _ = shoot(**changes)
    result = verdict(photo.image)
    assert any(re.search(reason, text) for text in result.reasons), result
    assert result.grade == grade if grade else result.grade != "good"


def test_darkness_is_named(plain):
    result = verdict((plain[0].image * 0.2).astype(np.uint8))
    assert any(text.startswith("Too dark") for text in result.reasons), result.reasons


def test_a_finger_is_named_with_its_lead(plain):
    photo, page = plain
    v6 = next(strip for strip in page.strips if strip.lead == "V6")
    x, y = (v6.x + 0.6 * v6.duration_s * page.px_per_s) / page.px_per_mm, v6.y / page.px_per_mm
    at = photo.to_photo(x, y)
    image = photo.image.copy()
    size = tuple(int(mm * photo.px_per_mm) for mm in (16, 20))
    cv2.ellipse(image, tuple(int(v) for v in at), size, 20, 0, 360, (200, 150, 130), -1, cv2.LINE_AA)
    result = verdict(image)
    assert any(text.startswith("The grid cannot be seen over") and "V6" in text for text in result.reasons), (
        result
    )


def test_what_is_no_ecg_is_refused():
    from sklearn.datasets import load_sample_image

    graph_paper = photograph(blank(PaperStyle(dpi=150)), 150 / 25.4, PLAIN, (1000, 773)).image
    y, x = np.mgrid[:700, :900]
    board = np.repeat((((x // 40 + y // 40) % 2) * 220 + 20).astype(np.uint8)[..., None], 3, axis=2)
    text = np.full((900, 1200, 3), 250, np.uint8)
    for k in range(20):
        cv2.putText(text, "the quick brown fox jumps over it" * 2, (40, 60 + 40 * k), 0, 0.9, (20, 20, 20), 2)
    for image in (graph_paper, board, text, load_sample_image("china.jpg"), load_sample_image("flower.jpg")):
        result = verdict(np.ascontiguousarray(image))
        assert result.grade == "refuse"
        assert len(result.reasons) == 1
    assert verdict(graph_paper).reasons[0].startswith("No ECG trace is visible on this paper")


@pytest.mark.parametrize(
    ("name", "grades", "reason"),
    [
        ("eik_29.jpg", ("good",), None),
        ("eik_41.jpg", ("good",), None),
        ("eik_50.jpg", ("good",), None),
        ("eik_19.jpg", ("usable",), "Move closer: 2.6 px/mm|Move closer: 2.7 px/mm"),
        ("eik_08.jpg", ("refuse",), "The page is cut off at the left edge"),
    ],
)
def test_real_photos(shared, name, grades, reason):
    result = verdict(np.asarray(open_image(shared / "photos" / "images" / name, upright=True)))
    assert result.grade in grades, result.reasons
    if reason:
        assert any(text in " ".join(result.reasons) for text in reason.split("|")), result.reasons


def test_measures_are_plain_numbers(plain):
    for value in dataclasses.asdict(verdict(plain[0].image).measures).values():
        assert not isinstance(value, np.ndarray)
