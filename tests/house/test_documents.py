"""What the documents promise is what the project holds: commands, licences, versions, extras."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

COMMANDS = ["main", "check"]
# of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
# NOTICE's key of every base model that a card, a device or the documents may name.
BASE_MODELS = ["pulse-7b", "llava", "vicuna", "llama-2", "clip"]


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    with (root / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


@pytest.fixture(scope="module")
def notice(root: Path) -> str:
    return (root / "NOTICE").read_text(encoding="utf-8")


def _readme_commands(root: Path) -> dict[str, str]:
    """README's marked code blocks, read independently of the script that CI uses."""
    text = (root / "README.md").read_text(encoding="utf-8")
    pattern = r"^<!-- command: (\w+) -->\n\n?```bash\n(.*?)^```$"
    return {m[1]: m[2] for m in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL)}


def test_ci_runs_exactly_the_commands_of_the_readme(root: Path) -> None:
    commands = _readme_commands(root)
    assert list(commands) == COMMANDS
    script = (root / ".ci" / "run").read_text(encoding="utf-8")
    loop = re.search(r"^for name in (.+); do$", script, flags=re.MULTILINE)
    assert loop is not None
    assert loop[1].split() == COMMANDS
    # everything that installs, exports or tests comes from README: the script has no such line of its own
    code = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("#"))
    assert not re.findall(r"\b(?:pip install|pulse-edge (?!ci)|pytest|ruff|mypy)\b", code)
    if shutil.which("bash") and shutil.which("awk"):
        for name, text in commands.items():
            printed = subprocess.run(
                ["bash", root / ".ci" / "readme-command", name], capture_output=True, text=True, check=True
            )
            assert printed.stdout == text
        wrong = subprocess.run(
            ["bash", root / ".ci" / "readme-command", "other"], capture_output=True, text=True
        )
        assert wrong.returncode != 0


def test_the_readme_commands_stop_at_the_first_failure(root: Path) -> None:
    """`bash -e` does not stop inside `a && b` or `a; b`: one command stands on one line."""
    for text in _readme_commands(root).values():
        assert not re.search(r"&&|\|\||;", text)


def test_the_main_command_exports_and_runs_a_shipped_page(root: Path) -> None:
    main = _readme_commands(root)["main"].replace("\\\n", " ")
    export = re.search(r"^pulse-edge export --target jetson --output (\S+)$", main, flags=re.MULTILINE)
    run = re.search(r"^pulse-edge run (\S+) --image (\S+)", main, flags=re.MULTILINE)
    assert export is not None
    assert run is not None
    assert export[1] == run[1]
    assert (root / run[2]).is_file()
    assert run[2].startswith("pulse_edge/assets/samples/")


def test_the_check_command_ends_with_pytest(root: Path) -> None:
    lines = _readme_commands(root)["check"].split("\n")
    assert lines[-2].split()[0] == "pytest"
    assert {"ruff", "mypy"} <= {line.split()[0] for line in lines if line}


def test_the_readme_table_holds_the_committed_figures(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- figures: (\S+) -->\n\|.*\n\|[-|]+\n((?:\|.*\n)+)", readme, flags=re.MULTILINE)
    assert found is not None
    report = json.loads((root / found[1]).read_text(encoding="utf-8"))
    expected = ""
    for row in report["rows"]:
        low, high = row["auroc_interval"]
        cells = [
            row["name"],
            f"{row['auroc']['macro']:.3f} ({low:.3f} to {high:.3f})",
            f"{row['blank_image']['auroc']['macro']:.3f}",
            f"{row['f1']['macro']:.3f}",
            f"{row['megabytes']:.1f}" if "megabytes" in row else "",
            f"{row['seconds_per_record'] * 1e3:.0f}",
        ]
        expected += f"| {' | '.join(cells)} |\n"
    assert found[2] == expected, f"the figures have changed; README's rows are now:\n{expected}"


def test_no_document_waits_to_be_filled(root: Path) -> None:
    for path in (root / "README.md", *(root / "docs").glob("*.md")):
        assert not re.search(r"\b(?:TODO|TBD|FIXME|LEAD:)", path.read_text(encoding="utf-8")), path


def test_every_path_the_documents_link_to_exists(root: Path) -> None:
    for path in (root / "README.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_licence_is_the_whole_apache_2(root: Path) -> None:
    text = (root / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == APACHE_2


def test_one_version_everywhere(root: Path, project: dict[str, Any]) -> None:
    import pulse_edge

    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == pulse_edge.__version__ == str(citation["version"])


def test_the_citation_names_pulse_and_ptb_xl(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "type", "license"} <= set(citation)
    dois = {reference.get("doi") for reference in citation["references"]}
    assert {"10.1038/s41746-026-02551-3", "10.1038/s41597-020-0495-6"} <= dois
    assert any("2410.19008" in str(reference.get("url")) for reference in citation["references"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def test_the_extras_are_those_promised(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert set(extras) == {
        "runtime", "train", "compress", "export", "coreml", "jetson", "serve", "structured", "heic",
        "all", "dev",
    }  # fmt: skip
    base = " ".join(project["dependencies"])
    for heavy in ("torch", "transformers", "onnxscript", "coremltools", "opencv-python>"):
        assert heavy not in base
    inner = re.search(r"\[(.*)\]", extras["all"][0])
    assert inner is not None
    assert set(inner[1].split(",")) == set(extras) - {"all", "dev", "runtime"}


def test_every_extra_an_error_recommends_exists(
    root: Path, project: dict[str, Any], modules: list[Any]
) -> None:
    extras = set(project["optional-dependencies"])
    named = set()
    for module in modules:
        source = module.path.read_text(encoding="utf-8")
        named |= set(re.findall(r"MissingExtraError\([^)]*?,\s*[\"'](\w+)[\"']\)", source))
        for group in re.findall(r"pulse-edge\[([\w,]+)\]", source):
            named |= set(group.split(","))
    assert named <= extras


def test_notice_names_every_base_model(notice: str) -> None:
    for key in BASE_MODELS:
        assert f"[{key}]" in notice


def test_notice_covers_the_shipped_samples_and_model(root: Path, notice: str) -> None:
    assets = root / "pulse_edge" / "assets"
    with (assets / "samples" / "samples.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    shipped = notice.split("2. READ, NOT SHIPPED")[0]
    for row in rows:
        assert f"[{row['database']}]" in shipped
        assert row["licence"].split(" (")[0] in shipped
    card = json.loads((assets / "pulse-nano" / "pulse.json").read_text(encoding="utf-8"))
    assert card["licences"]
    text = json.dumps(card)
    assert "PTB-XL" in text
    assert "CC BY 4.0" in text


def test_notice_covers_every_database_that_is_read(shared: Path, notice: str) -> None:
    with (shared / "ecg" / "labels.csv").open(encoding="utf-8", newline="") as file:
        licences = {row["database"]: row["licence"].split(" (")[0] for row in csv.DictReader(file)}
    assert licences
    for database, licence in licences.items():
        assert f"[{database}]" in notice
        section = re.split(r"\n\d\.\d ", notice.split(f"[{database}]")[1])[0]
        assert licence in section or "Source as" in section


def test_nothing_read_only_is_shipped(root: Path) -> None:
    """Photos and golden vectors are for tests; only PTB-XL records and pulse-nano are in the package."""
    assets = root / "pulse_edge" / "assets"
    allowed = {"pulse-nano", "samples"}
    assert {path.name for path in assets.iterdir() if path.is_dir()} == allowed
    assert sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) <= 10_000_000
