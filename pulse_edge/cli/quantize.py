"""`pulse-edge quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json, stages


@app.command()
def quantize(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder or shipped name.")] = "pulse-nano",
    output: Annotated[Path | None, typer.Option(help="Folder of the new checkpoint.")] = None,
    bits: Annotated[int, typer.Option(help="8 or 4.")] = 4,
    group: Annotated[int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = None,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Zero points; not for TensorRT.")] = False,
    method: Annotated[str, typer.Option(help="rtn, clip, awq or gptq.")] = "gptq",
    embedding: Annotated[int, typer.Option(help="Bits of the embedding table: 16 or 8.")] = 16,
    lm_head: Annotated[int, typer.Option("--lm-head", help="Bits of the head: 16 or 8.")] = 16,
    plan: Annotated[Path | None, typer.Option(help="File of `search`: a form for every layer.")] = None,
    calibration: Annotated[str | None, typer.Option(help="labels.csv or YAML file to calibrate on.")] = None,
    calibration_size: Annotated[int | None, typer.Option(help="Pages to calibrate on.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the calibration set.")] = None,
    force_text: Annotated[bool, typer.Option("--force-text", help="Calibrate without pictures.")] = False,
    records: Annotated[Path | None, typer.Option(help="labels.csv to measure the loss on.")] = None,
    split: Annotated[str | None, typer.Option(help="Patients of --records.")] = "test",
    limit: Annotated[int | None, typer.Option(help="At most so many records.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Keep it whatever it costs.")] = False,
    as_json: Json = False,
) -> None:
    """Round a checkpoint's weights to integers, within a budget of accuracy."""
    from pulse_edge import commands
    from pulse_edge.commands._judged import told

    with stages() as tick:
        result = commands.quantize(
            checkpoint, output, bits, group, asymmetric, method, embedding, lm_head, plan, calibration,
            calibration_size, seed, force_text, records, split, limit, accept_loss, tick,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    done = result["quantization"]
    typer.echo(f"checkpoint   {result['checkpoint']}  ({result['bytes'] / 1e6:.1f} MB)")
    typer.echo(f"weights      {done['form']}, {done['method']}")
    if done["kept"]:
        typer.echo(f"             kept as they were, as the form does not fit: {', '.join(done['kept'])}")
    for line in told(result):
        typer.echo(line)
