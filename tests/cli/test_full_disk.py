"""A disk that fills up is said to be full, whatever library was writing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

from pulse_edge.bundle.signature import REQUIRE_KEY, make_keys
from pulse_edge.samples import SAMPLES


def limit() -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails in the same way."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_quantize_on_a_full_disk(small_checkpoint, tmp_path) -> None:
    """Weights are written by safetensors, whose errors are its own."""
    output = tmp_path / "out" / "small-int8"
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from pulse_edge.cli import main; main()", "quantize"),
            *(str(small_checkpoint), "--bits", "8", "--method", "rtn", "--accept-loss"),
            *("--output", str(output)),
        ],
        capture_output=True, text=True, preexec_fn=limit, timeout=900,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_a_required_signature_does_not_stop_who_makes_the_model(
    pulse, small_checkpoint, tmp_path, monkeypatch
) -> None:
    """The gate opens what is only being made, which nobody can have signed."""
    monkeypatch.setenv(REQUIRE_KEY, make_keys(tmp_path / "maker")["public"])
    record = next(SAMPLES.glob("*.hea"))
    refused = pulse("run", small_checkpoint, "--record", record, "--labels").refused()
    assert "signed" in refused
    done = pulse(
        "quantize", small_checkpoint, "--bits", "8", "--method", "rtn", "--output", tmp_path / "out",
        "--records", SAMPLES / "samples.csv", "--split", "test", "--limit", "2", "--accept-loss", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["gate"]["stage"] == "int8"
