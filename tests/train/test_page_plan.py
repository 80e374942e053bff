"""What a recipe of records costs, and that the recipes that ship are of the size that they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pulse_edge import cli
from pulse_edge.samples import SAMPLES
from pulse_edge.train import estimate


def test_pulse_nano_has_the_parameters_that_ship() -> None:
    whole, tune = estimate("pulse-nano"), estimate("pulse-nano-tune")
    weights = SAMPLES.parent / "pulse-nano" / "model.safetensors"
    with weights.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    stored = [
        row["shape"] for name, row in header.items() if "running_" not in name and row.get("dtype") == "F16"
    ]
    count = 0
    for shape in stored:
        size = 1
        for side in shape:
            size *= side
        count += size
    assert whole["parameters"] == tune["parameters"] == count
    assert whole["stages"]["see"]["pages"] == 24000
    assert list(tune["stages"]) == ["tune"]


def test_pulse_mini_stays_below_25_million() -> None:
    plan = estimate("pulse-mini")
    assert 20e6 < plan["parameters"] <= 25e6
    assert list(plan["stages"]) == ["see", "speak", "tune"]


def test_operations_are_those_of_the_layers(tiny_recipe: Path) -> None:
    """Counted by hand from the shapes of the recipe: 2 operations a multiplication, 5 tiles a page."""
    plan = estimate(tiny_recipe)
    convolutions = [  # side of the output, inputs x kernel, outputs
        (84, 3 * 16, 6),
        (42, 6 * 9, 6),
        (21, 6 * 9, 12),
        (7, 12 * 9, 24),
        (7, 24 * 9, 24),
        (7, 24 * 9, 24),
    ]
    tower = sum(2 * 5 * side**2 * inputs * outputs for side, inputs, outputs in convolutions)
    linear = 2 * 245 * (24 * 72 + 24 * 24 + 2 * 24 * 48)
    attention = 2 * 2 * 245 * 245 * 24
    assert plan["flops_per_page"]["tower"] == pytest.approx(tower + linear + attention, rel=1e-6)
    see = plan["stages"]["see"]
    assert see["steps"] == 4
    assert see["flops"] == 12 * 3 * plan["flops_per_page"]["tower"]


def test_the_plan_is_printed_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.train.train(recipe="pulse-mini", dry_run=True)
    printed = capsys.readouterr().out
    assert "64,000 pages in 2,000 steps" in printed
    cli.train.train(recipe="pulse-mini", dry_run=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["recipe"] == "pulse-mini"
    assert not list(tmp_path.iterdir())
