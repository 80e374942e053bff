from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pulse_edge.contract import IGNORE_ID, IMAGE_TOKEN_ID
from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import load_model, read_card, save_model
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.load import load
from pulse_edge.train import estimate, run
from pulse_edge.train.events import crc32c
from pulse_edge.train.resume import last_complete, mark
from pulse_edge.train.sft import token_loss
from pulse_edge.train.sft_data import Conversations, collate, divide
from pulse_edge.train.sft_recipe import freeze, model_config, read_sft_recipe
from pulse_edge.train.sources.ecginstruct import EcgInstruct
from pulse_edge.train.tokenizer import train_tokenizer

STEPS = 9


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student of PULSE's architecture (CLIP, Llama), its recipe, and twenty conversations."""
    folder = tmp_path_factory.mktemp("sft")
    train_tokenizer(folder, 700)
    tokenizer = Tokenizer.from_folder(folder)
    recipe = yaml.safe_load((Path(__file__).parents[2] / "train/recipes/pulse-0.5b.yaml").read_text())
    small = {"intermediate_size": 48, "num_hidden_layers": 2}
    recipe["model"]["text"].update(
        small, vocab_size=tokenizer.vocab_size, hidden_size=32, num_attention_heads=4, num_key_value_heads=2
    )
    recipe["model"]["vision"].update(small, hidden_size=16, num_attention_heads=2, patch_size=56)
    recipe["train"].update(
        batch=4, per_device=4, max_length=400, precision="fp32", hold_out=0.1, evaluate_every=2, fsdp=""
    )
    recipe["train"].update(learning_rate=0.01, epochs=2)
    recipe.update(name="tiny", init=str(folder / "base"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    torch.manual_seed(0)
    model = PulseForConditionalGeneration(model_config(read_sft_recipe(folder / "tiny.yaml").model))
    save_model(model, tokenizer, folder / "base", {"name": "base"})
    rng, rows = random.Random(0), []
    for k in range(20):
        size = (rng.choice([200, 400]), rng.choice([300, 450]), 3)
        noise = np.random.default_rng(k).integers(0, 255, size, dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")
        said = " ".join(["Sinus rhythm."] * rng.randint(1, 9))  # answers of different length
        rows.append(_row(k, said))
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def _row(k: int, said: str) -> dict[str, Any]:
    asked = {"from": "human", "value": "<image>\nWhat does it show?"}
    return {"id": str(k), "image": f"{k}.png", "conversations": [asked, {"from": "gpt", "value": said}]}


@pytest.fixture(scope="module")
def alone(home: Path) -> list[dict[str, Any]]:
    """The history of an uninterrupted training in this process."""
    return list(run(home / "tiny.yaml", home / "data.json", home / "alone", workers=0)["history"])


def _losses(history: list[dict[str, Any]], name: str = "loss") -> dict[int, float]:
    return {row["step"]: row[name] for row in history if name in row}


def _start(home: Path, output: str, processes: int) -> list[subprocess.Popen[bytes]]:
    """The command, as torchrun starts it, in several processes that speak by gloo."""
    command = [sys.executable, "-m", "pulse_edge.cli", "train", "--recipe", str(home / "tiny.yaml")]
    command += ["--data", str(home / "data.json"), "--output", str(home / output), "--workers", "0"]
    started = []
    for rank in range(processes):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if processes > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env=env, **quiet))  # type: ignore[call-overload]
    return started


def test_two_processes_killed_and_resumed_by_one_give_the_losses_of_one(
    home: Path, alone: list[dict[str, Any]]
) -> None:
    """Two processes train with the same global batch, are killed without warning at some moment behind
    their first checkpoint, and one process goes on: every loss is that of the uninterrupted training."""
    started = _start(home, "killed", 2)
    work = home / "killed.training"
    deadline = time.monotonic() + 300
    while not list(work.glob("checkpoint-*/complete")):
        assert all(process.poll() is None for process in started)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (home / "killed").exists()
    last = last_complete(work)
    assert last is not None
    state = json.loads((last / "trainer_state.json").read_text())
    expected = _losses(alone)
    by_two = _losses(state["log_history"])
    assert set(by_two) == set(range(1, state["global_step"] + 1))
    assert by_two == pytest.approx({k: expected[k] for k in by_two}, abs=1e-4)

    result = run(home / "tiny.yaml", home / "data.json", home / "killed", workers=0)
    assert _losses(result["history"]) == pytest.approx(expected, abs=1e-4)
    assert set(expected) == set(range(1, STEPS + 1))
    assert _losses(result["history"], "eval_loss") == pytest.approx(_losses(alone, "eval_loss"), abs=1e-4)
    one, two = (load_model(home / name).state_dict() for name in ("alone", "killed"))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def test_the_model_learns_and_the_best_is_kept(home: Path, alone: list[dict[str, Any]]) -> None:
    losses, judged = _losses(alone), _losses(alone, "eval_loss")
    assert losses[STEPS] < losses[1] - 0.5
    assert set(judged) == {2, 4, 6, 8, 9}
    card = read_card(home / "alone")
    best = min(judged, key=lambda step: judged[step])
    assert card["metrics"][0]["loss"] == pytest.approx(judged[best])
    assert f"checkpoint-{best} of" in card["recipe"]
    assert card["parent"]["name"] == "base"
    kept = load_model(home / "alone.training" / f"checkpoint-{best}").state_dict()
    assert all(
        torch.equal(kept[name], tensor) for name, tensor in load_model(home / "alone").state_dict().items()
    )
    answer = load(home / "alone").ask(home / "0.png", "What does it show?")
    assert answer


def test_the_curve_is_there_for_people_and_for_tensorboard(home: Path, alone: list[dict[str, Any]]) -> None:
    work = home / "alone.training"
    image = cv2.imread(str(work / "curve.png"))
    assert image is not None
    assert (image != 255).any()
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    (file,) = work.glob("events.out.tfevents.*")
    data, at, records = file.read_bytes(), 0, []
    while at < len(data):  # the framing, read independently of the writer
        (size,) = struct.unpack_from("<Q", data, at)
        records.append(data[at + 12 : at + 12 + size])
        at += size + 16
    assert at == len(data)
    assert b"brain.Event:2" in records[0]
    wanted = struct.pack("<f", _losses(alone)[3])
    assert [record for record in records if b"\x0a\x0atrain/loss\x15" + wanted in record]


@pytest.fixture(scope="module")
def items(home: Path) -> Conversations:
    examples = EcgInstruct(home / "data.json")
    tokenizer = Tokenizer.from_folder(home / "base")
    return Conversations(examples, np.arange(20), tokenizer, "flat", 36, 400, length=50, seed=7)


def test_an_epoch_shows_every_conversation_once_whoever_asks(items: Conversations) -> None:
    places = [items.place(k) for k in range(50)]
    assert sorted(places[:20]) == sorted(places[20:40]) == list(range(20))
    assert places[:20] != places[20:40]
    backwards = [items.place(k) for k in reversed(range(50))][::-1]
    assert backwards == places


def test_only_answers_are_supervised_and_the_loss_is_the_models_own(home: Path, items: Conversations) -> None:
    """Against transformers' loss over all positions of what merge_inputs makes of LLaVA's labels."""
    from pulse_edge.model.prompt import encode_training

    rows = [items[k] for k in (0, 1, 2)]
    batch = collate(rows)
    model = load_model(home / "base").eval()
    chosen = [items.examples[items.place(k)] for k in (0, 1, 2)]
    pairs = [encode_training(example.conversations, items.tokenizer, 400) for example in chosen]
    said = [items.tokenizer.decode([t for t in labels if t != IGNORE_ID]) for _, labels in pairs]
    assert said == [example.turns[0].answer for example in chosen]
    width = batch["input_ids"].shape[1]
    labels = torch.tensor([row + [IGNORE_ID] * (width - len(row)) for _, row in pairs])
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values", "image_sizes")}
    with torch.no_grad():
        _, _, merged = model.merge_inputs(labels=labels, **inputs)
        reference = model(labels=labels, **inputs).loss
        ours = token_loss(model(logits_to_keep=batch["logits_to_keep"], **inputs), batch["labels"])
    assert torch.equal(merged, batch["labels"])
    assert float(ours) == pytest.approx(float(reference), abs=1e-5)
    assert len(batch["logits_to_keep"]) < batch["labels"].shape[1] / 2


def test_what_cannot_be_learned_is_masked_and_counted(home: Path, tmp_path: Path) -> None:
    """A picture that does not decode, an answer that PULSE cannot align, and one behind the cut."""
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).write_bytes((home / name).read_bytes())
    (tmp_path / "0.png").write_bytes(b"no picture at all")
    rows = [_row(0, "Fine."), _row(1, "a ASSISTANT: b"), _row(2, "Fine.")]
    rows[2]["conversations"][0]["value"] = "<image>\n" + "Why? " * 400
    (tmp_path / "data.json").write_text(json.dumps(rows))
    tokenizer = Tokenizer.from_folder(home / "base")
    log = tmp_path / "log.txt"
    examples = EcgInstruct(tmp_path / "data.json")
    data = Conversations(examples, np.arange(3), tokenizer, "flat", 36, 400, log=log)
    batch = collate([data[k] for k in range(3)])
    assert (batch["labels"] == IGNORE_ID).all()
    assert batch["labels"].shape[1] <= 400
    assert (batch["input_ids"] == IMAGE_TOKEN_ID).sum() == 3
    assert [line.split(":")[0] for line in log.read_text().splitlines()] == ["0", "1", "2"]
    model = load_model(home / "base")
    labels = batch.pop("labels")
    loss = token_loss(model(**batch), labels, 0)
    loss.backward()
    assert float(loss.detach()) == 0


