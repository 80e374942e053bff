from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pulse_edge import cli
from pulse_edge.samples import SAMPLES


@dataclass
class Done:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one line of strict JSON."""
        assert self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=pytest.fail)

    def refused(self, code: int = 2) -> str:
        """One sentence on standard error and none on standard output; returns it."""
        assert self.code == code, self.err
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("pulse-edge: ")
        assert re.search(r"(\.|--help|: (pulse-edge|pip) [^:]+)$", lines[0])
        assert "Traceback" not in self.err
        assert "Unexpected" not in self.err
        return lines[0]


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command in this process, as the console script does."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["pulse-edge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def page() -> Path:
    """A shipped ECG page."""
    return SAMPLES / "normal.png"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A labels.csv of the shipped ECGs, its record paths relative to its folder."""
    folder = tmp_path / "records"
    shutil.copytree(SAMPLES, folder / "ptbxl", ignore=shutil.ignore_patterns("*.png", "*.csv"))
    text = (SAMPLES / "samples.csv").read_text(encoding="utf-8")
    lines = [line.rpartition(",")[0] for line in text.splitlines()]
    (folder / "labels.csv").write_text("\n".join([lines[0], *(f"ptbxl/{x}" for x in lines[1:])]) + "\n")
    return folder / "labels.csv"
