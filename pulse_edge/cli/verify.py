"""`pulse-edge verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[Path | None, typer.Option(help="Public key that must have signed it.")] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Also run the graphs, and compare with the export's answer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every file of a bundle against its manifest, and its signature."""
    from pulse_edge import commands

    result = commands.verify(bundle, key, execute)
    if as_json:
        print_json(result)
    else:
        typer.echo("The bundle is sound." if result["ok"] else "\n".join(result["problems"]))
    if not result["ok"]:
        raise typer.Exit(1)
