"""Pull a nearly right mesh onto the printed lines.

The picture is unrolled through the mesh. Around each node the line pattern of one 5 mm period is measured
as Fourier coefficients (the 1 mm lines are its fifth harmonic) and compared, at every shift within 2.5 mm,
with what a grid looks like; neighbouring nodes vote together. What the shifts have in common is taken over:
a smooth field, from which nodes that disagree with their neighbours are left out, so that a fold bends the
mesh but no node slips to the next line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.field import continued, smooth_field
from pulse_edge.runtimes.capture.lines import (
    GRID,
    MINOR,
    SHIFTS,
    best_shift,
    correlate,
    global_shift,
    learn,
    measure,
    repeats,
    vote,
)
from pulse_edge.runtimes.capture.mesh import STEP_MM, sample

Floats = NDArray[np.float64]

_NO_MAJOR: Final = 0.9  # see repeats; then no line can be told from the next, and none is passed


@dataclass(frozen=True)
class Pass:
    """One round of refinement. Lengths in millimetres.

    Attributes:
        window: length of the Hann window around each node.
        vote: standard deviation, in nodes, of the neighbourhood that votes together.
        reach: largest shift that is believed.
        stiffness: of the smooth field; larger bends less.
    """

    window: float
    vote: float
    reach: float
    stiffness: float


FIRST: Final = (Pass(25.0, 2.5, 2.3, 300.0), Pass(20.0, 1.5, 1.5, 30.0))
GROWING: Final = Pass(12.0, 0.7, 1.4, 3.0)
LAST: Final = (Pass(12.0, 0.8, 0.8, 2.0), Pass(10.0, 0.6, 0.5, 0.5))
_ROUNDS: Final = 14  # of growing, at most
_WIDER: Final = 5  # nodes beyond the first mesh, at most
_TRIES: Final = 5  # rounds in which a node may fail
_STRONG: Final = 0.55  # correlation from which a node is held
_COMING: Final = 0.45  # and from which it is taken in beside nodes that are held
_IRREGULAR: Final = 1 / 6  # of a step between nodes: 0.8 mm; the next thin line is 1 mm away
_ASTRAY_MM: Final = 0.8  # from where the rest of the mesh goes on
_ASTRAY_GROWS: Final = 0.3  # more for each node between
_WEAK: Final = 0.3  # correlation from which a node says where it is, if those around it agree
_DOUBT: Final = 0.15  # correlation by which a line 1 mm from where it is expected must be clearer


@dataclass(frozen=True)
class Lattice:
    """A refined mesh and the evidence for it.

    Attributes:
        mesh: float64 [rows, columns, 2].
        strength: float64 [rows, columns], correlation of the lines around each node with a grid, 0 to 1.
        residual_mm: root mean square of what single nodes are off the mesh.
        major: how much more the 5 mm lines stand out than by the 1 mm lines alone; 0 where there are none.
    """

    mesh: Floats
    strength: Floats
    residual_mm: float
    major: float


def refine(signal: NDArray[np.float32], mesh: Floats) -> Lattice:
    """Refine a mesh against a picture's line signal, float32 [H, W]."""
    work = _Work(signal, mesh)
    seen = measure(signal, mesh, 25.0)
    for family, coefficients in enumerate(seen):
        if repeats(correlate(coefficients, GRID)) > _NO_MAJOR:
            work.shape[family, ~MINOR] = 0
            work.reach[family] = 0.5
    work.template *= work.shape
    shift = [global_shift(c, t) for c, t in zip(seen, work.template, strict=True)]
    work.mesh = _moved(mesh, np.broadcast_to(np.array(shift), mesh.shape))
    for turn in FIRST:
        work.run(turn)
    work.grow()
    for turn in LAST:
        work.run(turn)
    work.drop()
    weight = work.strength**2 + 1e-9
    spread = float(np.sqrt((weight * (work.residual**2).sum(0)).sum() / weight.sum()))
    others = np.delete(work.template, [4, 9], axis=1)[:, :8].mean()
    return Lattice(work.mesh, work.strength, spread, float(others))


