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
import scipy.fft
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.mesh import STEP_MM, sample, unroll

Floats = NDArray[np.float64]

PX_PER_MM: Final = 4.8  # of the unrolled picture
_HARMONICS: Final = 12
# What a grid is before it has been seen: 5 mm lines a little darker than the 1 mm lines.
_GRID: Final = np.array([0.4, 0.4, 0.4, 0.4, 1.0, 0.2, 0.2, 0.2, 0.2, 0.5, 0.1, 0.1])
_SHIFTS: Final = np.arange(-25, 25) * 0.1  # millimetres
_PER_MM: Final = 10  # shifts
_MINOR: Final = np.arange(1, _HARMONICS + 1) % 5 == 0  # the harmonics of the 1 mm lines alone
_NO_MAJOR: Final = 0.9  # see _repeats; then no line can be told from the next, and none is passed
_WAVE: Final = np.exp(2j * np.pi / STEP_MM * np.arange(1, _HARMONICS + 1)[:, None] * _SHIFTS)


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
_DECAY: Final = 2.0  # nodes over which a neighbour's say falls by a factor e


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
    seen = _measure(signal, mesh, 25.0)
    for family, coefficients in enumerate(seen):
        if _repeats(_score(coefficients, _GRID)) > _NO_MAJOR:
            work.shape[family, ~_MINOR] = 0
            work.reach[family] = 0.5
    work.template *= work.shape
    shift = [_global_shift(c, t) for c, t in zip(seen, work.template, strict=True)]
    work.mesh = _moved(mesh, np.broadcast_to(np.array(shift), mesh.shape))
    for turn in FIRST:
        work.run(turn)
    work.grow()
    for turn in LAST:
        work.run(turn)
    weight = work.strength**2 + 1e-9
    spread = float(np.sqrt((weight * (work.residual**2).sum(0)).sum() / weight.sum()))
    others = np.delete(work.template, [4, 9], axis=1)[:, :8].mean()
    return Lattice(work.mesh, work.strength, spread, float(others))


class _Work:
    """A mesh under way."""

    def __init__(self, signal: NDArray[np.float32], mesh: Floats) -> None:
        self.signal, self.mesh = signal, mesh
        self.template = np.tile(_GRID, (2, 1))
        self.shape = np.ones_like(self.template)  # 0 for harmonics that this grid lacks
        self.reach = [STEP_MM / 2, STEP_MM / 2]
        self.strength = np.zeros(mesh.shape[:2])
        self.residual = np.zeros((2, *mesh.shape[:2]))

    def run(self, turn: Pass) -> None:
        """Measure and move once."""
        field, sure = np.zeros_like(self.mesh), np.zeros((2, *self.strength.shape))
        for family, coefficients in enumerate(_measure(self.signal, self.mesh, turn.window)):
            voted = _vote(_score(coefficients, self.template[family]), turn.vote)
            found, sure[family] = _best(voted, min(turn.reach, self.reach[family]))
            field[..., family], self.residual[family] = smooth_field(found, sure[family], turn.stiffness)
            learnt = _learn(coefficients, field[..., family], sure[family])
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
            more = _largest(good)
            # The first round above all puts the nodes that are held into place.
            if turn and more.sum() < held.sum() + 2:
                return
            held = more

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
        """Measure without moving: shifts [rows, columns, 2] and how sure each is [2, rows, columns]."""
        found = []
        for family, coefficients in enumerate(_measure(self.signal, self.mesh, turn.window)):
            voted = _vote(_score(coefficients, self.template[family]), turn.vote)
            found.append(_best(voted, min(turn.reach, self.reach[family])))
        return np.stack([shift for shift, _ in found], axis=-1), np.stack([sure for _, sure in found])

    def inside(self) -> NDArray[np.bool_]:
        """Nodes that the picture shows."""
        height, width = self.signal.shape
        x, y = self.mesh[..., 0], self.mesh[..., 1]
        return np.asarray((x > 0) & (x < width - 1) & (y > 0) & (y < height - 1))

    def held(self) -> NDArray[np.bool_]:
        """Nodes that see the grid where they expect it."""
        return _largest((self.strength > _STRONG) & (np.abs(self.residual).max(0) < 0.4))


