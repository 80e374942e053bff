from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from pulse_edge.commands import SAMPLES, samples
from pulse_edge.ecg.split import SPLITS, split

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
            "batch": 3,
            "learning_rate": 0.002,
            "weight_decay": 0.01,
            "warmup": 0.1,
            "average_decay": 0.9,
            "evaluate_every": 2,
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
    """The six shipped ECGs once for each side of the split, under made-up patients."""
    folder = tmp_path_factory.mktemp("records")
    patients = iter(range(10_000))
    rows = []
    for side in SPLITS:
        for row in samples():
            patient = next(p for p in patients if split(f"made-up-{p}") == side)
            rows.append({**row, "patient_id": f"made-up-{patient}"})
    for path in SAMPLES.glob("*.hea"):
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".dat"), folder)
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


@pytest.fixture(scope="session")
def trained(labels_csv: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the whole tiny recipe; its working files stand beside it."""
    from pulse_edge.train import run

    folder = tmp_path_factory.mktemp("trained") / "tiny"
    run(tiny_recipe, labels_csv, folder, workers=0)
    return folder
