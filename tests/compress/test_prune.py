"""Pruning: what goes, what is left of it in every runtime, resuming, and the gate."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pulse_edge import commands, load
from pulse_edge.compress import importance
from pulse_edge.compress.calibrate import CalibrationRecipe, build
from pulse_edge.compress.cut import Cut, cut_model, kept_width
from pulse_edge.compress.importance import group_scores, look, most, neuron_scores, surprise, walk_through
from pulse_edge.errors import BudgetError, UnknownNameError, UserError
from pulse_edge.image_io import open_image
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples

PAGE = SAMPLES / samples()[0]["image"]


@pytest.fixture(scope="module")
def small_checkpoint(make_small: Callable[..., Path]) -> Path:
    """With groups of heads of which one can go."""
    return make_small(num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped samples as if their patients were training patients."""
    path = tmp_path_factory.mktemp("training") / "labels.csv"
    rows = samples()
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for k, row in enumerate(rows):
            writer.writerow({**row, "record": str(SAMPLES / row["record"]), "patient_id": f"p{k}"})
    return path


@pytest.fixture(scope="module")
def seen(small_checkpoint: Path, table: Path) -> Any:
    recipe = CalibrationRecipe("own", SAMPLES / "samples.csv", side="test", size=2, photos=0)
    prompts, _ = build(recipe)
    model = load_model(small_checkpoint, "float32")
    return model, prompts, Tokenizer.from_folder(small_checkpoint)


def test_influence_is_that_of_the_hidden_states(seen) -> None:
    model, prompts, tokenizer = seen
    shown, _ = look(model, prompts, tokenizer)
    influence, moments = walk_through(model, shown, lambda done, total: None)
    wanted = []
    for one in shown:
        with torch.inference_mode():
            states = model.model.language_model(
                inputs_embeds=one.embeds, use_cache=False, output_hidden_states=True
            ).hidden_states
        wanted.append(1 - torch.cosine_similarity(states[0], states[1], dim=-1).mean())
    assert influence[0] == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-5)
    assert moments[0]["mlp.down_proj"].shape == (48, 48)


def test_surprise_is_the_loss_without_a_layer(seen) -> None:
    model, prompts, tokenizer = seen
    shown, _ = look(model, prompts, tokenizer)
    worth = surprise(model, shown, lambda done, total: None)

    def loss(which: Any) -> float:
        total, count = 0.0, 0
        for one in shown:
            with torch.inference_mode():
                logits = which(inputs_embeds=one.embeds).logits[0, -len(one.target) - 1 : -1]
            entropy = torch.nn.functional.cross_entropy(logits, torch.tensor(one.target), reduction="sum")
            total += float(entropy)
            count += len(one.target)
        return total / count

    smaller, facts = cut_model(model, Cut(layers=1, by="perplexity"), prompts, tokenizer)
    gone = ({0, 1} - set(facts["kept_layers"])).pop()
    assert worth[gone] == min(worth)
    assert loss(smaller) - loss(model) == pytest.approx(worth[gone], abs=1e-3)


def test_scores_by_hand() -> None:
    moment, reader = torch.diag(torch.tensor([4.0, 1.0, 9.0, 1.0])), torch.tensor([[1.0, 5.0, 1.0, 0.0]])
    assert neuron_scores(moment, reader).tolist() == [2, 5, 3, 0]
    assert group_scores(moment, reader, 2).tolist() == [29, 9]
    assert most(torch.tensor([3.0, 9.0, 1.0, 5.0]), 2).tolist() == [1, 3]
    assert [kept_width(w, s) for w, s in ((192, 0.5), (10, 0.5), (8, 0.01), (64, 1.0))] == [96, 5, 1, 64]


def test_what_does_nothing_is_cut_without_a_trace(seen) -> None:
    """Neurons, heads and channels that add nothing go first, and the answers stay."""
    model, prompts, tokenizer = load_model_of(seen), seen[1], seen[2]
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.mlp.down_proj.weight[:, 32:] = 0
            layer.self_attn.o_proj.weight[:, 16:] = 0
    small, _ = cut_model(model, Cut(mlp=32, kv_heads=1), prompts, tokenizer)
    assert small.config.text_config.num_attention_heads == 2
    embeds = torch.randn(1, 9, 32)
    with torch.inference_mode():
        expected, found = (one(inputs_embeds=embeds).logits for one in (model, small))
    assert torch.allclose(expected, found, atol=1e-4)


def load_model_of(seen: Any) -> Any:
    import copy

    return copy.deepcopy(seen[0])


