"""Installing: whole versions, one switch, the way back; and archives that are not what they seem."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from pulse_edge.bundle import install as module
from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.bundle.install import current_version, install, rollback
from pulse_edge.bundle.signature import sign_bundle
from pulse_edge.errors import BundleError, UserError


def version(bundle):
    manifest = read_manifest(bundle)
    return f"{manifest['model']['name']}-{manifest['digest'][:12]}"


def left(into):
    return sorted(
        p.relative_to(into).as_posix() for p in into.rglob("*") if len(p.relative_to(into).parts) < 3
    )


def test_a_bundle_is_installed_and_is_current(tiny, tmp_path) -> None:
    into = tmp_path / "device"
    result = install(tiny, into)
    name = version(tiny)
    assert result == {
        "installed": name,
        "path": str(into / "versions" / name),
        "previous": None,
        "current": str(into / "current"),
        "engines": False,
    }
    assert os.readlink(into / "current") == f"versions/{name}"
    assert verify_bundle(into / "current") == []
    assert (into / "current" / "build" / "build.sh").stat().st_mode & 0o111
    assert left(into) == [".lock", "current", "history.json", "versions", f"versions/{name}"]


def test_versions_stand_side_by_side_and_rollback_goes_back(make_bundle, tmp_path) -> None:
    into = tmp_path / "device"
    bundles = [make_bundle(name, weights=name.encode()) for name in "abc"]
    names = [version(bundle) for bundle in bundles]
    for bundle in bundles:
        install(bundle, into)
    assert current_version(into) == names[2]
    assert rollback(into)["previous"] == names[2]
    assert current_version(into) == names[1]
    assert rollback(into)["installed"] == names[0]
    with pytest.raises(UserError, match="no earlier version"):
        rollback(into)
    assert install(bundles[2], into)["previous"] == names[0]
    assert rollback(into)["installed"] == names[0]


def test_installing_the_current_version_again_changes_nothing(tiny, tmp_path) -> None:
    into = tmp_path / "device"
    install(tiny, into)
    mark = into / "current" / "vision.onnx"
    before = mark.stat().st_ino
    result = install(tiny, into)
    assert result["previous"] is None
    assert mark.stat().st_ino == before
    (into / "versions" / ".x.engines.abc.partial").mkdir()  # of a build that is running
    (into / "versions" / ".staging.abc.partial").mkdir()  # of an installation that was killed
    install(tiny, into)
    assert [path.name for path in (into / "versions").glob(".*")] == [".x.engines.abc.partial"]
    assert json.loads((into / "history.json").read_text()) == [version(tiny)]


def test_a_damaged_version_is_replaced(tiny, tmp_path) -> None:
    into = tmp_path / "device"
    install(tiny, into)
    (into / "current" / "vision.onnx").write_bytes(b"damage")
    install(tiny, into)
    assert verify_bundle(into / "current") == []


def test_rollback_refuses_a_version_that_was_damaged_since(make_bundle, tmp_path) -> None:
    into, one, two = tmp_path / "device", make_bundle("a"), make_bundle("b", weights=b"b")
    install(one, into)
    install(two, into)
    (into / "versions" / version(one) / "vision.onnx").write_bytes(b"damage")
    with pytest.raises(BundleError, match="is not sound"):
        rollback(into)
    assert current_version(into) == version(two)


def test_what_is_not_sound_is_not_installed(make_bundle, tmp_path) -> None:
    into, one, two = tmp_path / "device", make_bundle("a"), make_bundle("b", weights=b"b")
    install(one, into)
    before = left(into)
    (two / "vision.onnx").write_bytes(b"damage")
    with pytest.raises(BundleError, match=r"was not installed: vision\.onnx"):
        install(two, into)
    assert left(into) == before
    assert current_version(into) == version(one)


def test_a_required_key_holds_for_installing_and_going_back(make_bundle, key, tmp_path) -> None:
    into, one, two = tmp_path / "device", make_bundle("a"), make_bundle("b", weights=b"b")
    public = [key.with_name(key.name + ".pub")]
    with pytest.raises(BundleError, match="has no signature"):
        install(one, into, public)
    install(one, into)
    sign_bundle(two, key)
    install(two, into, public)
    with pytest.raises(BundleError, match="has no signature"):
        rollback(into, public)


def test_a_name_from_the_manifest_is_only_a_name(make_bundle, tmp_path) -> None:
    into = tmp_path / "device"
    for i, name in enumerate(("../../escape", "/etc/x", "..", ".hidden", "a b\n", 7)):
        result = install(make_bundle(f"n{i}", model={"name": name}), into)
        assert "/" not in result["installed"]
        assert not result["installed"].startswith(".")
    assert {path.name for path in tmp_path.iterdir()} == {"device", *(f"n{i}" for i in range(6))}


@pytest.mark.parametrize("content", ['["x/../..", 3]', "{", "[]", '"x"', "null"])
def test_a_damaged_history_does_not_lead_astray(make_bundle, tmp_path, content) -> None:
    into, one, two = tmp_path / "device", make_bundle("a"), make_bundle("b", weights=b"b")
    install(one, into)
    (into / "history.json").write_text(content)
    with pytest.raises(UserError, match="no earlier version"):
        rollback(into)
    install(two, into)
    assert rollback(into)["installed"] == version(one)


def test_nothing_is_installed(tmp_path) -> None:
    with pytest.raises(UserError, match="Nothing is installed"):
        rollback(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="neither a bundle nor a kit"):
        install(tmp_path / "nowhere", tmp_path / "device")


def test_one_installation_at_a_time(tiny, tmp_path) -> None:
    into = tmp_path / "device"
    install(tiny, into)
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another installation"):
            install(tiny, into)


def test_a_folder_that_is_called_current_is_left_alone(tiny, tmp_path) -> None:
    (tmp_path / "device" / "current").mkdir(parents=True)
    with pytest.raises(UserError, match="is no link of an installation"):
        install(tiny, tmp_path / "device")


@pytest.mark.parametrize("step", ["symlink", "replace", "rename", "fsync"])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6])
def test_an_interrupt_leaves_the_old_or_the_new_version(
    make_bundle, tmp_path, monkeypatch, step, call
) -> None:
    into, one, two = tmp_path / "device", make_bundle("a"), make_bundle("b", weights=b"b")
    install(one, into)
    real, calls = getattr(os, step), []

    def failing(*arguments, **more):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing)
        with contextlib.suppress(KeyboardInterrupt):
            install(two, into)
    assert current_version(into) in (version(one), version(two))
    assert verify_bundle(into / "current") == []
    assert not list((into / "versions").glob(".*"))
    install(two, into)
    assert rollback(into)["installed"] == version(one)


def test_a_killed_installation_leaves_a_sound_version(make_bundle, tmp_path) -> None:
    """SIGKILL at moments spread over an installation: what is current is always whole."""
    into, one = tmp_path / "device", make_bundle("a")
    two = make_bundle("b", weights=os.urandom(8 << 20))
    install(one, into)
    script = "import sys; from pathlib import Path; from pulse_edge.bundle.install import install\n"
    script += "print('go', flush=True); install(Path(sys.argv[1]), Path(sys.argv[2]))"
    for k in range(6):
        command = [sys.executable, "-c", script, str(two), str(into)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.008 * k)
            process.send_signal(signal.SIGKILL)
        assert current_version(into) in (version(one), version(two))
        assert verify_bundle(into / "current") == []
    install(two, into)
    assert not list((into / "versions").glob(".*"))
    assert verify_bundle(into / "current") == []


# --- archives -----------------------------------------------------------------------------------


@pytest.fixture
def kit(tiny, tmp_path):
    """A kit's archive without wheels, made by the packer itself."""
    from pulse_edge.bundle import kit as packer
    from pulse_edge.bundle.manifest import list_files

    contents = {f"bundle/{name}": path for name, path in list_files(tiny)}
    made_for = {"machine": "aarch64", "glibc": "2.35", "python": "3.10"}
    with (tmp_path / "kit.tar").open("wb") as stream:
        packer._pack(
            stream, packer._texts(read_manifest(tiny), "pulse-edge", contents, made_for, None), contents
        )
    return tmp_path / "kit.tar"


