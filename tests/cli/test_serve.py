"""`pulse-edge serve`: what is typed wrong is said before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from pulse_edge.runtimes.serve.audit import NAME, Audit
from pulse_edge.runtimes.serve.clock import Clock


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULSE_EDGE_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name the bundle to serve"),
        (["nowhere"], "is not a bundle"),
        (["x", "--host", "0.0.0.0"], "a token is needed"),
        (["x", "--host", "::"], "a token is needed"),
        (["x", "--tls-cert", "c.pem"], "belong together"),
        (["x", "--queue", "0"], "--queue must be at least 1"),
        (["x", "--keep-days", "0"], "--keep-days must be at least 1"),
        (["x", "--deadline", "nan"], "--deadline must be at least 1"),
        (["x", "--port", "70000"], "--port must be 0 to 65535"),
        (["x", "--token-file", "nowhere"], "cannot be read"),
        (["--check-log", "--data", "nowhere"], "There is no audit log"),
    ],
)
def test_a_wrong_option_is_refused(pulse, quiet, tmp_path, monkeypatch, arguments, said) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in pulse("serve", *arguments).refused()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", ["short", "", "with a line\nbreak inside it", "naïve-but-long-enough"])
def test_a_weak_token_is_refused(pulse, quiet, tmp_path, token) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    done = pulse("serve", "x", "--token-file", tmp_path / "token")
    assert "at least 16 characters" in done.refused()


def test_files_that_are_no_certificate_are_refused(pulse, quiet, small_bundle, tmp_path) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("no PEM")
    options = ("--tls-cert", tmp_path / "cert", "--tls-key", tmp_path / "key", "--data", tmp_path / "data")
    assert "cannot be used for TLS" in pulse("serve", small_bundle, *options).refused()


def test_a_damaged_bundle_ends_the_service_with_its_error(pulse, quiet, own_bundle, tmp_path) -> None:
    with next(own_bundle.glob("*.onnx")).open("ab") as stream:
        stream.write(b"\0")
    done = pulse("serve", own_bundle, "--port", "0", "--data", tmp_path / "data")
    assert done.code == 2
    assert "is not sound" in done.err


def test_the_audit_log_is_checked(pulse, tmp_path: Path) -> None:
    log = Audit(tmp_path, Clock())
    for _ in range(3):
        log.add("start")
    log.close()
    done = pulse("serve", "--check-log", "--data", tmp_path, "--json")
    assert (done.code, done.json) == (0, {"ok": True, "lines": 3, "problem": None})
    lines = (tmp_path / NAME).read_text().splitlines(keepends=True)
    (tmp_path / NAME).write_text(lines[0] + lines[2])
    done = pulse("serve", "--check-log", "--data", tmp_path, "--json")
    assert done.code == 1
    assert done.json["lines"] == 1
    assert "Line 2 of" in done.json["problem"]
