"""What a simulated heart is like, and how one is drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final, Literal

from pulse_edge.ecg.dipole import Vector
from pulse_edge.ecg.rhythm import Block, Ectopy, Rhythm
from pulse_edge.errors import UnknownNameError, UserError

Bundle = Literal["none", "lbbb", "rbbb", "lafb"]
Chamber = Literal["none", "lvh", "rvh"]
# Where the injured wall lies, as a direction of the dipole; ST elevation points to it.
TERRITORIES: Final[dict[str, Vector]] = {
    "anterior": (0.35, 0.0, -0.94),
    "lateral": (0.92, -0.38, 0.10),
    "inferior": (-0.20, 0.97, 0.15),
}
BUNDLES: Final = ("none", "lbbb", "rbbb", "lafb")
CHAMBERS: Final = ("none", "lvh", "rvh")


@dataclass(frozen=True)
class Heart:
    """What is simulated.

    Attributes:
        rate_bpm: of the ventricles (of the atria in second and third degree block), 30 to 220.
        pr_ms: onset of P to onset of QRS.
        qrs_ms: duration of a conducted QRS complex, 60 to 200.
        qtc_ms: QT interval at 60 bpm; others follow by Bazett's formula.
        axis_deg: frontal QRS axis, -180 to 180.
        rhythm: sinus, afib, flutter or paced.
        block: none, first, mobitz1, mobitz2 or third.
        ectopy: none, pvc or pac.
        bundle: none, lbbb, rbbb or lafb.
        chamber: none, lvh or rvh.
        st_mv: by territory, elevation (positive) or depression of the ST segment.
        gain: scales all voltages.
        noise_mv: standard deviation of muscle noise.
        wander_mv: amplitude of the baseline's wander.
    """

    rate_bpm: float = 72.0
    pr_ms: float = 160.0
    qrs_ms: float = 92.0
    qtc_ms: float = 410.0
    axis_deg: float = 45.0
    rhythm: Rhythm = "sinus"
    block: Block = "none"
    ectopy: Ectopy = "none"
    bundle: Bundle = "none"
    chamber: Chamber = "none"
    st_mv: dict[str, float] = field(default_factory=dict)
    gain: float = 1.0
    noise_mv: float = 0.0
    wander_mv: float = 0.0


def draw_heart(rng: random.Random) -> Heart:
    """Draw a heart: about a third normal, the others with one or two findings."""
    normal = Heart(
        rate_bpm=rng.uniform(52, 105), pr_ms=rng.uniform(125, 195), qrs_ms=rng.uniform(76, 106),
        qtc_ms=rng.uniform(375, 445), axis_deg=rng.uniform(-20, 85), gain=rng.uniform(0.7, 1.3),
        noise_mv=rng.uniform(0, 0.02), wander_mv=rng.uniform(0, 0.1),
    )  # fmt: skip
    changes: dict[str, object] = {}
    if rng.random() < 0.66:
        for _ in range(rng.choice((1, 1, 2))):
            changes |= rng.choice(_FINDINGS)(rng)
    if changes.get("rhythm", "sinus") != "sinus":
        changes.pop("block", None)
        changes["ectopy"] = "none"
    if changes.get("rhythm") == "paced":
        changes |= {"bundle": "none", "chamber": "none", "st_mv": {}}
    if changes.get("block") == "third":
        changes |= {"ectopy": "none"}
    return Heart(**{**vars(normal), **changes})


def _bundle(rng: random.Random) -> dict[str, object]:
    name = rng.choice(("lbbb", "rbbb", "lafb"))
    wide = {"qrs_ms": rng.uniform(124, 165)} if name != "lafb" else {"axis_deg": rng.uniform(-75, -46)}
    return {"bundle": name, **wide}


def _delay(rng: random.Random) -> dict[str, object]:
    block = rng.choice(("first", "first", "mobitz1", "mobitz2", "third"))
    return {"block": block, "pr_ms": rng.uniform(215, 300)} if block == "first" else {"block": block}


def _chamber(rng: random.Random) -> dict[str, object]:
    if rng.random() < 0.7:
        return {"chamber": "lvh", "gain": rng.uniform(1.1, 1.5)}
    return {"chamber": "rvh", "axis_deg": rng.uniform(95, 140)}


_FINDINGS: Final = (
    lambda rng: {"rhythm": "afib", "rate_bpm": rng.uniform(55, 150)},
    lambda rng: {"rhythm": "flutter", "rate_bpm": rng.choice((75.0, 100.0, 150.0))},
    lambda rng: {"rhythm": "paced", "rate_bpm": rng.uniform(58, 90)},
    lambda rng: {"rate_bpm": rng.choice((rng.uniform(35, 50), rng.uniform(105, 160)))},
    lambda rng: {"ectopy": rng.choice(("pvc", "pac"))},
    lambda rng: {"st_mv": {rng.choice(tuple(TERRITORIES)): rng.choice((-1, 1)) * rng.uniform(0.12, 0.35)}},
    _bundle, _bundle, _delay, _chamber,
)  # fmt: skip


def check(heart: Heart) -> None:
    """Refuse a heart that cannot be.

    Raises:
        UserError: a value is out of range, or a block is asked for that the rhythm cannot have.
    """
    for name, value, known in (
        ("rhythm", heart.rhythm, ("sinus", "afib", "flutter", "paced")),
        ("block", heart.block, ("none", "first", "mobitz1", "mobitz2", "third")),
        ("ectopy", heart.ectopy, ("none", "pvc", "pac")),
        ("bundle", heart.bundle, BUNDLES),
        ("chamber", heart.chamber, CHAMBERS),
        *(("territory", territory, TERRITORIES) for territory in heart.st_mv),
    ):
        if value not in known:
            raise UnknownNameError(name, value, known)
    for name, number, low, high in (
        ("rate_bpm", heart.rate_bpm, 30, 220), ("pr_ms", heart.pr_ms, 100, 400),
        ("qrs_ms", heart.qrs_ms, 60, 200), ("qtc_ms", heart.qtc_ms, 300, 600),
        ("axis_deg", heart.axis_deg, -180, 180),
    ):  # fmt: skip
        if not low <= number <= high:
            raise UserError(f"{name} is {number:g}; choose a value from {low} to {high}.")
    if heart.rhythm != "sinus" and heart.block != "none":
        raise UserError(f"A {heart.block} AV block needs P waves, but the rhythm is {heart.rhythm}.")