def test_a_kit_is_installed_packed_and_unpacked(kit, tiny, tmp_path) -> None:
    assert install(kit, tmp_path / "one")["installed"] == version(tiny)
    subprocess.run(["tar", "xf", kit, "-C", tmp_path / "one"], check=True)  # the system's tar reads it too
    assert install(tmp_path / "one", tmp_path / "two")["installed"] == version(tiny)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "one", check=True)
    (tmp_path / "one" / "bundle" / "vision.onnx").write_bytes(b"damag")
    with pytest.raises(BundleError, match=r"is damaged: bundle/vision\.onnx differs"):
        install(tmp_path / "one", tmp_path / "two")


def rewrite(kit, change, target):
    """Copy an archive member by member; ``change`` alters, drops (None) or replaces by several."""
    with tarfile.open(kit) as old, tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as new:
        for member in old:
            content = old.extractfile(member).read()
            for one, data in change(member, content):
                one.size = len(data) if one.isreg() else 0
                new.addfile(one, io.BytesIO(data) if one.isreg() else None)
    return target


def named(member, name):
    other = tarfile.TarInfo(name)
    other.mode = member.mode
    return other


def link(name, kind, to):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, to
    return entry


@pytest.mark.parametrize(
    "extra",
    [
        lambda m: named(m, "../escape"),
        lambda m: named(m, "/escape"),
        lambda m: named(m, "bundle/../../escape"),
        lambda m: named(m, "bundle/vision.onnx"),  # twice
        lambda m: link("bundle/link", tarfile.SYMTYPE, "/etc/passwd"),
        lambda m: link("bundle", tarfile.SYMTYPE, "/tmp"),
        lambda m: link("bundle/hard", tarfile.LNKTYPE, "index.json"),
        lambda m: link("bundle/device", tarfile.CHRTYPE, ""),
        lambda m: link("bundle/fifo", tarfile.FIFOTYPE, ""),
    ],
)
def test_members_that_lead_out_or_are_no_files_are_refused(kit, tmp_path, extra) -> None:
    def change(member, content):
        rows = [(member, content)]
        return [*rows, (extra(member), b"x")] if member.name == "bundle/vision.onnx" else rows

    bad, into = rewrite(kit, change, tmp_path / "bad.tar"), tmp_path / "device"
    with pytest.raises(BundleError, match=r"no plain file of its own within the kit\. Do not use it"):
        install(bad, into)
    assert current_version(into) is None
    assert left(into) == [".lock", "versions"]
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("name", ["bundle/vision.onnx", "install.sh", "SHA256SUMS", "index.json"])
@pytest.mark.parametrize("how", ["changed", "longer", "gone", "renamed"])
def test_a_changed_kit_is_refused(kit, tmp_path, name, how) -> None:
    def change(member, content):
        if member.name != name:
            return [(member, content)]
        return {
            "changed": [(member, bytes([content[0] ^ 1]) + content[1:])],
            "longer": [(member, content + b" x")],
            "gone": [],
            "renamed": [(named(member, f"{name}x"), content)],
        }[how]

    bad, into = rewrite(kit, change, tmp_path / "bad.tar"), tmp_path / "device"
    with pytest.raises(BundleError):
        install(bad, into)
    assert left(into) == [".lock", "versions"]


