"""`pulse-edge bundle …`, `build` without a device, and keys, as a person types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pulse_edge.bundle.signature import REQUIRE_KEY


@pytest.fixture
def keys(pulse, tmp_path) -> tuple[Path, Path]:
    done = pulse("bundle", "keygen", tmp_path / "maker.key", "--json")
    assert done.code == 0
    return Path(done.json["key"]), Path(done.json["public"])


def test_sign_verify_and_require(pulse, own_bundle, keys, page, monkeypatch) -> None:
    key, public = keys
    done = pulse("verify", own_bundle, "--key", public, "--json")
    assert done.code == 1
    assert "has no signature" in done.json["problems"][0]
    message = pulse("run", own_bundle, "--image", page, "--labels", "--require-key", public).refused()
    assert "pulse-edge bundle sign BUNDLE --key KEY" in message
    assert pulse("bundle", "sign", own_bundle, "--key", key, "--json").json["bundle"] == str(own_bundle)
    assert pulse("verify", own_bundle, "--key", public).out == "The bundle is sound.\n"
    done = pulse("run", own_bundle, "--image", page, "--labels", "--require-key", public, "--json")
    assert set(done.json) == {"text", "labels", "findings", "finish_reason", "timing_ms"}
    monkeypatch.setenv(REQUIRE_KEY, str(public))
    assert pulse("verify", own_bundle).code == 0
    (own_bundle / "LICENCES.txt").write_text("none")
    assert "LICENCES.txt" in pulse("run", own_bundle, "--image", page).refused()
    assert "only bundles are signed" in pulse("run", "pulse-nano", "--image", page).refused()
    monkeypatch.setenv(REQUIRE_KEY, "nowhere.pub")
    assert REQUIRE_KEY in pulse("verify", own_bundle).refused()


def test_diff_for_people_and_machines(pulse, small_bundle, own_bundle) -> None:
    assert pulse("bundle", "diff", small_bundle, own_bundle).out == "The bundles are the same.\n"
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    manifest["prompt"]["system"] = "Say it is normal."
    manifest["toolchain"]["torch"] = "1.0"
    manifest["files"]["decoder.onnx.data"]["sha256"] = "0" * 64
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    done = pulse("bundle", "diff", small_bundle, own_bundle)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["weights", "prompt", "toolchain"]
    assert lines[1].endswith(" -> 000000000000")
    assert "  prompt.system: A chat between" in done.out
    done = pulse("bundle", "diff", small_bundle, own_bundle, "--json")
    assert done.json["same"] is False
    assert done.json["changes"]["weights"][0]["what"] == "decoder (decoder.onnx.data)"
    assert "is not a bundle" in pulse("bundle", "diff", small_bundle, own_bundle.parent).refused()


def test_install_run_and_roll_back(pulse, small_bundle, page, tmp_path) -> None:
    into = tmp_path / "device"
    done = pulse("bundle", "install", small_bundle, "--into", into)
    assert done.out.splitlines()[3] == f"next         pulse-edge run {into / 'current'} --image PAGE.png"
    assert pulse("run", into / "current", "--image", page, "--labels").code == 0
    message = pulse("bundle", "rollback", "--into", into).refused()
    assert "no earlier version" in message
    assert pulse("bundle", "install", small_bundle, "--into", into, "--json").json["previous"] is None
    assert "neither a bundle nor a kit" in pulse("bundle", "install", "nothing", "--into", into).refused()


def test_a_kit_says_which_wheel_is_missing(pulse, small_bundle, tmp_path) -> None:
    (tmp_path / "wheels").mkdir()
    kit = tmp_path / "kit.tar"
    message = pulse("bundle", "kit", small_bundle, "--output", kit, "--wheels", tmp_path / "wheels").refused()
    assert "does not hold all wheels for the device" in message
    assert not kit.exists()


def test_the_group_explains_itself(pulse) -> None:
    assert "keygen" in pulse("bundle").out
    assert "Did you mean 'sign'" in pulse("bundle", "sing").refused()
    assert "Did you mean 'bundle'" in pulse("bundel").refused()


def test_build_without_tensorrt(pulse, small_bundle, own_bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "--target jetson" in pulse("build", own_bundle).refused()
    assert "Did you mean 'thor-t4000'" in pulse("build", small_bundle, "--device", "thor-t400").refused()


def test_doctor_device_for_people_and_machines(pulse) -> None:
    done = pulse("doctor", "--device", "--json")
    assert {"l4t", "jetpack", "modules", "gpu", "missing", "power_mode"} <= set(done.json["device"])
    done = pulse("doctor", "--device")
    assert done.code == 0
    assert done.out.splitlines()[-1].endswith("pulse-edge doctor --device --json")
    assert "device" not in pulse("doctor", "--json").json


def test_a_runtime_that_is_none(pulse, small_bundle, page) -> None:
    message = pulse("run", small_bundle, "--image", page, "--runtime", "tensort").refused()
    assert "Did you mean 'tensorrt'" in message
    assert "has no engines" in pulse("run", small_bundle, "--image", page, "--runtime", "tensorrt").refused()
