"""Photos: dots of known place are found again in the picture, and the map must say where they were.

The finder below shares nothing with the camera: centres of gravity of dark blobs. What it finds is held
against the map that came with the photo, and against OpenCV's own pinhole camera.
"""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.ecg.photo import Fold, Photo, PhotoStyle, Wave, draw_photo_style, photograph
from pulse_edge.ecg.photo_style import RANGES, check_style
from pulse_edge.errors import ImageError, UnknownNameError, UserError

SCALE = 4.0  # px/mm of the test page
SIZE_MM = (240.0, 180.0)
PITCH_MM = 12.0


def dotted(scale=SCALE):
    """A white page with black dots of 2 mm every 12 mm, drawn by area (16 subpixels each way)."""
    width, height = (round(side * scale) for side in SIZE_MM)
    fine, tile = 16, round(PITCH_MM * scale)
    at = (np.arange(tile * fine) + 0.5) / fine / scale - PITCH_MM / 2
    inside = np.hypot(at[:, None], at[None, :]) <= 1.0
    dot = 255 * (1 - inside.reshape(tile, fine, tile, fine).mean((1, 3)))
    page = np.tile(dot, (math.ceil(height / tile), math.ceil(width / tile)))[:height, :width]
    return np.repeat(np.rint(page).astype(np.uint8)[..., None], 3, axis=2)


PAGE = dotted()


def find_dots(image):
    """Centres (x, y) of dark blobs whose surroundings lie within the picture, by centre of gravity."""
    grey = image.mean(axis=2)
    around = cv2.blur(cv2.dilate(image, np.ones((25, 25), np.uint8)), (25, 25)).mean(axis=2)
    dark = np.clip(1 - grey / np.maximum(around, 1), 0, 1)
    count, _, box, _ = cv2.connectedComponentsWithStats((dark > 0.5).astype(np.uint8))
    height, width = grey.shape
    found = []
    for k in range(1, count):
        left, top, wide, high, area = box[k]
        if not (6 < area < 600 and 0.5 < wide / high < 2):
            continue
        if left < 14 or top < 14 or left + wide > width - 14 or top + high > height - 14:
            continue
        window = np.s_[top - 4 : top + high + 4, left - 4 : left + wide + 4]
        y, x = np.mgrid[window]
        # The paper around the dot may lie in a slope of light: a plane through the window's rim.
        rim = np.ones(x.shape, bool)
        rim[2:-2, 2:-2] = False
        terms = np.stack([np.ones_like(x), x - left, y - top], axis=-1).astype(float)
        plane = terms @ np.linalg.lstsq(terms[rim], grey[window][rim], rcond=None)[0]
        weight = 1 - grey[window] / plane
        weight = np.where(weight > 0.04, weight, 0)
        found.append((float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())))
    return np.array(found).reshape(-1, 2)


def errors_px(photo: Photo):
    """How far each dot found lies from where the map puts it, in pixels of the photo."""
    dots = find_dots(photo.image)
    mm = photo.to_paper(dots[:, 0], dots[:, 1])
    true = (np.round(mm / PITCH_MM - 0.5) + 0.5) * PITCH_MM
    on_page = np.all((mm > 4) & (mm < np.array(SIZE_MM) - 4), axis=1)
    # Millimetres to pixels by the map's own slope at each dot.
    dx = photo.to_paper(dots[:, 0] + 0.5, dots[:, 1]) - photo.to_paper(dots[:, 0] - 0.5, dots[:, 1])
    dy = photo.to_paper(dots[:, 0], dots[:, 1] + 0.5) - photo.to_paper(dots[:, 0], dots[:, 1] - 0.5)
    off = np.linalg.solve(np.stack([dx, dy], axis=2), (mm - true)[..., None])[..., 0]
    return np.hypot(off[:, 0], off[:, 1])[on_page]


