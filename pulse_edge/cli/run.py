"""`pulse-edge run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def run(
    bundle: Annotated[str, typer.Argument(help="Bundle, checkpoint folder or shipped name.")],
    image: Annotated[Path | None, typer.Option(help="Picture of an ECG page.")] = None,
    record: Annotated[Path | None, typer.Option(help="WFDB record, rendered as a page.")] = None,
    ask: Annotated[str | None, typer.Option(help="A question; by default a report.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Score the label set.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Bound of the answer.")] = None,
    require_key: Annotated[Path | None, typer.Option(help="Public key that must have signed it.")] = None,
    runtime: Annotated[str | None, typer.Option(help="onnx or tensorrt; by default what fits.")] = None,
    format: Annotated[str, typer.Option(help="text, or json: one object of the answer's schema.")] = "text",
    time_limit: Annotated[float | None, typer.Option(help="Seconds for the answer.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a model about one ECG."""
    from pulse_edge import commands

    def show(piece: str) -> None:
        typer.echo(piece, nl=False)

    def explain(runtime: str) -> None:
        if "," in runtime:  # another one than the bundle was made for, and why
            typer.echo(f"pulse-edge: runs in {runtime}", err=True)

    result = commands.run(
        bundle, image, record, ask, labels, max_new_tokens, require_key, runtime, format, time_limit,
        (lambda piece: None) if as_json or format == "json" else show, explain,
    )  # fmt: skip
    if as_json or "structured" in result:
        print_json(result if as_json else result["structured"])
        return
    if result["text"]:
        typer.echo()
    for name, finding in result["findings"].items():
        unsure = "  uncertain" if finding["answer"] == "uncertain" else ""
        typer.echo(f"{name:6s} {finding['probability']:6.1%}{unsure}")
