"""`pulse-edge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json, progress

_NAMES = {
    "tokens_per_s": "tokens/s",
    "peak_mb": "peak memory",
    "ttft": "first token",
    "followup": "follow-up",
}


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="Bundle, checkpoint folder or shipped name.")] = None,
    image: Annotated[Path | None, typer.Option(help="Page that is read; a shipped one by default.")] = None,
    runs: Annotated[int, typer.Option(help="Pages in each process.")] = 5,
    processes: Annotated[int, typer.Option(help="Processes, one after the other.")] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    sustained: Annotated[float | None, typer.Option(help="Then work for so many seconds.")] = None,
    runtime: Annotated[str | None, typer.Option(help="onnx or tensorrt; by default what fits.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file of the result.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two JSON files of results: before and after.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on this machine, or compare two measurements."""
    from pulse_edge import commands

    with progress(not as_json) as (report, tick):
        result = commands.bench(
            model, image, runs, processes, tokens, sustained, runtime, output, picture, compare, report, tick
        )
    if as_json:
        print_json(result)
    elif compare is not None:
        _print_comparison(result)
    else:
        _print_result(result)


def _print_result(result: dict[str, Any]) -> None:
    made, machine, how = result["model"], result["machine"], result["settings"]
    typer.echo(
        f"model        {' '.join(filter(None, (made['name'], made.get('target'), made.get('precision'))))}"
    )
    typer.echo(f"runs in      {result['runtime']}")
    typer.echo(f"machine      {machine.get('model') or machine['cpu']}, {machine['cores']} cores")
    typer.echo(f"runs         {how['processes']} x {how['runs']} pages, {how['tokens']} tokens each\n")
    typer.echo(f"{'':14s}{'median':>10s}  {'quartiles':>20s}")
    for name, row in result["metrics"].items():
        between = f"{row['low']:.1f} to {row['high']:.1f}"
        unit = "" if name == "tokens_per_s" else row["unit"]
        typer.echo(f"{_NAMES.get(name, name):14s}{row['median']:10.1f}  {between:>20s} {unit}")
    energy = result["energy"]
    if "watts" in energy:
        page, token = energy["joules_per_page"], energy["joules_per_token"] * 1e3
        typer.echo(
            f"energy        {page:.2f} J a page, {token:.1f} mJ a token, {energy['watts']:.1f} W "
            f"({energy['source']}, the whole module or package)"
        )
    else:
        typer.echo(f"energy        not reported: {energy['reason']}")
    if result["sustained"] is not None:
        _print_sustained(result["sustained"])


def _print_sustained(found: dict[str, Any]) -> None:
    early = f" (stopped early, {found['asked']:.0f} s were asked)" if found["interrupted"] else ""
    typer.echo(f"sustained     {found['pages']} pages in {found['seconds']:.0f} s{early}")
    if found["kept"] is None:
        return
    hot = "temperature not reported" if found["hottest"] is None else f"up to {found['hottest']:.0f} °C"
    typer.echo(
        f"              {found['begin']:.1f} tokens/s at first, {found['end']:.1f} at last: "
        f"{found['kept']:.0%} kept; {hot}"
    )


def _print_comparison(result: dict[str, Any]) -> None:
    typer.echo(f"{'':14s}{'before':>10s}{'after':>10s}{'ratio':>8s}  {'95 % interval':18s}")
    for name, row in result["metrics"].items():
        low, high = row["interval"]
        typer.echo(
            f"{_NAMES.get(name, name):14s}{row['before']:10.1f}{row['after']:10.1f}{row['ratio']:8.3f}  "
            f"{f'{low:.3f} to {high:.3f}':18s}{row['verdict']}"
        )
    if result["machines_differ"]:
        typer.echo(f"The machines differ in: {', '.join(result['machines_differ'])}.")
