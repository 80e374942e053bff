"""Where pruned visual tokens stand: by hand, and against the whole model that is told the places itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pulse_edge import commands, load
from pulse_edge.contract import IMAGE_TOKEN_ID
from pulse_edge.errors import CheckpointError
from pulse_edge.image_io import open_image
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.places import positions
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples

PAGE = SAMPLES / samples()[0]["image"]
EVERY, KEEP = 245, 60


@pytest.fixture(scope="module")
def pruned(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread") / "pruned"
    commands.prune(str(small_checkpoint), folder, tokens=KEEP, keep_by="uniform", accept_loss=True)
    return folder


def test_places_by_hand() -> None:
    assert positions(4, None) == [0, 1, 2, 3]
    assert positions(8, (2, 3, 9)) == [0, 1, 2, 6, 10, 11, 12, 13]
    assert positions(3, (2, 3, 9)) == [0, 1, 2]
    assert positions(7, (2, 4, 4)) == list(range(7))


def test_a_pruned_model_reads_what_the_whole_one_reads_at_those_places(small_checkpoint, pruned) -> None:
    """The whole model is given the same tokens and, written out, the places that they had on the page."""
    whole, small = (load_model(folder, "float32") for folder in (small_checkpoint, pruned))
    tokenizer = Tokenizer.from_folder(small_checkpoint)
    ids = encode_prompt(build_prompt([("What is the rate?", None)]), tokenizer)
    first = ids.index(IMAGE_TOKEN_ID)
    rows = np.linspace(0, EVERY - 1, KEEP).round().astype(int)
    with torch.inference_mode():
        pixels = torch.from_numpy(preprocess(open_image(PAGE)))
        visual = whole.encode_images(pixels).flatten(0, 1)[rows]
        embeds = whole.embed_prompt(ids, visual)
        behind = np.arange(first + EVERY, first + EVERY + len(ids) - first - 1)
        places = torch.from_numpy(np.concatenate([np.arange(first), first + rows, behind]))[None]
        wanted = whole.model.language_model(inputs_embeds=embeds, position_ids=places).last_hidden_state
        counted = whole.model.language_model(inputs_embeds=embeds).last_hidden_state
        numbers = torch.arange(embeds.shape[1])[None]
        found = small.model.language_model(inputs_embeds=embeds, position_ids=numbers).last_hidden_state
        logits = whole.lm_head(wanted[0, -1]).numpy()
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (counted - wanted).abs().max() > 1e-2
    said = load(pruned).logits(open_image(PAGE), "What is the rate?")
    assert np.abs(said - logits).max() < 1e-3 * np.abs(logits).max()


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp32"), ("jetson", "fp16")])
def test_its_bundles_stand_their_tokens_likewise(pruned, tmp_path, target, precision) -> None:
    """ONNX Runtime's operator with its cache, and the portable graph: a prompt, and tokens behind it."""
    commands.export(target, str(pruned), precision=precision, output=tmp_path / "bundle")
    ours, theirs = load(tmp_path / "bundle"), load(pruned)
    page = open_image(PAGE)
    for session in (ours, theirs):
        session.logits(page, "What is the rate?")
    near = 1e-3 if precision == "fp32" else 0.05
    for token in (5, 9, 7):
        found, wanted = (one.backend.step(token) for one in (ours, theirs))
        assert np.abs(found - wanted).max() < near * np.abs(wanted).max()
    assert ours.backend.context == theirs.backend.context


def test_what_can_be_read_shrinks_by_the_places_that_are_skipped(small_checkpoint, pruned) -> None:
    configs = [json.loads((f / "config.json").read_text())["text_config"] for f in (small_checkpoint, pruned)]
    lengths = [config["max_position_embeddings"] for config in configs]
    assert lengths[0] - lengths[1] == EVERY - KEEP
    assert positions(lengths[1], configs[1]["spread"])[-1] == lengths[0] - 1


def test_pruned_twice_is_pruned_once(small_checkpoint, pruned, tmp_path) -> None:
    commands.prune(str(small_checkpoint), tmp_path / "many", tokens=120, keep_by="uniform", accept_loss=True)
    commands.prune(str(tmp_path / "many"), tmp_path / "few", tokens=KEEP, keep_by="uniform", accept_loss=True)
    once, twice = ((f / "config.json").read_text() for f in (pruned, tmp_path / "few"))
    assert json.loads(once) == json.loads(twice)


@pytest.mark.parametrize("spread", [[1, 2], "x", [35, 90, 245], [-1, 60, 245], [35, 60, 50], [35, 60.0, 245]])
def test_places_that_cannot_be_are_refused(pruned, tmp_path, spread) -> None:
    shutil.copytree(pruned, tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    config["text_config"]["spread"] = spread
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="spread"):
        load_model(tmp_path / "c")
