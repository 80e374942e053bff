"""The sdist and the wheel, built from what git would commit, installed alone and imported whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

# The Swift package is for Xcode and of no use in site-packages: in the sdist, and not in the wheel.
SWIFT = "runtimes/swift/"

# Runs in the fresh environment: import every module, and print the names and where the package lies.
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import pulse_edge
def fail(name): raise
names = [m.name for m in pkgutil.walk_packages(pulse_edge.__path__, "pulse_edge.", onerror=fail)]
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__ or pulse_edge.__file__).is_relative_to(sys.prefix), module
assert not {"train", "export", "runtimes", "devices", "compress"} & set(sys.modules)
print("\\n".join(names))
"""


def _run(*command: str | Path, cwd: Path) -> str:
    # PYTHONPATH would put the checkout in front of the wheel that is under test
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _tracked(root: Path) -> list[str]:
    """Every file and link that git holds or would add; the links to the rooms are single entries."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [name for name in listed.stdout.split("\0") if name and os.path.lexists(root / name)]


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from that sdist, out of a copy without leftovers of other builds."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in _tracked(root):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, tree / name, follow_symlinks=False)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=tree)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def fresh(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel installed; returns its folder of programs.

    Third-party packages are lent from the environment of the test through a .pth file, which comes after
    the environment's own site-packages and runs no .pth of the lender: pulse_edge can only be the wheel's.
    """
    home = tmp_path_factory.mktemp("fresh")
    _run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--no-compile",
    ]
    _run(*pip, built[1], cwd=home)
    site = Path(
        _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    )
    lent = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    return programs


def test_the_wheel_holds_every_file_of_the_package_and_no_other(root: Path, built: tuple[Path, Path]) -> None:
    rooms = ("train/", "compress/", "export/", "runtimes/", "devices/")
    expected = set()
    for name in _tracked(root):
        if (root / name).is_symlink() or name.startswith(SWIFT):
            continue
        if name.startswith(rooms):
            expected.add(f"pulse_edge/{name}")
        elif name.startswith("pulse_edge/"):
            expected.add(name)
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        meta = {name.split("/", 1)[1] for name in wheel.namelist() if ".dist-info/" in name}
    assert held == expected
    assert {"licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"} <= meta


def test_the_sdist_holds_real_files_and_the_notices(root: Path, built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        members = {member.name.split("/", 1)[1]: member for member in sdist if "/" in member.name}
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    wanted = {"LICENSE", "NOTICE", "CITATION.cff", "README.md", "pyproject.toml", "pulse_edge/py.typed"}
    assert wanted <= set(members)
    assert any(name.startswith("pulse_edge/devices/") for name in members)
    assert any(name.startswith("pulse_edge/export/") for name in members)
    swift = {name for name in _tracked(root) if name.startswith(SWIFT)}
    assert swift == {name for name, member in members.items() if name.startswith(SWIFT) and member.isfile()}


def test_the_wheel_installs_nothing_beside_the_package(fresh: Path) -> None:
    script = "import sysconfig, os; print(*sorted(os.listdir(sysconfig.get_path('purelib'))))"
    entries = _run(fresh / "python", "-c", script, cwd=fresh).split()
    kept = {name for name in entries if not name.endswith((".dist-info", ".pth", ".virtualenv"))}
    assert kept == {"pulse_edge"}


def test_every_module_of_the_wheel_imports(root: Path, fresh: Path) -> None:
    for package in ("torch", "transformers", "onnx"):
        pytest.importorskip(package, reason='importing every module needs pip install -e ".[dev]"')
    names = set(_run(fresh / "python", "-c", IMPORT_ALL, cwd=fresh).split())
    here = {
        ".".join(path.relative_to(root / "pulse_edge").with_suffix("").parts).removesuffix(".__init__")
        for room in (".", "train", "compress", "export", "runtimes")
        for path in (root / "pulse_edge" / room).glob("**/*.py")
        if not path.is_relative_to(root / "pulse_edge" / SWIFT)
    } - {"__init__"}
    assert {name.removeprefix("pulse_edge.") for name in names} == here


def test_the_console_script_answers(fresh: Path) -> None:
    text = _run(fresh / "pulse-edge", "--help", cwd=fresh)
    assert "export" in text
    assert "verify" in text
