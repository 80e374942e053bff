"""A picture of a paper ECG becomes a flat, upright, evenly lit page of fixed scale.

Steps: the contrast of thin lines; the grid's frequency, first over the whole picture, then everywhere;
a smooth map from pixels to millimetres; the mesh of 5 mm nodes pulled onto the printed lines; which way up;
one resampling through the mesh; division by the light. A picture without a grid takes the outline of the
page instead. Nothing is learnt but the orientation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import ImageError
from pulse_edge.runtimes.capture.contrast import line_signal, reduce
from pulse_edge.runtimes.capture.frequency import find_seeds, spectra
from pulse_edge.runtimes.capture.lattice import Lattice, refine
from pulse_edge.runtimes.capture.light import even_light
from pulse_edge.runtimes.capture.mesh import STEP_MM, sample, unroll
from pulse_edge.runtimes.capture.orientation import quarter_turns
from pulse_edge.runtimes.capture.phase import fit_phase
from pulse_edge.runtimes.capture.quad import quad_mesh
from pulse_edge.runtimes.capture.start import first_mesh

Floats = NDArray[np.float64]

PX_PER_MM: Final = 6.0  # of the page that comes back
SEEN: Final = 0.5  # strength from which the grid counts as seen at a node
_LEAST_SEED: Final = 8.0  # score of the global search below which there is no grid
_TRIED: Final = 5  # seeds
_REACH: Final = 4.0  # nodes to each side over which the scale is taken
_PLAIN: Final = 0.6  # share of the mesh at which the grid is seen that ends the search
_ALIKE: Final = 0.2  # what an area counts in which all lines are alike
_LEAST_NODES: Final = 40  # nodes at which the grid must be seen: 1,000 mm²


@dataclass(frozen=True)
class Rectified:
    """A flat page and how it was found.

    Attributes:
        page: uint8 [h, w, 3], RGB, upright, paper near white. Its pixel ``i`` is centred
            ``(i + 0.5) / page_px_per_mm`` mm from the mesh's first node.
        page_px_per_mm: its scale, the same both ways.
        mesh: float64 [rows, columns, 4]: ``x_px, y_px, x_mm, y_mm`` of nodes 5 mm apart, from pixels of the
            picture to paper millimetres (x right, y down on the upright page; lines of 5 mm at multiples of
            5). It covers the grid; outer nodes may lie outside of the picture.
        strength: float32 [rows, columns], how well the grid is seen around each node, 0 to 1: about 0.9 on
            clean paper, below 0.5 where there is none (glare, fingers, table). Zeros without a grid.
        px_per_mm: pixels of the picture for each millimetre along the paper's x and y, within 20 mm of the
            picture's centre (or of the mesh's node nearest to it).
        rotation: clockwise angle by which the page is turned in the picture, degrees, 0 to 360.
        residual_mm: root mean square of what single nodes are off the smooth mesh.
        grid_found: False if the page's outline was used instead; the millimetres are then a guess.
        orientation_sure: how sure the quarter turn is, 0.25 to 1.
        major: how clearly the 5 mm lines stand out from the 1 mm lines; near 0 where they do not.
        seed: score of the global search for a grid.
        timing_ms: milliseconds of each step.
    """

    page: NDArray[np.uint8]
    page_px_per_mm: float
    mesh: Floats
    strength: NDArray[np.float32]
    px_per_mm: tuple[float, float]
    rotation: float
    residual_mm: float
    grid_found: bool
    orientation_sure: float
    major: float
    seed: float
    timing_ms: dict[str, float] = field(default_factory=dict)


class _Clock:
    """Times steps."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.steps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.steps[name] = round(self.steps.get(name, 0.0) + 1000 * (now - self.last), 2)
        self.last = now


