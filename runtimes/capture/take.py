"""From a picture to a graded page: decode, rectify, judge, and what is written about it."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.bundle import write_atomic
from pulse_edge.image_io import open_reduced
from pulse_edge.runtimes.capture.quality import Verdict, judge
from pulse_edge.runtimes.capture.rectify import Rectified, rectify

LONG_SIDE: Final = 4096  # pixels that are used of a photo at most
# What the page needs: 6 px/mm of a sheet that fills the picture. The decoder itself halves a 12 MP JPEG.
ENOUGH: Final = 2000
_LEAST_SIDE: Final = 64  # pixels: what is smaller is enlarged, only to be refused in the usual way


@dataclass(frozen=True)
class Taken:
    """A graded page.

    Attributes:
        found: the flat page and its mesh, in pixels of the picture as it was decoded.
        verdict: the grade and why.
        scale: pixels of the whole picture, across and down, for each decoded one; ``(1, 1)`` below 4000
            pixels a side.
        timing_ms: milliseconds of each step.
    """

    found: Rectified
    verdict: Verdict
    scale: tuple[float, float]
    timing_ms: dict[str, float]

    def result(self) -> dict[str, Any]:
        """Return what `pulse-edge capture --json` prints.

        ``px_per_mm`` is of the picture in its full size; ``residual_mm`` is None without a grid.
        """
        found = self.found
        across, down = self.scale
        grow = float(np.sqrt(across * down))
        return {
            "grade": self.verdict.grade,
            "reasons": list(self.verdict.reasons),
            "px_per_mm": [round(value * grow, 3) for value in found.px_per_mm],
            "rotation": round(found.rotation, 2),
            "residual_mm": round(found.residual_mm, 4) if found.grid_found else None,
            "timing_ms": self.timing_ms,
        }

    def grid(self) -> list[list[float]]:
        """Return the mesh's nodes ``[x_px, y_px, x_mm, y_mm]``, row by row.

        Pixels are those of the picture in its full size, upright as its EXIF orientation says (as viewers,
        ``cv2.imread`` and ``ImageOps.exif_transpose`` see it); the centre of pixel ``i`` lies at ``i``.
        """
        nodes = self.found.mesh.reshape(-1, 4).copy()
        nodes[:, :2] = (nodes[:, :2] + 0.5) * np.array(self.scale) - 0.5
        rounded: list[list[float]] = np.round(nodes, 3).tolist()
        return rounded


def take(image: NDArray[np.uint8]) -> Taken:
    """Rectify and grade a picture, uint8 [H, W, 3], RGB."""
    start = time.perf_counter()
    return _graded(*enlarged(image), start)


def enlarged(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Enlarge a picture of a few pixels, so that it is refused in the usual way.

    Returns:
        uint8 [H, W, 3], no side below 64, and pixels of the picture for each of its, across and down.
    """
    if min(image.shape[:2]) >= _LEAST_SIDE:
        return image, (1.0, 1.0)
    grow = _LEAST_SIDE / min(image.shape[:2])
    size = (
        max(_LEAST_SIDE, round(image.shape[1] * grow)),
        max(_LEAST_SIDE, round(image.shape[0] * grow)),
    )
    large = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    return large, (image.shape[1] / size[0], image.shape[0] / size[1])


def take_file(path: str | PathLike[str]) -> Taken:
    """Rectify and grade a picture file.

    Raises:
        ImageError: the file cannot be read as a picture.
    """
    start = time.perf_counter()
    picture, size = open_reduced(path, LONG_SIDE, ENOUGH)
    image = np.asarray(picture)
    decoded = time.perf_counter()
    taken = take(image)
    scale = (size[0] / image.shape[1] * taken.scale[0], size[1] / image.shape[0] * taken.scale[1])
    timing = {"decode": round(1000 * (decoded - start), 2), **taken.timing_ms}
    timing["total"] = round(1000 * (time.perf_counter() - start), 2)
    return Taken(taken.found, taken.verdict, scale, timing)


def _graded(image: NDArray[np.uint8], scale: tuple[float, float], start: float) -> Taken:
    found = rectify(image)
    rectified = time.perf_counter()
    verdict = judge(image, found)
    end = time.perf_counter()
    timing = {**found.timing_ms, "quality": round(1000 * (end - rectified), 2)}
    return Taken(found, verdict, scale, {**timing, "total": round(1000 * (end - start), 2)})


def write_page(taken: Taken, path: Path) -> None:
    """Write the flat page as PNG, whole or not at all.

    Raises:
        PulseEdgeError: the disk is full or the place cannot be written.
    """
    write_atomic(path, png(taken.found.page))


def write_grid(taken: Taken, path: Path) -> None:
    """Write the mesh's nodes as JSON, whole or not at all; errors as :func:`write_page`."""
    write_atomic(path, (json.dumps(taken.grid()) + "\n").encode())


def png(page: NDArray[np.uint8]) -> bytes:
    """Encode a picture, uint8 [H, W, 3], RGB, without loss."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(page).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
