"""How far a rectified mesh is from the truth, for the benchmarks of the capture path.

The error is what the targets are stated in: nodes in the method's millimetres, less one translation, one
rotation by a multiple of 90 degrees and one scale, root mean square in millimetres of the true paper.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator

from pulse_edge.ecg.photo import Photo

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Error:
    """Of one picture.

    Attributes:
        rms_mm: root mean square.
        p95_mm: 95th percentile.
        scale: the method's millimetres per true one that was taken out; 1.02 is 2 % off.
        nodes: how many were compared.
    """

    rms_mm: float
    p95_mm: float
    scale: float
    nodes: int


def compare(method_mm: Floats, true_mm: Floats) -> Error | None:
    """Compare places in the method's millimetres with the true ones, float64 [n, 2] each."""
    best: Error | None = None
    if len(method_mm) < 12:
        return None
    wanted = true_mm - true_mm.mean(0)
    for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        turned = (method_mm - method_mm.mean(0)) @ np.array([[cos, -sin], [sin, cos]], np.float64).T
        scale = float((turned * wanted).sum() / max((turned**2).sum(), 1e-9))
        if scale <= 0:
            continue
        away = np.linalg.norm(turned * scale - wanted, axis=1)
        rms = float(np.sqrt((away**2).mean()))
        if best is None or rms < best.rms_mm:
            best = Error(rms, float(np.percentile(away, 95)), 1 / scale, len(away))
    return best


def against_photo(mesh: Floats, photo: Photo) -> Error | None:
    """Compare a mesh, float64 [rows, columns, 4], with a synthesised photo's own map, on the page."""
    nodes = mesh.reshape(-1, 4)
    height, width = photo.image.shape[:2]
    inside = (nodes[:, 0] > 0) & (nodes[:, 1] > 0) & (nodes[:, 0] < width - 1) & (nodes[:, 1] < height - 1)
    nodes = nodes[inside]
    true = photo.to_paper(nodes[:, 0], nodes[:, 1])
    on_page = np.all((true > 1) & (true < np.array(photo.size_mm) - 1), axis=1)
    return compare(nodes[on_page, 2:], true[on_page])


def stands_upright(mesh: Floats, photo: Photo) -> bool:
    """Whether a mesh's x, float64 [rows, columns, 4], runs along that of a synthesised photo's page."""
    begin = mesh.shape[1] // 2
    two = mesh[mesh.shape[0] // 2, [max(0, begin - 2), min(mesh.shape[1] - 1, begin + 2)]]
    along = np.diff(photo.to_paper(two[:, 0], two[:, 1]), axis=0)[0]
    return bool(along[0] > abs(along[1]))


def against_lattice(mesh: Floats, lattice: Floats) -> Error | None:
    """Compare a mesh with hand-checked nodes, float64 [n, 4] ``i, j, x_px, y_px`` at steps of 5 mm."""
    nodes = mesh.reshape(-1, 4)
    mm = LinearNDInterpolator(nodes[:, :2], nodes[:, 2:])(lattice[:, 2:])
    known = np.isfinite(mm).all(axis=1)
    return compare(np.asarray(mm[known], np.float64), 5.0 * lattice[known, :2])


def read_photos(folder: Path) -> list[tuple[dict[str, Any], Path, Floats]]:
    """Return every annotated picture of a folder: its entry, its path and its lattice."""
    entries = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    found = []
    for entry in entries:
        lattice = json.loads((folder / entry["lattice"]["file"]).read_text(encoding="utf-8"))
        nodes = np.array(lattice["points"], np.float64)
        found.append((entry, folder / "images" / entry["file"], nodes))
    return found
