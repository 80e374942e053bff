"""A training of the two-stage kind, killed without warning at some moment, ends with the same weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import load_model
from pulse_edge.train import run


def test_a_killed_training_resumes_to_the_same_weights(
    labels_csv: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "pulse_edge.cli",
        "train",
        "--recipe",
        str(tiny_recipe),
        "--workers",
        "0",
    ]
    command += ["--data", str(labels_csv), "--output", str(tmp_path / "killed")]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, env=env, **quiet)  # type: ignore[call-overload]
    stage = random.choice(["see", "speak"])
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed.training" / stage).glob("checkpoint-*")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "killed").exists()
    run(tiny_recipe, labels_csv, tmp_path / "killed", workers=0)
    run(tiny_recipe, labels_csv, tmp_path / "whole", workers=0)
    one, two = (load_model(tmp_path / name).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_several_processes_are_refused_before_anything_is_written(
    labels_csv: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trains in one process"):
        run(tiny_recipe, labels_csv, tmp_path / "new", workers=0)
    assert not list(tmp_path.glob("new*"))
