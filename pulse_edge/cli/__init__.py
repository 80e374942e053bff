"""The command line: typer's wiring of `pulse_edge.commands`, a module for each verb."""

from __future__ import annotations

from pulse_edge.cli import (  # noqa: F401 - each registers itself
    bench,
    build,
    bundle,
    calibrate,
    capture,
    distill,
    doctor,
    evaluate,
    export,
    plan,
    prune,
    quantize,
    run,
    search,
    serve,
    train,
    verify,
)
from pulse_edge.cli.base import app
from pulse_edge.cli.guard import main

__all__ = ["app", "main"]
