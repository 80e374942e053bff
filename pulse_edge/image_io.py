"""Open pictures that people hand over, and say in one sentence why one cannot be used."""

from __future__ import annotations

import os
import warnings
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pulse_edge.errors import ImageError

MAX_PIXELS: Final = 100_000_000
MIN_SIDE: Final = 16
_HEIC: Final = (".heic", ".heif")
# Pictures of pages. Pillow reads more, some by starting other programs (EPS) or without any check.
_FORMATS: Final = (
    *("PNG", "JPEG", "MPO", "JPEG2000", "TIFF", "WEBP"),
    *("BMP", "DIB", "GIF", "PPM", "AVIF", "HEIF"),
)


def open_image(path: str | PathLike[str], upright: bool = False) -> Image.Image:
    """Open and fully decode a picture.

    Args:
        path: of a file in any format that Pillow reads.
        upright: apply the camera's EXIF orientation, and spread 16-bit grey over 8 bits. Off by
            default, since PULSE's own preprocessing does neither.

    Returns:
        A decoded picture; in mode RGB if ``upright`` or if it was CMYK.

    Raises:
        ImageError: missing, empty, truncated, no picture, animated, smaller than 16 pixels a side or
            larger than 100 megapixels.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder. Name one picture file.")
    if not os.path.isfile(path):  # unlike Path.is_file, quiet about impossible names
        raise ImageError(f"There is no picture {path}. Check the path.")
    if path.stat().st_size == 0:
        raise ImageError(f"The picture {path} is empty (0 bytes). Copy or photograph it again.")
    image = _decode(path)
    if not upright:
        return image.convert("RGB") if image.mode == "CMYK" else image
    return as_rgb(_upright(image))


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB as it looks on screen: 16 bits spread over 8, on white paper."""
    return _eight_bit(image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the orientation, and the picture is sound
        return image


def _decode(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # among others of the size, which is checked below
            with Image.open(path) as image:
                _check(path, image)
                image.load()
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if path.suffix.lower() in _HEIC:
            raise ImageError(
                f"{path} is a HEIC picture, which needs a codec. Install it with: pip install pillow-heif, "
                "or export the photo as JPEG."
            ) from error
        raise ImageError(f"{path} is not a picture that can be read. Use PNG, JPEG, TIFF or WebP.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(path)) from error
    except PermissionError as error:
        raise ImageError(f"The picture {path} may not be read. Change its permissions.") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageError(
            f"The picture {path} is damaged or cut short ({reason}). Copy or photograph it again."
        ) from error
    return image


def _check(path: Path, image: Image.Image) -> None:
    """Look at what the file says of itself, before anything is decoded."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError("Pillow is set to accept truncated pictures. Unset ImageFile.LOAD_TRUNCATED_IMAGES.")
    if image.format not in _FORMATS:
        raise ImageError(f"{path} is a file of the kind {image.format}. Use PNG, JPEG, TIFF or WebP.")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(path))
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"The picture {path} is {width} x {height} pixels; an ECG page needs at least {MIN_SIDE} a side, "
            "and some 700 to be legible. Photograph it again."
        )
    # Phones write MPO: a JPEG with a preview or depth map behind it; its first picture is the photo.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(
            f"The picture {path} has {frames} frames or pages. Save the one with the ECG as its own file."
        )


def _too_large(path: Path) -> str:
    return f"The picture {path} has more than {MAX_PIXELS // 10**6} megapixels. Scale it down first."


def _eight_bit(image: Image.Image) -> Image.Image:
    """Spread 16-bit and floating grey over 8 bits; Pillow's own conversion clips it to white."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image).astype(np.float64)
        top = (
            65535.0 if image.mode.startswith("I") and levels.max() > 255 else max(255.0, float(levels.max()))
        )
        return Image.fromarray(np.clip(levels * 255.0 / top, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")  # on white, as it looks on screen; dropping alpha may turn paper black
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image
