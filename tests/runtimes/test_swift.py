"""The Swift package: what it takes from Python is fresh, and where there is Swift it passes its tests."""

from __future__ import annotations

import os
import plistlib
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

needs_swift = pytest.mark.skipif(shutil.which("swift") is None, reason="there is no Swift here")


@pytest.fixture(scope="module")
def package(root: Path) -> Path:
    return root / "runtimes" / "swift"


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def test_constants_and_golden_vectors_are_fresh(package: Path, root: Path) -> None:
    _run(sys.executable, package / "generate.py", "--check", cwd=root, PYTHONPATH=str(root))


def test_a_stale_file_is_found(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pulse_edge import contract

    monkeypatch.setattr(contract, "TILE_SIZE", 337)
    made = runpy.run_path(str(package / "generate.py"))
    assert "tileSize = 337" in made["constants"]()
    committed = (package / "Sources" / "PulseEdgeCore" / "Constants.swift").read_text("utf-8")
    assert made["constants"]() != committed


def test_the_golden_pictures_and_models_are_not_trivial(package: Path) -> None:
    """Vectors that all agree by accident would prove nothing."""
    golden = runpy.run_path(str(package / "golden.py"))
    noise, waves = (golden["picture"](300, 200, seed) for seed in (2, 1))
    assert noise.std() > 60
    assert waves.std() > 60
    assert len(np.unique(waves)) == 256
    cases: dict[str, Any] = golden["session_cases"]()
    texts = ["".join(step.get("pieces", [])) for step in cases["sessions"][0]["steps"]]
    assert len({text for text in texts if text}) >= 4
    probabilities = [value for step in cases["sessions"][0]["steps"] for _, value in step.get("labels", [])]
    assert 0.0 < min(probabilities) < 0.4 < 0.6 < max(probabilities) < 1.0


def test_the_player_calls_the_packages_in_the_same_order(package: Path) -> None:
    """The engine's vectors come from a few lines of their own; `coreml.player` must agree with them."""
    player = pytest.importorskip("pulse_edge.export.coreml.player", reason="there is no Core ML player here")
    golden = runpy.run_path(str(package / "golden.py"))

    class Chunk:
        def __init__(self, number: int, calls: list[list[int]]) -> None:
            self.number, self.calls = number, calls

        def inputs(self, function: str) -> set[str]:
            return {"last"} if self.number and function == "prefill" else set()

        def new_state(self) -> None:
            return None

        def run(self, function: str, given: dict[str, Any], state: None) -> dict[str, Any]:
            rows = given["hidden" if self.number else "inputs_embeds"]
            shown = int((given["mask"] == 0).sum())
            if not self.number:
                return {"hidden_out": rows + 1}
            last = int(given["last"][0]) if "last" in given else 0
            position = int(given["position"][0])
            sums = int((rows - 1)[0, : last + 1].sum())
            marked = last if function == "prefill" else -1
            self.calls.append([rows.shape[1], position, marked, shown, sums])
            return {"logits": np.array([[*rows[0, last], position, shown]], np.float32)}

    for case in golden["engine_cases"]()["cases"]:
        reference = golden["_Packages"](case["merge"])
        calls: list[list[int]] = []
        backend = player.CoremlBackend.__new__(player.CoremlBackend)
        backend._chunks = [Chunk(0, calls), Chunk(1, calls)]
        backend._cache, backend._rows, backend._masked = reference.CACHE, reference.ROWS, reference.MASKED
        backend.context = reference.CONTEXT
        backend._look_up = golden["_rows"]
        rows = reference.encode(golden["picture"](*case["picture"]))
        logits = [backend.prefill(rows, [*case["before"], -200, *case["after"]])]
        kept = backend.position
        logits += [backend.extend(tokens) for tokens in (list(range(60, 95)), [9], [10, 11])]
        backend.rewind(kept)
        logits.append(backend.extend([12]))
        assert kept == case["kept"]
        assert [row.tolist() for row in logits] == case["logits"]
        assert calls == case["calls"]


def test_the_sample_asks_for_memory_and_the_camera(package: Path) -> None:
    sample = package / "Sample"
    with (sample / "PulseEdgeSample.entitlements").open("rb") as file:
        entitlements = plistlib.load(file)
    prefix = "com.apple.developer.kernel."
    assert entitlements == {
        f"{prefix}increased-memory-limit": True,
        f"{prefix}extended-virtual-addressing": True,
    }
    with (sample / "Info.plist").open("rb") as file:
        assert "device" in plistlib.load(file)["NSCameraUsageDescription"]


def test_the_xcode_project_names_only_what_it_defines(package: Path) -> None:
    text = (package / "Sample" / "PulseEdgeSample.xcodeproj" / "project.pbxproj").read_text("utf-8")
    defined = re.findall(r"^\t\t([0-9A-F]{24})(?: /\* .*? \*/)? = \{", text, flags=re.MULTILINE)
    assert len(defined) == len(set(defined))
    assert set(re.findall(r"\b[0-9A-F]{24}\b", text)) == set(defined)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    for setting in ("CODE_SIGN_ENTITLEMENTS", "INFOPLIST_FILE"):
        for name in re.findall(rf"\t{setting} = (.*);", text):
            assert (package / "Sample" / name).is_file()


def test_the_readme_names_what_an_app_needs(package: Path) -> None:
    text = (package / "README.md").read_text("utf-8")
    for name in ("increased-memory-limit", "extended-virtual-addressing", "NSCameraUsageDescription"):
        assert name in text
    assert "not a medical device" in text.lower()


@needs_swift
def test_the_swift_tests_pass(package: Path, request: pytest.FixtureRequest) -> None:
    try:
        env = {"PULSE_EDGE_SHARED": str(request.getfixturevalue("shared"))}
    except pytest.skip.Exception:
        env = {}
    # Optimised: the pictures of the golden vectors take minutes otherwise.
    said = _run("swift", "test", "-c", "release", "-Xswiftc", "-enable-testing", cwd=package, **env)
    assert re.search(r"Test run with \d\d+ tests passed", said), said[-2000:]


@needs_swift
@pytest.mark.skipif(find_spec("coremltools") is None, reason="there is no coremltools here")
def test_a_bundle_that_export_wrote_is_opened(package: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("pulse_edge.export.coreml", reason="there is no Core ML export here")
    from pulse_edge import commands

    bundle = tmp_path / "bundle"
    commands.export(target="coreml", precision="fp32", model=str(small_checkpoint), output=bundle)
    said = _run(
        "swift", "test", "-c", "release", "-Xswiftc", "-enable-testing", "--filter", "anExportedBundle",
        cwd=package, PULSE_EDGE_COREML_BUNDLE=str(bundle),
    )  # fmt: skip
    assert "Test run with 1 test passed" in said


@needs_swift
def test_what_only_apple_has_is_type_checked_against_declarations(package: Path, tmp_path: Path) -> None:
    """The Core ML code, the camera and the sample app, in Swift 6 mode; see Tests/AppleStubs/README.md."""
    if sys.platform == "darwin":
        pytest.skip("Xcode has the real frameworks")
    _run(package / "Tests" / "AppleStubs" / "check", tmp_path, cwd=package)


@needs_swift
def test_the_sources_are_formatted(package: Path) -> None:
    folders = ("Sources", "Sample", "Tests/PulseEdgeCoreTests", "Package.swift")
    assert _run("swift", "format", "lint", "--strict", "-r", *folders, cwd=package) == ""
