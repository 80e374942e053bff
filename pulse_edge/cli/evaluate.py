"""`pulse-edge eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, bar, print_json


@app.command(name="eval")
def evaluate(
    model: Annotated[str | None, typer.Argument(help="Checkpoint, bundle or shipped name.")] = None,
    records: Annotated[Path | None, typer.Option(help="labels.csv of the records.")] = None,
    split: Annotated[str | None, typer.Option(help="Only patients of train, validation or test.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many records.")] = None,
    layout: Annotated[str, typer.Option(help="Layout of the rendered pages.")] = "3x4+1",
    ecgbench: Annotated[str | None, typer.Option(help="Score answers to this set, or all.")] = None,
    answers: Annotated[Path | None, typer.Option(help="A model's answers (all: their folder).")] = None,
    references: Annotated[Path | None, typer.Option(help="File or folder of ECGBench's references.")] = None,
    protocol: Annotated[str, typer.Option(help="published or strict.")] = "published",
    judge_prompts: Annotated[Path | None, typer.Option(help="Write the judge's prompts here.")] = None,
    judge: Annotated[Path | None, typer.Option(help="The judge's answers.")] = None,
    as_json: Json = False,
) -> None:
    """Score a model's labels on real records, or answers to ECGBench."""
    from pulse_edge import commands

    with bar("evaluating") as tick:
        result = commands.evaluate(
            model, records, split, limit, layout,
            ecgbench, answers, references, protocol, judge_prompts, judge, tick,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    if ecgbench is not None:
        _print_ecgbench(result)
        return
    typer.echo(
        f"{result['n']} records of {result['patients']} patients; skipped: {result['skipped'] or 'none'}"
    )
    typer.echo(f"{'':8s}{'AUROC':>8s}{'F1':>8s}{'blank':>8s}{'shuffled':>10s}")
    for name, value in result["auroc"].items():
        others = (result["f1"][name], result["blank_image"]["auroc"][name], result["shuffled"]["auroc"][name])
        cells = [f"{'-' if v is None else format(v, '.3f'):>8s}" for v in (value, *others)]
        typer.echo(f"{name:8s}{''.join(cells)}")
    if result["auroc_interval"]:
        low, high = result["auroc_interval"]
        typer.echo(f"macro AUROC, 95 % interval over patients: {low:.3f} to {high:.3f}")
    else:
        typer.echo("Too few patients for an interval of the macro AUROC.")
    if "calibration" in result:
        _print_calibration(result["calibration"])


def _print_calibration(found: dict[str, Any]) -> None:
    typer.echo(f"{'':14s}{'ECE':>8s}{'Brier':>8s}{'NLL':>8s}")
    for name in ("before", "after"):
        cells = "".join(f"{found[name][key]:8.4f}" for key in ("ece", "brier", "nll"))
        typer.echo(f"{name + ' calib.':14s}{cells}")
    chosen = found["selective"]
    wrong = "" if chosen["risk"] is None else f", {chosen['risk']:.1%} of them wrong"
    typer.echo(
        f"{chosen['coverage']:.0%} of the answers are not uncertain{wrong}; without the band "
        f"{chosen['risk_at_half']:.1%} would be"
    )
    if not found["held_out"]:
        typer.echo("Among these patients are those that the calibration was fitted to.")


def _print_ecgbench(result: dict[str, Any]) -> None:
    if "prompts" in result:
        typer.echo(f"{result['prompts']} prompts for the judge in {result['judge_prompts']}")
        return
    for one in result["sets"].values() if "sets" in result else [result]:
        names = ("accuracy", "f1", "auc", "balanced_accuracy", "hl", "score")
        figures = [f"{n} {'undefined' if one[n] is None else f'{one[n]:.4f}'}" for n in names if n in one]
        typer.echo(f"{one['dataset']:16s} {one['protocol']}, n {one['n']}: {', '.join(figures)}")
        for problem, count in one["problems"].items():
            typer.echo(f"{'':16s} {count} x {problem}")
    for name, reason in result.get("not_scored", {}).items():
        typer.echo(f"{name:16s} not scored: {reason}")
