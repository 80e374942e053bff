"""Mistakes on the command line: one sentence, the nearest name, exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pulse_edge import cli
from pulse_edge.cli import guard


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("exprot",), "Did you mean 'export'?"),
        (("evaluate",), "Did you mean 'eval'?"),
        (("run", "x", "--imag", "y"), "--image"),
        (("run",), "Missing argument 'bundle'"),
        (("eval", "x"), "--records"),
        (("eval", "x", "--records", "y", "--limit", "many"), "--limit"),
        (("export", "--target", "jetsn", "--model", "{checkpoint}"), "Did you mean 'jetson'?"),
        (("export", "--device", "orin-nano", "--model", "{checkpoint}"), "Did you mean 'orin-nano-"),
        (
            ("export", "--target", "onnx", "--precision", "fp23", "--model", "{checkpoint}"),
            "Did you mean 'fp",
        ),
        (("export", "--device", "x86-cpu", "--model", "{checkpoint}"), "Use another --target"),
        (("export", "--model", "no/such/model"), "no/such/model"),
        (("verify", "no-such-bundle"), "no-such-bundle"),
        (("run", "no/such/bundle", "--image", "{page}"), "no/such/bundle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(arguments, sentence, pulse, small_checkpoint, page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [a.format(checkpoint=small_checkpoint, page=page) for a in arguments]
    assert sentence in pulse(*filled).refused()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "either --image PAGE.png or --record"),
        (("--image", "{page}", "--record", "x"), "either --image PAGE.png or --record"),
        (("--image", "{page}", "--ask", ""), "question is empty"),
        (("--image", "{page}", "--ask", " \n"), "question is empty"),
        (("--image", "{page}", "--ask", "<image>"), "must not contain <image>"),
        (("--image", "{page}", "--ask", "\udcff\udcfe"), "not valid UTF-8"),  # how Python passes other bytes
        (("--image", "{page}", "--ask", "Why? why? " * 300), "context is 512"),
        (("--image", "{page}", "--max-new-tokens", "0"), "at least 1"),
    ],
    ids=["neither", "both", "empty", "blank", "mark", "bytes", "long", "budget"],
)
def test_run_asks_for_one_ecg_and_a_usable_question(arguments, sentence, pulse, small_bundle, page) -> None:
    assert sentence in pulse("run", small_bundle, *(a.format(page=page) for a in arguments)).refused()


def test_with_json_the_error_is_json_too(pulse) -> None:
    done = pulse("run", "x", "--json")
    assert done.code == 2
    assert json.loads(done.out) == {"error": done.err.removeprefix("pulse-edge: ").strip()}


def test_an_unexpected_error_is_one_sentence_unless_debugging(pulse, monkeypatch) -> None:
    monkeypatch.setattr("pulse_edge.commands.doctor", lambda *_: {}["nothing\nhere"])
    done = pulse("doctor")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "Unexpected KeyError" in done.err
    monkeypatch.setenv("PULSE_EDGE_DEBUG", "1")
    with pytest.raises(KeyError):
        guard._guard(lambda: cli.app(["doctor"], standalone_mode=False))


def test_an_unfinished_command_line_shows_the_help(pulse) -> None:
    done = pulse()
    assert (done.code, done.err) == (0, "")
    assert done.out == pulse("--help").out
    assert done.out.startswith("Usage: ")


SCRIPT = (sys.executable, "-c", "from pulse_edge.cli import main; main()")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [(("doctor",), 1, ""), (("doctor", "--json"), 1, ""), (("run", "x", "--json"), 2, "Name one ECG")],
    ids=["text", "json", "error as json"],
)
def test_a_reader_that_has_left_gets_no_traceback(arguments, code, sentence) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*SCRIPT, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stderr.count("\n") == bool(sentence)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("doctor",), 1, "The disk is full. Free some space"),
        (("doctor", "--json"), 1, "The disk is full. Free some space"),
        (("run", "x", "--json"), 2, "Name one ECG"),
    ],
    ids=["text", "json", "error as json"],
)
def test_a_full_disk_under_the_result_is_one_sentence(arguments, code, sentence) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SCRIPT, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