def bare(style):
    """Geometry only."""
    light = {"raking": 0, "gradient": 0, "shadow": 0, "glare": 0, "haze": 0, "vignette": 0, "moire": 0}
    lens = {"exposure": 1, "tint": (1, 1, 1), "defocus_mm": 0, "motion_mm": 0, "noise": 0, "jpeg": None}
    return replace(style, notes=0, worn=0, **light, **lens)


def lit(style):
    """Geometry and light, without what hides dots (glare, pens) or loses detail (lens, sensor, file)."""
    kept = {"glare": min(style.glare, 0.4), "defocus_mm": 0, "motion_mm": 0, "noise": 0, "jpeg": None}
    return replace(style, notes=0, worn=0, moire=0, shadow_soft=max(style.shadow_soft, 0.05), **kept)


# --- the map is exact ---------------------------------------------------------------------------


@pytest.mark.parametrize("strip", [bare, lit], ids=["geometry", "geometry and light"])
@pytest.mark.parametrize("severity", [0.7, 1.0, 1.6])
def test_dots_lie_where_the_map_says(strip, severity):
    for seed in range(12):
        style = strip(draw_photo_style(random.Random(seed), severity))
        off = errors_px(photograph(PAGE, SCALE, style, (960, 720)))
        assert len(off) > 60
        # The blob's bias under perspective, and in light that changes across it, is of the order of 0.02 px.
        assert np.median(off) < (0.03 if strip is bare else 0.05)
        assert off.max() < 0.15


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_page_turned_by_quarters_keeps_its_map(turns):
    style = replace(bare(draw_photo_style(random.Random(5))), quarter_turns=turns, cover=0.0)
    photo = photograph(PAGE, SCALE, style)
    assert photo.image.shape[:2] == (PAGE.shape[1::-1] if turns % 2 else PAGE.shape[:2])
    off = errors_px(photo)
    assert len(off) > 150
    assert off.max() < 0.15
    middle = np.array(photo.image.shape[1::-1]) / 2
    right = photo.to_paper(middle[0] + 100, middle[1]) - photo.to_paper(middle[0], middle[1])
    # Clockwise by one quarter, the picture's right is the page's top.
    assert np.argmax(np.abs(right)) == turns % 2
    assert np.sign(right[turns % 2]) == {1: -1, 2: -1, 3: 1}[turns]


def test_a_fine_page_is_reduced_without_a_shift():
    fine = dotted(scale=10.0)
    photo = photograph(fine, 10.0, bare(draw_photo_style(random.Random(3))), (700, 525))
    assert photo.px_per_mm < 4
    off = errors_px(photo)
    assert len(off) > 100
    assert off.max() < 0.15


def test_a_flat_page_obeys_opencvs_pinhole_camera():
    """Corner dots are projected by cv2.projectPoints from angles and distance alone."""
    style = PhotoStyle(tilt_deg=22, toward_deg=35, rotation_deg=-7, distance=1.3)
    photo = photograph(PAGE, SCALE, style, (900, 700))
    dots = find_dots(photo.image)
    mm = photo.to_paper(dots[:, 0], dots[:, 1])
    centred = (np.round(mm / PITCH_MM - 0.5) + 0.5) * PITCH_MM - np.array(SIZE_MM) / 2
    toward = math.radians(35)
    lean, _ = cv2.Rodrigues(math.radians(22) * np.array([math.sin(toward), -math.cos(toward), 0]))
    roll, _ = cv2.Rodrigues(np.array([0, 0, math.radians(-7)]))
    turn, _ = cv2.Rodrigues(roll @ lean)
    away = 1.3 * SIZE_MM[0]
    lens = np.diag([away * photo.px_per_mm, away * photo.px_per_mm, 1.0])
    spots = np.column_stack([centred, np.zeros(len(centred))])
    seen = cv2.projectPoints(spots, turn, np.array([0.0, 0.0, away]), lens, None)[0][:, 0]
    shift = dots - seen  # the framing moves the picture as a whole, and by nothing else
    assert len(dots) > 150
    assert np.abs(shift - shift.mean(axis=0)).max() < 0.15


