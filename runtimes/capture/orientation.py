"""Which way up a flat page is: a small convolutional network over ink, the only learnt part of capture.

The network gives each place of a page one number: how upright the writing and the traces there look (a P
wave comes before its QRS and a T wave after; letters stand on their feet). Averaged over the page and
compared between the page's four turns, it cannot prefer any turn by itself. Mirrored pages do not occur.
Its weights (benchmarks/make_orientation.py) are fitted to rendered pages only; it sees no colour, no
header position and, at training, random cuts of pages, so that it cannot learn one machine's layout.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]

PX_PER_MM: Final = 2.0  # of the thumbnail
WEIGHTS: Final = Path(__file__).with_name("orientation.npz")
_STRIDES: Final = (2, 2, 2, 2, 1, 1)  # of the layers; the last has one channel and no rectifier
_INK: Final = 98.5  # percentile of the page that is full ink
_FAINTEST: Final = 24.0  # grey levels: paler marks are not blown up to full ink


def quarter_turns(page: NDArray[np.uint8], px_per_mm: float) -> tuple[int, float]:
    """Say how the page has to be turned to stand upright.

    Args:
        page: uint8 [h, w, 3], RGB, flat and evenly lit, its lines along the axes.
        px_per_mm: its scale.

    Returns:
        Quarter turns counter-clockwise (as ``np.rot90``) that put it upright, and how sure that is, 0 to 1.
    """
    thumbnail = ink(page, px_per_mm)
    logits = np.array([score(np.ascontiguousarray(np.rot90(thumbnail, k))) for k in range(4)])
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    return int(probability.argmax()), float(probability.max())


def ink(page: NDArray[np.uint8], px_per_mm: float) -> Singles:
    """Reduce a page to its ink.

    Returns:
        float32 [h, w] at :data:`PX_PER_MM`, 0 on paper, about 1 on traces. Coloured lines fade, since only
        the brightest channel of each pixel counts.
    """
    size = tuple(max(32, round(side * PX_PER_MM / px_per_mm)) for side in page.shape[1::-1])
    # cv2.max of the channels: numpy reduces over an axis of three very slowly.
    brightest = functools.reduce(cv2.max, cv2.split(page)) if page.ndim == 3 else page
    small = cv2.resize(brightest, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    dark = np.maximum(cv2.blur(small, (41, 41)) - small, 0)
    full = max(float(np.percentile(dark, _INK)), _FAINTEST)
    return np.asarray(np.minimum(dark / full, 1.5), np.float32)


def score(thumbnail: Singles) -> float:
    """How upright an ink thumbnail, float32 [h, w], looks: a logit."""
    features = thumbnail[:, :, None]
    layers = _weights()
    for k, ((weight, bias), stride) in enumerate(zip(layers, _STRIDES, strict=True)):
        features = _convolve(features, weight, stride) + bias
        if k < len(layers) - 1:
            features = np.maximum(features, 0)
    return float(features.mean())


def _convolve(features: Singles, weight: Singles, stride: int) -> Singles:
    """Convolve [h, w, c] with [k, k, c, n], padded by k // 2 with zeros: [h', w', n]."""
    side = int(weight.shape[0])
    half = side // 2
    padded = np.pad(features, ((half, half), (half, half), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (0, 1))  # type: ignore[call-overload]
    windows = windows[::stride, ::stride].transpose(0, 1, 3, 4, 2)  # [h', w', k, k, c]
    rows = windows.reshape(windows.shape[0] * windows.shape[1], -1)
    out = rows @ weight.reshape(-1, weight.shape[-1])
    return np.asarray(out.reshape(*windows.shape[:2], -1), np.float32)


@functools.lru_cache(maxsize=1)
def _weights() -> list[tuple[Singles, Singles]]:
    with np.load(WEIGHTS) as stored:
        count = len(stored.files) // 2
        return [
            (stored[f"weight{k}"].astype(np.float32), stored[f"bias{k}"].astype(np.float32))
            for k in range(count)
        ]
