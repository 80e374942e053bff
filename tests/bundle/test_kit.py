"""Kits: pip's resolver over a folder of wheels, the same bytes every time, and a device that installs one."""

from __future__ import annotations

import ensurepip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pulse_edge
from pulse_edge.bundle import read_manifest
from pulse_edge.bundle.install import install
from pulse_edge.bundle.kit import make_kit
from pulse_edge.bundle.signature import sign_bundle
from pulse_edge.errors import BundleError, PulseEdgeError, UnknownNameError, UserError

# What the stand-in for the command does: enough to see install.sh call it as it is called.
MAIN = "import sys\ndef main():\n    print('installed', *sys.argv[1:])\n"


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", requires=(), files=()) -> Path:
    """Write a small wheel by the format of PEP 427."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += (
        "".join(f"Requires-Dist: {r}\n" for r in requires) + "Provides-Extra: jetson\nProvides-Extra: serve\n"
    )
    members = {
        **dict(files),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{member},,\n" for member in members) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as archive:
        for member, content in {**members, f"{info}/RECORD": record}.items():
            archive.writestr(member, content)
    return folder / f"{stem}-{tag}.whl"


@pytest.fixture
def wheels(tmp_path) -> Path:
    """Stand-ins for pulse-edge and two things that it needs, one of them compiled."""
    folder = tmp_path / "wheels"
    entry = ("pulse_edge-0.dist-info/entry_points.txt", "[console_scripts]\npulse-edge = pulse_stub:main\n")
    version = pulse_edge.__version__
    entry = (f"pulse_edge-{version}.dist-info/entry_points.txt", entry[1])
    needs = ["kit-pure", "kit-native", "kit-cuda ; extra == 'jetson'"]
    wheel(folder, "pulse-edge", version, requires=needs, files=[("pulse_stub.py", MAIN), entry])
    pip = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    if not pip:
        pytest.skip("this Python has no pip to pack")
    shutil.copy(pip[0], folder)
    wheel(folder, "kit-pure", "1")
    wheel(folder, "kit-native", "1", "cp310-cp310-manylinux_2_28_aarch64")
    wheel(folder, "kit-native", "2", "cp310-cp310-manylinux_2_39_aarch64")  # too new a glibc for JetPack 6
    wheel(folder, "kit-native", "3", "cp312-cp312-manylinux_2_28_aarch64")  # another Python
    wheel(folder, "kit-native", "4", "cp310-cp310-manylinux_2_28_x86_64")  # another machine
    return folder


def names(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def names_of(wheels):
    return {name.partition("-")[0] for name in wheels}


def test_a_kit_holds_bundle_wheels_script_and_hashes(tiny, wheels, tmp_path) -> None:
    result = make_kit(tiny, tmp_path / "kit.tar", wheels)
    version = pulse_edge.__version__
    assert [name for name in result["wheels"] if not name.startswith("pip-")] == [
        "kit_native-1-cp310-cp310-manylinux_2_28_aarch64.whl",
        "kit_pure-1-py3-none-any.whl",
        f"pulse_edge-{version}-py3-none-any.whl",
    ]
    kit = (tmp_path / "kit.tar").read_bytes()
    assert result["sha256"] == hashlib.sha256(kit).hexdigest()
    assert result["bytes"] == len(kit)
    with tarfile.open(tmp_path / "kit.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
    index = json.loads(content.pop("index.json"))
    assert index["files"] == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in content.items()
    }
    assert index["made_for"] == {"machine": "aarch64", "glibc": "2.35", "python": "3.10"}
    assert index["bundle"]["digest"] == read_manifest(tiny)["digest"]


def test_the_same_contents_give_the_same_bytes(tiny, wheels, tmp_path) -> None:
    one = make_kit(tiny, tmp_path / "a.tar", wheels)["sha256"]
    for path in [*tiny.rglob("*"), *wheels.iterdir()]:
        os.utime(path, (1, 1))
    (tiny / "vision.onnx").chmod(0o600)
    assert make_kit(tiny, tmp_path / "b.tar", wheels)["sha256"] == one


def test_a_jetson_gets_cuda_python_too(make_bundle, wheels, tmp_path) -> None:
    bundle = make_bundle(target="jetson")
    with pytest.raises(UserError, match=r"does not hold all wheels .*kit-cuda.*Put the missing wheel there"):
        make_kit(bundle, tmp_path / "kit.tar", wheels)
    assert not (tmp_path / "kit.tar").exists()
    wheel(wheels, "kit-cuda", "13")
    wheel(wheels, "kit-cuda", "12")
    kit = make_kit(bundle, tmp_path / "kit.tar", wheels)
    assert "kit_cuda-13-py3-none-any.whl" in kit["wheels"]
    kit = make_kit(bundle, tmp_path / "kit.tar", wheels, also=["kit-cuda<13"])
    assert "kit_cuda-12-py3-none-any.whl" in kit["wheels"]


def test_a_cart_gets_the_service_too(make_bundle, wheels, tmp_path) -> None:
    stem = f"pulse_edge-{pulse_edge.__version__}"
    needs = ["kit-cuda ; extra == 'jetson'", "kit-http ; extra == 'serve'"]
    wheel(wheels, "pulse-edge", pulse_edge.__version__, requires=needs)
    wheel(wheels, "kit-cuda", "12")
    bundle = make_bundle(target="jetson")
    with pytest.raises(UserError, match="kit-http"):
        make_kit(bundle, tmp_path / "kit.tar", wheels, service=True)
    wheel(wheels, "kit-http", "1")
    held = names_of(make_kit(bundle, tmp_path / "kit.tar", wheels, service=True)["wheels"])
    assert {"kit_cuda", "kit_http", stem.partition("-")[0]} <= held
    assert not [name for name in names(tmp_path / "kit.tar") if "/." in name or "__pycache__" in name]
    assert {"deploy/pulse-edge.service", "deploy/Dockerfile.x86"} <= set(names(tmp_path / "kit.tar"))
    assert not {"kit_http"} & names_of(make_kit(bundle, tmp_path / "plain.tar", wheels)["wheels"])
    assert not [name for name in names(tmp_path / "plain.tar") if name.startswith("deploy/")]


def test_machine_and_python_choose_the_wheels(tiny, wheels, tmp_path) -> None:
    kit = make_kit(tiny, tmp_path / "kit.tar", wheels, machine="x86_64")
    assert "kit_native-4-cp310-cp310-manylinux_2_28_x86_64.whl" in kit["wheels"]
    kit = make_kit(tiny, tmp_path / "kit.tar", wheels, python="3.12")
    assert "kit_native-3-cp312-cp312-manylinux_2_28_aarch64.whl" in kit["wheels"]
    with pytest.raises(UserError, match="kit-native"):
        make_kit(tiny, tmp_path / "kit.tar", wheels, python="3.13")


def test_options_that_are_wrong(tiny, wheels, tmp_path) -> None:
    with pytest.raises(UnknownNameError, match="aarch64"):
        make_kit(tiny, tmp_path / "kit.tar", wheels, machine="arm64")
    for python in ("3", "3.10.2", "three.ten", "3.x", ""):
        with pytest.raises(UserError, match=r"--python 3\.10"):
            make_kit(tiny, tmp_path / "kit.tar", wheels, python=python)
    with pytest.raises(UserError, match="is a folder"):
        make_kit(tiny, tmp_path, wheels)
    with pytest.raises(UserError, match="no folder"):
        make_kit(tiny, tmp_path / "kit.tar", tmp_path / "nowhere")
    (tiny / "vision.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="not sound and was not packed"):
        make_kit(tiny, tmp_path / "kit.tar", wheels)
    assert not (tmp_path / "kit.tar").exists()


def test_pip_that_fails_without_a_network_says_so(tiny, tmp_path, monkeypatch) -> None:
    """The index is a port that nobody serves: no test goes to a network."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr("pulse_edge.bundle.kit._own_wheel", lambda scratch: None)
    with pytest.raises(PulseEdgeError, match=r"pip could not get the wheels: .* --wheels DIR") as caught:
        make_kit(tiny, tmp_path / "kit.tar")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "kit.tar").exists()