def test_a_kit_cut_short_anywhere_is_refused(kit, tmp_path) -> None:
    content, into = kit.read_bytes(), tmp_path / "device"
    with tarfile.open(kit) as tar:
        end = max(member.offset_data + member.size for member in tar)
    for size in [0, 1, 511, 512, 700, *range(1024, end, 1337), end - 1]:
        (tmp_path / "cut.tar").write_bytes(content[:size])
        with pytest.raises(BundleError):
            install(tmp_path / "cut.tar", into)
    assert left(into) == [".lock", "versions"]


def test_other_files_are_no_kits(tmp_path) -> None:
    for content in (b"", b"text", os.urandom(5000), b"\0" * 20000):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(BundleError):
            install(tmp_path / "file", tmp_path / "device")


def test_a_full_disk_is_seen_before_anything_is_written(kit, tiny, tmp_path, monkeypatch) -> None:
    from pulse_edge.errors import PulseEdgeError

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=3))
    for source in (kit, tiny):
        with pytest.raises(PulseEdgeError, match=r"has 0 MB free\. Free some space") as caught:
            install(source, tmp_path / "device")
        assert caught.value.exit_code == 1
    assert left(tmp_path / "device") == [".lock", "versions"]
    assert module.current_version(tmp_path / "device") is None


def test_a_flipped_bit_anywhere_in_a_kit_is_found_or_harmless(kit, tiny, tmp_path) -> None:
    """What is installed is the bundle that was packed, or nothing."""
    sound, rng, into = kit.read_bytes(), random.Random(0), tmp_path / "device"
    bad, refused = tmp_path / "bad.tar", 0
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        bad.write_bytes(damaged)
        try:
            assert install(bad, into)["installed"] == version(tiny)
            assert verify_bundle(into / "current") == []
        except BundleError:
            refused += 1
    assert refused > 20
