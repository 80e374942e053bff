"""What a cart is delivered with: a unit that systemd itself rates, images without root or network."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from pulse_edge.bundle.kit import DEPLOY

UNIT = DEPLOY / "pulse-edge.service"
IMAGES = sorted(DEPLOY.glob("Dockerfile.*"))


def instructions(path):
    """(instruction, rest) of a Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_unit_keeps_the_service_from_the_network_and_from_rights() -> None:
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    for setting in (
        "DynamicUser=yes", "IPAddressDeny=any", "IPAddressAllow=localhost", "CapabilityBoundingSet=",
        "NoNewPrivileges=yes", "ProtectSystem=strict", "StateDirectory=pulse-edge", "StateDirectoryMode=0700",
        "Restart=always",
    ):  # fmt: skip
        assert setting in lines


def test_systemd_takes_the_unit_and_rates_it_safe(tmp_path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "venv" / "bin" / "pulse-edge"  # verify looks for the program
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/pulse", str(tmp_path)))
    for words in (["verify", unit], ["security", "--offline=true", "--threshold=12", unit]):
        done = subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True)
        if "Unknown" in done.stderr and "option" in done.stderr:
            pytest.skip("this systemd-analyze is older than --offline")
        assert done.returncode == 0, done.stdout[-300:] + done.stderr
        assert "pulse-edge.service:" not in done.stderr  # no setting that it does not know


@pytest.mark.parametrize("path", [UNIT, *IMAGES], ids=lambda path: path.name)
def test_the_service_is_started_with_options_that_exist(path) -> None:
    from typer.main import get_command

    from pulse_edge.cli import app

    started = re.search(r'pulse-edge"?,? "?serve.*', path.read_text(encoding="utf-8"))
    assert started is not None
    known = {option for parameter in get_command(app).commands["serve"].params for option in parameter.opts}
    asked = set(re.findall(r"--[a-z-]+", started[0]))
    assert "--follow" in asked
    assert asked <= known


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_run_without_root_and_build_without_a_network(path) -> None:
    stages = instructions(path)
    final = max(k for k, (name, _) in enumerate(stages) if name == "FROM")
    last = stages[final:]
    assert [rest for name, rest in last if name == "USER"] == ["10001"]
    assert any(name == "HEALTHCHECK" and "/healthz" in rest for name, rest in last)
    assert ("VOLUME", '["/data"]') in last
    runs = " ".join(rest for name, rest in stages if name == "RUN")
    assert "install.sh /opt/pulse" in runs
    assert not re.search(r"\b(?:apt|apt-get|curl|wget|pip|git)\b", runs)
    if shutil.which("hadolint"):
        done = subprocess.run(["hadolint", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
