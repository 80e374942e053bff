"""Other ways to flatten a photo of an ECG, re-implemented from their descriptions for benchmarks/capture.py.

Each takes uint8 [H, W, 3] RGB and returns a homography, float64 [3, 3], from pixels to its own units, or None
where it finds nothing (the picture then stays as it is). None of their code is used.

- contour scanner: the four-corner document scanner of countless tutorials: Canny edges, the largest
  contour that simplifies to four points.
- jscanify (github.com/puffinsoft/jscanify): Canny, blur, Otsu's threshold, the contour of largest area, and
  in each quadrant around its centre the contour point farthest from it.
- Hough: straight lines in a picture of the grid, vanishing points of both families by least squares, as
  digitisers that rectify by the grid do (Open-ECG-Digitizer's geometry), on our own line signal.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.contrast import line_signal, reduce

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]

_SIDE: Final = 800  # pixels of the copies that the scanners look at


def nothing(image: Picture) -> Floats | None:
    """The picture as it is."""
    return np.eye(3)


def contour_scanner(image: Picture) -> Floats | None:
    """The largest four-cornered contour."""
    small, factor = reduce(image, _SIDE)
    grey = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    edges = cv2.dilate(cv2.Canny(grey, 75, 200), np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(edges, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:5]:
        corners = cv2.approxPolyDP(contour, 0.02 * cv2.arcLength(contour, True), True)[:, 0]
        if len(corners) == 4:
            return _from_corners(_ordered(corners.astype(np.float64)), factor)
    return None


def jscanify(image: Picture) -> Floats | None:
    """The largest contour's farthest points in the four quadrants around its centre."""
    small, factor = reduce(image, _SIDE)
    edges = cv2.Canny(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), 50, 200)
    _, mask = cv2.threshold(cv2.GaussianBlur(edges, (3, 3), 0), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return None
    points = max(contours, key=cv2.contourArea)[:, 0].astype(np.float64)
    centre = np.array(cv2.minAreaRect(points.astype(np.float32))[0])
    corners = []
    for right, low in ((False, False), (True, False), (True, True), (False, True)):
        here = points[((points[:, 0] > centre[0]) == right) & ((points[:, 1] > centre[1]) == low)]
        if not len(here):
            return None
        corners.append(here[np.linalg.norm(here - centre, axis=1).argmax()])
    return _from_corners(np.array(corners), factor)


def hough(image: Picture) -> Floats | None:
    """Vanishing points of the grid's lines, then the turn."""
    small, factor = reduce(image, 1200)
    signal = line_signal(small)
    mask = ((signal > 0.8) * 255).astype(np.uint8)
    found = cv2.HoughLinesP(mask, 1, np.pi / 720, 120, None, 0.12 * max(mask.shape), 6)
    if found is None:
        return None
    ends = found.reshape(-1, 4).astype(np.float64)[:4000]
    angle = np.degrees(np.arctan2(ends[:, 3] - ends[:, 1], ends[:, 2] - ends[:, 0])) % 180
    counts = np.histogram(angle % 90, 90, (0, 90))[0]
    main = float((np.convolve(np.r_[counts[-3:], counts, counts[:3]], np.ones(7), "valid")).argmax()) + 0.5
    half = np.array(mask.shape[::-1]) / 2
    vanishing, directions = [], []
    for family in range(2):
        off = (angle - main - 90 * family + 90) % 180 - 90
        lines = ends[np.abs(off) < 8]
        if len(lines) < 8:
            return None
        a = np.column_stack([(lines[:, :2] - half) / half.max(), np.ones(len(lines))])
        b = np.column_stack([(lines[:, 2:] - half) / half.max(), np.ones(len(lines))])
        normals = np.cross(a, b)
        normals /= np.linalg.norm(normals[:, :2], axis=1, keepdims=True)
        for _ in range(5):  # without those that miss the point
            point = np.linalg.svd(normals, full_matrices=False)[2][-1]
            miss = np.abs(normals @ point) / np.linalg.norm(point)
            normals = normals[miss <= 2 * np.median(miss) + 1e-9]
        vanishing.append(point)
        directions.append(np.radians(main + 90 * family))
    horizon = np.cross(vanishing[0], vanishing[1])
    if abs(horizon[2]) < 1e-9:
        return None
    unit = np.array([[1, 0, -half[0]], [0, 1, -half[1]], [0, 0, half.max()]]) / half.max()
    shrink = np.array([[1 / factor, 0, 0.5 / factor - 0.5], [0, 1 / factor, 0.5 / factor - 0.5], [0, 0, 1]])
    flat = np.array([[1, 0, 0], [0, 1, 0], horizon / horizon[2]])
    # With both families parallel again, a shear and a turn put them along the axes.
    ways = np.array([(flat @ v)[:2] / np.linalg.norm((flat @ v)[:2]) for v in vanishing]).T
    ways = ways * np.sign([ways[:, k] @ [np.cos(directions[k]), np.sin(directions[k])] for k in range(2)])
    upright = np.eye(3)
    upright[:2, :2] = np.linalg.inv(ways)
    return np.asarray(upright @ flat @ unit @ shrink)


def _ordered(corners: Floats) -> Floats:
    """From the top left corner clockwise."""
    away = corners - corners.mean(0)
    corners = corners[np.argsort(np.arctan2(away[:, 1], away[:, 0]))]
    return np.roll(corners, -int(corners.sum(1).argmin()), axis=0)


def _from_corners(corners: Floats, factor: float) -> Floats:
    """Map corners, clockwise from the top left, to an upright rectangle with their mean sides."""
    corners = (corners + 0.5) * factor - 0.5
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    width, height = (sides[0] + sides[2]) / 2, (sides[1] + sides[3]) / 2
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    return np.asarray(cv2.getPerspectiveTransform(corners.astype(np.float32), target), np.float64)


METHODS: Final = {
    "nothing": nothing,
    "contour scanner": contour_scanner,
    "jscanify's method": jscanify,
    "Hough lines": hough,
}
