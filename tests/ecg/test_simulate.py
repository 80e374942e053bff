"""The truth that a simulated record comes with is looked for again in its samples."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse_edge.ecg.heart import BUNDLES, TERRITORIES, Heart, draw_heart
from pulse_edge.ecg.leads import LEADS
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.simulate import Simulated, simulate
from pulse_edge.errors import UnknownNameError, UserError


def lead(simulated: Simulated, name: str) -> np.ndarray:
    return simulated.record.signal[LEADS.index(name)].astype(float)


def window(simulated: Simulated, name: str, beat: int, start_ms: float, end_ms: float) -> np.ndarray:
    """Samples of a lead between two instants after a beat's QRS onset."""
    fs, at = simulated.record.fs, simulated.beats[beat].qrs_s
    return lead(simulated, name)[round((at + start_ms / 1e3) * fs) : round((at + end_ms / 1e3) * fs)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_any_heart_gives_a_sound_record(seed: int) -> None:
    heart = draw_heart(random.Random(seed))
    one, two = simulate(heart, seed, fs=250), simulate(heart, seed, fs=250)
    signal = one.record.signal
    assert signal.shape == (12, 2500)
    assert np.isfinite(signal).all()
    assert 0.2 < np.abs(signal).max() < 12
    assert np.array_equal(signal, two.record.signal)
    limbs = dict(zip(LEADS[:6], signal[:6], strict=True))
    assert np.allclose(limbs["II"], limbs["I"] + limbs["III"], atol=1e-5)
    assert np.allclose(limbs["aVR"] + limbs["aVL"] + limbs["aVF"], 0, atol=1e-5)
    assert one.beats


@pytest.mark.parametrize(
    ("rhythm", "rate"),
    [(rhythm, rate) for rhythm in ("sinus", "afib", "paced") for rate in (42, 60, 75, 110)]
    + [("sinus", 150), ("afib", 150)],
)
def test_the_rate_is_found_again(rhythm: str, rate: int) -> None:
    made = simulate(Heart(rate_bpm=rate, rhythm=rhythm, noise_mv=0.01, wander_mv=0.05), seed=rate)  # type: ignore[arg-type]
    found = measure(made.record)
    assert found.rate_bpm == pytest.approx(made.rate_bpm, abs=2)
    assert found.irregularity is not None
    assert (found.irregularity > 0.1) == (rhythm == "afib")


@settings(max_examples=40, deadline=None)
@given(st.floats(125, 195), st.floats(70, 160), st.floats(55, 95), st.floats(-170, 170))
def test_between_the_waves_is_silence(pr: float, qrs: float, rate: float, axis: float) -> None:
    """So the intervals are what they are said to be: the leads leave zero at the onset and not before."""
    made = simulate(Heart(rate, pr, qrs, axis_deg=axis), seed=1, fs=1000)
    all_leads = np.abs(made.record.signal).max(axis=0)
    for beat in made.beats[1:-1]:
        assert beat.p_s is not None
        assert (beat.qrs_s - beat.p_s) * 1e3 == pytest.approx(pr, abs=1e-6)
        p, q = round(beat.p_s * 1e3), round(beat.qrs_s * 1e3)
        assert all_leads[p + 102 : q - 1].max(initial=0) < 1e-6  # after P, before QRS
        assert all_leads[q + 8 : q + round(qrs) - 8].min() > 0
        assert all_leads[q + 6] > 1e-3 or all_leads[q + 10] > 1e-3
        end = q + round(made.qrs_ms) + 2
        assert all_leads[end : end + 10].max() < 1e-6  # ST segment
        after = q + round(made.qt_ms * 1.06) + 6
        if after < p + round(6e4 / rate * 0.95):
            assert all_leads[after : min(after + 10, len(all_leads))].max(initial=0) < 1e-6  # T has ended


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("axis", [-175, -100, -50, 0, 60, 120, 179])
def test_the_axis_is_the_one_asked_for(bundle: str, axis: float) -> None:
    made = simulate(Heart(axis_deg=axis, bundle=bundle), seed=0)  # type: ignore[arg-type]
    across = window(made, "I", 2, 0, made.qrs_ms).sum()
    down = window(made, "aVF", 2, 0, made.qrs_ms).sum() * 2 / np.sqrt(3)
    gap = (np.degrees(np.arctan2(down, across)) - axis + 180) % 360 - 180
    assert abs(gap) < 3


def test_bundle_branch_blocks_look_as_defined() -> None:
    left = simulate(Heart(bundle="lbbb", qrs_ms=150), seed=0)
    assert left.codes >= {"CLBBB"}
    for name in ("I", "V6"):
        complex_ = window(left, name, 3, 0, 145)
        assert complex_.min() > -0.02  # no q, no s
        assert window(left, name, 3, 250, 400).min() < -0.05  # T is discordant
    assert window(left, "V1", 3, 0, 150).max() < 0.05
    right = simulate(Heart(bundle="rbbb", qrs_ms=140), seed=0)
    late = window(right, "V1", 3, 85, 140)
    assert late.max() > 0.3  # R'
    assert window(right, "V6", 3, 85, 140).min() < -0.2  # broad S
    assert window(right, "V1", 3, 0, 40).max() > 0.05  # r


@pytest.mark.parametrize(
    ("territory", "up", "down"),
    [("anterior", ["V2", "V3", "V4"], ["aVR"]), ("inferior", ["II", "III", "aVF"], ["aVL"]),
     ("lateral", ["I", "aVL", "V5", "V6"], ["III"])],
)  # fmt: skip
@pytest.mark.parametrize("size", [0.25, -0.25])
def test_the_st_segment_is_displaced_where_the_territory_is(
    territory: str, up: list[str], down: list[str], size: float
) -> None:
    made = simulate(Heart(st_mv={territory: size}), seed=0, fs=1000)
    at = made.qrs_ms + 25
    for name in LEADS:
        level = float(window(made, name, 3, at, at + 3).mean())
        if name in up:
            assert level * np.sign(size) > 0.08, name
        if name in down:
            assert level * np.sign(size) < -0.03, name
    assert ("STE_" if size > 0 else "STD_") in made.codes
    assert territory in TERRITORIES


def test_blocks_drop_the_beats_that_they_should() -> None:
    kinds = {
        block: simulate(Heart(block=block), seed=4, duration_s=30)  # type: ignore[arg-type]
        for block in ("first", "mobitz1", "mobitz2", "third")
    }
    delay = {name: [b.qrs_s - b.p_s for b in made.beats if b.p_s is not None] for name, made in kinds.items()}
    assert np.ptp(delay["first"]) < 1e-9
    assert np.ptp(delay["mobitz2"]) < 1e-9
    assert len(set(np.round(delay["mobitz1"], 6))) in (2, 3)
    assert not delay["third"]
    for name in ("mobitz1", "mobitz2"):
        rr = np.diff([b.qrs_s for b in kinds[name].beats])
        assert rr.max() > 1.5 * rr.min()
    assert kinds["third"].rate_bpm == pytest.approx(38, abs=5)
    assert kinds["third"].pr_ms is None


def test_premature_beats_come_early() -> None:
    for ectopy, code in (("pvc", "PVC"), ("pac", "PAC")):
        made = simulate(Heart(ectopy=ectopy), seed=2)  # type: ignore[arg-type]
        assert code in made.codes
        early = [b for b in made.beats if b.origin == "ventricular" or b.premature_atrial]
        assert early
        assert all(b.rr_s < 0.8 * 60 / 72 for b in early)


def test_hypertrophy_meets_its_voltage_criteria() -> None:
    plain, large = simulate(Heart(), 0), simulate(Heart(chamber="lvh", gain=1.3), 0)

    def sokolow(made: Simulated) -> float:
        return float(max(lead(made, "V5").max(), lead(made, "V6").max()) - lead(made, "V1").min())

    assert sokolow(plain) < 3.5 < sokolow(large)
    right = simulate(Heart(chamber="rvh", axis_deg=115), 0)
    assert lead(right, "V1").max() > -lead(right, "V1").min()


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"rhythm": "sinos"}, UnknownNameError), ({"st_mv": {"antero": 0.1}}, UnknownNameError),
     ({"rate_bpm": 5}, UserError), ({"qrs_ms": float("nan")}, UserError),
     ({"rhythm": "afib", "block": "third"}, UserError)],
)  # fmt: skip
def test_an_impossible_heart_is_refused(change: dict[str, object], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        simulate(Heart(**change), 0)  # type: ignore[arg-type]
