"""What a phone camera does to a page of ECG, as numbers: their units, their ranges, and how they are drawn.

The default frequencies follow 38 real photos of ECG paper whose 5 mm grid was marked by hand (most of them
from ecg-image-kit's sample data): most are cropped to the paper and show no page corner, the paper is turned
by a few degrees, and after the best possible homography about half a millimetre of bending is left (median
0.54 mm RMS, worst 1.65).
Glare, blur and handwriting are drawn more often than they occur there, because a model has to learn them.

Not covered: lens distortion (phones correct it), rolling shutter, and paper that is torn or crumpled.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from pulse_edge.errors import UnknownNameError, UserError

BACKGROUNDS: Final = ("plain", "wood", "cloth", "clutter")
SHADOWS: Final = ("edge", "hand")
MAX_SLOPE: Final = 0.3  # of all bending together; steeper paper could hide itself from the camera


@dataclass(frozen=True)
class Wave:
    """A sheet bent as a cylinder: its height is a sine along one direction of the page.

    Attributes:
        height_mm: amplitude, 0 to 20.
        length_mm: wavelength along the paper, 60 or more; longer than the page means one slow curl.
        direction_deg: the direction along which the height changes; 0 is along the page's width.
        phase_deg: phase of the sine at the page's centre.
    """

    height_mm: float
    length_mm: float
    direction_deg: float = 0.0
    phase_deg: float = 0.0


@dataclass(frozen=True)
class Fold:
    """A crease: a straight ridge (or valley) whose flanks fall back to the table.

    Attributes:
        slope_deg: how steep the flanks are at the crease, -15 (valley) to 15 (ridge).
        direction_deg: the direction across the crease; 0 makes a vertical crease.
        offset_mm: where along that direction the crease lies, from the page's centre.
        reach_mm: how fast the flanks fall back: by a factor e in this distance, 15 to 200.
        radius_mm: how sharp the kink is, 1 to 10.
    """

    slope_deg: float
    direction_deg: float = 0.0
    offset_mm: float = 0.0
    reach_mm: float = 50.0
    radius_mm: float = 2.5


@dataclass(frozen=True)
class PhotoStyle:
    """How a page is photographed. The defaults change nothing: the photo is the page.

    Attributes:
        seed: 0 or more; makes the noise, the handwriting, the background and the place of shadow and glare.
        tilt_deg: angle between the camera's axis and the paper's normal, 0 to 30.
        toward_deg: direction on the page in which the camera leans, -360 to 360.
        rotation_deg: the page turned clockwise in the picture, -45 to 45.
        quarter_turns: further clockwise turns of 90 degrees, 0 to 3.
        distance: from the camera to the page's centre, in long sides of the page, 0.9 to 20.
        cover: 0: the whole page just fits the frame; 1: the frame lies just within the page, so that no
            corner is seen; between them the scale is interpolated (flat page). 0 to 1.
        zoom: further magnification, 0.5 to 2.
        shift: the page moved in the frame, in widths and heights of the frame, each -0.5 to 0.5.
        waves: smooth bending.
        folds: creases.
        worn: share of each crease along which the print has flaked off, 0 to 1.
        notes: handwritten words, ticks, rings and lines on the page, 0 to 20.
        background: a name in :data:`BACKGROUNDS`, seen where the page ends.
        light_deg: where the light comes from on the page, -360 to 360.
        raking: cotangent of the light's elevation, which makes bending visible; 0 (overhead) to 2.
        gradient: relative fall of the light across the frame, 0 to 0.8.
        shadow: how much light a shadow takes away, 0 to 0.85.
        shadow_kind: a name in :data:`SHADOWS`.
        shadow_soft: width of its edge in long sides of the frame, 0.005 to 0.3.
        glare: peak of a mirror-like highlight; from about 1 the print below it is lost. 0 to 2.
        glare_size: its radius in long sides of the frame, 0.02 to 0.4.
        exposure: factor on the light, 0.3 to 2.
        tint: white balance, a factor on each of red, green, blue, 0.5 to 1.5.
        haze: flare that lifts black, 0 to 0.3 of full scale.
        vignette: light lost in the frame's corners, 0 to 0.7.
        defocus_mm: radius of the blur disc, measured on the paper, 0 to 1.5.
        motion_mm: length of the blur by motion, measured on the paper, 0 to 2.
        motion_deg: its direction in the picture, -360 to 360.
        noise: standard deviation at mid-grey in full scales, 0 to 0.1.
        moire: contrast of the beat between a screen's pixels and the sensor's, 0 to 0.4.
        jpeg: quality of a real encoding, 10 to 100, or None for none.
    """

    seed: int = 0
    tilt_deg: float = 0.0
    toward_deg: float = 0.0
    rotation_deg: float = 0.0
    quarter_turns: int = 0
    distance: float = 1.5
    cover: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    waves: tuple[Wave, ...] = ()
    folds: tuple[Fold, ...] = ()
    worn: float = 0.0
    notes: int = 0
    background: str = "plain"
    light_deg: float = 0.0
    raking: float = 0.0
    gradient: float = 0.0
    shadow: float = 0.0
    shadow_kind: str = "edge"
    shadow_soft: float = 0.03
    glare: float = 0.0
    glare_size: float = 0.1
    exposure: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0
    vignette: float = 0.0
    defocus_mm: float = 0.0
    motion_mm: float = 0.0
    motion_deg: float = 0.0
    noise: float = 0.0
    moire: float = 0.0
    jpeg: int | None = None


# The ranges that the docstrings name, one entry for each number.
RANGES: Final[dict[str, tuple[float, float]]] = {
    "seed": (0, math.inf),
    "tilt_deg": (0, 30),
    "toward_deg": (-360, 360),
    "rotation_deg": (-45, 45),
    "quarter_turns": (0, 3),
    "distance": (0.9, 20),
    "cover": (0, 1),
    "zoom": (0.5, 2),
    "shift": (-0.5, 0.5),
    "worn": (0, 1),
    "notes": (0, 20),
    "light_deg": (-360, 360),
    "raking": (0, 2),
    "gradient": (0, 0.8),
    "shadow": (0, 0.85),
    "shadow_soft": (0.005, 0.3),
    "glare": (0, 2),
    "glare_size": (0.02, 0.4),
    "exposure": (0.3, 2),
    "tint": (0.5, 1.5),
    "haze": (0, 0.3),
    "vignette": (0, 0.7),
    "defocus_mm": (0, 1.5),
    "motion_mm": (0, 2),
    "motion_deg": (-360, 360),
    "noise": (0, 0.1),
    "moire": (0, 0.4),
    "jpeg": (10, 100),
    "height_mm": (0, 20),
    "length_mm": (60, math.inf),
    "direction_deg": (-360, 360),
    "phase_deg": (-360, 360),
    "slope_deg": (-15, 15),
    "offset_mm": (-1000, 1000),
    "reach_mm": (15, 200),
    "radius_mm": (1, 10),
}


_WHOLE: Final = {"seed", "quarter_turns", "notes", "jpeg"}


def slope_of(style: PhotoStyle) -> float:
    """Return a bound on the paper's slope (rise over run) anywhere on the page."""
    waves = sum(2 * math.pi * wave.height_mm / wave.length_mm for wave in style.waves)
    return waves + sum(abs(math.tan(math.radians(fold.slope_deg))) for fold in style.folds)


