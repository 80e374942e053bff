"""`pulse-edge export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json, progress


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
    profile: Annotated[str | None, typer.Option(help="Form of the decoder: trt, trt10.15 or ort.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted export.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")] = False,
    vision: Annotated[str, typer.Option(help="float or int8, for --target onnx.")] = "float",
    calibration: Annotated[str | None, typer.Option(help="With int8: labels.csv or YAML file.")] = None,
    records: Annotated[Path | None, typer.Option(help="With int8: labels.csv to measure on.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many of --records.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Keep it whatever it costs.")] = False,
    capture: Annotated[bool, typer.Option(help="Add the graph that makes tiles of photos.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model to a bundle that a device runs, and measure its parity."""
    from pulse_edge import commands

    with progress(not as_json) as (report, tick):
        result = commands.export(
            target, model, device, precision, output, force, profile, resume, dry_run, vision, calibration,
            records, limit, accept_loss, capture, report, tick,
        )  # fmt: skip
    if as_json:
        print_json(result)
    elif dry_run:
        _print_preview(result)
    else:
        _print_bundle(result)


def _print_bundle(result: dict[str, Any]) -> None:
    parity = result["parity"]
    typer.echo(f"bundle       {result['bundle']}  ({result['bytes'] / 1e6:.1f} MB)")
    if parity["kind"] == "streamed":
        read, of = parity["visual_tokens"]
        typer.echo(
            f"parity       {parity['precision']} against PyTorch layer by layer, which is too large for this "
            f"machine as a whole: one real ECG, {read} of its {of} tokens"
        )
    else:
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
    found = parity.get("accuracy")
    if found is not None and found["set"] is not None:
        typer.echo(
            f"accuracy     loss of macro AUROC {found['loss']:+.4f}, {found['flip_share']:.2%} of the labels "
            f"flipped, {found['n']} ECGs, {found['set']}"
        )
    typer.echo(f"next         pulse-edge run {result['bundle']} --image PAGE.png")


def _print_preview(result: dict[str, Any]) -> None:
    typer.echo(
        f"bundle       {result['bundle']}, {result['precision']}, profile {result['profile']}: not written"
    )
    for name, size in result["files"].items():
        typer.echo(f"  {name:20s}{size / 1e6:12,.1f} MB")
    memory = result["memory"]
    typer.echo(f"disk         {result['bytes'] / 1e9:.2f} GB of {result['disk_free'] / 1e9:.2f} GB free")
    typer.echo(f"memory       about {memory['writing'] / 1e9:.2f} GB to write")
    how = "whole models fit" if result["parity"] == "sessions" else "too much here, so layer by layer"
    typer.echo(f"parity       {memory['comparing'] / 1e9:.1f} GB to compare whole models: {how}")
    if result["kept_fp16"]:
        typer.echo(f"kept         {len(result['kept_fp16'])} layer(s) that int4 does not fit stay in fp16")
