"""The typer application, and what its verbs share: the option --json, printing, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="pulse-edge",
    help="PULSE on edge devices: train, export and run models that read pictures of ECGs. "
    "Research use; not a medical device.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from pulse_edge import __version__

        typer.echo(f"pulse-edge {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def print_json(result: dict[str, Any]) -> None:
    """Print the result of a verb as one line of JSON."""
    typer.echo(json.dumps(result, ensure_ascii=False))


@contextmanager
def steps(shown: bool) -> Iterator[Callable[[str], None]]:
    """Show the present step of a long job on a terminal."""
    with progress(shown) as (report, _):
        yield report


@contextmanager
def progress(shown: bool) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Show the present step of a long job on a terminal, how far it is and the time left.

    Yields:
        What to call with the name of a step, and what to call with what is done of it and all of it.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda step: None, lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        "{task.description}",
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown_bar:
        task = shown_bar.add_task("starting", total=None)
        yield (
            lambda step: shown_bar.update(task, description=step),
            lambda done, total: shown_bar.update(task, completed=done, total=total),
        )


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each stage of a long job, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    tasks = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield show
