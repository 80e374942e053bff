"""Vary a training page without changing what its labels say.

On the signal: tempo, amplitude, baseline wander, noise. On the page: layout, paper, ink,
resolution. On the picture: a careless scan (small rotation and perspective, blur, light and sensor
noise), or a phone's photo by :mod:`pulse_edge.ecg.photo`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.paper import GRID_COLOURS, Page, PaperStyle
from pulse_edge.ecg.photo import draw_photo_style, photograph
from pulse_edge.ecg.record import Record

PHOTOS: Final = 0.35  # share of pages that come as photos
SEVEREST: Final = 1.4  # of photos; see photo_style.py
# Page pixels (x, y), float64 [n] each, to those of the picture: float64 [n, 2].
Places = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def vary_record(record: Record, rng: random.Random) -> Record:
    """Return a record with another tempo (±12 %), gain (±15 %), wander and noise."""
    noise = np.random.default_rng(rng.getrandbits(32))
    signal = record.signal * np.float32(rng.uniform(0.85, 1.15))
    if rng.random() < 0.5:
        signal = signal * noise.uniform(0.95, 1.05, (12, 1)).astype(np.float32)
    n = signal.shape[1]
    if rng.random() < 0.4:
        t = np.arange(n, dtype=np.float32) / record.fs
        for _ in range(2):
            phase = noise.uniform(0, 2 * np.pi, (12, 1)).astype(np.float32)
            depth = noise.uniform(0, 0.08, (12, 1)).astype(np.float32)
            signal = signal + depth * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t + phase)
    if rng.random() < 0.4:
        signal = signal + noise.normal(0, rng.uniform(0.003, 0.02), signal.shape).astype(np.float32)
    # Another tempo: the same samples, said to be taken at another rate.
    return replace(record, signal=signal, fs=record.fs * rng.uniform(0.89, 1.12))


def draw_style(rng: random.Random, duration_s: float) -> PaperStyle:
    """Draw a page style; the default page of evaluation is the most frequent one."""
    style = PaperStyle(dpi=rng.choices((75.0, 85.0, 100.0, 122.0, 200.0), (3, 3, 3, 3, 1))[0])
    style = replace(style, start_s=rng.uniform(0, max(0.0, min(1.0, duration_s - 9.5))))
    if rng.random() < 0.55:
        return style
    size = rng.choice(((279.4, 215.9), (279.4, 215.9), (297.0, 210.0), (279.4, 190.0)))
    return replace(
        style,
        layout=rng.choices(("3x4+1", "3x4", "6x2", "6x2+1", "12x1"), (0.6, 0.14, 0.1, 0.06, 0.1))[0],
        speed=50.0 if rng.random() < 0.04 else 25.0,
        gain=rng.choices((5.0, 10.0, 20.0), (0.06, 0.9, 0.04))[0],
        size_mm=size,
        grid=None if rng.random() < 0.06 else rng.choice(tuple(GRID_COLOURS)),
        paper=(rng.randint(225, 255), rng.randint(225, 255), rng.randint(215, 255)),
        ink=(rng.randint(0, 70), rng.randint(0, 60), rng.randint(0, 90)),
        trace_mm=rng.uniform(0.2, 0.5),
        calibration=rng.random() < 0.85,
        lead_names=rng.random() < 0.93,
        header=_header(rng) if rng.random() < 0.5 else (),
    )


def _header(rng: random.Random) -> tuple[str, ...]:
    day = f"{rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.{rng.randint(1990, 2026)}"
    return f"ID: {rng.randint(10**5, 10**8)}   Sex: {rng.choice('MF')}", f"{day} {rng.randint(0, 23):02d}:00"


def draw_picture(page: Page, rng: random.Random, photos: float = PHOTOS) -> tuple[NDArray[np.uint8], Places]:
    """Return how the page comes to the model: as it is, as a careless scan or as a phone's photo.

    Args:
        page: a rendered page.
        rng: draws the variation.
        photos: share of photos; of the other pages, two in five are scans.

    Returns:
        The picture uint8 [H, W, 3], of the page's size, and where the page's pixels are on it.
    """
    kind = rng.random()
    if kind < 0.6 * (1 - photos):
        return page.image, lambda x, y: np.stack([x, y], axis=1)
    if kind < 1 - photos:
        image, warp = vary_picture(page.image, rng)
        return image, lambda x, y: cv2.perspectiveTransform(np.stack([x, y], axis=1)[None], warp)[0]
    photo = photograph(page.image, page.px_per_mm, draw_photo_style(rng, rng.uniform(0.2, SEVEREST)))
    return photo.image, lambda x, y: photo.to_photo((x + 0.5) / page.px_per_mm, (y + 0.5) / page.px_per_mm)


def _project(
    warp: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    points = np.stack([x, y], axis=1)[None]
    return np.asarray(cv2.perspectiveTransform(points, warp)[0], np.float64)


def vary_picture(
    image: NDArray[np.uint8], rng: random.Random
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the page as a careless scan or photo would show it, and where its pixels went.

    Args:
        image: uint8 [H, W, 3].
        rng: draws the variation.

    Returns:
        The picture uint8 [H, W, 3], and the homography float64 [3, 3] from page to picture pixels.
    """
    height, width = image.shape[:2]
    warp = np.eye(3)
    if rng.random() < 0.5:
        reach = 0.02 * min(height, width)
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        moved = corners + np.array([[rng.uniform(-reach, reach) for _ in "xy"] for _ in corners], np.float32)
        border = tuple(rng.randint(0, 255) for _ in range(3))
        warp = np.asarray(cv2.getPerspectiveTransform(corners, moved), np.float64)
        image = cv2.warpPerspective(
            image, warp, (width, height), flags=cv2.INTER_LINEAR, borderValue=border
        ).astype(np.uint8)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9) * width / 1100).astype(np.uint8)
    light = np.linspace(rng.uniform(0.75, 1.05), rng.uniform(0.75, 1.05), width, dtype=np.float32)
    tint = np.array([rng.uniform(0.92, 1.04) for _ in "rgb"], np.float32)
    out = image * (light[:, None] * tint)
    if rng.random() < 0.4:
        grain = np.empty((height, width), np.float32)
        cv2.setRNGSeed(rng.getrandbits(31))
        cv2.randn(grain, np.zeros(1), np.full(1, rng.uniform(1, 6)))
        out += grain[..., None]
    return np.clip(out, 0, 255, out=out).astype(np.uint8), warp
