"""The house as data: its source files, parsed once."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("train", "compress", "export", "runtimes")  # the stages: top-level folders with code


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name inside the distribution, its path and its syntax tree."""

    name: str
    path: Path
    lines: int
    tree: ast.Module

    @property
    def stage(self) -> str | None:
        """The stage the module belongs to, or None for the core."""
        part = self.name.split(".")[1] if "." in self.name else ""
        return part if part in ROOMS else None


def _module(path: Path, name: str) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(name, path, text.count("\n"), ast.parse(text))


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    """Every module of the distribution, core and rooms, each once and under its package name."""
    found = []
    for top in ("pulse_edge", *ROOMS):
        prefix = [] if top == "pulse_edge" else ["pulse_edge"]
        # rglob does not enter the symlinked rooms, so each file is seen once
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = [*prefix, *path.relative_to(ROOT).with_suffix("").parts]
            found.append(_module(path, ".".join(parts).removesuffix(".__init__")))
    return found
