"""The console script: run a verb, and turn every error into one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from pulse_edge.cli.base import app, print_json
from pulse_edge.errors import PulseEdgeError, UnknownNameError
from pulse_edge.interrupt import heard

TYPERS_CTRL_C = 130  # newer versions of typer swallow Ctrl-C and return this code, others raise Abort


def main() -> None:
    """Entry point of the console script: run, and turn every error into one sentence and a code.

    Exit codes: 0 done, 1 failed or interrupted, 2 the command line or an input is at fault.
    """
    with heard():
        code = _guard(lambda: app(standalone_mode=False))
    sys.exit(code)


def _guard(call: Callable[[], Any]) -> int:
    try:
        result = call()
        if result == TYPERS_CTRL_C:
            raise KeyboardInterrupt
    except PulseEdgeError as error:
        return _complain(str(error), error.exit_code)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("Interrupted; nothing half-written was left. Run the same command again.", 1)
    except BrokenPipeError:
        _leave_stdout()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of standard output, for one
            return _complain("The disk is full. Free some space and run the same command again.", 1)
        # typer brings its own copy of click, or uses the one beside it: usage errors are known by form.
        if hasattr(error, "format_message"):
            return _complain(_usage(error.format_message()), 2)
        if os.environ.get("PULSE_EDGE_DEBUG"):
            raise
        return _complain(
            f"Unexpected {type(error).__name__}: {_sentence(str(error)[:300])} "
            "Set PULSE_EDGE_DEBUG=1 for the traceback and report it.",
            1,
        )
    return result if isinstance(result, int) else 0


def _usage(message: str) -> str:
    if message.startswith("No such command"):
        return str(UnknownNameError("command", message.split("'")[1], _verbs(sys.argv[1:2])))
    return f"{_sentence(message)} See: pulse-edge --help"


def _verbs(first: list[str]) -> list[str]:
    """The commands that could have been meant: of a group, if the first word names one."""
    groups = {group.name: group.typer_instance for group in app.registered_groups if group.typer_instance}
    named = next((groups[word] for word in first if word in groups), None)
    names = [c.name or getattr(c.callback, "__name__", "") for c in (named or app).registered_commands]
    return names if named else [*names, *(name for name in groups if isinstance(name, str))]


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _complain(message: str, code: int) -> int:
    try:
        if "--json" in sys.argv:
            print_json({"error": message})
        typer.echo("", nl=False)  # flushes what was printed before
    except OSError:  # nobody reads it any more, or its disk is full; standard error still says it
        _leave_stdout()
    typer.echo(f"pulse-edge: {message}", err=True)
    return code


def _leave_stdout() -> None:
    """Write no more to standard output, so that Python does not fail again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
