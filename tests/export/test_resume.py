"""Exports that are killed: at any system call that writes, resumed, they end in the same bytes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys

import pytest

from pulse_edge.bundle import verify_bundle
from pulse_edge.errors import PulseEdgeError, UserError
from pulse_edge.export import export_bundle
from pulse_edge.export.journal import partial_place

# Export, and kill oneself -9 at the n-th call of a function that changes the disk, or behind it.
SCRIPT = """
import os, signal, sys
from pathlib import Path
wanted, stop, when = sys.argv[3], int(sys.argv[4]), sys.argv[5]
calls = 0

def count(name, function):
    def counted(*arguments, **named):
        global calls
        calls += wanted in (name, "any")
        hit = calls == stop and wanted in (name, "any")
        if hit and when == "before":
            if name == "pwrite":  # in the middle of it
                function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted

for name in ("pwrite", "fdatasync", "fsync", "rename", "replace", "unlink"):
    setattr(os, name, count(name, getattr(os, name)))
from pulse_edge.export import export_bundle
export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), "jetson", precision="int4", resume=True)
"""


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def llava(clip_checkpoint, tmp_path_factory):
    return clip_checkpoint(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture(scope="module")
def whole(llava, tmp_path_factory):
    """An export that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    export_bundle(llava, folder, "jetson", precision="int4")
    return hashes(folder)


def killed(llava, output, function="any", at=1, when="before"):
    """Export in another process until the given call; says whether it came to that."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", SCRIPT, str(llava), str(output), function, str(at), when]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


MOMENTS = [
    ("any", 1, "before"), ("any", 25, "before"), ("pwrite", 3, "before"), ("pwrite", 35, "before"),
    ("pwrite", 60, "after"), ("fdatasync", 1, "before"), ("fdatasync", 2, "after"), ("replace", 1, "before"),
    ("replace", 1, "after"), ("rename", 1, "before"), ("rename", 1, "after"),
]  # fmt: skip


def test_killed_at_any_moment_and_resumed_it_is_the_same(llava, whole, tmp_path) -> None:
    for number, moment in enumerate(MOMENTS):
        output = tmp_path / str(number)
        assert killed(llava, output, *moment), moment
        if number % 4 == 2:  # and once more, on the way back
            assert killed(llava, output, "any", 12)
        export_bundle(llava, output, "jetson", precision="int4", resume=True)
        assert hashes(output) == whole, moment
        assert verify_bundle(output) == []
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def unfinished(llava, tmp_path):
    output = tmp_path / "bundle"
    assert killed(llava, output, "pwrite", 35)
    assert partial_place(output).is_dir()
    assert not output.exists()
    return output


def test_what_is_finished_is_not_made_again(llava, whole, unfinished, monkeypatch) -> None:
    from pulse_edge.export import onnx_writer

    finished = (partial_place(unfinished) / "journal").read_text().split("\n")[1:-1]
    assert len(finished) > 3
    made = []
    plain = onnx_writer.Sink._put

    def noted(sink, at, array):
        made.append(sink.name)
        plain(sink, at, array)

    monkeypatch.setattr(onnx_writer.Sink, "_put", noted)
    export_bundle(llava, unfinished, "jetson", precision="int4", resume=True)
    assert made
    assert not {name.partition("/")[2] for name in finished} & set(made)
    assert hashes(unfinished) == whole


def test_without_resume_it_begins_anew(llava, whole, unfinished) -> None:
    data = partial_place(unfinished) / "bundle/vision.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)  # what nobody may take for finished
    export_bundle(llava, unfinished, "jetson", precision="int4")
    assert hashes(unfinished) == whole


@pytest.mark.parametrize("change", ["precision", "checkpoint", "device"])
def test_a_partial_of_something_else_is_never_gone_on_with(
    llava, clip_checkpoint, unfinished, tmp_path, change
) -> None:
    other = clip_checkpoint(tmp_path / "other") if change == "checkpoint" else llava
    options = {
        "precision": "int8" if change == "precision" else "int4",
        "device": "orin-nx-8gb" if change == "device" else None,
    }
    before = hashes(partial_place(unfinished))
    with pytest.raises(
        UserError, match=r"is of another checkpoint, other options or another version\. Begin anew"
    ):
        export_bundle(other, unfinished, "jetson", resume=True, **options)
    assert not unfinished.exists()
    assert (
        before == {} or not partial_place(unfinished).exists() or before == hashes(partial_place(unfinished))
    )


def test_a_partial_without_its_files_is_begun_anew(llava, whole, unfinished) -> None:
    (partial_place(unfinished) / "bundle/vision.onnx.data").unlink()
    export_bundle(llava, unfinished, "jetson", precision="int4", resume=True)
    assert hashes(unfinished) == whole


def test_ctrl_c_with_resume_keeps_what_is_finished(llava, whole, tmp_path) -> None:
    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(PulseEdgeError, match=r"Interrupted; what is finished is kept in .* with --resume\."):
        export_bundle(llava, tmp_path / "out", "jetson", precision="int4", resume=True, tick=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    export_bundle(llava, tmp_path / "out", "jetson", precision="int4", resume=True)
    assert hashes(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_exports_do_not_write_one_bundle(llava, tmp_path) -> None:
    tried = []

    def second(step):
        if step == "checking the graphs" and not tried:
            tried.append(step)
            with pytest.raises(UserError, match="Another export is writing"):
                export_bundle(llava, tmp_path / "out", "jetson")

    export_bundle(llava, tmp_path / "out", "jetson", report=second)
    assert tried
    assert verify_bundle(tmp_path / "out") == []


def test_a_traced_tower_is_not_traced_again(checkpoint, tmp_path, monkeypatch) -> None:
    """Nor is it taken as it was after its range was observed, but as it was written."""
    from pulse_edge.export import exporter

    export_bundle(checkpoint, tmp_path / "whole", "jetson")

    def stop(step):
        if step == "hashing":
            graph = partial_place(tmp_path / "out") / "bundle/vision.onnx"
            graph.write_bytes(graph.read_bytes() + b"\x0a\x00")
            raise KeyboardInterrupt

    with pytest.raises(PulseEdgeError, match="is kept in"):
        export_bundle(checkpoint, tmp_path / "out", "jetson", resume=True, report=stop)
    monkeypatch.setattr(exporter, "write_vision", lambda *_: pytest.fail("it was traced again"))
    export_bundle(checkpoint, tmp_path / "out", "jetson", resume=True)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
