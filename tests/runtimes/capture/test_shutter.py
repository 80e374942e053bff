"""The shutter as a pure machine: what it advises on made-up frames."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse_edge.runtimes.capture.shutter import FIRED, Glimpse, State, advance

NEEDED = 4.0


def run(glimpses, state=None):
    """Feed frames; return all advice and the last state."""
    state, advice = state or State(), []
    for glimpse in glimpses:
        state, said = advance(state, glimpse, NEEDED)
        advice.append(said)
    return advice, state


def still(start=0.0, seconds=1.0, rate=15, **changes):
    """Frames of a page that lies still."""
    fields = {"motion": 0.0, "sharpness": 1.0, "brightness": 150.0, "px_per_mm": 6.0, **changes}
    return [Glimpse(start + k / rate, **fields) for k in range(round(seconds * rate))]


def test_a_still_sharp_page_is_taken_once():
    advice, state = run(still(seconds=3))
    fired = [k for k, said in enumerate(advice) if said.fire]
    assert len(fired) == 1
    assert 0.4 <= fired[0] / 15 < 0.6  # held for as long as promised, and not much longer
    assert state.phase == FIRED
    assert {said.text for said in advice[fired[0] :]} == {"Taken."}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"brightness": 20.0}, "Too dark"),
        ({"px_per_mm": 0.0}, "Point the camera at the ECG"),
        ({"px_per_mm": 2.9}, "Move closer: 2.9 px/mm, at least 4 needed."),
        ({"motion": 0.5}, "Hold still."),
        ({"motion": math.inf}, "Hold still."),
        ({"sharpness": 0.01}, "focusing"),
    ],
)
def test_a_poor_view_is_never_taken_and_says_why(changes, text):
    advice, _ = run(still(seconds=5, **changes))
    assert not any(said.fire for said in advice)
    assert text in advice[-1].text


def test_moving_again_starts_the_count_anew():
    shaken = [Glimpse(0.3, 0.5, 1.0, 150.0, 6.0)]
    advice, _ = run([*still(seconds=0.3), *shaken, *still(0.35, 0.38)])
    assert not any(said.fire for said in advice)


def test_a_hunting_focus_is_waited_for():
    """Half as sharp as a moment ago is out of focus, however still."""
    advice, state = run([*still(seconds=0.2), *still(0.2, 1.5, sharpness=0.5)])
    assert not any(said.fire for said in advice)
    assert "focusing" in advice[-1].text
    advice, _ = run(still(1.7, 0.6), state)
    assert any(said.fire for said in advice)


def test_a_grid_is_looked_for_now_and_then():
    """Between looks the page counts as seen, for a while."""
    frames = [Glimpse(k / 15, 0.0, 1.0, 150.0, 6.0 if k == 0 else None if k < 40 else 0.0) for k in range(45)]
    advice, _ = run(frames)
    assert sum(said.fire for said in advice) == 1
    frames = [Glimpse(k / 15, 0.5 if k < 20 else 0.0, 1.0, 150.0, 6.0 if k == 0 else 0.0) for k in range(45)]
    advice, _ = run(frames)
    assert not any(said.fire for said in advice)
    assert "Point the camera" in advice[-1].text


def test_the_next_page_is_taken_after_the_scene_has_moved():
    _, state = run(still(seconds=1))
    advice, _ = run([*still(1, 0.5, motion=0.4), *still(1.5, 1)], state)
    assert [said.fire for said in advice].count(True) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 0.5),
            st.floats(0, 1) | st.just(math.inf),
            st.floats(0, 2),
            st.floats(0, 255),
            st.none() | st.floats(0, 12),
        ),
        max_size=60,
    )
)
def test_it_fires_only_at_a_still_near_bright_sharp_page(frames):
    time, state, quiet_since = 0.0, State(), None
    seen = [0.0]
    for step, motion, sharpness, brightness, scale in frames:
        time += step
        if scale is not None and scale > 0:
            seen.append(scale)
        quiet_since = None if motion > 0.04 else time if quiet_since is None else quiet_since
        state, advice = advance(state, Glimpse(time, motion, sharpness, brightness, scale), NEEDED)
        assert advice.text.endswith(".")
        if advice.fire:
            assert motion <= 0.04
            assert quiet_since is not None
            assert time - quiet_since >= 0.4
            assert brightness >= 55
            assert seen[-1] >= NEEDED
            assert sharpness >= 0.1
