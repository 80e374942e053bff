"""Photograph a page: a rendered ECG as a phone's camera would show it, with the exact place of every pixel.

One map from the photo to the paper is composed of the sheet's bending and the camera's perspective, known
at nodes and bilinear between them. The page is resampled once, through that map, and that map is what
comes back. (A page much finer than the photo is first reduced by area, as a lens would; that only scales
it.) Pixels are those of :mod:`pulse_edge.ecg.paper`: the centre of pixel ``i`` lies at ``i``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pulse_edge.ecg.photo_geometry import Camera, Mesh, place_camera, trace
from pulse_edge.ecg.photo_light import expose, illuminate
from pulse_edge.ecg.photo_scene import mark_page, table
from pulse_edge.ecg.photo_style import Fold, PhotoStyle, Wave, check_style, draw_photo_style
from pulse_edge.errors import ImageError, UserError

__all__ = ["Fold", "Photo", "PhotoStyle", "Wave", "draw_photo_style", "photograph"]

_SIDES = (16, 12_000)  # pixels
_SCALES = (0.1, 200.0)  # px/mm
_STEPS = 4  # of the inverse map; the worst of 40 photos was off by a hundredth of a pixel
_FINER = 1.15  # a page this much finer than the photo is reduced first


@dataclass(frozen=True)
class Photo:
    """A photographed page.

    Attributes:
        image: uint8 [h, w, 3], RGB.
        size_mm: width and height of the page; points outside of it lie on the table.
        px_per_mm: scale of the photo where it shows the page's centre.
    """

    image: NDArray[np.uint8]
    size_mm: tuple[float, float]
    px_per_mm: float
    _mesh: Mesh

    @property
    def page_mm(self) -> NDArray[np.float32]:
        """What every pixel shows: float32 [h, w, 2], millimetres (x, y) from the page's top left corner."""
        return self._mesh.spread(self._mesh.mm)

    def to_paper(self, x_px: ArrayLike, y_px: ArrayLike) -> NDArray[np.float64]:
        """Map pixels of the photo, fractional ones too, to the paper.

        Args:
            x_px: columns, any shape.
            y_px: rows, of a shape that broadcasts with it.

        Returns:
            float64 [..., 2], millimetres (x, y) from the page's top left corner; outside of
            ``size_mm`` the point lies on the table.
        """
        x, y = np.broadcast_arrays(np.asarray(x_px, np.float64), np.asarray(y_px, np.float64))
        return self._mesh.at(x.ravel(), y.ravel()).reshape(*x.shape, 2)

    def to_photo(self, x_mm: ArrayLike, y_mm: ArrayLike) -> NDArray[np.float64]:
        """Map points of the paper to the photo: the inverse of :meth:`to_paper`.

        The map is a homography and a little bending, so the homography's own inverse, corrected by what
        the map says there, closes in on the answer by a factor of about ten at every step.

        Args:
            x_mm: millimetres from the page's left edge, any shape.
            y_mm: from its top edge, of a shape that broadcasts with it.

        Returns:
            float64 [..., 2], pixels (x, y); outside of the frame they are extrapolated, the less exactly
            the farther out.
        """
        x, y = np.broadcast_arrays(np.asarray(x_mm, np.float64), np.asarray(y_mm, np.float64))
        wanted = np.stack([x.ravel(), y.ravel()], axis=1)
        aim, at = wanted.copy(), cv2.perspectiveTransform(wanted[None], self._flat)[0]
        for _ in range(_STEPS):
            aim += wanted - self._mesh.at(at[:, 0], at[:, 1])
            at = cv2.perspectiveTransform(aim[None], self._flat)[0]
        return np.asarray(at, np.float64).reshape(*x.shape, 2)

    @functools.cached_property
    def _flat(self) -> NDArray[np.float64]:
        """The homography nearest to the map from the paper to the photo."""
        nodes = np.array(self.mesh(max(self.image.shape[:2]) / 16))
        return np.asarray(cv2.findHomography(nodes[:, 2:], nodes[:, :2])[0], np.float64)

    def mesh(self, step: float) -> list[list[float]]:
        """List the map at every ``step`` pixels, row by row, the photo's last row and column included.

        Args:
            step: pixels between nodes, 1 or more.

        Returns:
            Nodes ``[x_px, y_px, x_mm, y_mm]``.

        Raises:
            UserError: the step is below 1.
        """
        if not step >= 1:
            raise UserError(f"The step of the mesh is {step:g} pixels; choose 1 or more.")
        height, width = self.image.shape[:2]
        x = np.append(np.arange(0, width - 1, step), width - 1.0)
        y = np.append(np.arange(0, height - 1, step), height - 1.0)
        columns, rows = np.meshgrid(x, y)
        mm = self.to_paper(columns, rows)
        nodes: list[list[float]] = (
            np.concatenate([columns[..., None], rows[..., None], mm], axis=-1).reshape(-1, 4).tolist()
        )
        return nodes