class _Work:
    """A mesh under way."""

    def __init__(self, signal: NDArray[np.float32], mesh: Floats) -> None:
        self.signal, self.mesh = signal, mesh
        self.template = np.tile(GRID, (2, 1))
        self.shape = np.ones_like(self.template)  # 0 for harmonics that this grid lacks
        self.reach = [STEP_MM / 2, STEP_MM / 2]
        self.strength = np.zeros(mesh.shape[:2])
        self.residual = np.zeros((2, *mesh.shape[:2]))

    def run(self, turn: Pass) -> None:
        """Measure and move once."""
        field, sure = np.zeros_like(self.mesh), np.zeros((2, *self.strength.shape))
        for family, coefficients in enumerate(measure(self.signal, self.mesh, turn.window)):
            voted = vote(correlate(coefficients, self.template[family]), turn.vote)
            found, sure[family] = best_shift(voted, min(turn.reach, self.reach[family]))
            field[..., family], self.residual[family] = smooth_field(found, sure[family], turn.stiffness)
            learnt = learn(coefficients, field[..., family], sure[family])
            self.template[family] = learnt * self.shape[family]
        self.mesh = _moved(self.mesh, field)
        self.strength = np.sqrt(sure[0] * sure[1])

    def grow(self) -> None:
        """Go on from the nodes that are right to their neighbours, as long as more come in."""
        self.widen()
        held = self.held() & self.inside()
        tries = np.zeros(held.shape, np.intp)  # table and fingers are not asked for ever
        for turn in range(_ROUNDS):
            inside = self.inside()
            front = cv2.dilate(held.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & inside & ~held
            front &= tries < _TRIES
            tries += front
            if held.sum() < 12 or front.sum() < 0.005 * inside.sum():
                return
            self.mesh = np.where(held[..., None], self.mesh, continued(self.mesh, held))
            shift, sure = self.look(GROWING)
            calm = np.stack([cv2.medianBlur(s.astype(np.float32), 3) for s in np.moveaxis(shift, -1, 0)], -1)
            good = (sure.min(0) > _COMING) & (np.abs(shift - calm).max(-1) < 0.3) & (held | front)
            self.mesh = np.where(good[..., None], _moved(self.mesh, shift), self.mesh)
            self.strength = np.sqrt(sure[0] * sure[1])
            self.residual = np.moveaxis(shift - calm, -1, 0)
            more = linked(self.mesh, good)
            # The first round above all puts the nodes that are held into place.
            if turn and more.sum() < held.sum() + 2:
                return
            held = more

    def drop(self) -> None:
        """Say of nodes that see a grid where the rest of the mesh does not lead to that they see none."""
        held = linked(self.mesh, self.strength > _WEAK)
        if held.sum() < 12:
            return
        expected = continued(self.mesh, held)
        scale = float(np.median(np.hypot(*np.moveaxis(np.diff(self.mesh, axis=1), -1, 0)))) / STEP_MM
        off = np.hypot(*np.moveaxis(self.mesh - expected, -1, 0)) / scale
        away = cv2.distanceTransform((~held).astype(np.uint8), cv2.DIST_L2, 3)  # in nodes
        lost = (self.strength > _WEAK) & ~held & (off > _ASTRAY_MM + _ASTRAY_GROWS * away)
        self.strength = np.where(lost, 0.0, self.strength)

    def widen(self) -> None:
        """Add nodes around the mesh, where the picture goes on beyond it."""
        rows, columns = self.mesh.shape[:2]
        at = [np.arange(-_WIDER, n + _WIDER, dtype=np.float64) for n in (rows, columns)]
        wide = sample(self.mesh, *np.meshgrid(at[1], at[0]))
        half = np.array(self.signal.shape[::-1]) / 2
        inside = (np.abs(wide - half) < half).all(-1)
        cut = []
        for axis, n in enumerate((rows, columns)):
            lines = np.flatnonzero(np.any(inside, axis=1 - axis))
            low, high = (int(lines[0]), int(lines[-1])) if len(lines) else (_WIDER, _WIDER + n - 1)
            cut.append((min(low, _WIDER), max(high, _WIDER + n - 1) + 1))
        (top, bottom), (left, right) = cut
        self.mesh = wide[top:bottom, left:right]
        sides = ((_WIDER - top, bottom - rows - _WIDER), (_WIDER - left, right - columns - _WIDER))
        self.strength = np.pad(self.strength, sides)
        self.residual = np.pad(self.residual, ((0, 0), *sides))

    def look(self, turn: Pass) -> tuple[Floats, Floats]:
        """Measure without moving: shifts [rows, columns, 2] and how sure each is [2, rows, columns].

        Among noise or traces one line looks like the next, so the farther the less likely.
        """
        found = []
        for family, coefficients in enumerate(measure(self.signal, self.mesh, turn.window)):
            voted = vote(correlate(coefficients, self.template[family]), turn.vote)
            shift, sure = best_shift(voted - _DOUBT * SHIFTS**2, min(turn.reach, self.reach[family]))
            found.append((shift, np.where(sure > 0, sure + _DOUBT * shift**2, 0)))
        return np.stack([shift for shift, _ in found], axis=-1), np.stack([sure for _, sure in found])

    def inside(self) -> NDArray[np.bool_]:
        """Nodes that the picture shows."""
        height, width = self.signal.shape
        x, y = self.mesh[..., 0], self.mesh[..., 1]
        return np.asarray((x > 0) & (x < width - 1) & (y > 0) & (y < height - 1))

    def held(self) -> NDArray[np.bool_]:
        """Nodes that see the grid where they expect it."""
        return linked(self.mesh, (self.strength > _STRONG) & (np.abs(self.residual).max(0) < 0.4))


def linked(mesh: Floats, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of the good nodes, [rows, columns], that hangs together by regular steps.

    A step that differs by a sixth from those around it passes over a line, or goes to a trace: paper, bent or
    folded, does not stretch or shear from one square to the next.
    """
    rows, columns = good.shape
    joined = np.zeros((2 * rows - 1, 2 * columns - 1), np.uint8)  # nodes, and steps between them
    joined[::2, ::2] = good
    joined[::2, 1::2] = good[:, 1:] & good[:, :-1] & _regular(np.diff(mesh, axis=1))
    joined[1::2, ::2] = good[1:] & good[:-1] & _regular(np.diff(mesh, axis=0))
    _, label = cv2.connectedComponents(joined, connectivity=4)
    label = label[::2, ::2]
    size = np.bincount(label.ravel(), good.ravel())
    return np.asarray(good & (label == int(size.argmax())))


def _regular(steps: Floats) -> NDArray[np.bool_]:
    """Whether each step, [rows, columns, 2], leads about as far and the same way as those around it."""
    if not steps.size:
        return np.ones(steps.shape[:2], np.bool_)
    usual = np.stack([cv2.medianBlur(part, 5) for part in cv2.split(steps.astype(np.float32))], axis=-1)
    off, length = (np.hypot(way[..., 0], way[..., 1]) for way in (steps - usual, usual))
    return np.asarray(off < _IRREGULAR * length)


def _moved(mesh: Floats, shift_mm: Floats) -> Floats:
    """Take the lines to where they were seen: node (r, c) moves to what stood ``shift_mm`` further on."""
    rows, columns = np.indices(mesh.shape[:2], dtype=np.float64)
    return sample(mesh, columns + shift_mm[..., 0] / STEP_MM, rows + shift_mm[..., 1] / STEP_MM)
