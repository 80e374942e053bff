"""The doctor's advice against pyproject.toml and against machines made up here."""

from __future__ import annotations

import importlib.metadata
import re
import sys

import pytest

from pulse_edge import doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def names(requirements) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", text)[0].lower() for text in requirements}


def test_it_looks_for_exactly_what_the_project_declares(root) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.NEEDED[""]) == names(project["dependencies"])
    for extra in ("train", "export", "coreml", "compress", "heic"):
        asked = names(project["optional-dependencies"][extra])
        assert set(doctor.NEEDED[extra]) == asked - names(project["dependencies"])  # numpy, more narrowly


def test_a_missing_package_comes_with_its_command(monkeypatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "scipy"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    result = doctor.examine()
    assert result["ok"] is False
    missing = {(p["name"], p["install"]) for p in result["packages"] if p["version"] is None}
    missing -= {("pillow-heif", 'pip install "pulse-edge[heic]"')}  # may really be missing
    assert missing == {
        ("scipy", 'pip install "pulse-edge"'),
        *(("torch", f'pip install "pulse-edge[{extra}]"') for extra in ("export", "coreml", "compress")),
        ("torch", 'pip install "pulse-edge[train]"'),
    }


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (b"NVIDIA Jetson Orin Nano Developer Kit\0", "NVIDIA Jetson Orin Nano Developer Kit"),
        (b"Raspberry Pi 5 Model B Rev 1.0\0", None),
        (None, None),
    ],
)
def test_a_jetson_is_known_by_its_device_tree(model, expected, monkeypatch, tmp_path) -> None:
    if model is not None:
        (tmp_path / "model").write_bytes(model)
    (tmp_path / "l4t").write_text("# R36 (release), REVISION: 4.3\nmore\n")
    monkeypatch.setattr(doctor, "_JETSON_MODEL", tmp_path / "model")
    monkeypatch.setattr(doctor, "_L4T", tmp_path / "l4t")
    found = doctor.examine()["jetson"]
    assert found == (expected and {"model": expected, "l4t": "# R36 (release), REVISION: 4.3"})
