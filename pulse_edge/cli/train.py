"""`pulse-edge train`."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="Table or folder of records, or ECGInstruct.")] = None,
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = "pulse-nano",
    output: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.")] = None,
    pages: Annotated[int | None, typer.Option(help="Pages per stage, for a short trial.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that render pages.")] = 1,
    init: Annotated[str | None, typer.Option(help="Checkpoint or shipped model to start from.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compute what it costs.")] = False,
    gpus: Annotated[int | None, typer.Option(help="With --dry-run: H100s that share it.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model from a recipe; an interrupted training is resumed."""
    from pulse_edge import commands

    with redirect_stdout(sys.stderr):  # the Trainer's progress is no part of the result
        result = commands.train(recipe, data, output, pages, workers, init, dry_run, gpus)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    if as_json:
        print_json(result)
    elif dry_run:
        (_print_plan if "gpus" in result else _print_page_plan)(result)
    else:
        typer.echo(f"checkpoint   {result['checkpoint']}  ({result['parameters'] / 1e6:.2f} M parameters)")
        for row in result["metrics"]:
            scores = (
                f"macro AUROC {row['auroc']['macro']:.3f}" if "auroc" in row else f"loss {row['loss']:.4f}"
            )
            typer.echo(f"{row['set']}: {scores} on {row['n']} {row.get('what', 'records')}")
        if (found := result.get("calibration")) is not None:
            typer.echo(f"calibrated   {found['method']}, on {found['fit']['patients']} {found['fit']['set']}")


def _print_page_plan(plan: dict[str, Any]) -> None:
    """Print what `train --dry-run` found for a recipe of records."""
    per_page = plan["flops_per_page"]
    typer.echo(f"recipe       {plan['recipe']}")
    typer.echo(f"parameters   {plan['parameters']:,}")
    typer.echo(
        f"a page       {per_page['tower'] / 1e9:.1f} GFLOP to see, {per_page['language'] / 1e9:.1f} to answer"
    )
    for name, stage in plan["stages"].items():
        work = stage["flops"] / 1e15
        typer.echo(f"{name:13s}{stage['pages']:,} pages in {stage['steps']:,} steps, {work:.3g} PFLOP")
    typer.echo(f"time         about {plan['core_hours']:.2g} core hours of a CPU with bf16, drawing apart")


def _print_plan(plan: dict[str, Any]) -> None:
    """Print what `train --dry-run` found."""
    batch, tokens, gpu = plan["batch"], plan["tokens"], plan["gpu"]
    typer.echo(f"recipe       {plan['recipe']}")
    typer.echo(f"parameters   {plan['parameters']:,}, of which {plan['trainable']:,} are trained")
    typer.echo(
        f"data         {plan['conversations']:,} conversations of {tokens['visual']:,} visual "
        f"and {tokens['text']:,} text tokens; {plan['steps']:,} steps of {batch['global']}"
    )
    typer.echo(
        f"each GPU     {batch['per_gpu']} at a time, {batch['accumulate']} times a step; {plan['gpus']} GPUs"
    )
    for name, size in plan["memory_per_gpu"].items():
        typer.echo(f"  {name:11s}{size / 1e9:9.2f} GB")
    fits = "fits" if plan["fits"] else "does NOT fit; use more GPUs"
    typer.echo(f"             {fits} on {gpu['name']} ({gpu['peak_flops'] / 1e12:.0f} TFLOP/s, bf16)")
    work = plan["flops"]
    typer.echo(f"FLOPs        {work['step'] / 1e15:.3g} P a step, {work['total'] / 1e18:.4g} E in all")
    typer.echo(
        f"time         {plan['hours']:.3g} hours on {plan['gpus']} GPUs at an MFU of {plan['mfu']} "
        f"({plan['gpu_hours']:.4g} GPU-hours)"
    )
