"""`pulse-edge plan`."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json

_LINES = {
    "weights": "language model",
    "vision": "vision tower",
    "kv": "key-value cache",
    "activations": "activations",
    "runtime": "runtime",
}

_EXTRAPOLATED = "The model is far smaller than any that was fitted: take the times as lower bounds."


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, shipped name or recipe.")],
    device: Annotated[str | None, typer.Option(help="Profile of the device.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8, int4, fp8 or nvfp4; int4 by default.")
    ] = None,
    tiles: Annotated[int, typer.Option(help="Views of a page: 5, 4, 3 or 1.")] = 5,
    context: Annotated[int | None, typer.Option(help="Tokens in the cache.")] = None,
    keep: Annotated[float, typer.Option(help="Share of visual tokens left by pruning.")] = 1.0,
    kv: Annotated[str, typer.Option(help="Precision of the cache: fp16 or int8.")] = "fp16",
    entitled: Annotated[bool, typer.Option("--entitled", help="With Apple's memory entitlements.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Rank all devices.")] = False,
    ram_gb: Annotated[float | None, typer.Option(help="Memory of this very device.")] = None,
    bandwidth_gb_s: Annotated[float | None, typer.Option(help="Its memory bandwidth.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether a model fits a device and how fast it would be, before anything is converted."""
    from pulse_edge import commands

    result = commands.plan(
        model, device, precision, tiles, context, keep, kv, entitled, every, ram_gb, bandwidth_gb_s
    )
    refused = not every and result["memory"]["fits"] is False
    if as_json:
        print_json(result)
    elif every:
        _print_all(result)
    else:
        _print_one(result)
    if refused:
        raise typer.Exit(2)


def _print_one(result: dict[str, Any]) -> None:
    memory, speed, console = result["memory"], result["speed"], _console()
    tokens, setup = memory["tokens"], result["setup"]
    console.print(
        f"{result['model']}, {result['parameters']:,} parameters in {setup['precision']}, on "
        f"{result['title']}: {tokens['visual']:,} visual tokens of {setup['tiles']} tile(s), context "
        f"{tokens['context']:,}",
        markup=False,
    )
    console.print(_memory_table(memory))
    if memory["fits"] is None:
        console.print("The profile knows no memory of this device: compare the total with what is free.")
    console.print()
    console.print(_speed_table(speed))
    reasons: dict[str, list[str]] = {}
    for what, text in speed["sources"].items():
        reasons.setdefault(text, []).append(what)
    said = ". ".join(f"{', '.join(what).capitalize()}: {text}" for text, what in reasons.items())
    console.print(f"Every speed is an estimate. {said}.", markup=False)
    if speed["extrapolated"]:
        console.print(_EXTRAPOLATED)
    if result["refusal"]:
        console.print(f"\n{result['refusal']}", markup=False)
        console.print(_remedy_table(result["remedies"]))


def _console() -> Any:
    """A console on standard output: as wide as the terminal, or wide enough where there is none."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=110)


def _table(*columns: str, short: bool = False) -> Any:
    """An empty table; ``short`` entries of its first column are never wrapped."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="left" if number == 0 else "right", no_wrap=number > 0 or column == "device"
        )
    return table


def _memory_table(memory: dict[str, Any]) -> Any:
    table = _table("memory", "GB", "")
    for line, size in memory["lines"].items():
        table.add_row(_LINES[line], f"{size / 1e9:.2f}", "binding" if line == memory["binding"] else "")
    verdict = {True: "fits", False: "does NOT fit", None: ""}[memory["fits"]]
    table.add_row("all", f"{memory['total'] / 1e9:.2f}", verdict)
    if memory["usable"] is not None:
        table.add_row("planned as usable", f"{memory['usable'] / 1e9:.2f}", "")
    return table


def _speed_table(speed: dict[str, Any]) -> Any:
    rows = {
        "vision, ms": (speed["vision_ms"], None),
        "first token, ms": (speed["ttft_ms"], speed["bound"]["prefill"]),
        "tokens a second": (speed["decode_tokens_s"], speed["bound"]["decode"]),
        "the same, hot phone": (speed["sustained_tokens_s"], None),
        "report of 128 tokens, s": (speed["report_s"], None),
    }
    table = _table("speed", "estimate", "band", "bound by")
    for name, (figure, bound) in rows.items():
        if figure is not None or name != "the same, hot phone":
            table.add_row(name, _value(figure), _band(figure), bound or "")
    return table


def _remedy_table(remedies: list[dict[str, Any]]) -> Any:
    table = _table("what makes it fit, cheapest first", "memory", "report, s")
    for remedy in remedies:
        table.add_row(remedy["what"], remedy["needs"], _value(remedy["speed"]["report_s"]))
    return table


def _print_all(result: dict[str, Any]) -> None:
    console = _console()
    console.print(
        f"{result['model']}, {result['parameters']:,} parameters in {result['setup']['precision']}; "
        "every speed is an estimate",
        markup=False,
    )
    table = _table(
        "device", "fits", "GB", "of GB", "vision ms", "TTFT ms", "tokens/s", "report s", short=True
    )
    for entry in result["devices"]:
        memory, speed = entry["memory"], entry["speed"]
        usable = "?" if memory["usable"] is None else f"{memory['usable'] / 1e9:.2f}"
        table.add_row(
            entry["device"],
            {True: "yes", False: "no", None: "?"}[memory["fits"]],
            f"{memory['total'] / 1e9:.2f}",
            usable,
            *(_value(speed[name]) for name in ("vision_ms", "ttft_ms", "decode_tokens_s", "report_s")),
        )
    console.print(table)
    if result["devices"][0]["speed"]["extrapolated"]:
        console.print(_EXTRAPOLATED)
    if result["left_out"]:
        left = ", ".join(f"{name} ({why})" for name, why in result["left_out"].items())
        console.print(f"Left out: {left}.", markup=False)


def _value(figure: dict[str, float] | None) -> str:
    return "?" if figure is None else _short(figure["value"])


def _band(figure: dict[str, float] | None) -> str:
    return "" if figure is None else f"{_short(figure['low'])} to {_short(figure['high'])}"


def _short(value: float) -> str:
    """Two figures: an estimate has no more."""
    exponent = math.floor(math.log10(value)) if value > 0 else 0
    rounded = round(value, 1 - exponent)
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.{max(0, 1 - exponent)}f}"
