"""An export that cannot end well leaves nothing, and never touches what is not its own."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    """As the console script calls it: under ``python -m``, Python itself ends by SIGINT if Ctrl-C happens to
    fall into an ``exec`` of a string, whatever exit code the program chose."""
    return [
        *(sys.executable, "-c", "from pulse_edge.cli import main; main()", "export", "--target", "onnx"),
        *("--model", str(checkpoint), "--output", str(output), *more),
    ]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_export_as_json_names_bundle_size_and_parity(
    pulse, small_checkpoint, own_bundle, monkeypatch
) -> None:
    """With the graphs of the bundle that is there already: making them is tested elsewhere."""
    from pulse_edge.export import exporter

    def copied(path, checkpoint, half):
        for name in (path.name, f"{path.name}.data"):
            shutil.copy(own_bundle / name, path.parent)

    monkeypatch.setattr(exporter, "write_vision", copied)
    old = (own_bundle / "manifest.json").read_bytes()
    arguments = ("export", "--target", "onnx", "--model", small_checkpoint, "--output", own_bundle)
    assert "add --force" in pulse(*arguments).refused()
    assert (own_bundle / "manifest.json").read_bytes() == old
    done = pulse(*arguments, "--force", "--json")
    assert (done.code, done.err) == (0, "")
    assert set(done.json) == {"bundle", "bytes", "parity"}
    assert done.json["bundle"] == str(own_bundle)
    files = [path for path in own_bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert done.json["bytes"] == sum(path.stat().st_size for path in files)
    parity = done.json["parity"]
    assert parity["pages"] == 6
    assert parity["label_flips"] == 0
    assert parity["greedy_agreement"] == 1.0
    assert 0 < parity["logits_max_abs"] <= parity["limits"]["logits"]
    assert pulse("verify", own_bundle).code == 0
    assert os.listdir(own_bundle.parent) == ["bundle"]


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
@pytest.mark.parametrize("kind", ["notes", "file", "checkpoint", "foreign manifest"])
def test_what_is_not_a_bundle_is_never_touched(kind, force, pulse, small_checkpoint, tmp_path) -> None:
    output = tmp_path / "precious"
    if kind == "checkpoint":
        shutil.copytree(small_checkpoint, output)
    elif kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / "notes.txt").write_text("mine")
        if kind == "foreign manifest":
            (output / "manifest.json").write_text('{"manifest_version": 3, "name": "an extension"}')
    before = contents(tmp_path)
    sentence = pulse(
        "export", "--target", "onnx", "--model", small_checkpoint, "--output", output, *force
    ).refused()
    assert "not a bundle. Choose another --output." in sentence
    assert contents(tmp_path) == before


def test_a_full_disk(small_checkpoint, tmp_path) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails in the same way."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        command(small_checkpoint, tmp_path / "out" / "bundle"),
        capture_output=True, text=True, preexec_fn=limit, timeout=900,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "is full" in done.stderr
    assert "--output" in done.stderr
    assert contents(tmp_path) in ({}, {"out": None})


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_service_manager(small_checkpoint, tmp_path, stop) -> None:
    output = tmp_path / "bundle"
    process = subprocess.Popen(
        command(small_checkpoint, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell's background job ignores SIGINT, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        while not any(tmp_path.iterdir()):  # the temporary folder: the export has begun
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(stop)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 1
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert lines == ["pulse-edge: Interrupted; nothing half-written was left. Run the same command again."]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(pulse, small_checkpoint, tmp_path) -> None:
    arguments = ("export", "--model", small_checkpoint, "--output", tmp_path / "bundle", "--dry-run")
    done = pulse(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    told = done.json
    assert told["bundle"] == str(tmp_path / "bundle")
    assert {"decoder.onnx", "decoder.onnx.data", "embed.onnx.data", "vision.onnx.data"} <= set(told["files"])
    assert 0 < sum(told["files"].values()) <= told["bytes"] < told["disk_free"]
    assert told["memory"].keys() == {"writing", "comparing"}
    assert (told["precision"], told["profile"], told["parity"]) == ("fp16", "trt", "sessions")
    text = pulse(*arguments, "--precision", "int4")
    assert "int4, profile trt: not written" in text.out
    assert "GB free" in text.out
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_the_devices_tensorrt_lacks_is_refused_with_the_remedy(
    pulse, small_checkpoint, tmp_path
) -> None:
    arguments = ("export", "--model", small_checkpoint, "--output", tmp_path / "bundle", "--dry-run")
    sentence = pulse(*arguments, "--profile", "trt10.15").refused(1)
    assert "(RMSNormalization) came with TensorRT 10.15; use --profile trt, or update JetPack." in sentence
    assert "Did you mean 'trt10.15'" in pulse(*arguments, "--profile", "trt10.5").refused()
    assert "The profile ort is for ONNX Runtime" in pulse(*arguments, "--profile", "ort").refused()
    assert list(tmp_path.iterdir()) == []
