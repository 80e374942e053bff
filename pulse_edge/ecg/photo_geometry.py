"""Where the paper lies in space, and which point of it each pixel of a photo shows.

The sheet is a sum of cylinders (:class:`Wave`, :class:`Fold`). Each bends the paper along one direction
only and is taken to second order in its slope: a point of the sheet rises by the cylinder's height and
moves back along that direction by what the arc is longer than its chord, so that lengths along the paper
are kept (Pythagoras). The camera is a pinhole in front of it. The map from the photo back to the paper
intersects each pixel's ray with that surface by fixed-point iteration: the plane at the height found so
far, then the height there. It converges where slope times the tangent of the viewing angle is below 1;
the ranges of :class:`PhotoStyle` keep it there for everything on the page.

Coordinates: page millimetres have their origin in the page's top left corner, x to the right, y down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.photo_style import PhotoStyle

NODES: Final = 168  # nodes of the map along the frame's long side; the map is bilinear between them
_MAX_ITERATIONS: Final = 60
_TOLERANCE_MM: Final = 1e-3  # 30 times what float32 resolves on a page, a few thousandths of a pixel
_FAR: Final = 20.0  # in long sides of the page: where rays that miss the table's near part are sent

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera before a page.

    Attributes:
        size: width and height of the photo in pixels.
        size_mm: width and height of the page.
        turn: float64 [3, 3], from page axes (z away from the camera) to camera axes.
        distance_mm: from the camera to the page's centre.
        scale: pixels per millimetre at the page's centre.
        centre_mm: float64 [2], what stands at the frame's centre, on the plane through the page's centre.
    """

    size: tuple[int, int]
    size_mm: tuple[float, float]
    turn: Floats
    distance_mm: float
    scale: float
    centre_mm: Floats