def photograph(
    image: NDArray[np.uint8], px_per_mm: float, style: PhotoStyle, size: tuple[int, int] | None = None
) -> Photo:
    """Photograph a page.

    Args:
        image: the page, uint8 [H, W, 3], RGB.
        px_per_mm: its scale.
        style: how it is photographed; equal styles give equal photos.
        size: width and height of the photo; by default those of the page, exchanged by odd quarter turns.

    Returns:
        The photo with its map back to the page.

    Raises:
        ImageError: the page is not uint8 [H, W, 3].
        UnknownNameError: the style names an unknown background or shadow.
        UserError: the scale, the size or a number of the style is out of range.
    """
    _check(image, px_per_mm, size)
    check_style(style)
    height, width = image.shape[:2]
    size = size or ((height, width) if style.quarter_turns % 2 else (width, height))
    size_mm = (width / px_per_mm, height / px_per_mm)
    # One generator for each thing, so that to leave one out does not change the others.
    marks, scene, lamp, sensor = np.random.default_rng(style.seed).spawn(4)
    camera = place_camera(size, size_mm, style)
    mesh, slope = trace(camera, style)
    page = _reduce(image, px_per_mm, camera.scale)
    page = mark_page(page, page.shape[1] / size_mm[0], style, marks)
    picture = _resample(page, mesh, camera, style, scene)
    lit = illuminate(picture, mesh, slope, camera, style, lamp)
    return Photo(expose(lit, camera.scale, style, sensor), size_mm, camera.scale, mesh)


def _check(image: Any, px_per_mm: float, size: Any) -> None:
    is_array = isinstance(image, np.ndarray)
    if not is_array or image.dtype != np.uint8 or image.ndim != 3:
        what = f"{image.dtype} {list(image.shape)}" if is_array else type(image).__name__
        raise ImageError(f"The page is {what}, not uint8 [height, width, 3]. Convert it to RGB first.")
    if image.shape[2] != 3 or min(image.shape[:2]) < _SIDES[0]:
        raise ImageError(
            f"The page is {list(image.shape)}; give [height, width, 3] with sides "
            f"of {_SIDES[0]} pixels or more."
        )
    if not _SCALES[0] <= px_per_mm <= _SCALES[1]:
        raise UserError(
            f"The page's scale is {px_per_mm:g} px/mm; give a number from {_SCALES[0]:g} to {_SCALES[1]:g}."
        )
    low, high = _SIDES
    if size and not all(isinstance(side, (int, np.integer)) and low <= side <= high for side in size):
        raise UserError(f"The photo's size is {size}; give whole sides from {low} to {high} pixels.")


def _reduce(image: NDArray[np.uint8], px_per_mm: float, scale: float) -> NDArray[np.uint8]:
    """Reduce a page by area to the photo's scale, if it is finer, so that thin lines do not alias."""
    if px_per_mm < _FINER * scale:
        return image
    height, width = (max(1, round(side * scale / px_per_mm)) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _resample(
    page: NDArray[np.uint8], mesh: Mesh, camera: Camera, style: PhotoStyle, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Look up every pixel of the photo on the page, or on the table around it: float32 [h, w, 3]."""
    sides = np.array(page.shape[1::-1], np.float64)
    density = sides / camera.size_mm  # px/mm, each way
    at = mesh.spread((mesh.mm * density - 0.5).astype(np.float32))
    x, y = (np.asarray(part, np.float32) for part in cv2.split(at))
    picture = cv2.remap(page, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # The page's outline is convex but for its bending: if the frame's rim shows paper, so does the rest.
    rim = np.concatenate([at[0], at[-1], at[:, 0], at[:, -1]])
    if not np.all((rim > -0.51) & (rim < sides - 0.49)):
        # Page pixels from the nearest edge, positive on the page.
        across = np.float32(sides[0] / 2) - np.abs(x - np.float32(sides[0] / 2 - 0.5))
        inward = np.float32(sides[1] / 2) - np.abs(y - np.float32(sides[1] / 2 - 0.5))
        np.minimum(across, inward, out=inward)
        paper = np.clip(inward * np.float32(camera.scale / density.mean()) + np.float32(0.5), 0, 1)
        ground = table(style.background, mesh.size, inward / np.float32(density.mean()), rng)
        picture = cv2.blendLinear(picture, ground, paper, 1 - paper)
    return np.asarray(picture, np.float32)