def test_a_signed_kit_is_required_where_a_key_is(tiny, wheels, key, other_key, tmp_path) -> None:
    public = [key.with_name(key.name + ".pub")]
    sign_bundle(tiny, key)
    make_kit(tiny, tmp_path / "kit.tar", wheels)
    with pytest.raises(BundleError, match="The kit has no signature"):
        install(tmp_path / "kit.tar", tmp_path / "device", public)
    make_kit(tiny, tmp_path / "kit.tar", wheels, key=other_key)
    with pytest.raises(BundleError, match="The kit is signed with another key"):
        install(tmp_path / "kit.tar", tmp_path / "device", public)
    make_kit(tiny, tmp_path / "kit.tar", wheels, key=key)
    install(tmp_path / "kit.tar", tmp_path / "device", public)


def test_engines_stay_on_the_machine_they_were_built_on(tiny, wheels, tmp_path) -> None:
    from pulse_edge.bundle.engines import write_engines

    (tiny / "engines").mkdir()
    (tiny / "engines" / "vision.engine").write_bytes(b"e")
    fields = {"portable": read_manifest(tiny)["digest"], "constraints": {}}
    write_engines(tiny / "engines", {**fields, "engines": {"vision": {"file": "vision.engine"}}})
    make_kit(tiny, tmp_path / "kit.tar", wheels)
    assert not [name for name in names(tmp_path / "kit.tar") if "engines" in name]
    install(tiny, tmp_path / "device")
    assert not (tmp_path / "device" / "current" / "engines").exists()


