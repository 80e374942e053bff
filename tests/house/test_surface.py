"""The public surface: the names users may rely on. A change here is a decision, so it is written twice."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pulse_edge
from pulse_edge import cli, errors

PUBLIC = {
    "tiles": "(image",
    "preprocess": "(image",
    "load": "(path",
}
VERBS = ["doctor", "eval", "export", "run", "train", "verify"]
JSON_VERBS = ["doctor", "eval", "export", "run", "verify"]
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
}


def _help(*arguments: str) -> str:
    command = [sys.executable, "-c", "from pulse_edge.cli import main; main()", *arguments, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_plain_environment())
    return done.stdout


def _plain_environment() -> dict[str, str]:
    import os

    return {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def test_the_package_offers_these_names_and_no_others() -> None:
    assert set(pulse_edge.__all__) == {*PUBLIC, "__version__"}
    public = {name for name in vars(pulse_edge) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(pulse_edge, name))}
    assert public - modules - {"annotations"} <= set(PUBLIC) | {"TYPE_CHECKING", "Any"}
    assert set(pulse_edge.__all__) <= set(dir(pulse_edge))


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
    text = _help()
    assert all(re.search(rf"\b{verb}\b", text) for verb in VERBS)


def test_every_verb_documents_itself_and_json() -> None:
    for verb in VERBS:
        text = _help(verb)
        assert f"pulse-edge {verb}" in text or f" {verb} " in text
        assert ("--json" in text) == (verb in JSON_VERBS)
