"""The public surface: the names users may rely on. A change here is a decision, so it is written twice."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import pytest

import pulse_edge
from pulse_edge import cli, commands, errors

PUBLIC = {
    "tiles": "(image",
    "preprocess": "(image",
    "load": "(path",
}
VERBS = [
    "bench",
    "build",
    "calibrate",
    "capture",
    "distill",
    "doctor",
    "eval",
    "export",
    "plan",
    "prune",
    "quantize",
    "run",
    "search",
    "serve",
    "train",
    "verify",
]
GROUPS = {"bundle": ["diff", "install", "keygen", "kit", "rollback", "sign"]}  # pulse-edge bundle diff …
ERRORS = {
    "PulseEdgeError": 1,
    "UserError": 2,
    "ImageError": 2,
    "RecordError": 2,
    "CheckpointError": 2,
    "BundleError": 2,
    "UnknownNameError": 2,
    "MissingExtraError": 1,
    "GateError": 1,
    "BudgetError": 3,
    "FitError": 2,
}


def _help(*arguments: str) -> str:
    env = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pulse_edge.cli", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def test_the_package_offers_these_names_and_no_others() -> None:
    assert sorted(pulse_edge.__all__) == sorted([*PUBLIC, "PulseEdgeError", "__version__"])
    assert set(pulse_edge.__all__) <= set(dir(pulse_edge))
    assert pulse_edge.PulseEdgeError is errors.PulseEdgeError
    with pytest.raises(AttributeError, match="has no attribute 'export_everything'"):
        pulse_edge.export_everything  # noqa: B018


def test_the_public_functions_have_these_first_arguments() -> None:
    for name, start in PUBLIC.items():
        assert str(inspect.signature(getattr(pulse_edge, name))).startswith(start)


def test_a_session_offers_ask_and_label() -> None:
    from pulse_edge.runtimes.session import Session

    assert list(inspect.signature(Session.ask).parameters)[1:3] == ["image", "question"]
    assert list(inspect.signature(Session.label).parameters)[1:2] == ["image"]


def test_the_error_tree_and_its_exit_codes() -> None:
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert found == ERRORS


def test_the_command_has_these_verbs() -> None:
    verbs = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)
    assert verbs == VERBS
    groups = {
        group.name: sorted(command.name for command in group.typer_instance.registered_commands)
        for group in cli.app.registered_groups
    }
    assert groups == GROUPS
    text = _help()
    assert all(re.search(rf"\b{verb}\b", text) for verb in [*VERBS, *GROUPS])


def test_every_verb_explains_itself_and_prints_json() -> None:
    for words in [(verb,) for verb in VERBS] + [(g, verb) for g, verbs in GROUPS.items() for verb in verbs]:
        text = _help(*words)
        assert re.search(rf"Usage: .*\b{' '.join(words)}\b", text)
        assert "--json" in text


def test_a_verb_and_its_function_have_the_same_parameters() -> None:
    """One signature for the command line and for Python, but for printing and progress."""
    callbacks = {"report", "on_text", "tick"}
    groups = [group.typer_instance for group in cli.app.registered_groups]
    for command in [entry for one in [cli.app, *groups] for entry in one.registered_commands]:
        name = command.callback.__name__
        typed = list(inspect.signature(command.callback).parameters)
        called = list(inspect.signature(getattr(commands, name)).parameters)
        assert sorted(set(typed) - {"as_json"}) == sorted(set(called) - callbacks)
