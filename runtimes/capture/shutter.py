"""When to take the picture: a state machine over what preview frames show. No camera, no clock, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

SEARCHING, MOVING, STEADYING, FIRED = "searching", "moving", "steadying", "fired"

_STEADY_S: Final = 0.4  # hold still so long
_STEADY_FRAMES: Final = 3
_MOTION: Final = 0.04  # of the frame's width per second; at 1/60 s that blurs 0.2 mm on a page across it
_DARK: Final = 55.0  # mean grey level
_MEMORY_S: Final = 2.5  # a frame must be about as sharp as the sharpest of so long: the focus may hunt
_OF_SHARPEST: Final = 0.85
_LEAST_SHARPNESS: Final = 0.1  # an edge this soft is out of focus whatever came before
_LOOKS_AWAY_S: Final = 0.7  # a page that is not found for so long is gone


@dataclass(frozen=True)
class Glimpse:
    """What one preview frame shows.

    Attributes:
        time_s: when it was taken.
        motion: widths of the frame per second that the picture moves; infinite if it is another scene.
        sharpness: energy of fine detail over that of coarse detail, comparable within one scene only.
        brightness: mean grey level, 0 to 255.
        px_per_mm: of the grid, in pixels of the full frame; 0 where none is seen, None where it was not
            looked for in this frame.
    """

    time_s: float
    motion: float
    sharpness: float
    brightness: float
    px_per_mm: float | None


@dataclass(frozen=True)
class State:
    """What the shutter remembers between frames; begin with ``State()``.

    Attributes:
        phase: searching, moving, steadying or fired.
        steady_since_s: when the present stillness began, or None.
        steady_frames: how many frames it has lasted.
        px_per_mm: of the last frame in which a grid was looked for.
        seen_s: when a grid was last seen, or None.
        sharpest: (time, sharpness) of the last seconds.
    """

    phase: str = SEARCHING
    steady_since_s: float | None = None
    steady_frames: int = 0
    px_per_mm: float = 0.0
    seen_s: float | None = None
    sharpest: tuple[tuple[float, float], ...] = field(default=())


@dataclass(frozen=True)
class Advice:
    """What to tell the person, and whether to take this very frame.

    Attributes:
        text: one short sentence.
        fire: take this frame.
    """

    text: str
    fire: bool = False


def advance(state: State, glimpse: Glimpse, least_px_per_mm: float) -> tuple[State, Advice]:
    """Take in one frame.

    Args:
        state: after the frame before, or ``State()``.
        glimpse: of this frame; times must not run backwards.
        least_px_per_mm: that a good picture needs.

    Returns:
        The state after it, and the advice. After ``fire`` the machine stays quiet until the scene moves, so
        that one page is not taken twice; start from ``State()`` to try the same page again.
    """
    state = _remember(state, glimpse)
    moving = glimpse.motion > _MOTION
    if state.phase == FIRED:
        if not moving:
            return state, Advice("Taken.")
        return _unsteady(state, MOVING), Advice("Hold still.")
    problem = _problem(state, glimpse, least_px_per_mm)
    if problem:
        return _unsteady(state, SEARCHING), Advice(problem)
    if moving:
        return _unsteady(state, MOVING), Advice("Hold still.")
    since = glimpse.time_s if state.steady_since_s is None else state.steady_since_s
    state = replace(state, phase=STEADYING, steady_since_s=since, steady_frames=state.steady_frames + 1)
    if not _is_sharp(state, glimpse):
        return state, Advice("Hold still: focusing.")
    if glimpse.time_s - since < _STEADY_S or state.steady_frames < _STEADY_FRAMES:
        return state, Advice("Hold still: taking the picture.")
    return replace(state, phase=FIRED), Advice("Taken.", fire=True)


def _remember(state: State, glimpse: Glimpse) -> State:
    recent = tuple(
        entry for entry in (*state.sharpest, (glimpse.time_s, glimpse.sharpness))
        if glimpse.time_s - entry[0] <= _MEMORY_S
    )  # fmt: skip
    if glimpse.px_per_mm is None:
        return replace(state, sharpest=recent)
    seen = glimpse.time_s if glimpse.px_per_mm > 0 else state.seen_s
    scale = glimpse.px_per_mm or state.px_per_mm
    return replace(state, sharpest=recent, px_per_mm=scale, seen_s=seen)


def _problem(state: State, glimpse: Glimpse, least_px_per_mm: float) -> str:
    if glimpse.brightness < _DARK:
        return "Too dark: turn on a light."
    if state.seen_s is None or glimpse.time_s - state.seen_s > _LOOKS_AWAY_S:
        still = glimpse.motion <= _MOTION  # in motion the grid is smeared
        return f"Point the camera at the ECG{'' if still else ' and hold still'}."
    if state.px_per_mm < least_px_per_mm:
        return f"Move closer: {state.px_per_mm:.1f} px/mm, at least {least_px_per_mm:g} needed."
    return ""


def _unsteady(state: State, phase: str) -> State:
    return replace(state, phase=phase, steady_since_s=None, steady_frames=0)


def _is_sharp(state: State, glimpse: Glimpse) -> bool:
    best = max(value for _, value in state.sharpest)
    return glimpse.sharpness >= max(_OF_SHARPEST * best, _LEAST_SHARPNESS)
