"""`pulse-edge doctor`."""

from __future__ import annotations

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what is missing, and the command that brings it."""
    from pulse_edge import commands

    result = commands.doctor()
    if as_json:
        print_json(result)
        return
    typer.echo(f"pulse-edge {result['pulse_edge']}, Python {result['python']}, {result['platform']}")
    typer.echo(f"{result['cores']} cores, {result['memory_gb']} GB; Jetson: {result['jetson'] or 'no'}")
    typer.echo(
        f"TensorRT: {result['tensorrt'] or 'not installed'}; models: {', '.join(result['models']) or 'none'}"
    )
    for package in result["packages"]:
        state = package["version"] or f"missing: {package['install']}"
        typer.echo(f"  {package['name']:24s}{package['extra'] or 'base':8s}{state}")
