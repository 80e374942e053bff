"""`pulse-edge serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of the bundle.")] = None,
    host: Annotated[str, typer.Option(help="Address; off loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8337,
    data: Annotated[Path | None, typer.Option(help="Folder of studies and audit log.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the access token.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    keep_days: Annotated[int | None, typer.Option(help="Delete studies after so many days.")] = None,
    queue: Annotated[int, typer.Option(help="ECGs that may wait or be read at once.")] = 8,
    deadline: Annotated[float, typer.Option(help="Seconds for one request.")] = 120.0,
    max_photo_mb: Annotated[int, typer.Option(help="MB of a picture.")] = 24,
    min_free_mb: Annotated[int, typer.Option(help="MB that must be free on the disk.")] = 200,
    threads: Annotated[int | None, typer.Option(help="For ONNX Runtime; all cores by default.")] = None,
    require_key: Annotated[Path | None, typer.Option(help="Public key that must have signed it.")] = None,
    runtime: Annotated[str | None, typer.Option(help="onnx or tensorrt; by default what fits.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="End once BUNDLE, a link, leads to another sound one.")
    ] = False,
    new_database: Annotated[
        bool, typer.Option("--new-database", help="Begin an empty history after a damaged one.")
    ] = False,
    check_log: Annotated[bool, typer.Option("--check-log", help="Verify the audit log and end.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a bundle over HTTP: the cart's page, studies, and OpenAI's chat completions.

    Ends on SIGTERM or Ctrl-C. Nothing leaves this machine.
    """
    from pulse_edge import commands

    def ready(about: dict[str, Any]) -> None:
        if as_json:
            print_json(about)
        else:
            typer.echo(f"{about['url']}  (studies in {about['data']}; Ctrl-C ends it)")
        sys.stdout.flush()

    result = commands.serve(
        bundle, host, port, data, token_file, tls_cert, tls_key, keep_days, queue, deadline, max_photo_mb,
        min_free_mb, threads, require_key, runtime, follow, new_database, check_log, ready,
    )  # fmt: skip
    if not check_log:
        return
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{result['lines']} lines are sound. {result['problem'] or 'So is the whole log.'}")
    if not result["ok"]:
        raise typer.Exit(1)