def test_a_record_is_learned_or_held_out_with_all_its_pages(tmp_path: Path) -> None:
    rows = []
    for k in range(200):
        patient = f"p1{k // 4:07d}"
        name = (
            f"mimic/{patient[:5]}/{patient}/s{k}/{k}-0.png" if k % 2 else f"ptb/{k // 10:05d}_hr-{k % 10}.png"
        )
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        rows.append({**_row(k, "Fine."), "image": name})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    examples = EcgInstruct(tmp_path / "data.json")
    learned, held = divide(examples, 0.3)
    assert sorted([*learned, *held]) == list(range(200))
    assert 20 < len(held) < 100

    def whose(places: Any) -> set[str]:
        paths = [examples[int(k)].image for k in places]
        return {p.parts[-3] if p.parts[-3].startswith("p1") else p.name.split("-")[0] for p in paths}

    assert not whose(learned) & whose(held)
    assert len(divide(examples, 0.0)[1]) == 0


def test_a_frozen_tower_and_what_never_runs_are_not_trained(home: Path) -> None:
    model = load_model(home / "base")
    for vision in (True, False):
        freeze(model, vision)
        items = [n for n, p in model.named_parameters() if p.requires_grad]
        assert any("vision_tower" in name for name in items) is not vision
        assert not [n for n in items if ("layers.1." in n and "vision" in n) or "post_layernorm" in n]
        assert not [name for name in items if "image_newline" in name]


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 12:
            mark(tmp_path / f"checkpoint-{step}")
    assert last_complete(tmp_path, tidy=False) == tmp_path / "checkpoint-10"
    assert (tmp_path / "checkpoint-12").exists()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"batch": 64}}, "do not fill one batch"),
        ({"train": {"max_length": 150}}, "must exceed the image's 180 tokens"),
        ({"train": {"learning_rate": "2e-5"}}, "YAML needs a point"),
        ({"train": {"precision": "fp61"}}, "Unknown precision"),
        ({"train": {"warmup": 3}}, "warmup out of range"),
        ({"train": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"model": {"merge": "flt"}}, "Did you mean 'flat'"),
        ({"kind": "stf"}, "Did you mean 'sft'"),
        ({"init": "no/such/folder"}, "not a folder on this machine"),
        ({"init": "pulse-nano"}, "not of the recipe's architecture"),
    ],
)
def test_what_does_not_fit_the_recipe_is_refused(
    home: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    recipe = yaml.safe_load((home / "tiny.yaml").read_text())
    for key, value in change.items():
        recipe[key] = {**recipe[key], **value} if isinstance(value, dict) else value
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=said):
        run(tmp_path / "wrong.yaml", home / "data.json", tmp_path / "out", workers=0)
    assert not list(tmp_path.glob("out*"))


def test_the_dry_run_measures_the_data(home: Path) -> None:
    plan = estimate(home / "tiny.yaml", home / "data.json", gpus=2)
    assert plan["conversations"] == 20
    assert plan["steps"] == 10
    assert plan["batch"] == {"global": 4, "per_gpu": 2, "accumulate": 1}
    assert plan["tokens"]["visual"] == 180
    assert 40 < plan["tokens"]["text"] < 120
    assert plan["parameters"] == sum(p.numel() for p in load_model(home / "base").parameters())