def test_bending_keeps_lengths_along_the_paper():
    """Seen from far away, a sine's chord is shorter than its arc by the arc-length integral."""
    wave = Wave(height_mm=5, length_mm=120)
    photo = photograph(PAGE, SCALE, PhotoStyle(distance=20, waves=(wave,)))
    y = PAGE.shape[0] / 2
    left, right = 1.0, PAGE.shape[1] - 2.0
    chord = (right - left) / photo.px_per_mm
    a, b = photo.to_paper(left, y)[0], photo.to_paper(right, y)[0]
    s = np.linspace(a, b, 20001) - SIZE_MM[0] / 2
    k = 2 * np.pi / 120
    expected = np.mean(np.sqrt(1 - (5 * k * np.cos(k * s)) ** 2)) * (b - a)
    # From 20 page lengths away heights of 5 mm still move points by about a thousandth.
    assert chord == pytest.approx(expected, rel=1.5e-3)
    assert b - a > 1.01 * chord


def test_paper_that_rises_to_the_camera_looks_larger():
    crest = Wave(height_mm=12, length_mm=600, phase_deg=90)
    photo = photograph(PAGE, SCALE, PhotoStyle(distance=1.0, waves=(crest,)))
    x, y = (np.array(PAGE.shape[1::-1]) - 1) / 2
    across = photo.to_paper(x + 5, y)[0] - photo.to_paper(x - 5, y)[0]
    assert 10 / across == pytest.approx(photo.px_per_mm * 240 / (240 - 12), rel=2e-3)


