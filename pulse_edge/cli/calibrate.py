"""`pulse-edge calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, bar, print_json


@app.command()
def calibrate(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint folder or shipped name; its card is rewritten.")
    ],
    records: Annotated[Path, typer.Option(help="labels.csv; its validation patients are read.")],
    risk: Annotated[float, typer.Option(help="Largest share of wrong answers that are not uncertain.")] = 0.1,
    as_json: Json = False,
) -> None:
    """Fit a checkpoint's probabilities to validation patients."""
    from pulse_edge import commands

    with bar("scoring") as tick:
        result = commands.calibrate(checkpoint, records, risk, tick)
    if as_json:
        print_json(result)
        return
    found = result["calibration"]
    fit, uncertain = found["fit"], found["uncertain"]
    typer.echo(f"checkpoint   {result['checkpoint']}")
    typer.echo(f"fitted to    {fit['n']} ECGs of {fit['patients']} {fit['set']}")
    for name, loss in fit["nll"].items():
        chosen = "  taken" if name == found["method"] else ""
        typer.echo(f"  {name:24s} {loss:.4f} negative log-likelihood on unseen patients{chosen}")
    low, high = found["band"]
    given, wrong = uncertain["coverage"], uncertain["risk"]
    typer.echo(
        f"uncertain    between {low:.0%} and {high:.0%}: {given:.0%} of the answers stay, {wrong:.1%} wrong"
        + ("" if uncertain["reached"] else f"; the target of {uncertain['target_risk']:.0%} is not reached")
    )