def upgrade(wheels, bundle, place, machine, python) -> None:
    """Replace an unpacked kit by one whose software has other bytes."""
    wheel(wheels, "kit-pure", "2")
    make_kit(bundle, place.parent / "new.tar", wheels, machine=machine, python=python)
    shutil.rmtree(place)
    place.mkdir()
    subprocess.run(["tar", "xf", place.parent / "new.tar", "-C", place], check=True)


def test_the_script_installs_without_a_network(tiny, wheels, tmp_path) -> None:
    """install.sh runs for real: a virtual environment, pip without index, and the command at the end."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    machine = os.uname().machine
    wheel(wheels, "kit-native", "5", f"{tag}-{tag}-manylinux_2_28_{machine}")
    kit = tmp_path / "kit.tar"
    make_kit(tiny, kit, wheels, machine=machine, python=python)
    place = tmp_path / "unpacked"
    place.mkdir()
    subprocess.run(["tar", "xf", kit, "-C", place], check=True)
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}

    def run(**more):
        return subprocess.run(
            ["sh", place / "install.sh", tmp_path / "device"], capture_output=True, text=True,
            env={**env, **more}, cwd=tmp_path,
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"installed bundle install {place} --into {tmp_path / 'device'}"
    link = tmp_path / "device" / "venv"
    first = os.readlink(link)
    assert subprocess.run([link / "bin" / "pulse-edge", "x"], check=True, capture_output=True).stdout == (
        b"installed x\n"
    )
    (link / "mark").touch()
    assert run().returncode == 0  # the same software again: its environment stays
    assert (link / "mark").exists()
    refused = subprocess.run(
        ["sh", place / "install.sh", tmp_path / "device", "--service"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert refused.returncode == 2
    assert "made without --service" in refused.stderr
    upgrade(wheels, tiny, place, machine, python)
    assert run().returncode == 0
    assert os.readlink(link) != first  # new software in an environment of its own, and the old one is kept
    assert (tmp_path / "device" / first / "bin" / "pulse-edge").exists()
    fake = tmp_path / "python2.0"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    done = run(PYTHON=str(fake))
    assert done.returncode == 1
    assert f"is not Python {python}" in done.stderr
    (place / "bundle" / "vision.onnx").write_bytes(b"damag")
    done = run()
    assert done.returncode != 0
    assert "bundle/vision.onnx" in done.stderr + done.stdout
