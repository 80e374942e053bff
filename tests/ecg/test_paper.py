"""Pages: what was drawn is read back from the pixels, by rows and columns of ink alone.

The reader below shares nothing with the renderer: it takes the darkness of a page without a grid, and
its centre of gravity down a column (an amplitude) or along a row (an instant).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from pulse_edge.ecg.paper import GRID_COLOURS, LAYOUTS, PaperStyle, blank, render
from pulse_edge.ecg.record import LEADS, Record
from pulse_edge.errors import UnknownNameError, UserError

FS = 500
PLAIN = PaperStyle(grid=None, ink=(0, 0, 0), lead_names=False, calibration=False)
ORDER = {  # every layout's columns, written down again
    "3x4": ["I II III", "aVR aVL aVF", "V1 V2 V3", "V4 V5 V6"],
    "3x4+1": ["I II III", "aVR aVL aVF", "V1 V2 V3", "V4 V5 V6"],
    "6x2": ["I II III aVR aVL aVF", "V1 V2 V3 V4 V5 V6"],
    "6x2+1": ["I II III aVR aVL aVF", "V1 V2 V3 V4 V5 V6"],
    "12x1": ["I II III aVR aVL aVF V1 V2 V3 V4 V5 V6"],
}


def record_of(wave, seconds=10.0, fs=FS):
    """A record with the same wave, a function of time in seconds, on all leads."""
    t = np.arange(round(seconds * fs)) / fs
    return Record(np.tile(np.asarray(wave(t), np.float32), (12, 1)), float(fs))


def ink(page):
    return 255.0 - page.image[..., 0].astype(np.float64)


def column(dark, x, low, high):
    """Row of the ink's centre in column x between two rows."""
    rows = np.arange(max(0, round(low)), min(dark.shape[0], round(high)))
    weight = dark[rows, x]
    assert weight.sum() > 200, "no ink where a trace should be"
    return float((rows * weight).sum() / weight.sum())


def row(dark, y, low, high):
    """Column of the ink's centre in row y between two columns."""
    return column(dark.T, y, low, high)


def band(page):
    """Half the distance between two strips of a column: the rows that belong to one strip."""
    ys = sorted({strip.y for strip in page.strips})
    return (ys[1] - ys[0]) / 2 if len(ys) > 1 else 50.0


# --- amplitudes and instants --------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gain", [5.0, 10.0, 20.0])
@pytest.mark.parametrize("dpi", [100.0, 150.0, 200.0, 300.0])
def test_amplitudes_are_exact(layout, gain, dpi):
    levels = np.random.default_rng(int(dpi + gain)).uniform(-0.3, 0.3, 12)
    signal = np.repeat(levels[:, None], FS * 10, axis=1).astype(np.float32)
    page = render(Record(signal, FS), replace(PLAIN, layout=layout, gain=gain, dpi=dpi))
    dark, half = ink(page), band(page)
    for strip in page.strips:
        expected = strip.y - levels[LEADS.index(strip.lead)] * gain * dpi / 25.4
        width = strip.duration_s * page.px_per_s
        for share in (0.1, 0.37, 0.5, 0.82):
            x = round(strip.x + share * width)
            assert column(dark, x, strip.y - half, strip.y + half) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("speed", [25.0, 50.0])