def test_a_fold_bends_lines_at_the_crease_and_shades_its_two_sides():
    fold = Fold(slope_deg=12, offset_mm=0, reach_mm=60)
    style = PhotoStyle(tilt_deg=25, toward_deg=90, folds=(fold,), raking=1.0, light_deg=0)
    photo = photograph(np.full_like(PAGE, 200), SCALE, style)
    row = photo.image[PAGE.shape[0] // 2, :, 0].astype(int)
    middle = PAGE.shape[1] // 2
    assert row[middle - 60] < 195 < 205 < row[middle + 60]  # the light comes from the right, onto a ridge
    # The line y = const of the paper has a kink where the crease is: its curvature peaks there.
    y = photo.page_mm[PAGE.shape[0] // 2, 40:-40, 1].astype(float)
    bend = np.abs(np.convolve(y, [1, *[0] * 19, -2, *[0] * 19, 1], "valid"))
    assert abs(np.argmax(bend) + 60 - middle) < 20


def test_the_pixel_map_the_point_map_and_the_mesh_are_one():
    photo = photograph(PAGE, SCALE, draw_photo_style(random.Random(8)), (333, 251))
    y, x = np.mgrid[0:251, 0:333]
    assert photo.page_mm.shape == (251, 333, 2)
    assert np.abs(photo.to_paper(x, y) - photo.page_mm).max() < 1e-3
    nodes = np.array(photo.mesh(50))
    assert nodes.shape[1] == 4
    assert set(nodes[:, 0]) == {0, 50, 100, 150, 200, 250, 300, 332}
    assert set(nodes[:, 1]) == {0, 50, 100, 150, 200, 250}
    assert nodes[:, 2:] == pytest.approx(photo.to_paper(nodes[:, 0], nodes[:, 1]))
    with pytest.raises(UserError, match="choose 1 or more"):
        photo.mesh(0.5)


def test_the_map_can_be_inverted_on_the_page():
    """Left and right, up and down are never swapped or folded over: the area of each pixel is positive."""
    for seed in range(20):
        photo = photograph(PAGE, SCALE, bare(draw_photo_style(random.Random(seed), 2.0)), (320, 240))
        mm = photo.page_mm.astype(float)
        across, down = np.diff(mm, axis=1)[:-1], np.diff(mm, axis=0)[:, :-1]
        area = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
        on_page = np.all((mm > 0) & (mm < np.array(SIZE_MM)), axis=2)[:-1, :-1]
        assert area[on_page].min() > 0.15 / photo.px_per_mm**2


# --- it looks like real photos ------------------------------------------------------------------


def test_drawn_photos_resemble_the_real_ones():
    """Real: residual of the best homography 0.54 mm (median); 6 of 38 show a page corner; 4 to 5 px/mm."""
    residual, corner, scale = [], [], []
    size = (1200, 900)
    page = np.zeros((216, 279, 3), np.uint8)
    for seed in range(80):
        style = replace(bare(draw_photo_style(random.Random(seed))), background="plain")
        photo = photograph(page, 1.0, style, size)
        nodes = np.array(photo.mesh(40))
        on_page = np.all((nodes[:, 2:] > 0) & (nodes[:, 2:] < (279, 216)), axis=1)
        seen, true = nodes[on_page, :2], nodes[on_page, 2:]
        best, _ = cv2.findHomography(seen, true)
        left = cv2.perspectiveTransform(seen[None], best)[0] - true
        residual.append(np.sqrt(np.mean(np.sum(left**2, axis=1))))
        away = [np.hypot(*(photo.page_mm[::2, ::2] - c).transpose(2, 0, 1)).min() for c in CORNERS]
        corner.append(min(away) < 1)
        scale.append(photo.px_per_mm)
    assert 0.35 < np.median(residual) < 0.75
    assert 0.8 < np.percentile(residual, 95) < 1.65
    assert 0.08 < np.mean(corner) < 0.4
    assert 4 < np.median(scale) < 5


CORNERS = np.array([[0, 0], [279, 0], [279, 216], [0, 216]], np.float32)


@pytest.mark.parametrize(
    ("name", "value"),
    [("shadow", 0.6), ("gradient", 0.5), ("vignette", 0.6), ("exposure", 0.6), ("tint", (0.7, 0.7, 0.7))],
)
def test_light_only_takes_away_and_moves_nothing(name, value):
    style = replace(PhotoStyle(shadow_soft=0.05), **{name: value})
    photo = photograph(PAGE, SCALE, style)
    assert np.all(photo.image <= PAGE)
    assert photo.image.mean() < PAGE.mean() - 8
    assert errors_px(photo).max() < 0.15


def test_exposure_is_a_factor_in_linear_light():
    grey = np.full((40, 40, 3), 180, np.uint8)
    photo = photograph(grey, 1.0, PhotoStyle(exposure=0.5, tint=(1, 1, 0.8)))
    expected = 180 * np.array([0.5, 0.5, 0.4]) ** (1 / 2.2)
    assert np.abs(photo.image.reshape(-1, 3) - expected).max() <= 0.51


def test_glare_whitens_and_haze_lifts_black():
    black = np.zeros((200, 300, 3), np.uint8)
    glare = photograph(black, 1.0, PhotoStyle(glare=1.5)).image
    assert glare.max() == 255
    assert np.median(glare) < 100
    assert set(np.unique(photograph(black, 1.0, PhotoStyle(haze=0.1)).image)) <= {25, 26}


def test_noise_has_the_asked_deviation():
    grey = np.full((300, 300, 3), 128, np.uint8)
    image = photograph(grey, 1.0, PhotoStyle(noise=0.03)).image.astype(float)
    assert image.std() == pytest.approx(0.03 * 255, rel=0.15)
    assert image.mean() == pytest.approx(128, abs=0.5)


def test_blur_keeps_the_dots_in_place():
    for kind in ({"defocus_mm": 0.5}, {"motion_mm": 1.0, "motion_deg": 33.0}):
        photo = photograph(PAGE, SCALE, PhotoStyle(**kind))
        assert photo.image.std() < 0.97 * PAGE.std()
        assert errors_px(photo).max() < 0.15


def test_a_jpeg_of_low_quality_is_blocky():
    image = photograph(PAGE, SCALE, PhotoStyle(jpeg=20)).image.astype(int)
    assert 1 < np.abs(image - PAGE).mean() < 20


def test_moire_is_a_coarse_pattern_and_changes_only_brightness():
    grey = np.full((300, 400, 3), 128, np.uint8)
    image = photograph(grey, 1.0, PhotoStyle(moire=0.2, tilt_deg=5, toward_deg=30)).image
    assert 4 < image.std() < 30
    assert image.mean() == pytest.approx(128, abs=5)


def test_notes_are_drawn_on_the_page_and_move_along_with_it():
    plain = np.full((864, 1116, 3), 255, np.uint8)
    style = PhotoStyle(notes=6, seed=4)
    flat = photograph(plain, 4.0, style)
    assert 200 < np.count_nonzero(flat.image.min(axis=2) < 128) < 60_000
    turned = photograph(plain, 4.0, replace(style, quarter_turns=2))
    assert np.abs(turned.image[::-1, ::-1].astype(int) - flat.image).max() <= 2


def test_the_table_shows_only_off_the_page():
    white = np.full((864, 1116, 3), 255, np.uint8)
    for background in ("plain", "wood", "cloth", "clutter"):
        style = PhotoStyle(zoom=0.6, background=background)
        photo = photograph(white, 4.0, style)
        inside = np.all((photo.page_mm > 0.3) & (photo.page_mm < np.array(photo.size_mm) - 0.3), axis=2)
        outside = np.any((photo.page_mm < -0.3) | (photo.page_mm > np.array(photo.size_mm) + 0.3), axis=2)
        assert np.all(photo.image[inside] == 255)
        assert photo.image[outside].mean() < 230
        assert photo.image[outside].std() > 1


# --- any style ----------------------------------------------------------------------------------

SMALL = cv2.resize(PAGE, (300, 225), interpolation=cv2.INTER_AREA)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**40),
    severity=st.floats(0, 2),
    size=st.one_of(st.none(), st.tuples(st.integers(16, 400), st.integers(16, 400))),
    turns=st.integers(0, 3),
)
def test_any_drawn_style_gives_a_photo_of_the_asked_size(seed, severity, size, turns):
    style = replace(draw_photo_style(random.Random(seed), severity), quarter_turns=turns)
    check_style(style)
    assert style.tilt_deg <= 25
    assert abs(style.rotation_deg) <= 15
    photo = photograph(SMALL, 1.25, style, size)
    width, height = size or ((225, 300) if turns % 2 else (300, 225))
    assert photo.image.dtype == np.uint8
    assert photo.image.shape == (height, width, 3)
    assert photo.page_mm.shape == (height, width, 2)
    assert np.isfinite(photo.page_mm).all()
    again = photograph(SMALL, 1.25, style, size)
    assert np.array_equal(photo.image, again.image)
    assert np.array_equal(photo.page_mm, again.page_mm)


