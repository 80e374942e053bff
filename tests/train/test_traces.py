"""What the dense targets say is compared with the ink on the very tiles that the model sees."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pulse_edge.contract import IGNORE_ID
from pulse_edge.ecg.leads import LEADS
from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.vary import draw_picture
from pulse_edge.model.preprocess import tiles
from pulse_edge.samples import SAMPLES
from pulse_edge.train.dataset import quick_tiles
from pulse_edge.train.traces import cell_traces

CELL = 48


def darkness(image: np.ndarray) -> np.ndarray:
    """How much darker than its paper a picture is, float [n, 336, 336]; the grid is red and counts little."""
    red = image[..., 0].astype(float)
    return np.clip(np.median(red) - red, 0, None)


class Drawn(random.Random):
    """Chance whose first draw, which picks the kind of picture, is known."""

    def __init__(self, kind: str) -> None:
        super().__init__(3)
        self.first = {"page": 0.0, "scan": 0.5, "photo": 0.9}.get(kind)

    def random(self) -> float:
        first, self.first = self.first, None
        return super().random() if first is None else first


@pytest.mark.parametrize("layout", ["3x4+1", "6x2", "12x1"])
@pytest.mark.parametrize("kind", ["page", "scan", "photo"])
def test_the_ink_is_where_the_traces_are_said_to_be(layout: str, kind: str) -> None:
    record = read_record(SAMPLES / "00057")
    page = render(record, PaperStyle(layout=layout, trace_mm=0.5))
    image, places = draw_picture(page, Drawn(kind))
    traces, leads = cell_traces(page, record, places, CELL)
    assert traces.shape == (4, 49, CELL)
    assert leads.shape == (4, 49)
    assert (image is page.image) == (kind == "page")
    dark = darkness(tiles(image)[1:])
    hit, shifted, n = 0.0, 0.0, 0
    for tile, token in np.argwhere(leads != IGNORE_ID):
        row, column = divmod(int(token), 7)
        heights = traces[tile, token]
        steep = np.abs(np.gradient(heights)) > 0.02  # half a row of pixels between columns
        for x in np.flatnonzero(np.isfinite(heights) & ~steep):
            y = round((row + 0.5) * CELL - 0.5 - float(heights[x]) * CELL)
            if 12 <= y < 324:
                at = column * CELL + x
                hit += dark[tile, y - 1 : y + 2, at].max()
                shifted += dark[tile, y + 9 : y + 12, at].max()
                n += 1
    assert n > 1500
    assert hit / n > 60
    assert hit > 4 * shifted


def test_every_lead_is_named_where_it_stands() -> None:
    record = read_record(SAMPLES / "00057")
    page = render(record, PaperStyle())
    _, leads = cell_traces(page, record, lambda x, y: np.stack([x, y], axis=1), CELL)
    rows = leads.reshape(2, 2, 7, 7).swapaxes(1, 2).reshape(14, 14)
    assert set(rows[rows != IGNORE_ID]) == set(range(12))
    # 3x4: the columns of the page are I-III, aVR-aVF, V1-V3, V4-V6, and the strip below is II.
    first = [[LEADS[k] for k in row if k != IGNORE_ID] for row in rows if (row != IGNORE_ID).any()]
    assert [dict.fromkeys(row) for row in first] == [
        dict.fromkeys(names)
        for names in (["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"], ["II"])
    ]


def test_quick_tiles_are_nearly_the_exact_ones() -> None:
    record = read_record(SAMPLES / "00057")
    for dpi in (75.0, 122.0, 200.0):
        image = render(record, PaperStyle(dpi=dpi)).image
        gap = np.abs(quick_tiles(image).astype(int) - tiles(image))
        assert gap.mean() < 2.0
        assert gap.max() < 80
