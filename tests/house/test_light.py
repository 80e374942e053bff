"""The core, the command and the runtimes live without torch, transformers and the ONNX tool chain."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("torch", "transformers", "safetensors", "onnx", "onnxscript", "accelerate", "coremltools")
# A finder in front of all others: the packages are as good as not installed.
BLOCK = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (refused by the test)", name=name)
sys.meta_path.insert(0, Refuse())
"""
LIGHT_MODEL = ("preprocess", "prompt", "merge", "tokenizer")  # the other modules of model/ are torch code
MAIN = "from pulse_edge.cli import main\nsys.exit(main())\n"


def _python(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


@pytest.fixture(scope="module")
def page(root: Path) -> Path:
    """A shipped sample page."""
    return sorted((root / "pulse_edge" / "assets" / "samples").glob("*.png"))[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped model, made as a user makes it."""
    for package in ("torch", "transformers", "onnx"):
        pytest.importorskip(package, reason='making a bundle needs pip install -e ".[dev]"')
    out = tmp_path_factory.mktemp("light") / "bundle"
    done = _python("import sys\n" + MAIN, "export", "--target", "onnx", "--output", out)
    assert done.returncode == 0, done.stderr
    return out


def test_core_and_runtimes_import_no_heavy_package(modules: list[Any]) -> None:
    light = sorted(
        module.name
        for module in modules
        if module.stage in (None, "runtimes")
        and (not module.name.startswith("pulse_edge.model.") or module.name.split(".")[-1] in LIGHT_MODEL)
    )
    assert {"pulse_edge.cli", "pulse_edge.commands", "pulse_edge.runtimes.onnx"} <= set(light)
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    script += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    done = _python(script, *light)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_slow(root: Path) -> None:
    """What keeps `--help` under 300 ms (benchmarks/help_latency.py): none of these is loaded for it."""
    slow = (*HEAVY, "cv2", "onnxruntime", "pandas", "scipy", "sklearn", "wfdb", "matplotlib", "PIL")
    script = "import sys, atexit\n"
    script += f"atexit.register(lambda: print([n for n in {slow!r} if n in sys.modules], file=sys.stderr))\n"
    done = _python(script + MAIN, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_a_bundle_runs_where_the_heavy_packages_do_not_exist(bundle: Path, page: Path) -> None:
    done = _python(
        BLOCK + MAIN,
        "run",
        bundle,
        "--image",
        page,
        "--labels",
        "--ask",
        "What does this ECG show?",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["text"].strip()
    assert all(0.0 <= value <= 1.0 for value in answer["labels"].values())
    assert len(answer["labels"]) == 5
    assert {"preprocess", "vision", "prefill", "decode_per_token"} <= set(answer["timing_ms"])


def test_a_bundle_is_verified_where_the_heavy_packages_do_not_exist(bundle: Path) -> None:
    done = _python(BLOCK + MAIN, "verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": True, "problems": []}


@pytest.mark.parametrize(
    "arguments",
    [("export", "--output", "never"), ("run", "pulse-nano", "--labels", "--image")],
    ids=["export", "run a checkpoint"],
)
def test_without_torch_the_missing_extra_is_named(
    arguments: tuple[str, ...], page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extra = (page,) if arguments[-1] == "--image" else ()
    done = _python(BLOCK + MAIN, *arguments, *extra)
    assert done.returncode == 1
    assert 'pip install "pulse-edge[' in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_is_missing_and_how_to_get_it() -> None:
    """Doctor reads the list of installed distributions: these are taken off that list."""
    script = f"""
import importlib.metadata, sys
known = importlib.metadata.version
def version(name):
    if name in {HEAVY!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
"""
    done = _python(script + MAIN, "doctor")
    assert done.returncode == 0, done.stderr
    for name in HEAVY:
        assert re.search(
            rf"^\s*{name}\s.*missing: pip install \"pulse-edge\[\w+\]\"$", done.stdout, re.MULTILINE
        )
