"""Bundles: damage is named, and a folder is written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge import bundle as module
from pulse_edge.bundle import atomic_folder, read_manifest, verify_bundle, write_atomic, write_manifest
from pulse_edge.contract import BUNDLE_SCHEMA
from pulse_edge.errors import BundleError, PulseEdgeError, UserError

FIELDS = {
    "model": {"name": "tiny"},
    "target": "onnx",
    "graphs": {"vision": {"file": "vision.onnx"}},
    "preprocessing": {},
    "prompt": {},
    "generation": {},
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "bundle"
    (made / "build").mkdir(parents=True)
    (made / "vision.onnx").write_bytes(bytes(range(256)) * 40)
    (made / "build" / "build.sh").write_text("exit 0\n")
    (made / "empty").write_bytes(b"")
    write_manifest(made, FIELDS)
    return made


def change(folder, **fields):
    """Write other fields as an exporter would that means them: with their digest."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({**manifest, "digest": module.manifest_digest(manifest)}))


def left(folder: Path):
    return sorted(path.name for path in folder.iterdir())


# --- verification -------------------------------------------------------------------------------


def test_a_sound_bundle(folder):
    assert verify_bundle(folder) == []
    manifest = read_manifest(folder)
    assert manifest["schema"] == BUNDLE_SCHEMA
    assert manifest["signature"] is None
    assert set(manifest["files"]) == {"vision.onnx", "build/build.sh", "empty"}
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.mark.parametrize("at", [0, 5000, -1])
def test_one_flipped_bit(folder, at):
    data = bytearray((folder / "vision.onnx").read_bytes())
    data[at] ^= 1
    (folder / "vision.onnx").write_bytes(data)
    assert verify_bundle(folder) == ["vision.onnx differs from what was exported; copy the bundle again."]


@pytest.mark.parametrize("size", [0, 100, 20000])
def test_another_size(folder, size):
    (folder / "vision.onnx").write_bytes(bytes(size))
    assert [problem.split(";")[0] for problem in verify_bundle(folder)] == [
        "vision.onnx has another size than the manifest says"
    ]


def test_every_problem_is_listed(folder):
    (folder / "build" / "build.sh").unlink()
    (folder / "empty").write_bytes(b"x")
    (folder / "new").write_bytes(b"x")
    (folder / "build" / ".hidden").write_bytes(b"x")
    assert [problem.split()[0] for problem in verify_bundle(folder)] == [
        "build/build.sh",
        "empty",
        "build/.hidden",
        "new",
    ]


def test_a_folder_in_place_of_a_file(folder):
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert verify_bundle(folder) == ["empty is missing; copy the bundle again."]


@pytest.mark.parametrize("name", ["../secret", "build/../../secret", "/etc/hostname"])
def test_a_path_out_of_the_bundle_is_refused(folder, name):
    (folder.parent / "secret").write_bytes(b"x")
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    change(folder, files={**read_manifest(folder)["files"], name: entry})
    assert verify_bundle(folder) == [f"{name} lies outside the bundle; do not use this bundle."]


@pytest.mark.parametrize("file", ["../vision.onnx", "/tmp/vision.onnx", "other.onnx", None, 3])
def test_a_graph_must_be_one_of_the_listed_files(folder, file):
    change(folder, graphs={"vision": {"file": file}})
    assert verify_bundle(folder) == ["The graph vision names no file of the bundle; export the bundle again."]


@pytest.mark.parametrize("where", ["vision.onnx", "build"])
def test_symbolic_links_are_refused(folder, where):
    (folder / where).rename(folder.parent / "elsewhere")
    (folder / where).symlink_to(folder.parent / "elsewhere")
    problems = verify_bundle(folder)
    assert any("is a symbolic link; a bundle holds plain files" in problem for problem in problems)
    with pytest.raises(BundleError, match="symbolic link"):
        write_manifest(folder, FIELDS)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "", ".", "sub/../.."])
