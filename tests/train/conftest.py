from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pulse_edge.ecg.record import LEADS, read_record
from pulse_edge.ecg.split import SPLITS, split
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples
from pulse_edge.train.tokenizer import train_tokenizer

RECIPE = {
    "name": "tiny",
    "seed": 3,
    "model": {
        "vocab_size": 700,
        "vision": {
            "widths": [6, 6, 12, 24],
            "strides": [4, 2, 2, 3],
            "depths": [0, 0, 0, 1],
            "context_layers": 1,
        },
        "text": {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
        },
    },
    "train": {
        stage: {
            "pages": 12,
            "photos": 0.35,
            "morphs": 0.0,
            "batch": 3,
            "learning_rate": 0.002,
            "weight_decay": 0.01,
            "warmup": 0.1,
            "average_decay": 0.9,
            "evaluate_every": 2,
            "parent": 0.0,
        }
        for stage in ("see", "speak")
    },
}


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="session")
def labels_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six shipped ECGs once for each side of the split, under made-up patients.

    The validation side has them a little smaller and the test side a little larger, since a signal
    under two patients is refused.
    """
    folder = tmp_path_factory.mktemp("records")
    patients = iter(range(10_000))
    rows = []
    for side, letter, scale in zip(SPLITS, ("", "v", "t"), (1.0, 0.97, 1.03), strict=True):
        for row in samples():
            patient = next(p for p in patients if split(f"made-up-{p}") == side)
            name = f"{row['record']}{letter}"
            write_record(folder / name, scale * read_record(SAMPLES / row["record"]).signal)
            rows.append({**row, "record": name, "patient_id": f"made-up-{patient}"})
    write_table(folder / "labels.csv", rows)
    return folder / "labels.csv"


def write_record(
    base: Path, signal: NDArray[Any], comments: tuple[str, ...] = (), fs: float = 200, unit: str = "mV"
) -> Path:
    """Write [12, n] as a WFDB record in steps of a thousandth of the unit; NaN is a missing sample."""
    base.parent.mkdir(parents=True, exist_ok=True)
    steps = np.where(np.isnan(signal), -32768, np.round(signal * 1000).clip(-32767, 32767)).astype("<i2")
    base.with_name(f"{base.name}.dat").write_bytes(steps.T.tobytes())
    lines = [f"{base.name} 12 {fs:g} {signal.shape[1]}"]
    lines += [
        f"{base.name}.dat 16 1000/{unit} 16 0 {row[0]} 0 0 {lead}"
        for lead, row in zip(LEADS, steps, strict=True)
    ]
    base.with_name(f"{base.name}.hea").write_text("\n".join([*lines, *comments]) + "\n")
    return base


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session", name="write_record")
def _write_record() -> Callable[..., Path]:
    return write_record


@pytest.fixture(scope="session", name="write_table")
def _write_table() -> Callable[[Path, list[dict[str, Any]]], None]:
    return write_table


@pytest.fixture(scope="session")
def signals() -> dict[str, NDArray[np.float32]]:
    """The signals of the shipped ECGs, [12, n] in mV at 200 Hz, by the record's name."""
    return {row["record"]: read_record(SAMPLES / row["record"]).signal for row in samples()}


@pytest.fixture(scope="session")
def trained(labels_csv: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the whole tiny recipe; its working files stand beside it."""
    from pulse_edge.train import run

    folder = tmp_path_factory.mktemp("trained") / "tiny"
    run(tiny_recipe, labels_csv, folder, workers=0)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder, 700)
    return Tokenizer.from_folder(folder)
