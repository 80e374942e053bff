"""`pulse-edge distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json, stages


@app.command()
def distill(
    checkpoint: Annotated[str, typer.Argument(help="The teacher: folder or shipped name.")] = "pulse-nano",
    output: Annotated[Path | None, typer.Option(help="Folder of the student.")] = None,
    recipe: Annotated[str, typer.Option(help="YAML file, or a name in compress/recipes/.")] = "nano-third",
    data: Annotated[Path | None, typer.Option(help="labels.csv to learn from.")] = None,
    lessons: Annotated[Path | None, typer.Option(help="Folder that keeps lessons for more students.")] = None,
    pages: Annotated[int | None, typer.Option(help="Lessons, in place of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in place of the recipe's.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Without the teacher: a control.")] = False,
    records: Annotated[Path | None, typer.Option(help="labels.csv to measure the loss on.")] = None,
    split: Annotated[str | None, typer.Option(help="Patients of --records.")] = "test",
    limit: Annotated[int | None, typer.Option(help="At most so many records.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Keep it whatever it costs.")] = False,
    as_json: Json = False,
) -> None:
    """Teach a small student what a checkpoint knows, within a budget of accuracy."""
    from pulse_edge import commands
    from pulse_edge.commands._judged import told

    with stages() as tick:
        result = commands.distill(
            checkpoint, output, recipe, data, lessons, pages, steps, alone, records, split, limit,
            accept_loss, tick,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    before, after = result["parameters"]
    typer.echo(f"checkpoint   {result['checkpoint']}  ({result['bytes'] / 1e6:.1f} MB)")
    typer.echo(f"parameters   {before:,} -> {after:,}  ({after / before:.0%})")
    for line in told(result):
        typer.echo(line)