def test_equal_seeds_draw_equal_styles_and_others_do_not():
    draws = [draw_photo_style(random.Random(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def extreme(name):
    """Both ends of a number's range, as styles."""
    low, high = RANGES[name]
    both = [low, min(high, 1e6)]
    if name in {"shift", "tint"}:
        return [PhotoStyle(**{name: (value,) * (2 if name == "shift" else 3)}, zoom=0.5) for value in both]
    if name in {field.name for field in fields(Wave)} - {"direction_deg"}:
        return [PhotoStyle(waves=(replace(Wave(1, 600), **{name: value}),)) for value in both]
    if name in {field.name for field in fields(Fold)}:
        return [PhotoStyle(folds=(replace(Fold(5), **{name: value}),), worn=0.5) for value in both]
    if name in {"seed", "quarter_turns", "notes", "jpeg"}:
        return [PhotoStyle(**{name: round(value)}) for value in both]
    return [PhotoStyle(**{name: value}, shadow_kind="hand") for value in both]


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_ends_of_every_range_work(name):
    for style in extreme(name):
        for hard in (
            {},
            {"tilt_deg": 30, "toward_deg": 40, "distance": 0.9, "zoom": 0.5, "rotation_deg": 20},
        ):
            # What is under test keeps its extreme value.
            photo = photograph(SMALL, 1.25, replace(style, **{k: v for k, v in hard.items() if k != name}))
            assert photo.image.dtype == np.uint8
            assert np.isfinite(photo.page_mm).all()


@pytest.mark.parametrize("page", [PAGE, SMALL, dotted(7.874015748)], ids=["4", "1.25", "200 dpi"])
def test_the_default_style_returns_the_page_bit_by_bit(page):
    scale = page.shape[1] / SIZE_MM[0]
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, page.shape, dtype=np.uint8)
    for image in (page, noisy):
        for style in (PhotoStyle(), draw_photo_style(random.Random(3), 0.0)):
            photo = photograph(image, scale, style)
            assert np.array_equal(photo.image, image)
            y, x = np.mgrid[0 : page.shape[0], 0 : page.shape[1]]
            assert np.abs(photo.page_mm - (np.stack([x, y], -1) + 0.5) / scale).max() < 1e-3


# --- bad input ----------------------------------------------------------------------------------


def test_out_of_range_styles_are_refused_with_the_range():
    with pytest.raises(UserError, match=r"PhotoStyle.tilt_deg is 60; choose a number from 0 to 30"):
        photograph(SMALL, 1.25, PhotoStyle(tilt_deg=60))
    with pytest.raises(UserError, match=r"PhotoStyle.noise is nan"):
        photograph(SMALL, 1.25, PhotoStyle(noise=math.nan))
    with pytest.raises(UserError, match=r"PhotoStyle.notes is 1.5; choose a whole number from 0 to 20"):
        photograph(SMALL, 1.25, PhotoStyle(notes=1.5))
    with pytest.raises(UserError, match=r"Wave.height_mm is 50"):
        photograph(SMALL, 1.25, PhotoStyle(waves=(Wave(50, 600),)))
    with pytest.raises(UserError, match=r"bent to a slope of 0\.50"):
        photograph(SMALL, 1.25, PhotoStyle(waves=(Wave(8, 100),)))
    with pytest.raises(UnknownNameError, match="Did you mean 'wood'"):
        photograph(SMALL, 1.25, PhotoStyle(background="wod"))
    with pytest.raises(UnknownNameError, match="Did you mean 'hand'"):
        photograph(SMALL, 1.25, PhotoStyle(shadow_kind="hands"))
    with pytest.raises(UserError, match="The severity is 3"):
        draw_photo_style(random.Random(0), 3)


def test_unusable_pages_sizes_and_scales_are_refused():
    for page in (SMALL.astype(np.float32), SMALL[..., 0], SMALL[:8], SMALL[..., :2], None):
        with pytest.raises(ImageError, match="The page is"):
            photograph(page, 1.25, PhotoStyle())
    for size in ((0, 100), (100, 20_000), (100.5, 100)):
        with pytest.raises(UserError, match="The photo's size is"):
            photograph(SMALL, 1.25, PhotoStyle(), size)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="The page's scale is"):
            photograph(SMALL, scale, PhotoStyle())


@given(st.integers(0, 2**32 - 1), st.floats(0, 2))
@settings(max_examples=15, deadline=None)
def test_the_way_back_to_the_photo(seed, severity):
    """The map from paper to photo undoes the one from photo to paper, anywhere in the frame."""
    photo = photograph(PAGE, SCALE, draw_photo_style(random.Random(seed), severity), (900, 700))
    pixels = np.random.default_rng(seed).uniform(0, (899, 699), (500, 2))
    mm = photo.to_paper(pixels[:, 0], pixels[:, 1])
    back = photo.to_photo(mm[:, 0], mm[:, 1])
    assert np.abs(back - pixels).max() < 0.3
    assert np.median(np.abs(back - pixels)) < 0.01