def _largest(good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part."""
    count, label, stats, _ = cv2.connectedComponentsWithStats(good.astype(np.uint8), connectivity=4)
    if count < 2:
        return good
    return np.asarray(label == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def continued(mesh: Floats, held: NDArray[np.bool_]) -> Floats:
    """Continue a mesh beyond the nodes that are held.

    What the best homography leaves is continued as a plane through the nearest held nodes of each.

    Args:
        mesh: float64 [rows, columns, 2].
        held: bool [rows, columns], at least three that are not in line.

    Returns:
        float64 [rows, columns, 2].
    """
    rows, columns = held.shape
    r, c = np.indices((rows, columns), dtype=np.float64)
    index = np.stack([c, r], axis=-1)
    homography = np.asarray(cv2.findHomography(index[held], mesh[held], 0)[0], np.float64)
    # cv2 gives no matrix for nodes in line.
    flat = cv2.perspectiveTransform(index, homography) if homography.ndim == 2 else np.zeros_like(mesh)
    mesh = mesh - flat
    near = [np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / _DECAY) for n in (rows, columns)]
    basis = np.stack([np.ones_like(r), r, c])
    moments = np.stack(
        [held * a * b for a in basis for b in basis]
        + [held * a * mesh[..., k] for a in basis for k in range(2)]
    )
    total = near[0] @ moments @ near[1].T
    normal = np.moveaxis(total[:9].reshape(3, 3, rows, columns), (0, 1), (2, 3))
    right = np.moveaxis(total[9:].reshape(3, 2, rows, columns), (0, 1), (2, 3))
    # In coordinates around each node the numbers are tame and its value is the first unknown.
    shift = np.zeros((rows, columns, 3, 3))
    shift[..., range(3), range(3)] = 1
    shift[..., 1, 0], shift[..., 2, 0] = -r, -c
    normal = shift @ normal @ np.swapaxes(shift, -1, -2)
    right = shift @ right
    scale = normal[..., 0, 0][..., None, None]
    solved = np.linalg.solve(normal / scale + np.diag([0, 1e-6, 1e-6]), right / scale)
    return np.asarray(flat + solved[..., 0, :])


def _measure(signal: NDArray[np.float32], mesh: Floats, window_mm: float) -> list[NDArray[np.complex128]]:
    """Fourier coefficients of the lines around each node, for both families: complex [rows, columns, K]."""
    flat = np.asarray(unroll(signal, mesh, PX_PER_MM), np.float32)
    rows, columns = mesh.shape[:2]
    step = round(STEP_MM * PX_PER_MM)
    half = round(window_mm * PX_PER_MM / 2)
    at = np.arange(-half, half) + 0.5
    hann = np.cos(np.pi * at / (2 * half)) ** 2
    turn = np.exp(-2j * np.pi / step * at[:, None] * np.arange(1, _HARMONICS + 1))
    kernel = (hann[:, None] * turn).astype(np.complex64)
    padded = np.pad(flat, half)
    out = []
    for picture, along, beside in ((padded, columns, rows), (padded.T, rows, columns)):
        across = np.stack(
            [hann.astype(np.float32) @ picture[k * step : k * step + 2 * half] for k in range(beside)]
        )
        windows = np.lib.stride_tricks.sliding_window_view(across, 2 * half, axis=1)[:, ::step][:, :along]
        found = windows @ kernel.real + 1j * (windows @ kernel.imag)
        out.append(found.astype(np.complex128))
    return [out[0], out[1].transpose(1, 0, 2)]


def _score(coefficients: NDArray[np.complex128], template: Floats) -> Floats:
    """Correlation of each node's lines with the template at every shift: float64 [rows, columns, S]."""
    size = np.sqrt((np.abs(coefficients) ** 2).sum(-1, keepdims=True)) + 1e-9
    size = np.maximum(size, 0.3 * np.median(size))
    weighted = coefficients * (template / np.linalg.norm(template)) / size
    return np.asarray(weighted.real @ _WAVE.real - weighted.imag @ _WAVE.imag)


def _repeats(score: Floats) -> float:
    """How high a node's score still is 1 mm beside its best: near 1 where all lines are alike."""
    best = score.max(-1)
    at = score.argmax(-1)[..., None] + np.array([-_PER_MM, _PER_MM])
    beside = np.take_along_axis(score, at % score.shape[-1], -1).max(-1)
    weight = best.clip(0, None) ** 2
    return float((weight * beside / np.maximum(best, 1e-9)).sum() / max(float(weight.sum()), 1e-9))


def _global_shift(coefficients: NDArray[np.complex128], template: Floats) -> float:
    """The shift of the whole mesh that puts its nodes on 5 mm lines."""
    return float(_SHIFTS[_score(coefficients, template).sum((0, 1)).argmax()])


def _vote(score: Floats, sigma: float) -> Floats:
    """Average scores over neighbouring nodes."""
    for axis in range(2):
        at = np.arange(score.shape[axis])
        weight = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
        weight /= weight.sum(1, keepdims=True)
        score = np.moveaxis(np.tensordot(weight, score, axes=(1, axis)), 0, axis)
    return score


def _best(score: Floats, reach: float) -> tuple[Floats, Floats]:
    """The shift of the highest score within reach, interpolated, and that score: [rows, columns] each."""
    allowed = np.flatnonzero(np.abs(_SHIFTS) <= reach)
    inner = score[..., allowed]
    k = inner.argmax(-1)
    edge = (k == 0) | (k == len(allowed) - 1)
    k = np.clip(k, 1, len(allowed) - 2)
    before, here, after = (np.take_along_axis(inner, (k + d)[..., None], -1)[..., 0] for d in (-1, 0, 1))
    bend = before - 2 * here + after
    vertex = np.where(bend < 0, (before - after) / (2 * np.where(bend < 0, bend, 1)), 0).clip(-0.5, 0.5)
    shift = _SHIFTS[allowed][k] + vertex * (_SHIFTS[1] - _SHIFTS[0])
    return shift, np.where(edge, 0, here.clip(0, 1))


def smooth_field(values: Floats, weight: Floats, stiffness: float) -> tuple[Floats, Floats]:
    """Fit a smooth field to values of which some are wrong.

    Penalised least squares on a grid, solved by cosine transforms and reweighted by how far each value is off
    (Garcia, Computational Statistics & Data Analysis 2010).

    Args:
        values: float64 [rows, columns].
        weight: float64 [rows, columns], 0 or more.
        stiffness: factor on the squared Laplacian.

    Returns:
        The field and the residual of each value, float64 [rows, columns] each.
    """
    rows, columns = values.shape
    bend = (2 - 2 * np.cos(np.pi * np.arange(rows) / rows))[:, None] + (
        2 - 2 * np.cos(np.pi * np.arange(columns) / columns)
    )
    filtering = 1 / (1 + stiffness * bend**2)
    base = (weight / max(float(weight.max()), 1e-9)) ** 2
    field = np.full_like(values, float(np.median(values[weight >= np.median(weight)])))
    kept = base
    for turn in range(4):
        for _ in range(6 if turn else 12):
            mixed = kept * (values - field) + field
            field = scipy.fft.idctn(filtering * scipy.fft.dctn(mixed, norm="ortho"), norm="ortho")
        off = values - field
        typical = 1.4826 * float(np.median(np.abs(off[base > 0.1]))) if bool((base > 0.1).any()) else 0.1
        limit = 4.685 * max(typical, 0.02)
        kept = base * np.clip(1 - (off / limit) ** 2, 0, None) ** 2
    return field, off


def _moved(mesh: Floats, shift_mm: Floats) -> Floats:
    """Take the lines to where they were seen: node (r, c) moves to what stood ``shift_mm`` further on."""
    rows, columns = np.indices(mesh.shape[:2], dtype=np.float64)
    return sample(mesh, columns + shift_mm[..., 0] / STEP_MM, rows + shift_mm[..., 1] / STEP_MM)


def _learn(coefficients: NDArray[np.complex128], shift: Floats, sure: Floats) -> Floats:
    """What this grid looks like: mean coefficients of the sure nodes, moved into place."""
    order = np.arange(1, _HARMONICS + 1)
    placed = coefficients * np.exp(2j * np.pi / STEP_MM * shift[..., None] * order)
    size = np.sqrt((np.abs(placed) ** 2).sum(-1, keepdims=True)) + 1e-9
    mean = ((placed / size).real * sure[..., None] ** 2).sum((0, 1)).clip(0, None)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9) + 0.02)
