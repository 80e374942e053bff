"""A device: the stand-ins for TensorRT, cuda-python and the driver, in place of what is not here."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """Import a helper of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"trt_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"trt_{name}"] = module
    spec.loader.exec_module(module)
    return module


fake_cuda = _load("fake_cuda")
fake = _load("fake")
VERSIONS = ("10.3.0", "10.13.3.9", "10.15.1.29", "11.4.0.106")


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make this process one on a device with some TensorRT; returns the device."""

    def make(version: str = "10.3.0", sm: str = "8.7", memory: int = 1 << 32) -> Any:
        cuda = fake_cuda.FakeCuda(memory)
        machine = fake.Machine(version, sm, cuda)
        bindings, parent = ModuleType("cuda.bindings"), ModuleType("cuda")
        bindings.runtime, parent.bindings = cuda, bindings
        monkeypatch.setitem(sys.modules, "tensorrt", machine.module)
        monkeypatch.setitem(sys.modules, "cuda", parent)
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        device = {"name": "Orin", "sm": sm, "memory_mb": memory >> 20, "driver": "12.6"}
        monkeypatch.setattr("pulse_edge.board.cuda_device", lambda: device)
        return machine

    return make


@pytest.fixture(scope="session")
def jetson_bundles(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small checkpoint exported for a Jetson in a precision. Not to be written to."""
    from pulse_edge.export import export_bundle

    made: dict[str, Path] = {}

    def export(precision: str) -> Path:
        if precision not in made:
            made[precision] = tmp_path_factory.mktemp("jetson") / precision
            export_bundle(small_checkpoint, made[precision], "jetson", precision=precision)
        return made[precision]

    return export


@pytest.fixture
def own(jetson_bundles: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of such a bundle that engines may be added to."""

    def copy(precision: str = "fp16", name: str = "bundle") -> Path:
        return Path(shutil.copytree(jetson_bundles(precision), tmp_path / name))

    return copy