def check_style(style: PhotoStyle) -> None:
    """Refuse a style that lies outside its documented ranges.

    Raises:
        UnknownNameError: unknown background or kind of shadow.
        UserError: a number is out of its range, or the paper is bent more than :data:`MAX_SLOPE`.
    """
    if style.background not in BACKGROUNDS:
        raise UnknownNameError("background", style.background, BACKGROUNDS)
    if style.shadow_kind not in SHADOWS:
        raise UnknownNameError("kind of shadow", style.shadow_kind, SHADOWS)
    parts: tuple[PhotoStyle | Wave | Fold, ...] = (style, *style.waves, *style.folds)
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name not in RANGES or value is None:
                continue
            low, high = RANGES[field.name]
            for number in value if isinstance(value, tuple) else (value,):
                whole = field.name in _WHOLE
                if not low <= number <= high or (whole and not isinstance(number, (int, np.integer))):
                    raise UserError(
                        f"{type(part).__name__}.{field.name} is {number:g}; "
                        f"choose a {'whole ' * whole}number from {low:g} to {high:g}."
                    )
    if slope_of(style) > MAX_SLOPE:
        raise UserError(
            f"The paper is bent to a slope of {slope_of(style):.2f}, and a camera might not see all of it. "
            f"Choose lower waves and folds: together at most {MAX_SLOPE:g}."
        )


