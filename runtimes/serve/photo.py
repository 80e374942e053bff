"""From bytes that a client sent to a page that the model reads, within bounds of size."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.errors import ImageError
from pulse_edge.image_io import open_reduced
from pulse_edge.runtimes.capture.quality import REFUSE
from pulse_edge.runtimes.capture.take import LONG_SIDE, png, take
from pulse_edge.runtimes.serve.errors import Refusal

_UNCHECKED: Final[dict[str, Any]] = {
    "grade": "unchecked", "reasons": [], "px_per_mm": None, "rotation": None, "residual_mm": None,
}  # fmt: skip


@dataclass(frozen=True)
class Shot:
    """A photo that may be read.

    Attributes:
        page: uint8 [H, W, 3], RGB: the flat page, or the picture as it is.
        quality: grade and reasons.
        timing_ms: of the capture's steps.
        kind: MIME type of the file.
    """

    page: NDArray[np.uint8]
    quality: dict[str, Any]
    timing_ms: dict[str, float]
    kind: str

    def png(self) -> bytes:
        """Encode the page without loss."""
        return png(self.page)


def read_photo(path: Path, max_pixels: int, capture: bool, accept: bool) -> Shot:
    """Open a photo, lay it flat and grade it.

    Args:
        path: of the file.
        max_pixels: that it may have.
        capture: lay it flat; otherwise it is taken as it is.
        accept: go on with a photo that the gate refuses, if its grid was found.

    Raises:
        Refusal: it is no picture, too large, or refused by the gate.
    """
    picture, kind = open_photo(path, max_pixels)
    if not capture:
        return Shot(picture, dict(_UNCHECKED), {}, kind)
    taken = take(picture)
    quality = taken.result()
    timing = quality.pop("timing_ms")
    acceptable = taken.found.grid_found
    if quality["grade"] == REFUSE and not (accept and acceptable):
        reasons = " ".join(quality["reasons"]) or "Photograph the ECG again."
        raise Refusal(422, "photo_refused", reasons, more={"quality": quality, "acceptable": acceptable})
    return Shot(taken.found.page, quality, timing, kind)


def open_photo(path: Path, max_pixels: int) -> tuple[NDArray[np.uint8], str]:
    """Open a picture file upright, at most 4096 pixels a side; return it, uint8 [H, W, 3], and its MIME type.

    Raises:
        Refusal: it is no picture, or has more than ``max_pixels``.
    """
    try:
        kind = _look(path, max_pixels)
        picture, _ = open_reduced(path, LONG_SIDE)
    except ImageError as error:
        text = str(error).replace(f"The picture {path}", "The picture").replace(str(path), "This")
        raise Refusal(400, "not_an_image", text) from None
    # Pillow knows HEIC only once open_reduced has asked for its codec.
    return np.asarray(picture), {None: "image/heic", "image/mpo": "image/jpeg"}.get(kind, kind) or ""


def _look(path: Path, max_pixels: int) -> str | None:
    """Return a picture's MIME type once its header was found within bounds; None if Pillow knows none."""
    if not os.path.getsize(path):
        raise Refusal(400, "not_an_image", "The picture is empty. Photograph the page again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                kind = Image.MIME.get(image.format or "")
    except Exception:  # open_image says why, and reads HEIC too
        return None
    if width * height > max_pixels:
        raise Refusal(
            413,
            "too_large",
            f"The picture has more than {max_pixels // 10**6} megapixels. Send a smaller one.",
        )
    return kind