def test_impossible_names(folder, name):
    change(folder, files={**read_manifest(folder)["files"], name: {"sha256": "0", "bytes": 0}})
    assert len(verify_bundle(folder)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(folder):
    (folder / "vision.onnx").chmod(0)
    assert "cannot be read (Permission denied)" in verify_bundle(folder)[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"schema": BUNDLE_SCHEMA + 1},
            r"has schema 2; this pulse-edge reads up to 1.*pip install --upgrade",
        ),
        ({"schema": "1"}, "not a manifest"),
        ({"schema": True}, "not a manifest"),
        ({"schema": 0}, "not a manifest"),
        ({"schema": None}, "not a manifest"),
        ({"files": []}, "lacks files"),
        ({"graphs": "x"}, "lacks graphs"),
    ],
)
def test_a_manifest_of_another_form(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(BundleError, match=message):
        read_manifest(folder)
    assert len(verify_bundle(folder)) == 1


@pytest.mark.parametrize("key", module.REQUIRED)
def test_a_manifest_without_a_required_field(folder, key):
    manifest = read_manifest(folder)
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"not a manifest" if key == "schema" else f"lacks {key}"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100000, b'{"schema": 1' + b"0" * 5000 + b"}"]
)
def test_a_manifest_that_is_none(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        read_manifest(folder)


def test_a_folder_that_is_no_bundle(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
            read_manifest(place)


@settings(max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**4), piece=st.binary(max_size=5))
def test_any_damage_of_the_manifest_is_found_or_harmless(folder, at, piece):
    path = folder / "manifest.json"
    write_manifest(folder, FIELDS)
    sound = path.read_bytes()
    at %= len(sound)
    path.write_bytes(sound[:at] + piece + sound[at + len(piece) :])
    assert all(isinstance(problem, str) and problem for problem in verify_bundle(folder))


# --- writing ------------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_):
    raise KeyboardInterrupt


def test_write_atomic(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert left(tmp_path) == ["f"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("fault", "seen"), [(full, PulseEdgeError), (interrupted, KeyboardInterrupt)])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_atomic_leaves_the_old_file(tmp_path, monkeypatch, fault, seen, step):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fault)
        with pytest.raises(seen):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert left(tmp_path) == ["f"]


def test_atomic_folder_writes_whole_folders(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as work:
        (work / "sub").mkdir()
        (work / "sub" / "f").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "f").read_text() == "x"
    assert left(target.parent) == ["out"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_existing_folder_is_replaced_only_at_the_end(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target) as work:
        (work / "new").write_text("new")
        assert left(target) == ["old"]
    assert left(target) == ["new"]
    assert left(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "link") as work:
        (work / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert left(tmp_path / "real") == ["new"]
    assert left(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (ValueError("no"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(3), SystemExit),
        (OSError(errno.ENOSPC, "No space left on device"), PulseEdgeError),
        (OSError(errno.EDQUOT, "Quota exceeded"), PulseEdgeError),
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (FileNotFoundError(errno.ENOENT, "No such file"), FileNotFoundError),
    ],
)
def test_a_fault_in_the_block_leaves_nothing(tmp_path, existing, fault, seen):
    target = tmp_path / "out"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")

    def work_then_fail():
        with atomic_folder(target) as work:
            (work / "sub").mkdir()
            (work / "sub" / "half").write_text("x")
            raise fault

    with pytest.raises(seen) as caught:
        work_then_fail()
    assert left(tmp_path) == (["out"] if existing else [])
    if existing:
        assert (target / "old").read_text() == "old"
    if seen is PulseEdgeError:
        assert caught.value.exit_code == 1
        assert "is full" in str(caught.value)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("fault", "seen"), [(full, PulseEdgeError), (interrupted, KeyboardInterrupt)])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_fault_while_finishing_leaves_old_or_new(tmp_path, monkeypatch, existing, fault, seen, call, step):
    """The n-th call of a system call fails: before the new folder has its name all is as it was."""
    target, calls = tmp_path / "out", []
    if existing:
        target.mkdir()
        (target / "old").write_text("old")
    real = getattr(os, step)

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            fault()
        return real(*arguments)

    def write():
        with atomic_folder(target) as work:
            (work / "new").write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        if step == "rename" and call > (2 if existing else 1):
            write()
        else:
            with pytest.raises(seen):
                write()
    if target.exists():
        assert left(target) in (["old"], ["new"])
        assert left(tmp_path) == ["out"]
    else:
        assert not existing
        assert left(tmp_path) == []


def test_an_interrupt_while_the_old_folder_goes_leaves_the_new(tmp_path, monkeypatch):
    target, calls = tmp_path / "out", []
    target.mkdir()
    (target / "old").write_text("old")
    (target / "older").write_text("older")
    real = os.unlink

    def interrupted_once(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    def write():
        with atomic_folder(target) as work:
            (work / "new").write_text("new")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", interrupted_once)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert left(target) == ["new"]
    assert left(tmp_path) == ["out"]


def test_links_that_lead_to_themselves(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for place in (tmp_path / "a", tmp_path / "a" / "out"):
        with pytest.raises(UserError), atomic_folder(place):
            pytest.fail("the block must not run")
    assert left(tmp_path) == ["a", "b"]


def test_a_full_disk_while_writing(tmp_path, monkeypatch):
    """The write itself fails, as when an exporter writes weights through an open file."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")

    def export():
        with atomic_folder(tmp_path / "out") as work:
            (work / "small").write_bytes(b"x")
            with Path("/dev/full").open("wb", buffering=0) as stream:
                stream.write(bytes(1000))

    with pytest.raises(PulseEdgeError, match=r"is full; nothing was left there\. Free some space"):
        export()
    assert left(tmp_path) == []


def test_impossible_places(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / ("n" * 300)):
        with pytest.raises(UserError), atomic_folder(place):
            pytest.fail("the block must not run")
    assert left(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "x"


def test_write_atomic_in_an_impossible_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError):
        write_atomic(tmp_path / "file" / "f", b"x")
