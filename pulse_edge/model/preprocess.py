"""A picture becomes PULSE's tiles: the anyres preprocessing of the reference code, bit for bit.

Source of the method: ``llava/mm_utils.py`` of AIMedLab/PULSE (commit a439b6c). The picture is fitted
into the best of five grids and cut into 336-px tiles, preceded by a squashed view of the whole page.
EXIF orientation is ignored here, as the reference ignores it; a caller that wants a photo upright
opens it so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.contract import GRID_PINPOINTS, IMAGE_MEAN, IMAGE_STD, PAD_COLOUR, TILE_SIZE
from pulse_edge.errors import ImageError

Picture = Image.Image | str | PathLike[str] | NDArray[np.uint8]

# The 256 values that a channel can take. The product is rounded once from float64 and the rest is
# float32, which reproduces the reference's float32 pixels exactly.
_LEVELS = (np.arange(256) * (1 / 255)).astype(np.float32)[:, None]
_NORMALIZED = (_LEVELS - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)  # [256, 3]


@dataclass(frozen=True)
class Geometry:
    """Where a picture lands on its grid; every pair is (x, y) or (width, height) in pixels.

    Attributes:
        size: of the picture.
        best: the grid that is chosen, one of ``GRID_PINPOINTS``.
        resized: of the picture inside the grid; its aspect is kept.
        paste: offset of the resized picture on the padded canvas.
    """

    size: tuple[int, int]
    best: tuple[int, int]
    resized: tuple[int, int]
    paste: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles across and down."""
        return self.best[0] // TILE_SIZE, self.best[1] // TILE_SIZE

    @property
    def views(self) -> int:
        """Tiles in all, the base view included."""
        return 1 + self.grid[0] * self.grid[1]


def geometry(width: int, height: int) -> Geometry:
    """Choose the grid for a picture and place the picture on it.

    Args:
        width: of the picture in pixels.
        height: of the picture in pixels.

    Raises:
        ImageError: if a side is not positive.
    """
    if width < 1 or height < 1:
        raise ImageError(f"A picture of {width}x{height} pixels has no content. Give a larger one.")
    best = max(GRID_PINPOINTS, key=lambda target: _usefulness(width, height, target))
    scale_w, scale_h = best[0] / width, best[1] / height
    if scale_w < scale_h:
        resized = best[0], min(math.ceil(height * scale_w), best[1])
    else:
        resized = min(math.ceil(width * scale_h), best[0]), best[1]
    paste = (best[0] - resized[0]) // 2, (best[1] - resized[1]) // 2
    return Geometry((width, height), best, resized, paste)


def tiles(image: Picture) -> NDArray[np.uint8]:
    """Cut a picture into tiles.

    Args:
        image: a PIL image of any mode, a file, or an array uint8 [H, W, 3] in RGB order or [H, W] gray.

    Returns:
        uint8 [n, 336, 336, 3] RGB: the squashed view of the whole picture, then the tiles of the
        padded picture row by row.

    Raises:
        ImageError: if the file cannot be read or the array has another shape or type.
    """
    rgb = _open(image).convert("RGB")
    place = geometry(*rgb.size)
    canvas = Image.new("RGB", place.best, PAD_COLOUR)
    canvas.paste(_resize(rgb, place.resized), place.paste)
    base = np.asarray(_resize(rgb, (TILE_SIZE, TILE_SIZE)))
    across, down = place.grid
    cut = np.asarray(canvas).reshape(down, TILE_SIZE, across, TILE_SIZE, 3).swapaxes(1, 2)
    views = np.concatenate([base[None], cut.reshape(-1, TILE_SIZE, TILE_SIZE, 3)])
    return np.ascontiguousarray(views)


def normalize(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Apply CLIP's mean and standard deviation: uint8 [n, 336, 336, 3] -> float32 [n, 3, 336, 336]."""
    pixels = np.empty((len(tiles), 3, *tiles.shape[1:3]), np.float32)
    for channel in range(3):
        pixels[:, channel] = _NORMALIZED[:, channel][tiles[..., channel]]
    return pixels


def preprocess(image: Picture) -> NDArray[np.float32]:
    """Return the pixel values that the vision tower reads, float32 [n, 3, 336, 336]; see :func:`tiles`."""
    return normalize(tiles(image))


def _usefulness(width: int, height: int, target: tuple[int, int]) -> tuple[int, int]:
    """Pixels of the picture that survive in a grid, then (negative) pixels of the grid that are wasted."""
    scale = min(target[0] / width, target[1] / height)
    effective = min(int(width * scale) * int(height * scale), width * height)
    return effective, effective - target[0] * target[1]


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize bicubically, horizontal pass first.

    The reference's Pillow always did; Pillow 13 swaps the passes on some tall pictures and lands up
    to 21 grey levels away, hence one call for each direction.
    """
    bicubic = Image.Resampling.BICUBIC
    return image.resize((size[0], image.height), bicubic).resize(size, bicubic)


def _open(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    from pulse_edge.image_io import open_image

    return open_image(image)


def _from_array(array: NDArray[Any]) -> Image.Image:
    gray = array.ndim == 2
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise ImageError(
            f"An array {array.dtype}{list(array.shape)} is not a picture: pixels must be uint8, "
            "[height, width, 3] in RGB order or [height, width] gray, not normalised and not yet cut. "
            "Pass the picture itself."
        )
    return Image.fromarray(np.ascontiguousarray(array))
