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
MAX_JPEG_PIXELS: Final = 170_000_000  # where a JPEG is decoded small: then the file may hold more
MIN_SIDE: Final = 16
_HEIC: Final = (".heic", ".heif")
# The brands that ISO 23008-12 gives to still pictures in HEVC, at byte 8 of the file.
_HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
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
    image, _ = _decode(_existing(path))
    if not upright:
        return image.convert("RGB") if image.mode == "CMYK" else image
    return as_rgb(_upright(image))


def open_reduced(
    path: str | PathLike[str], long_side: int, enough: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Open a picture upright and no larger than a bound, in bounded memory.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that is enough, which costs a
    fraction of the time and memory; others are decoded whole, then reduced before anything is copied.

    Args:
        path: of a file in any format that :func:`open_image` reads.
        long_side: pixels that the longer side of the result has at most.
        enough: pixels along the longer side below which a JPEG is not decoded smaller; ``long_side`` by
            default.

    Returns:
        The picture in mode RGB, upright by its EXIF orientation, and the width and height in pixels that
        it has in the file, upright as well.

    Raises:
        ImageError: as :func:`open_image`; a JPEG may have up to 170 megapixels.
    """
    image, size = _decode(_existing(path), min(long_side, enough or long_side))
    if max(image.size) > long_side:
        image = _shrink(image, long_side)
    upright = as_rgb(_upright(image))
    return upright, (size[1], size[0]) if _lies(image) else size


def _shrink(image: Image.Image, long_side: int) -> Image.Image:
    """Reduce a picture by area in the mode that it has, as far as that mode can be averaged."""
    share = long_side / max(image.size)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    if image.mode.startswith("I") or image.mode == "F":  # few files: every k-th level is enough
        step = max(1, max(image.size) // long_side)
        small = Image.fromarray(np.ascontiguousarray(np.asarray(image)[::step, ::step]))
        small.info.update(image.info)
        return small
    return as_rgb(image).resize(size, Image.Resampling.BOX, reducing_gap=2.0)


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB as it looks on screen: 16 bits spread over 8, on white paper."""
    image = _eight_bit(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _existing(path: str | PathLike[str]) -> Path:
    path = Path(path)
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder. Name one picture file.")
    if not os.path.isfile(path):  # unlike Path.is_file, quiet about impossible names
        raise ImageError(f"There is no picture {path}. Check the path.")
    if path.stat().st_size == 0:
        raise ImageError(f"The picture {path} is empty (0 bytes). Copy or photograph it again.")
    return path


def _upright(image: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.getexif().get(0x0112, 1) == 1:  # Pillow would copy it all the same
                return image
            return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the orientation, and the picture is sound
        return image


def _lies(image: Image.Image) -> bool:
    """Whether EXIF says that rows and columns are exchanged."""
    try:
        return image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF, see above
        return False


def _decode(path: Path, long_side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a picture, a JPEG no smaller than ``long_side`` needs; also its size in the file."""
    try:
        heic = _is_heic(path)
        if heic and not _heic_codec():
            raise ImageError(
                f"{path} is a HEIC picture, which needs a codec. Install it with: "
                'pip install "pulse-edge[heic]", or export the photo as JPEG.'
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # among others of the size, which is checked below
            with Image.open(path) as image:
                size = image.size
                small = long_side is not None and image.format in ("JPEG", "MPO")
                _check(path, image, MAX_JPEG_PIXELS if small else MAX_PIXELS)
                if small and long_side is not None:
                    # libjpeg's scaled decoding; it never goes below the size that is asked for.
                    share = min(1.0, long_side / max(size))
                    image.draft("RGB", (int(size[0] * share), int(size[1] * share)))
                image.load()
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not a picture that can be read. Use PNG, JPEG, TIFF or WebP.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(path, MAX_PIXELS)) from error
    except PermissionError as error:
        raise ImageError(f"The picture {path} may not be read. Change its permissions.") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageError(
            f"The picture {path} is damaged or cut short ({reason}). Copy or photograph it again."
        ) from error
    return image, size


def _is_heic(path: Path) -> bool:
    """Whether a file says at its beginning that it is HEIC, or has its name and no other's beginning."""
    with path.open("rb") as stream:
        start = stream.read(12)
    return start[4:8] == b"ftyp" and (start[8:12] in _HEIC_BRANDS or path.suffix.lower() in _HEIC)


def _heic_codec() -> bool:
    """Make Pillow read HEIC if the extra ``heic`` is installed; whether it does."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _check(path: Path, image: Image.Image, most: int) -> None:
    """Look at what the file says of itself, before anything is decoded."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError("Pillow is set to accept truncated pictures. Unset ImageFile.LOAD_TRUNCATED_IMAGES.")
    if image.format not in _FORMATS:
        raise ImageError(f"{path} is a file of the kind {image.format}. Use PNG, JPEG, TIFF or WebP.")
    width, height = image.size
    if width * height > most:
        raise ImageError(_too_large(path, most))
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"The picture {path} is {width} x {height} pixels; an ECG page needs at least {MIN_SIDE} a side, "
            "and some 700 to be legible. Photograph it again."
        )
    # Phones write MPO and HEIF with a preview or depth map behind the photo, which opens first.
    frames = 1 if image.format in ("MPO", "HEIF") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(
            f"The picture {path} has {frames} frames or pages. Save the one with the ECG as its own file."
        )


def _too_large(path: Path, most: int) -> str:
    return f"The picture {path} has more than {most // 10**6} megapixels. Scale it down first."


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
