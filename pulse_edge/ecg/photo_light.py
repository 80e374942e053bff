"""Light on a photographed page, and what lens, sensor and file format make of it.

Everything smooth is computed at the nodes of the map and spread over the pixels: shading by the paper's
slope (Lambert), the fall of the light, a shadow, a highlight, vignetting, white balance. Factors are taken
in linear light and applied to the picture by its 1/2.2 power, which a pure power-law encoding makes exact.
Moiré is the beat of two gratings: the pixels of a screen that shows the page, and those of the sensor.
"""

from __future__ import annotations

import math
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.photo_geometry import Camera, Floats, Mesh, Singles
from pulse_edge.ecg.photo_style import PhotoStyle

GAMMA: Final = 2.2


def illuminate(
    picture: NDArray[np.float32],
    mesh: Mesh,
    slope: Singles,
    camera: Camera,
    style: PhotoStyle,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Light a picture, in place.

    Args:
        picture: float32 [h, w, 3], 0 to 255.
        mesh: what each node shows.
        slope: float32 [R, C, 2], of the paper at the nodes.
        camera: gives the page's size.
        style: the light, the vignette, the white balance and the moiré.
        rng: the source of chance.

    Returns:
        The picture; values may exceed 255 where it is overexposed.
    """
    rows, columns = mesh.mm.shape[:2]
    width, height = mesh.size
    # Frame coordinates in long sides, the origin at the centre.
    long = max(width, height)
    x = ((np.arange(columns) - 0.5) * mesh.step - width / 2)[None, :] / long
    y = ((np.arange(rows) - 0.5) * mesh.step - height / 2)[:, None] / long
    on_page = np.all((mesh.mm >= 0) & (mesh.mm <= np.array(camera.size_mm)), axis=-1, keepdims=True)
    slope = np.where(on_page, slope, np.float32(0))  # the table is flat
    azimuth = math.radians(style.light_deg)
    source = np.array([math.cos(azimuth), math.sin(azimuth)])
    light = _lambert(slope, style.raking * source)
    if style.gradient:
        source = camera.turn[:2, :2] @ source  # from page to frame
        light = light * (1 - style.gradient * (0.5 - source[0] * x - source[1] * y))
    if style.shadow:
        light = light * (1 - style.shadow * _shadow(x, y, style, rng))
    if style.vignette:
        light = light * (1 - style.vignette * (x * x + y * y) / (0.25 + 0.25 * (min(mesh.size) / long) ** 2))
    gain = np.maximum(light * style.exposure, 0)[..., None] * np.array(style.tint)
    shine = np.zeros((rows, columns))
    if style.glare:
        place, turn = rng.uniform(-0.35, 0.35, 2), rng.uniform(0, math.pi)
        # Where flat paper would mirror a lamp as far away as the camera, bent paper mirrors its surroundings:
        # the slope moves the point that the mirror's law asks for by slope times distance.
        bent = slope @ camera.turn[:2, :2].T * style.distance
        right, below = x - place[0] - bent[..., 0], y - place[1] - bent[..., 1]
        across = right * math.cos(turn) + below * math.sin(turn)
        along = below * math.cos(turn) - right * math.sin(turn)
        spot = (across / style.glare_size) ** 2 + (along / style.glare_size / rng.uniform(1, 3)) ** 2
        shine = np.minimum(style.glare * np.exp(-spot), 1)
    factor = np.maximum(gain, 0) ** (1 / GAMMA) * (1 - np.maximum(shine, style.haze))[..., None]
    lift = 255 * np.maximum(shine, style.haze)
    if not np.allclose(factor, 1, atol=1e-9):
        picture *= mesh.spread(factor.astype(np.float32))
    if lift.any():
        picture += mesh.spread(lift.astype(np.float32))[..., None]
    if style.moire:
        _beat(picture, mesh, style, rng)
    return picture


def _lambert(slope: Singles, towards: Floats) -> Floats:
    """Lambert's cosine relative to flat paper: [R, C], from the slope [R, C, 2].

    The paper's normal is (-slope, 1), and the light comes from (towards, 1).
    """
    return np.asarray(np.maximum(1 - slope @ towards, 0) / np.sqrt(1 + np.sum(slope**2, -1)))


def _shadow(x: Floats, y: Floats, style: PhotoStyle, rng: np.random.Generator) -> Floats:
    """How much of a lamp is hidden at frame coordinates [1, C] and [R, 1]: [R, C] in 0..1."""
    angle = rng.uniform(-math.pi, math.pi)
    # In axes (s, t): s is how far the thing that casts the shadow reaches in from a side of the frame.
    s = x * math.cos(angle) + y * math.sin(angle)
    t = y * math.cos(angle) - x * math.sin(angle)
    reach = rng.uniform(-0.15, 0.3)
    if style.shadow_kind == "edge":
        outside = s - reach
    else:
        wrist, palm = reach - 0.35, rng.uniform(-0.2, 0.2)
        hand = np.hypot((s - wrist) / 1.2, t - palm) - rng.uniform(0.16, 0.22)
        arm = np.hypot(np.maximum(s - wrist, 0), t - palm) - 0.12
        outside = np.minimum(hand, arm)
        for finger in range(4):
            tip = reach + 0.1 - 0.04 * abs(finger - 1.3) + rng.uniform(-0.02, 0.02)
            base = palm + (finger - 1.5) * 0.085
            fan = base + (finger - 1.5) * rng.uniform(0.0, 0.12) * np.maximum(s - reach + 0.15, 0)
            capsule = np.hypot(np.maximum(s - tip, 0) + np.maximum(wrist - s, 0), t - fan) - 0.03
            outside = np.minimum(outside, capsule)
    inside = np.clip(0.5 - outside / style.shadow_soft, 0, 1)
    return np.asarray(inside * inside * (3 - 2 * inside))


def _beat(picture: NDArray[np.float32], mesh: Mesh, style: PhotoStyle, rng: np.random.Generator) -> None:
    """Multiply a picture by the beat between the rows and columns of a screen and of the sensor."""
    width, height = mesh.size
    middle = mesh.at(np.array([width / 2, width / 2 + 1]), np.array([height / 2, height / 2]))
    # A screen whose pixels are nearly as wide in the photo as the sensor's: only then is the beat coarse.
    pitch = float(np.hypot(*(middle[1] - middle[0]))) * rng.uniform(0.97, 1.03)
    frame = np.stack(
        np.broadcast_arrays(
            ((np.arange(mesh.mm.shape[1]) - 0.5) * mesh.step)[None, :],
            ((np.arange(mesh.mm.shape[0]) - 0.5) * mesh.step)[:, None],
        ),
        axis=-1,
    )
    # A fold of the page around its centre keeps the phases small enough for float32.
    phase = (mesh.mm - middle[0]) / pitch - (frame - np.array(mesh.size) / 2)
    fine = mesh.spread((2 * np.pi * phase).astype(np.float32))
    for channel, offset in enumerate((0.0, 2 * np.pi / 3, 4 * np.pi / 3)):  # the stripes of R, G and B
        waves = np.cos(fine[..., 0] + np.float32(offset)) + np.cos(fine[..., 1])
        picture[..., channel] *= 1 + np.float32(style.moire / 2) * waves


def expose(
    picture: NDArray[np.float32], px_per_mm: float, style: PhotoStyle, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Blur a lit picture as lens and hand do, add the sensor's noise, and encode it.

    Args:
        picture: float32 [h, w, 3]; changed.
        px_per_mm: of the photo.
        style: ``defocus_mm``, ``motion_mm``, ``noise`` and ``jpeg`` are used.
        rng: the source of chance.

    Returns:
        uint8 [h, w, 3].
    """
    kernel = _kernel(style.defocus_mm * px_per_mm, style.motion_mm * px_per_mm, style.motion_deg)
    if kernel is not None:
        picture = np.asarray(cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT), np.float32)
    grain: NDArray[Any] = np.zeros(4)  # nothing, as a colour; the sum below rounds and saturates in one pass
    if style.noise:
        # After the encoding's slope photon noise is nearly the same in light and shade, so one figure does.
        height, width = picture.shape[:2]
        fine = np.repeat(rng.standard_normal((height, width, 1), dtype=np.float32), 3, axis=2)
        # Colour noise is what a phone's own filter leaves of it: coarse.
        small = rng.standard_normal((math.ceil(height / 4), math.ceil(width / 4), 3), dtype=np.float32)
        full = 255 * style.noise
        grain = cv2.addWeighted(fine, 0.8 * full, cv2.resize(small, (width, height)), 0.6 * full, 0)
    image = cv2.add(picture, grain, dtype=cv2.CV_8U)
    if style.jpeg is not None:
        blue_first = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, code = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, style.jpeg])
        image = cv2.cvtColor(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB)
    return np.asarray(image, np.uint8)


def _kernel(radius: float, length: float, direction_deg: float) -> NDArray[np.float32] | None:
    """A disc swept along a line, in pixels, its centre of gravity at the middle; None if it is a point."""
    if radius < 0.2 and length < 0.3:
        return None
    half = math.ceil(radius + length / 2)
    fine = 8  # subpixels of each pixel, so that a radius need not be whole
    ticks = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
    x, y = ticks[None, :], ticks[:, None]
    angle = math.radians(direction_deg)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    beyond = np.maximum(np.abs(along) - length / 2, 0)
    inside = (np.hypot(beyond, across) <= max(radius, 0.35)).astype(np.float32)
    kernel = inside.reshape(2 * half + 1, fine, 2 * half + 1, fine).mean((1, 3))
    return np.asarray(kernel / kernel.sum(), np.float32)
