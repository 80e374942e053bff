"""`pulse-edge search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json, stages


@app.command()
def search(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder or shipped name.")] = "pulse-nano",
    plan: Annotated[Path | None, typer.Option(help="File to write, for `quantize --plan`.")] = None,
    output: Annotated[Path | None, typer.Option(help="Also quantise, into this folder.")] = None,
    records: Annotated[Path | None, typer.Option(help="labels.csv; validation patients are used.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many records.")] = None,
    budget: Annotated[float, typer.Option(help="Macro AUROC that may be lost.")] = 0.002,
    flips: Annotated[float, typer.Option(help="Share of labels that may flip.")] = 0.01,
    choices: Annotated[str, typer.Option(help="Bits that a layer may take.")] = "4,8,16",
    group: Annotated[int | None, typer.Option(help="Weights of 4 bits that share a scale.")] = None,
    device: Annotated[str | None, typer.Option(help="Least predicted time here, instead of size.")] = None,
    method: Annotated[str, typer.Option(help="rtn, clip, awq or gptq.")] = "clip",
    calibration: Annotated[str | None, typer.Option(help="labels.csv or YAML file to calibrate on.")] = None,
    calibration_size: Annotated[int | None, typer.Option(help="Pages to calibrate on.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the calibration set.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Keep it whatever it costs.")] = False,
    as_json: Json = False,
) -> None:
    """Choose bits for every layer: the cheapest mixture within a budget of accuracy."""
    from pulse_edge import commands

    with stages() as tick:
        result = commands.search(
            checkpoint, plan, output, records, limit, budget, flips, choices, group, device, method,
            calibration, calibration_size, seed, accept_loss, tick,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    _print(result)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pulse_edge.commands._judged import told

    size = result["unit"] == "bytes"
    table = Table(title=f"{result['records']['n']} ECGs, {result['records']['set']}")
    for head in ("MB" if size else "ms/token", "divergence", "predicted", "loss of AUROC", "flips", "layers"):
        table.add_column(head, justify="left" if head == "layers" else "right")
    table.add_column("")
    for row in sorted(result["front"], key=lambda row: row["cost"]):
        layers = ", ".join(f"{count} {form.split()[0]}" for form, count in row["layers"].items())
        mark = "chosen" if row["chosen"] else "uniform" if row["uniform"] else ""
        cost = row["cost"] / (1e6 if size else 1e9)
        loss = "" if row["loss"] is None else f"{row['loss']:+.4f}"
        table.add_row(f"{cost:.3f}", f"{row['divergence']:.1e}", f"{row['predicted']:.1e}", loss,
                      f"{row['flip_share']:.2%}", layers, mark)  # fmt: skip
    Console().print(table)
    typer.echo(f"plan         {result['plan']}, drawn in {result['picture']}")
    made = result.get("quantized")
    if made is not None:
        typer.echo(f"checkpoint   {made['checkpoint']}  ({made['bytes'] / 1e6:.1f} MB)")
        for line in told(made):
            typer.echo(line)
    else:
        typer.echo(f"next         pulse-edge quantize --plan {result['plan']}")