@dataclass(frozen=True)
class Mesh:
    """A map from photo to paper, known at nodes and bilinear between them.

    Node ``[r, c]`` lies at the pixel ``((c - 0.5) * step - 0.5, (r - 0.5) * step - 0.5)``: the lattice
    begins half a step outside the photo and ends beyond it.

    Attributes:
        mm: float32 [R, C, 2], page millimetres (x, y).
        step: pixels between nodes, a whole number.
        size: width and height of the photo in pixels.
    """

    mm: NDArray[np.float32]
    step: int
    size: tuple[int, int]

    def spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Interpolate values at nodes, float32 [R, C(, k)], to every pixel: float32 [h, w(, k)]."""
        rows, columns = values.shape[:2]
        full = cv2.resize(values, (columns * self.step, rows * self.step), interpolation=cv2.INTER_LINEAR)
        # cv2.resize puts the first node at pixel (step - 1) / 2 of its result.
        width, height = self.size
        return np.asarray(full[self.step : self.step + height, self.step : self.step + width], np.float32)

    def at(self, x: Floats, y: Floats) -> Floats:
        """Interpolate the map at pixels, float64 [n] each, to millimetres: float64 [n, 2]."""
        rows, columns = self.mm.shape[:2]
        column, row = (x + 0.5) / self.step + 0.5, (y + 0.5) / self.step + 0.5
        c = np.clip(np.floor(column), 0, columns - 2).astype(np.intp)
        r = np.clip(np.floor(row), 0, rows - 2).astype(np.intp)
        across, down = (column - c)[:, None], (row - r)[:, None]
        mm = self.mm.astype(np.float64)
        top = mm[r, c] * (1 - across) + mm[r, c + 1] * across
        bottom = mm[r + 1, c] * (1 - across) + mm[r + 1, c + 1] * across
        return np.asarray(top * (1 - down) + bottom * down)


def place_camera(size: tuple[int, int], size_mm: tuple[float, float], style: PhotoStyle) -> Camera:
    """Put the camera where ``tilt``, ``rotation`` and ``distance`` say, and choose the framing.

    Args:
        size: width and height of the photo in pixels.
        size_mm: width and height of the page.
        style: how the page is photographed.
    """
    toward, tilt = math.radians(style.toward_deg), math.radians(style.tilt_deg)
    lean = cv2.Rodrigues(np.array([math.sin(toward), -math.cos(toward), 0.0]) * tilt)[0]
    roll = math.radians(style.rotation_deg + 90.0 * style.quarter_turns)
    turn = np.asarray(cv2.Rodrigues(np.array([0.0, 0.0, roll]))[0] @ lean, np.float64)
    distance = style.distance * max(size_mm)
    half = np.array(size_mm) / 2
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [*half, 0]
    seen = corners @ turn.T
    seen = seen[:, :2] * (distance / (distance + seen[:, 2:]))
    low, high = seen.min(0), seen.max(0)
    middle, frame = (low + high) / 2, np.array(size, np.float64)
    fits = float(np.min(frame / (high - low)))
    # The frame lies within the page when it lies on the inner side of each of the page's four edges.
    edges = np.roll(seen, -1, axis=0) - seen
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1) / np.linalg.norm(edges, axis=1)[:, None]
    depth = np.sum(normals * (seen - middle), 1)
    covers = float(np.max(np.abs(normals) @ (frame / 2) / depth))
    scale = fits * (max(covers, fits) / fits) ** style.cover * style.zoom
    centre = middle - np.array(style.shift) * frame / scale
    return Camera(size, size_mm, turn, distance, scale, centre)


def trace(camera: Camera, style: PhotoStyle) -> tuple[Mesh, Singles]:
    """Find what each node of a photo shows.

    Returns:
        The mesh, and the slope of the paper at its nodes (rise towards the camera over run, along the
        page's x and y): float32 [R, C, 2]. Off the page the mesh goes on over the table's plane.
    """
    width, height = camera.size
    step = math.ceil(max(width, height) / NODES)
    x = (np.arange(math.ceil(width / step) + 2) - 0.5) * step
    y = (np.arange(math.ceil(height / step) + 2) - 0.5) * step
    a = (x - width / 2) / camera.scale + camera.centre_mm[0]
    b = (y - height / 2) / camera.scale + camera.centre_mm[1]
    rays = np.empty((len(y), len(x), 3))
    rays[..., 0], rays[..., 1], rays[..., 2] = a, b[:, None], camera.distance_mm
    rays = rays @ camera.turn  # the transpose of the turn, from the right: into page axes
    eye = -camera.distance_mm * camera.turn[2]
    # A ray that climbs to the horizon would meet the table nowhere; it is sent to a far point instead.
    reach = _FAR * max(camera.size_mm)
    down = np.maximum(rays[..., 2], np.hypot(rays[..., 0], rays[..., 1]) * abs(eye[2]) / reach)
    slant = (rays[..., :2] / down[..., None]).astype(np.float32)
    half = np.array(camera.size_mm, np.float32) / 2
    flat = (eye[:2] - eye[2] * rays[..., :2] / down[..., None]).astype(np.float32)
    point = flat
    if style.waves or style.folds:
        for _ in range(_MAX_ITERATIONS):
            height_mm, drawn_in, _ = _relief(point, style)
            found = flat - height_mm[..., None] * slant + drawn_in
            # Axis by axis: numpy reduces over an axis of two very slowly.
            moved = [np.abs(found[..., k] - point[..., k]) > _TOLERANCE_MM for k in range(2)]
            off_page = [np.abs(found[..., k]) > 1.1 * half[k] for k in range(2)]
            point = found
            if not np.any((moved[0] | moved[1]) & ~(off_page[0] | off_page[1])):
                break
    slope = _relief(point, style)[2]
    mm = np.clip(point, -2 * reach, 2 * reach) + half
    return Mesh(np.asarray(mm, np.float32), step, camera.size), slope


def _relief(point: Singles, style: PhotoStyle) -> tuple[Singles, Singles, Singles]:
    """The sheet at points of the paper, in mm from its centre: float32 [..., 2].

    Returns:
        Height [...], how far each point is drawn in along x and y [..., 2], and the slope [..., 2].
    """
    height = np.zeros(point.shape[:-1], np.float32)
    drawn, slope = np.zeros_like(point), np.zeros_like(point)

    def add(direction_deg: float, rise: Singles, chord: Singles, steep: Singles) -> None:
        for axis, part in enumerate(
            (math.cos(math.radians(direction_deg)), math.sin(math.radians(direction_deg)))
        ):
            drawn[..., axis] += chord * np.float32(part)
            slope[..., axis] += steep * np.float32(part)
        np.add(height, rise, out=height)

    for wave in style.waves:
        k, phase = 2 * math.pi / wave.length_mm, math.radians(wave.phase_deg)
        s = _along(point, wave.direction_deg)
        angle = s * np.float32(k) + np.float32(phase)
        sine, cosine = np.sin(angle), np.cos(angle)
        steep = np.float32(wave.height_mm * k)
        # Integral of slope^2 / 2 from the centre of the page.
        start = np.float32(math.sin(phase) * math.cos(phase))
        chord = steep**2 / 4 * (s + (sine * cosine - start) / np.float32(k))
        add(wave.direction_deg, sine * np.float32(wave.height_mm), chord, cosine * steep)
    for fold in style.folds:
        steep, reach = np.float32(math.tan(math.radians(fold.slope_deg))), np.float32(fold.reach_mm)
        s = _along(point, fold.direction_deg) - np.float32(fold.offset_mm)
        away = np.sqrt(s * s + np.float32(fold.radius_mm**2))
        fall = np.exp(-away / reach)
        # As if the kink were sharp: what that neglects is of the order of slope^2 * radius / 2.
        chord = steep**2 * reach / 4 * np.sign(s) * (1 - np.exp(-2 * np.abs(s) / reach))
        add(fold.direction_deg, steep * reach * fall, chord, -steep * fall * s / away)
    return height, drawn, slope


def _along(point: Singles, direction_deg: float) -> Singles:
    """Coordinate of points [..., 2] along a direction of the page: [...]."""
    angle = math.radians(direction_deg)
    return point[..., 0] * np.float32(math.cos(angle)) + point[..., 1] * np.float32(math.sin(angle))