@pytest.mark.parametrize("dpi", [100.0, 150.0, 200.0, 300.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_instants_and_intervals_are_exact(layout, speed, dpi):
    spikes = np.array([0.4, 1.15, 1.9, 2.31, 3.0, 4.402, 5.5, 6.3, 7.71, 8.1, 9.2])

    def wave(t):  # a triangle 12 ms wide, whose flanks are alike, so that its centre is its instant
        return 0.5 * np.clip(1 - np.abs(t[:, None] - spikes) / 0.012, 0, None).sum(axis=1)

    page = render(record_of(wave), replace(PLAIN, layout=layout, speed=speed, dpi=dpi))
    dark, scale = ink(page), dpi / 25.4
    seen = 0
    for strip in page.strips:
        found = []
        for spike in spikes:
            if not strip.start_s + 0.05 < spike < strip.start_s + strip.duration_s - 0.05:
                continue
            x = strip.x + (spike - strip.start_s) * speed * scale
            y = round(strip.y - 0.25 * 10 * scale)  # half-way up
            found.append((spike, row(dark, y, x - 2 * scale, x + 2 * scale + 1)))
            assert found[-1][1] == pytest.approx(x, abs=0.5)
        for (t0, x0), (t1, x1) in pairwise(found):
            assert (x1 - x0) / (speed * scale) == pytest.approx(t1 - t0, abs=0.5 / (speed * scale))
        seen += len(found)
    assert seen >= 11


@pytest.mark.parametrize("dpi", [100.0, 200.0])
def test_there_is_no_systematic_offset(dpi):
    page = render(
        record_of(lambda t: 0.4 * np.sin(2 * np.pi * 0.35 * t)), replace(PLAIN, layout="3x4+1", dpi=dpi)
    )
    dark, half, errors = ink(page), band(page), []
    strip = page.strips[-1]
    for x in range(round(strip.x) + 20, round(strip.x + 9.9 * page.px_per_s), 3):
        t = (x - strip.x) / page.px_per_s
        expected = strip.y - 0.4 * np.sin(2 * np.pi * 0.35 * t) * page.px_per_mv
        errors.append(column(dark, x, strip.y - half, strip.y + half) - expected)
    assert abs(np.mean(errors)) < 0.05
    assert np.abs(errors).max() < 0.5


def test_a_real_page_can_be_read_back():
    rng = np.random.default_rng(5)
    t = np.arange(5000) / FS
    waves = rng.uniform((0.02, 0.3, 0), (0.1, 4, 6), (6, 3))
    smooth = sum(a * np.sin(2 * np.pi * f * t + p) for a, f, p in waves)
    record = Record(np.stack([smooth * (1 + k / 12) for k in range(12)]).astype(np.float32), FS)
    page = render(record, replace(PLAIN, dpi=300.0))
    dark, half = ink(page), band(page)
    for strip in page.strips:
        x = np.arange(round(strip.x) + 8, round(strip.x + strip.duration_s * page.px_per_s) - 8)
        read = [(strip.y - column(dark, c, strip.y - half, strip.y + half)) / page.px_per_mv for c in x]
        at = strip.start_s + (x - strip.x) / page.px_per_s
        expected = np.interp(at, t, record.signal[LEADS.index(strip.lead)])
        error = (np.array(read) - expected) * page.px_per_mv
        error /= np.hypot(1, np.gradient(expected * page.px_per_mv))  # across the line, not down the column
        assert np.abs(error).max() < 0.5
        assert abs(error.mean()) < 0.1


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_lead_has_its_place(layout):
    page = render(record_of(np.zeros_like), replace(PLAIN, layout=layout))
    columns = [names.split() for names in ORDER[layout]]
    strips = page.strips[: len(page.strips) - layout.count("+1")]
    assert sorted(strip.lead for strip in strips) == sorted(LEADS)
    by_x = sorted({strip.x for strip in strips})
    assert [[s.lead for s in sorted(strips, key=lambda s: s.y) if s.x == x] for x in by_x] == columns
    assert page.image.shape == (1700, 2200, 3)
    if "+1" in layout:
        rhythm = page.strips[-1]
        assert (rhythm.lead, rhythm.start_s) == ("II", 0.0)
        assert rhythm.duration_s == pytest.approx(10.0)
        assert rhythm.y > max(strip.y for strip in strips)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("speed", [25.0, 50.0])
@pytest.mark.parametrize("start", [0.0, 1.25])
def test_strips_continue_each_other(layout, speed, start):
    page = render(record_of(np.zeros_like), replace(PLAIN, layout=layout, speed=speed, start_s=start))
    rows: dict[float, list] = {}
    for strip in page.strips:
        rows.setdefault(strip.y, []).append(strip)
    for strips in rows.values():
        strips.sort(key=lambda strip: strip.x)
        assert strips[0].start_s == start
        for a, b in pairwise(strips):
            assert b.start_s == pytest.approx(a.start_s + a.duration_s)
            assert b.x == pytest.approx(a.x + a.duration_s * page.px_per_s)
        end = strips[-1].start_s + strips[-1].duration_s
        assert end == pytest.approx(min(10.0, start + (279.4 - 2 * 14.7) / speed))


def test_a_short_record_fills_less_of_the_page():
    page = render(record_of(np.zeros_like, seconds=6), replace(PLAIN, layout="12x1"))
    dark, strip = ink(page), page.strips[0]
    drawn = np.flatnonzero(dark[round(strip.y)] > 100)
    assert drawn[0] == pytest.approx(strip.x, abs=2)
    assert drawn[-1] == pytest.approx(strip.x + 6 * page.px_per_s, abs=2)


@pytest.mark.parametrize("gain", [5.0, 10.0, 20.0])
@pytest.mark.parametrize("dpi", [100.0, 150.0, 200.0, 300.0])
def test_the_calibration_pulse_is_1_mv_high_and_5_mm_long(gain, dpi):
    page = render(
        record_of(np.zeros_like), replace(PLAIN, calibration=True, gain=gain, dpi=dpi, layout="3x4")
    )
    dark, scale = ink(page), dpi / 25.4
    for strip in page.strips[:3]:
        top = strip.y - gain * scale
        middle = round((strip.y + top) / 2)
        left = row(dark, middle, strip.x - 7.5 * scale, strip.x - 4 * scale)
        right = row(dark, middle, strip.x - 3 * scale, strip.x - 0.5 * scale)
        assert right - left == pytest.approx(5 * scale, abs=0.5)
        x = round((left + right) / 2)
        height = column(dark, round(strip.x - 0.5 * scale), strip.y - scale, strip.y + scale) - column(
            dark, x, top - scale, top + scale
        )
        assert height == pytest.approx(gain * scale, abs=0.5)


@pytest.mark.parametrize("dpi", [100.0, 150.0, 200.0, 300.0])
@pytest.mark.parametrize("colour", ["red", "grey"])
def test_grid_lines_stand_at_1_and_5_mm(dpi, colour):
    image = blank(PaperStyle(dpi=dpi, grid=colour)).astype(np.float64)
    scale = dpi / 25.4
    for profile in (image[round(2.5 * scale)].sum(axis=1), image[:, round(2.5 * scale)].sum(axis=1)):
        dark = profile.max() - profile
        weights = []
        for mm in range(1, int((len(profile) - 3) / scale)):
            at = mm * scale - 0.5
            near = np.arange(round(at - scale / 2) + 1, round(at + scale / 2))
            assert (dark[near] * near).sum() / dark[near].sum() == pytest.approx(at, abs=0.5)
            weights.append((mm, dark[near].sum()))
        minor = [w for mm, w in weights if mm % 5]
        major = [w for mm, w in weights if mm % 5 == 0]
        assert min(major) > 1.8 * max(minor)


@pytest.mark.parametrize("colour", GRID_COLOURS)
def test_grid_colours(colour):
    image = blank(PaperStyle(dpi=600.0, grid=colour, size_mm=(60.0, 60.0)))
    scale = 600 / 25.4
    centre = [round(mm * scale - 0.5) for mm in (11, 10, 12.5)]
    seen = [tuple(image[round(12.5 * scale), x]) for x in centre]
    for was, wanted in zip(seen, (*GRID_COLOURS[colour], (255, 255, 255)), strict=True):
        np.testing.assert_allclose(was, wanted, atol=1)


def test_blank_paper_is_blank():
    assert (blank(PaperStyle(grid=None, paper=(250, 248, 240))) == (250, 248, 240)).all()
    first = blank()
    first[:] = 0  # the kept page must not be what is handed out
    assert blank().max() == 255
    page = render(record_of(np.zeros_like), PaperStyle())
    assert page.image.shape == blank().shape
    np.testing.assert_array_equal(page.image[-300:, :50], blank()[-300:, :50])


# --- gaps and extremes --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gap_leaves_no_ink(bad):
    record = record_of(np.zeros_like)
    record.signal[:, 500:1000] = bad  # 1 s to 2 s
    page = render(record, replace(PLAIN, layout="12x1"))
    dark, half = ink(page), band(page)
    for strip in page.strips:

        def x(t, strip=strip):
            return round(strip.x + t * page.px_per_s)

        rows = slice(round(strip.y - half + 1), round(strip.y + half - 1))
        assert dark[rows, x(1.0) + 3 : x(2.0) - 3].sum() == 0
        assert (dark[rows, x(0.1) : x(0.98)].max(axis=0) > 100).all()
        assert (dark[rows, x(2.02) : x(9.9)].max(axis=0) > 100).all()


def test_a_lead_without_samples_leaves_an_empty_strip():
    record = record_of(np.zeros_like)
    record.signal[4] = np.nan
    page = render(record, PLAIN)
    dark = ink(page)
    strip = next(strip for strip in page.strips if strip.lead == "aVL")
    left, right = round(strip.x) + 5, round(strip.x + strip.duration_s * page.px_per_s) - 5
    assert dark[round(strip.y) - 40 : round(strip.y) + 40, left:right].sum() == 0


@pytest.mark.parametrize("dpi", [40.0, 300.0])
def test_absurd_amplitudes_do_not_break_the_page(dpi):
    record = record_of(lambda t: 1e30 * np.sign(np.sin(20 * t)))
    page = render(record, replace(PLAIN, dpi=dpi))
    assert page.image.shape == (round(215.9 * dpi / 25.4), round(279.4 * dpi / 25.4), 3)
    assert ink(page).sum() > 0


# --- text ---------------------------------------------------------------------------------------


def added(style, box):
    """Ink that a change of style adds inside a box of millimetres (x0, y0, x1, y1) and outside it."""
    scale = style.dpi / 25.4
    x0, y0, x1, y1 = (round(mm * scale) for mm in box)
    difference = (
        ink(render(record_of(np.zeros_like), style))
        - ink(render(record_of(np.zeros_like), replace(style, header=(), lead_names=False)))
    ).clip(0)
    inside = difference[y0:y1, x0:x1].sum()
    return inside / 255, (difference.sum() - inside) / 255


def test_the_header_is_written_at_the_top():
    inside, outside = added(replace(PLAIN, header=("Patient 17, 61 years", "10 mm/mV")), (10, 2, 120, 18))
    assert inside > 500
    assert outside == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_strip_is_named(layout):
    style = replace(PLAIN, layout=layout, lead_names=True)
    page = render(record_of(np.zeros_like), style)
    bare = ink(render(record_of(np.zeros_like), replace(style, lead_names=False)))
    extra, scale = (ink(page) - bare).clip(0), style.dpi / 25.4
    shapes = {}
    for strip in page.strips:
        x, y = round(strip.x + 1.2 * scale), round(strip.y - 7.5 * scale)
        patch = extra[y - round(4 * scale) : y + round(1.5 * scale), x - 4 : x + round(12 * scale)]
        assert patch.sum() / 255 > 20
        shapes.setdefault(strip.lead, (patch > 128).sum(axis=0).tobytes())
    assert len(set(shapes.values())) == 12  # twelve different names


def test_text_beyond_ascii_is_replaced_not_refused():
    page = render(record_of(np.zeros_like), replace(PLAIN, header=("Müller ♥",)))
    assert ink(page)[:150].sum() > 0


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "3x5"}, r"Unknown layout '3x5'\. Did you mean '3x4'"),
        ({"grid": "rad"}, r"Unknown grid colour 'rad'\. Did you mean 'red'"),
        ({"rhythm_lead": "avf"}, r"Unknown lead 'avf'\. Did you mean 'aVF'"),
    ],
)
def test_unknown_names(change, message):
    with pytest.raises(UnknownNameError, match=message):
        render(record_of(np.zeros_like), PaperStyle(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 12.5}, "speed is 12.5 mm/s; choose one of 25 and 50"),
        ({"speed": float("nan")}, "speed"),
        ({"gain": 0.0}, "gain is 0 mm/mV"),
        ({"dpi": 10.0}, "10 dpi"),
        ({"dpi": float("nan")}, "dpi"),
        ({"dpi": 1e6}, "dpi"),
        ({"size_mm": (10.0, 200.0)}, "each side"),
        ({"size_mm": (200.0, 1e5)}, "each side"),
        ({"size_mm": (float("nan"), 200.0)}, "each side"),
        ({"start_s": 10.0}, "begin at 10 s, but the record lasts 10 s"),
        ({"start_s": -1.0}, "begin at -1 s"),
        ({"start_s": float("nan")}, "begin at nan s"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        render(record_of(np.zeros_like), PaperStyle(**change))
