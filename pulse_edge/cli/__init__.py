"""The command line: typer's wiring of `pulse_edge.commands`, a module for each verb."""

from __future__ import annotations

from pulse_edge.cli import doctor, evaluate, export, run, train, verify  # noqa: F401 - each registers itself
from pulse_edge.cli.base import app
from pulse_edge.cli.guard import main

__all__ = ["app", "main"]
