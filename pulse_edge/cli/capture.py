"""`pulse-edge capture`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def capture(
    image: Annotated[Path | None, typer.Argument(help="Picture of a paper ECG.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the flat page there (PNG).")] = None,
    grid: Annotated[Path | None, typer.Option(help="Write the mesh there (JSON).")] = None,
    camera: Annotated[str | None, typer.Option(help="0, csi:0, a GStreamer pipeline or a recording.")] = None,
    photo: Annotated[Path | None, typer.Option(help="With --camera: write the frame there (PNG).")] = None,
    timeout: Annotated[float | None, typer.Option(help="With --camera: seconds to try.")] = None,
    watch: Annotated[Path | None, typer.Option(help="Take every picture that arrives in a folder.")] = None,
    as_json: Json = False,
) -> None:
    """Flatten and grade a photo of a paper ECG, guide a camera to one, or watch a folder.

    The exit code is 2 if the photo is refused.
    """
    from pulse_edge import commands

    def say(text: str) -> None:
        typer.echo(json.dumps({"guidance": text}, ensure_ascii=False) if as_json else text, err=True)

    result = commands.capture(image, output, grid, camera, photo, timeout, watch, say)
    if as_json:
        print_json(result)
    elif watch is not None:
        typer.echo(f"good {result['good']}, usable {result['usable']}, refused {result['refuse']}")
    else:
        typer.echo(result["grade"])
        for reason in result["reasons"]:
            typer.echo(f"  {reason}")
        across, down = result["px_per_mm"]
        typer.echo(f"{across:.2f} x {down:.2f} px/mm, turned by {result['rotation']:.1f} degrees")
    if result.get("grade") == "refuse":
        raise typer.Exit(2)
