"""The graph's page, turn and tiles against the numpy path's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pulse_edge.contract import IMAGE_STD
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.export.capture_graph.page import CELLS, PX_PER_CELL, ROOM, even_light
from pulse_edge.export.capture_graph.plain import array
from pulse_edge.export.capture_graph.tiles import cut
from pulse_edge.export.capture_graph.upright import turns
from pulse_edge.model.preprocess import preprocess
from pulse_edge.runtimes.capture import light, orientation
from pulse_edge.samples import SAMPLES, samples


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A rendered page of whole cells at 6 px/mm, under a gradient of light."""
    image = render(read_record(SAMPLES / samples()[0]["record"])).image
    rows, columns = min(image.shape[0] // PX_PER_CELL, CELLS), min(image.shape[1] // PX_PER_CELL, CELLS)
    page = image[: rows * PX_PER_CELL, : columns * PX_PER_CELL]
    shade = np.linspace(0.5, 1, page.shape[1])[None, :, None]
    return np.round(page * shade).astype(np.uint8)


def placed(page: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    square = np.zeros((3, ROOM, ROOM), np.float32)
    square[:, : page.shape[0], : page.shape[1]] = page.transpose(2, 0, 1)
    return torch.from_numpy(square), array(page.shape[:2])


def test_light_is_evened_out_as_by_the_reference(picture):
    page, size = placed(picture)
    found = even_light(page, size).numpy()[:, : picture.shape[0], : picture.shape[1]].transpose(1, 2, 0)
    off = np.abs(found - light.even_light(picture, 6.0))
    assert off.mean() < 0.2
    assert off.max() <= 3


@pytest.mark.parametrize("quarters", range(4))
def test_the_turn_is_the_reference_s(picture, quarters):
    lit = light.even_light(np.ascontiguousarray(np.rot90(picture, -quarters)), 6.0)
    found, sure = turns(*placed(lit))
    wanted = orientation.quarter_turns(lit, 6.0)
    assert int(found) == wanted[0] == quarters
    assert float(sure) == pytest.approx(wanted[1], abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (30, 50), (50, 30), (10, 40), (40, 10), (20, 64)])
@pytest.mark.parametrize("quarters", [0, 3])
def test_tiles_are_pillow_s(picture, shape, quarters):
    page = picture[: shape[0] * PX_PER_CELL, : shape[1] * PX_PER_CELL]
    found, views = cut(*placed(page), array(quarters))
    wanted = preprocess(np.ascontiguousarray(np.rot90(page, quarters)))
    assert int(views) == len(wanted)
    levels = np.abs(found.numpy()[: len(wanted)] - wanted) * np.array(IMAGE_STD)[:, None, None] * 255
    assert levels.max() < 1.01  # one grey level, where Pillow's fixed-point sums fall on the other side
    assert (levels > 0.5).mean() < 0.002
    assert not found.numpy()[len(wanted) :].any()