def draw_photo_style(rng: random.Random, severity: float = 1.0) -> PhotoStyle:
    """Draw how a page is photographed.

    Args:
        rng: the only source of chance.
        severity: 0 photographs the page without any change, 1 as people do, 2 as badly as is still legible.

    Returns:
        A style within the documented ranges; it never turns the page by 90 degrees (use
        ``dataclasses.replace(style, quarter_turns=...)`` for that).

    Raises:
        UserError: ``severity`` is not from 0 to 2.
    """
    if not 0 <= severity <= 2:
        raise UserError(f"The severity is {severity:g}; choose a value from 0 to 2.")

    def often(p: float) -> bool:
        return rng.random() < p * severity

    def up_to(most: float) -> float:
        return min(severity, 1.5) * rng.uniform(0, most)

    seed = rng.getrandbits(32)
    if severity == 0:
        return PhotoStyle(seed=seed)
    waves, folds = _draw_relief(rng, severity)
    turned = often(0.2)  # carelessly held; otherwise within a few degrees
    rotation = (rng.uniform(-15, 15) if turned else rng.gauss(0, 1.5)) * min(severity, 1.5)
    rotation = max(-15.0, min(15.0, rotation))
    # Of 38 photos 6 show a corner of the page; those that miss the whole page still show one by accident.
    whole = rng.random() < 0.06
    return PhotoStyle(
        seed=seed,
        tilt_deg=min(25.0, abs(rng.gauss(0, 11)) * severity),
        toward_deg=rng.uniform(-180, 180),
        rotation_deg=rotation,
        distance=rng.uniform(1.0, 1.9),
        # Who fills the frame with a turned page would cut its leads off.
        cover=0.0 if whole else rng.uniform(0.72, 0.98) * (1 - abs(rotation) / 25),
        zoom=rng.uniform(0.75, 1.0) if whole else rng.uniform(0.98, 1.03),
        shift=(rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)),
        waves=waves,
        folds=folds,
        worn=rng.uniform(0, 0.5),
        notes=rng.randint(1, 6) if often(0.25) else 0,
        background=rng.choice(BACKGROUNDS),
        light_deg=rng.uniform(-180, 180),
        raking=up_to(1.2),
        gradient=up_to(0.35),
        shadow=up_to(0.55) if often(0.35) else 0.0,
        shadow_kind=rng.choice(SHADOWS),
        shadow_soft=0.01 * 12 ** rng.random(),
        glare=up_to(1.3) if often(0.12) else 0.0,
        glare_size=rng.uniform(0.03, 0.2),
        exposure=rng.uniform(1 - 0.3 * min(severity, 1.5), 1.1),
        tint=(rng.uniform(0.9, 1.08), rng.uniform(0.95, 1.03), rng.uniform(0.78, 1.08)),
        haze=up_to(0.08),
        vignette=up_to(0.3),
        defocus_mm=up_to(0.3) if often(0.35) else up_to(0.08),
        motion_mm=up_to(0.5) if often(0.15) else 0.0,
        motion_deg=rng.uniform(-180, 180),
        noise=up_to(0.03),
        moire=up_to(0.12) if often(0.06) else 0.0,
        jpeg=rng.randint(max(20, round(85 - 45 * severity)), 95) if often(0.85) else None,
    )


def _draw_relief(rng: random.Random, severity: float) -> tuple[tuple[Wave, ...], tuple[Fold, ...]]:
    """Draw bending whose residual under the best homography resembles that of real photos."""
    strength = min(severity, 1.5)
    waves = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        length = rng.uniform(140, 600)
        steep = min(0.15, rng.lognormvariate(math.log(0.075), 0.45) * strength)
        direction, phase = rng.uniform(-90, 90), rng.uniform(-180, 180)
        waves.append(Wave(min(20.0, steep * length / (2 * math.pi)), length, direction, phase))
    folds = []
    if rng.random() < 0.3 * severity:
        across = rng.choice((0.0, 90.0))  # sheets are folded parallel to their sides
        for _ in range(rng.choice((1, 1, 2))):
            slope, turn = rng.uniform(-2.5, 2.5) * strength, rng.gauss(0, 2)
            at, reach = rng.uniform(-90, 90), rng.uniform(25, 80)
            folds.append(Fold(slope, across + turn, at, reach, rng.uniform(2, 4)))
    # What is drawn too steep together is flattened as a whole.
    steepest = slope_of(PhotoStyle(waves=tuple(waves), folds=tuple(folds)))
    flatter = 0.95 * MAX_SLOPE / max(steepest, 0.95 * MAX_SLOPE)
    waves = [replace(wave, height_mm=wave.height_mm * flatter) for wave in waves]
    folds = [replace(fold, slope_deg=fold.slope_deg * flatter) for fold in folds]
    return tuple(waves), tuple(folds)
