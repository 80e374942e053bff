"""Photographed pages whose truth is known, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pulse_edge.ecg.paper import Page, PaperStyle, render
from pulse_edge.ecg.photo import Photo, PhotoStyle, Wave, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.samples import SAMPLES

# Bent, tilted and turned a little, with nothing wrong.
PLAIN = PhotoStyle(
    seed=3, tilt_deg=6, toward_deg=40, rotation_deg=2, distance=1.5, zoom=0.93, background="wood",
    waves=(Wave(3.0, 400, 20, 60),), raking=0.3, exposure=0.95, noise=0.008, jpeg=88,
)  # fmt: skip

Make = Callable[..., tuple[Photo, Page]]


@pytest.fixture(scope="session")
def shoot() -> Make:
    """Photograph a sample page: ``shoot(size, paper={...}, **changes to the photo's style)``."""
    pages: dict[tuple[tuple[str, Any], ...], Page] = {}

    def make(
        size: tuple[int, int] = (1300, 1005), paper: dict[str, Any] | None = None, **changes: Any
    ) -> tuple[Photo, Page]:
        look = {"dpi": 150.0, **(paper or {})}
        key = tuple(sorted(look.items()))
        if key not in pages:
            pages[key] = render(read_record(SAMPLES / "00057"), PaperStyle(**look))
        page = pages[key]
        return photograph(page.image, page.px_per_mm, replace(PLAIN, **changes), size), page

    return make


@pytest.fixture(scope="session")
def plain(shoot: Make) -> tuple[Photo, Page]:
    """The photo with nothing wrong."""
    return shoot()


def true_mesh(photo: Photo, step: float = 5.0) -> NDArray[np.float64]:
    """The mesh that a perfect rectification would find: float64 [rows, columns, 4]."""
    width, height = photo.size_mm
    x, y = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    return np.concatenate([photo.to_photo(x, y), np.stack([x, y], axis=-1)], axis=-1)