def test_least_squares_help_the_tower(seen, monkeypatch) -> None:
    """What stays takes over what went: nearer to the whole tower than cutting alone."""
    model, prompts, tokenizer = seen
    pixels = torch.from_numpy(preprocess(open_image(PAGE)))

    def error(cut: Any) -> float:
        with torch.inference_mode():
            whole, less = model.encode_images(pixels), cut.encode_images(pixels)
        return float((whole - less).square().mean())

    made, _ = cut_model(model, Cut(tower=0.5), prompts, tokenizer)
    monkeypatch.setattr(importance._Eyes, "moments", lambda self: {})  # as if nothing had been seen
    blind, _ = cut_model(model, Cut(tower=0.5), prompts, tokenizer)
    assert made.config.vision_config.inner == blind.config.vision_config.inner
    assert error(made) < error(blind)


def test_pruned_quantised_and_exported_it_answers_the_same(small_checkpoint, tmp_path, table) -> None:
    """Prune, quantise, export: the bundle's own gate compares it with the checkpoint on real ECGs."""
    made = commands.prune(
        str(small_checkpoint), tmp_path / "pruned", tokens=90, keep_by="ink", layers=1, mlp=32, kv_heads=1,
        tower=0.5, calibration=str(table), calibration_size=2, accept_loss=True,
    )  # fmt: skip
    assert made["parameters"][1] < made["parameters"][0]
    assert made["prefill"][1] == {"visual_tokens": 90, "flops": pytest.approx(made["prefill"][1]["flops"])}
    commands.quantize(str(tmp_path / "pruned"), tmp_path / "int8", 8, method="rtn", accept_loss=True)
    bundle = commands.export("jetson", str(tmp_path / "int8"), output=tmp_path / "bundle")
    assert bundle["parity"]["label_flips"] == 0
    assert bundle["parity"]["probability_max_abs"] < 0.002
    session, reference = load(tmp_path / "bundle"), load(tmp_path / "int8")
    narrow = np.asarray(open_image(PAGE))[:300]  # a page with four tiles: as many tokens all the same
    for picture in (open_image(PAGE), narrow):
        ours, theirs = (one.logits(picture, "What is the rate?") for one in (session, reference))
        assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
        assert session.backend.position == reference.backend.position
    card = read_card(tmp_path / "pruned")
    assert card["pruning"]["kept_layers"] in ([0], [1])
    assert card["metrics"][-1]["accepted"] == ["not measured"]


def test_healing_resumes_after_a_kill_and_ends_in_the_same_weights(
    small_checkpoint, tmp_path, table, monkeypatch
) -> None:
    monkeypatch.setattr("pulse_edge.compress.lessons.SHARD", 4)

    def prune(output: Path, **more: Any) -> Any:
        return commands.prune(
            str(small_checkpoint), output, tokens=60, layers=1, calibration=str(table), calibration_size=2,
            heal=table, heal_pages=4, heal_steps=3, accept_loss=True, **more,
        )  # fmt: skip

    made = prune(tmp_path / "whole")
    assert made["pruning"]["healing"]["losses"].keys() == {"response", "labels"}

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("healing", 2):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pulse_edge.compress.teach.SAVE_S", -1.0)  # a state after every step
        with pytest.raises(KeyboardInterrupt):
            prune(tmp_path / "twice", tick=stop)
    assert not (tmp_path / "twice").exists()
    told = []
    prune(tmp_path / "twice", tick=lambda what, done, total: told.append((what, done)))
    assert ("healing", 0) not in told
    assert ("healing", 2) in told
    assert ("pages to heal on", 0) not in told
    one, two = (load_model(tmp_path / name).state_dict() for name in ("whole", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not list(tmp_path.glob("*.pruning"))


def test_a_broken_budget_leaves_nothing_and_exits_3(small_checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pulse_edge.commands._prune.KEPT", 5.0)  # no model can gain that much
    with pytest.raises(BudgetError, match="Prune less") as caught:
        commands.prune(
            str(small_checkpoint), tmp_path / "p", tokens=5, records=SAMPLES / "samples.csv", split=None
        )
    assert caught.value.exit_code == 3
    assert not (tmp_path / "p").exists()
    assert not (tmp_path / "p.trial").exists()


def test_what_cannot_be_pruned(small_checkpoint, tmp_path) -> None:
    def prune(**cut: Any) -> None:
        commands.prune(str(small_checkpoint), tmp_path / "p", accept_loss=True, **cut)

    with pytest.raises(UserError, match="multiple of 5"):
        prune(tokens=63)
    with pytest.raises(UserError, match="Give 1 to 245"):
        prune(tokens=500)
    with pytest.raises(UserError, match="--calibration"):
        prune(layers=1)
    with pytest.raises(UserError, match="Say what goes"):
        prune()
    with pytest.raises(UnknownNameError, match="uniform"):
        prune(tokens=60, keep_by="unifrom")
    with pytest.raises(UserError, match="--records"):
        commands.prune(str(small_checkpoint), tmp_path / "p", tokens=60)
    assert not list(tmp_path.iterdir())
