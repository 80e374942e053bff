from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pulse_edge import commands
from pulse_edge.errors import UserError
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.train.dry_run import CONVERSATIONS, flops, plan
from pulse_edge.train.sft_recipe import (
    empty_model,
    freeze,
    model_config,
    read_sft_recipe,
    share_batch,
    tokens_per_page,
)

# Of the released checkpoint: 14,126 MB of bf16 in three shards (shared/facts/pulse.md, 1.1).
PULSE_7B = {"language": 6_738_415_616, "tower": 303_507_456, "projector": 20_979_712, "newline": 4096}


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    return plan(read_sft_recipe("pulse-7b"), gpus=32)


def test_pulse_7b_has_the_parameters_of_the_released_checkpoint(published: dict[str, Any]) -> None:
    assert published["parameters"] == sum(PULSE_7B.values()) == 7_062_906_880
    assert published["trainable"] == PULSE_7B["language"] + PULSE_7B["projector"]
    assert published["vision_parameters"] == PULSE_7B["tower"]


def test_the_plan_of_pulse_7b_is_near_what_its_authors_report(published: dict[str, Any]) -> None:
    """32 H100, two conversations each, about ten hours (README of AIMedLab/PULSE)."""
    assert published["batch"] == {"global": 128, "per_gpu": 2, "accumulate": 2}
    assert published["steps"] == 3 * 1_156_110 // 128
    assert published["hours"] == pytest.approx(10, rel=0.15)
    assert published["tokens"]["visual"] == 2880
    assert published["fits"]


def test_sharding_divides_what_it_should() -> None:
    recipe = read_sft_recipe("pulse-7b")
    one, many = plan(recipe, 1), plan(recipe, 64)
    assert not one["fits"]  # 16 bytes for each trained parameter alone are 108 GB
    state = ("weights", "gradients", "optimizer")
    assert sum(one["memory_per_gpu"][k] for k in state) == 16 * one["trainable"] + 4 * (
        one["parameters"] - one["trainable"]
    )
    for name in state:
        assert many["memory_per_gpu"][name] == pytest.approx(one["memory_per_gpu"][name] / 64, abs=1)
    assert many["memory_per_gpu"]["activations"] == one["memory_per_gpu"]["activations"]
    assert many["gpu_hours"] == pytest.approx(one["gpu_hours"])
    assert many["hours"] == pytest.approx(one["hours"] / 64)


@pytest.mark.parametrize("name", ["pulse-2b", "pulse-0.5b"])
def test_students_group_their_queries_and_see_fewer_tokens(name: str) -> None:
    recipe = read_sft_recipe(name)
    model = empty_model(recipe.model)
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads
    assert tokens_per_page(model.config) == 720
    billions = float(name.removeprefix("pulse-").removesuffix("b"))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.25)


def test_the_formula_counts_what_torch_counts() -> None:
    """torch counts every product of a real forward pass; training takes three times as much."""
    shape = read_sft_recipe("pulse-0.5b").model
    small = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**shape.text, **small, "num_key_value_heads": 2, "vocab_size": 500}
    vision = {**shape.vision, **small}
    model = PulseForConditionalGeneration(model_config(replace(shape, text=text, vision=vision)))
    model.set_attn_implementation("eager")
    freeze(model, vision=True)
    visual, words = 200, 60
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.model.multi_modal_projector(torch.zeros(visual, 64))
        model.model.language_model(inputs_embeds=torch.zeros(1, visual + words, 64), use_cache=False)
        model.lm_head(torch.zeros(words, 64))
    assert flops(model, visual, words)["language"] == pytest.approx(3 * counter.get_total_flops(), rel=1e-3)


def test_the_batch_is_shared_without_a_rest() -> None:
    assert share_batch(128, 2, 32) == (2, 2)
    assert share_batch(128, 8, 128) == (1, 1)
    assert share_batch(12, 5, 2) == (3, 2)
    with pytest.raises(UserError, match="cannot be divided by 48 processes"):
        share_batch(128, 2, 48)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read as Linux gives it")
def test_no_weight_is_allocated(tmp_path: Path) -> None:
    """Under 2 GB for 7 B parameters, by the command's own peak.

    Not by wait4's: a child that is spawned begins with the largest size of the process that spawned it.
    """
    status = tmp_path / "status"
    script = (
        "import atexit, pathlib\n"
        "from pulse_edge.cli import main\n"
        "own = pathlib.Path('/proc/self/status')\n"
        f"atexit.register(lambda: pathlib.Path({str(status)!r}).write_text(own.read_text()))\n"
        "main()"
    )
    command = [sys.executable, "-c", script, "train", "--recipe", "pulse-7b", "--dry-run", "--json"]
    done = subprocess.run([*command, "--gpus", "32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["parameters"] == 7_062_906_880
    assert result["conversations"] == CONVERSATIONS
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    assert peak < 2_000_000


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UserError, match="--gpus belongs to --dry-run"):
        commands.train("pulse-7b", gpus=2)
    with pytest.raises(UserError, match="Name what is learned"):
        commands.train("pulse-7b")
    with pytest.raises(UserError, match="at least 1"):
        commands.train("pulse-7b", dry_run=True, gpus=0)
    with pytest.raises(UserError, match="cannot be divided"):
        commands.train("pulse-7b", dry_run=True, gpus=48)
