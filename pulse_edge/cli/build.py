"""`pulse-edge build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json, steps


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle, exported with --target jetson.")],
    device: Annotated[str | None, typer.Option(help="Profile to check against; any for none.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File of timings, read and written.")] = None,
    workspace: Annotated[int, typer.Option(help="MB that TensorRT may use for one layer.")] = 1024,
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Engines without weights.")] = False,
    key: Annotated[Path | None, typer.Option(help="Private key to sign the engines with.")] = None,
    parity: Annotated[bool, typer.Option(help="Compare with ONNX Runtime, and refuse what differs.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Build a bundle's TensorRT engines, on the device that runs them."""
    from pulse_edge import commands

    with steps(not as_json) as report:
        result = commands.build(
            bundle, device, timing_cache, workspace, strip_weights, key, parity, dry_run, report
        )
    if as_json:
        print_json(result)
    else:
        _show(result, dry_run)
    if not result["built"] and not dry_run:
        raise typer.Exit(1)


def _show(result: dict[str, Any], dry_run: bool) -> None:
    here = result["constraints"]
    for warning in result["warnings"]:
        typer.echo(f"pulse-edge: {warning}", err=True)
    if not result["built"]:
        if not dry_run:
            typer.echo(
                f"pulse-edge: {result['reason']}. Nothing was built. trtexec is here; these lines make the "
                "same engines beside the bundle, for other programs than pulse-edge:",
                err=True,
            )
        typer.echo("\n".join(result["commands"]))
        return
    for role, engine in result["engines"].items():
        typer.echo(f"{role:13s}{engine['bytes'] / 1e6:.1f} MB in {engine['seconds']:.0f} s")
    typer.echo(f"tied to      SM {here['sm']}, TensorRT {here['tensorrt']}; L4T {here['l4t'] or 'not known'}")
    parity = result["parity"]
    if parity is not None:
        typer.echo(
            f"parity       logits within {parity['logits_max_abs']:.2g} of ONNX Runtime on {parity['pages']} "
            f"real ECGs, {parity['label_flips']} of {parity['labels']} labels flipped"
        )
    typer.echo(f"next         pulse-edge run {result['bundle']} --image PAGE.png")
