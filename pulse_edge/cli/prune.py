"""`pulse-edge prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json, stages


@app.command()
def prune(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder or shipped name.")] = "pulse-nano",
    output: Annotated[Path | None, typer.Option(help="Folder of the new checkpoint.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Visual tokens kept of a page.")] = None,
    keep_by: Annotated[str, typer.Option(help="Which: uniform or ink.")] = "uniform",
    layers: Annotated[int | None, typer.Option(help="Decoder layers that stay.")] = None,
    mlp: Annotated[int | None, typer.Option(help="Neurons that stay in each of them.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Groups of heads that stay in each of them.")] = None,
    tower: Annotated[float | None, typer.Option(help="Share of the tower's inner widths that stays.")] = None,
    by: Annotated[str, typer.Option(help="Judge layers by influence or perplexity.")] = "influence",
    calibration: Annotated[str | None, typer.Option(help="labels.csv or YAML file that decides.")] = None,
    calibration_size: Annotated[int | None, typer.Option(help="Pages of it.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the pages.")] = None,
    heal: Annotated[Path | None, typer.Option(help="labels.csv to heal on.")] = None,
    heal_pages: Annotated[int, typer.Option(help="Pages to heal on.")] = 512,
    heal_steps: Annotated[int, typer.Option(help="Steps of sixteen pages.")] = 200,
    records: Annotated[Path | None, typer.Option(help="labels.csv to measure the loss on.")] = None,
    split: Annotated[str | None, typer.Option(help="Patients of --records.")] = "test",
    limit: Annotated[int | None, typer.Option(help="At most so many records.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Keep it whatever it costs.")] = False,
    as_json: Json = False,
) -> None:
    """Take tokens, layers or widths from a checkpoint, within a budget of accuracy."""
    from pulse_edge import commands
    from pulse_edge.commands._judged import told

    with stages() as tick:
        result = commands.prune(
            checkpoint, output, tokens, keep_by, layers, mlp, kv_heads, tower, by, calibration,
            calibration_size, seed, heal, heal_pages, heal_steps, records, split, limit, accept_loss, tick,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    (before, after), (was, now) = result["parameters"], result["prefill"]
    less = 1 - now["flops"] / was["flops"]
    typer.echo(f"checkpoint   {result['checkpoint']}  ({result['bytes'] / 1e6:.1f} MB)")
    typer.echo(f"parameters   {before:,} -> {after:,}")
    typer.echo(
        f"visual       {was['visual_tokens']} -> {now['visual_tokens']} tokens, prefill {less:.0%} less"
    )
    for line in told(result):
        typer.echo(line)
