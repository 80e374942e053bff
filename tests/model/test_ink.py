"""Which visual tokens are kept: counted by hand, on real pages, and the same whatever the arithmetic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pulse_edge.contract import MAX_TILES
from pulse_edge.errors import CheckpointError, ImageError
from pulse_edge.image_io import open_image
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.ink import ink, kept_tokens, uniform
from pulse_edge.model.merge import KEPT, merge_features
from pulse_edge.model.preprocess import geometry, normalize, preprocess, tiles
from pulse_edge.samples import SAMPLES, samples

WHITE, BLACK, PINK = (255, 255, 255), (0, 0, 0), (255, 200, 200)


def drawn(draw: Any) -> torch.Tensor:
    """Five white tiles, the second of them changed."""
    views = np.full((MAX_TILES, 336, 336, 3), WHITE, np.uint8)
    draw(views[1])
    return torch.from_numpy(normalize(views))


def test_ink_is_counted_where_it_is() -> None:
    def trace(tile: np.ndarray) -> None:
        tile[100:102, 48:144] = BLACK  # two pixels high, across two patches of 48
        tile[200:202, :] = PINK  # a line of the grid
        tile[288:, :] = BLACK  # padding

    found = ink(drawn(trace), 49).reshape(MAX_TILES, 7, 7)
    assert found[1, 2].tolist() == [0, 96, 96, 0, 0, 0, 0]
    assert found.sum() == 192  # neither grid nor padding, nor its edge


def test_a_shadow_is_no_ink() -> None:
    def shade(tile: np.ndarray) -> None:
        tile[:] = np.linspace(60, 255, 336).astype(np.uint8)[:, None, None]

    assert ink(drawn(shade), 49).sum() == 0


@pytest.mark.parametrize("tokens", [49, 576])
def test_real_pages_keep_their_traces(tokens) -> None:
    for row in samples():
        page = np.asarray(open_image(SAMPLES / row["image"]))
        pixels = torch.from_numpy(preprocess(page))
        kept = kept_tokens(pixels, tokens, MAX_TILES * tokens // 2 // 5 * 5, "ink")
        assert (kept[1:] > kept[:-1]).all()  # in the order of the page, none twice
        found = ink(pixels, tokens)
        left = torch.ones(len(found), dtype=torch.bool)
        left[kept] = False
        assert found[kept].min() >= found[left].max()
        # padding of the best grid's margins is left out before anything else
        place = geometry(page.shape[1], page.shape[0])
        patch = 336 // int(tokens**0.5)
        margin = place.paste[1] // patch
        padded = found.reshape(MAX_TILES, -1, 336 // patch)[1, :margin]
        assert padded.sum() == 0


def test_the_choice_is_the_same_in_other_arithmetic() -> None:
    pixels = torch.from_numpy(preprocess(open_image(SAMPLES / samples()[1]["image"])))
    wanted = kept_tokens(pixels, 49, 90, "ink")
    assert torch.equal(kept_tokens(pixels.double(), 49, 90, "ink"), wanted)
    assert torch.equal(kept_tokens(pixels.half(), 49, 90, "ink"), wanted)
    noise = (torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 1e-3
    assert torch.equal(kept_tokens(pixels + noise, 49, 90, "ink"), wanted)


def test_even_distances() -> None:
    assert uniform(9, 3) == [0, 4, 8]
    assert uniform(5, 1) == [0]
    for keep in (5, 90, 245):
        places = uniform(245, keep)
        assert places == sorted(set(places))
        assert (places[0], places[-1]) == (0, 244)


@pytest.fixture
def pruned(small_checkpoint: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(small_checkpoint, tmp_path / "pruned"))
    change(folder, keep_tokens=60)
    return folder


def change(folder: Path, **fields: Any) -> None:
    settings = folder / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **fields}))


@pytest.mark.parametrize("size", [(2200, 1700), (2400, 1000)])  # five tiles, and four
def test_a_pruned_model_reads_the_tokens_that_it_keeps(small_checkpoint, pruned, size) -> None:
    page = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    whole, less = load_model(small_checkpoint, "float32"), load_model(pruned, "float32")
    pixels = torch.from_numpy(normalize(tiles(page)))
    with torch.inference_mode():
        found = less.merge_images(less.encode_images(pixels), size)
        filled = torch.nn.functional.pad(pixels, (0,) * 7 + (MAX_TILES - len(pixels),))
        every = whole.encode_images(filled).flatten(0, 1)
        assert torch.allclose(found, every[kept_tokens(filled, 49, 60, "ink")], atol=1e-5)
        assert torch.allclose(less.choose_tokens(filled, every), found, atol=1e-5)
    assert found.shape[0] == 60


def test_what_a_graph_has_chosen_is_kept_whole() -> None:
    features = np.arange(5 * 3 * 2, dtype=np.float32).reshape(5, 3, 2)
    assert np.array_equal(merge_features(features, (2400, 1000), KEPT, None, 4), features.reshape(15, 2))
    assert merge_features(features, (2400, 1000), "flat", None, 4).shape == (12, 2)
    with pytest.raises(ImageError):
        merge_features(features, (2400, 1000), "flat")


def test_wrong_settings_are_refused(pruned) -> None:
    wrong = {"keep_tokens": 63}, {"keep_tokens": "60"}, {"keep_by": "luck"}, {"merge": "spatial_unpad"}
    for fields in wrong:
        change(pruned, **{"keep_tokens": 60, "keep_by": "ink", "merge": "flat", **fields})
        with pytest.raises(CheckpointError, match="keep"):
            load_model(pruned)
