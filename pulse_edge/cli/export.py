"""`pulse-edge export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json, steps


@app.command()
def export(
    target: Annotated[str, typer.Option(help="jetson, onnx or coreml.")] = "jetson",
    model: Annotated[str, typer.Option(help="Checkpoint folder or shipped name.")] = "pulse-nano",
    device: Annotated[str | None, typer.Option(help="Device profile, e.g. iphone-15-pro.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8 or int4; for Core ML also palette4.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model to a bundle that a device runs, and measure its parity."""
    from pulse_edge import commands

    with steps(not as_json) as report:
        result = commands.export(target, model, device, precision, output, force, report)
    if as_json:
        print_json(result)
        return
    parity = result["parity"]
    typer.echo(f"bundle       {result['bundle']}  ({result['bytes'] / 1e6:.1f} MB)")
    typer.echo(f"parity       {parity['precision']} against PyTorch on {parity['pages']} real ECGs")
    typer.echo(
        f"  logits     {parity['logits_max_abs']:.2g} (prompt), "
        f"{parity['decode_logits_max_abs']:.2g} (decoding)"
    )
    typer.echo(f"  tokens     {parity['greedy_agreement']:.1%} the same")
    typer.echo(
        f"  labels     {parity['probability_max_abs']:.2g} in probability, "
        f"{parity['label_flips']} of {parity['labels']} flipped"
    )
    if "tiles" in parity:
        tiles = parity["tiles"]
        typer.echo(
            f"  tiles      {tiles['max_levels']} grey level(s) in {tiles['changed']:.3%} of the values"
        )
    typer.echo(f"next         pulse-edge run {result['bundle']} --image PAGE.png")