def rectify(image: NDArray[np.uint8], px_per_mm: float = PX_PER_MM) -> Rectified:
    """Flatten a picture of a paper ECG.

    Args:
        image: uint8 [H, W, 3], RGB.
        px_per_mm: scale of the page that comes back.

    Returns:
        The page with its mesh; without a grid, ``grid_found`` is False and the page is the outline's.

    Raises:
        ImageError: the picture is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"The picture is {image.dtype} {list(image.shape)}, not uint8 [height, width, 3].")
    clock = _Clock()
    grey, factor = reduce(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8))
    signal = line_signal(grey)
    clock.lap("contrast")
    lattice, seed = find_lattice(signal, clock)
    found = lattice is not None
    if lattice is None:
        mesh = quad_mesh(image)
        lattice = Lattice(mesh, np.zeros(mesh.shape[:2]), 0.0, 0.0)
        clock.lap("outline")
    else:
        lattice = Lattice(
            (lattice.mesh + 0.5) * factor - 0.5, lattice.strength, lattice.residual_mm, lattice.major
        )
    page = np.asarray(unroll(image, lattice.mesh, px_per_mm, smooth=True, border=255), np.uint8)
    clock.lap("unroll")
    page = even_light(page, px_per_mm)
    clock.lap("light")
    turns, sure = quarter_turns(page, px_per_mm)
    page = np.ascontiguousarray(np.rot90(page, turns))
    clock.lap("orientation")
    nodes, strength = np.rot90(lattice.mesh, turns), np.rot90(lattice.strength, turns)
    scale, rotation = pose(nodes, image.shape)
    rows, columns = np.indices(nodes.shape[:2], dtype=np.float64) * STEP_MM
    return Rectified(
        page=page,
        page_px_per_mm=px_per_mm,
        mesh=np.concatenate([nodes, columns[..., None], rows[..., None]], axis=-1),
        strength=np.asarray(strength, np.float32),
        px_per_mm=scale,
        rotation=rotation,
        residual_mm=lattice.residual_mm,
        grid_found=found,
        orientation_sure=sure,
        major=lattice.major,
        seed=seed,
        timing_ms=clock.steps,
    )


def find_lattice(signal: NDArray[np.float32], clock: _Clock | None = None) -> tuple[Lattice | None, float]:
    """Find the grid in a line signal, float32 [H, W].

    Returns:
        The lattice (nodes in pixels of the signal) or None if there is none, and the score of the search.
    """
    clock = clock or _Clock()
    found = spectra(signal)
    seeds = find_seeds(found)
    clock.lap("seed")
    best: Lattice | None = None
    most = 0.0
    for seed in seeds[:_TRIED]:
        if seed.score < _LEAST_SEED:
            continue
        phase, trust = fit_phase(found, seed)
        clock.lap("frequency field")
        if not (trust > 0).all(1).any():
            continue
        first = first_mesh(phase, found.centre, trust, signal.shape)
        if first is None:
            continue
        lattice = _trim(refine(signal, first), signal.shape)
        clock.lap("lattice")
        seen = int(np.count_nonzero(lattice.strength > SEEN))
        # By area, so that the spacing does not matter; where no line is thicker than the next it may be a
        # screen's pixels, or a weave, and a grid with thick lines is preferred.
        plain = lattice.major == 0
        area = seen / abs(float(np.linalg.det(seed.frequency))) * (_ALIKE if plain else 1.0)
        if seen >= _LEAST_NODES and area > most:
            best, most = lattice, area
        if seen >= max(_LEAST_NODES, _PLAIN * lattice.strength.size) and not plain:
            break
    return best, seeds[0].score


def _trim(lattice: Lattice, shape: tuple[int, ...]) -> Lattice:
    """Cut off outer rows and columns at which no grid is seen inside the picture."""
    height, width = shape[:2]
    x, y = lattice.mesh[..., 0], lattice.mesh[..., 1]
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    strength = np.where(inside, lattice.strength, 0)
    seen = strength > SEEN
    if not seen.any():
        return lattice
    cut = []
    for axis in range(2):
        lines = np.flatnonzero(seen.sum(1 - axis) >= 0.1 * seen.sum(1 - axis).max())
        # One more on each side, so that what lies between the last node and the picture's rim is kept.
        cut.append(slice(max(0, lines[0] - 1), lines[-1] + 2))
    rows, columns = cut
    return Lattice(lattice.mesh[rows, columns], strength[rows, columns], lattice.residual_mm, lattice.major)


def found_grid(seed: float, seen: float) -> bool:
    """Whether a search of that score and a mesh that sees the grid at so many nodes are a grid."""
    return seed >= _LEAST_SEED and seen >= _LEAST_NODES


def pose(mesh: Floats, shape: tuple[int, ...]) -> tuple[tuple[float, float], float]:
    """Scale along the paper's x and y and the clockwise angle of its x, where the picture's centre is."""
    centre = (np.array([shape[1], shape[0]]) - 1) / 2
    row, column = np.unravel_index(int(np.hypot(*np.moveaxis(mesh - centre, -1, 0)).argmin()), mesh.shape[:2])
    steps = np.array([[-_REACH, 0], [_REACH, 0], [0, -_REACH], [0, _REACH]])
    left, right, top, bottom = sample(mesh, column + steps[:, 0], row + steps[:, 1])
    across, down = (right - left) / (2 * _REACH * STEP_MM), (bottom - top) / (2 * _REACH * STEP_MM)
    angle = float(np.degrees(np.arctan2(across[1], across[0]))) % 360
    return (float(np.hypot(*across)), float(np.hypot(*down))), angle
