"""The command line: wiring of typer to `commands.py`, printing, and errors as one sentence."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.errors import PulseEdgeError, UnknownNameError

TYPERS_CTRL_C = 130  # newer versions of typer swallow Ctrl-C and return this code, others raise Abort

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


@app.command()
def export(
    target: Annotated[str, typer.Option(help="jetson or onnx.")] = "jetson",
    model: Annotated[str, typer.Option(help="Checkpoint folder or shipped name.")] = "pulse-nano",
    device: Annotated[str | None, typer.Option(help="Device profile, e.g. orin-nano-8gb.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, int8 or int4.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: Json = False,
) -> None:
    """Export a model to a bundle that a device runs, and measure its parity."""
    from pulse_edge import commands

    with _steps(not as_json) as report:
        result = commands.export(target, model, device, precision, output, force, report)
    if as_json:
        _print_json(result)
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
    typer.echo(f"next         pulse-edge run {result['bundle']} --image PAGE.png")


@app.command()
def run(
    bundle: Annotated[str, typer.Argument(help="Bundle, checkpoint folder or shipped name.")],
    image: Annotated[Path | None, typer.Option(help="Picture of an ECG page.")] = None,
    record: Annotated[Path | None, typer.Option(help="WFDB record, rendered as a page.")] = None,
    ask: Annotated[str | None, typer.Option(help="A question; by default a report.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Score the label set.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Bound of the answer.")] = None,
    as_json: Json = False,
) -> None:
    """Ask a model about one ECG."""
    from pulse_edge import commands

    def show(piece: str) -> None:
        typer.echo(piece, nl=False)

    result = commands.run(
        bundle, image, record, ask, labels, max_new_tokens, (lambda piece: None) if as_json else show
    )
    if as_json:
        _print_json(result)
        return
    if result["text"]:
        typer.echo()
    for name, probability in result["labels"].items():
        typer.echo(f"{name:6s} {probability:6.1%}")


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

    with _bar("evaluating") as tick:
        result = commands.evaluate(
            model, records, split, limit, layout,
            ecgbench, answers, references, protocol, judge_prompts, judge, tick,
        )  # fmt: skip
    if as_json:
        _print_json(result)
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


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")], as_json: Json = False
) -> None:
    """Check every file of a bundle against its manifest."""
    from pulse_edge import commands

    result = commands.verify(bundle)
    if as_json:
        _print_json(result)
    else:
        typer.echo("The bundle is sound." if result["ok"] else "\n".join(result["problems"]))
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what is missing, and the command that brings it."""
    from pulse_edge import commands

    result = commands.doctor()
    if as_json:
        _print_json(result)
        return
    typer.echo(f"pulse-edge {result['pulse_edge']}, Python {result['python']}, {result['platform']}")
    typer.echo(f"{result['cores']} cores, {result['memory_gb']} GB; Jetson: {result['jetson'] or 'no'}")
    typer.echo(
        f"TensorRT: {result['tensorrt'] or 'not installed'}; models: {', '.join(result['models']) or 'none'}"
    )
    for package in result["packages"]:
        state = package["version"] or f"missing: {package['install']}"
        typer.echo(f"  {package['name']:24s}{package['extra'] or 'base':8s}{state}")


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="Table or folder of records, or ECGInstruct.")] = None,
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = "pulse-nano",
    output: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.")] = None,
    pages: Annotated[int | None, typer.Option(help="Pages per stage, for a short trial.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that render pages.")] = 1,
    init: Annotated[str | None, typer.Option(help="Checkpoint or shipped model to start from.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only compute what it costs.")] = False,
    gpus: Annotated[int | None, typer.Option(help="With --dry-run: H100s that share it.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model from a recipe; an interrupted training is resumed."""
    from pulse_edge import commands

    with redirect_stdout(sys.stderr):  # the Trainer's progress is no part of the result
        result = commands.train(recipe, data, output, pages, workers, init, dry_run, gpus)
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        return
    if as_json:
        _print_json(result)
    elif dry_run:
        _print_plan(result)
    else:
        typer.echo(f"checkpoint   {result['checkpoint']}  ({result['parameters'] / 1e6:.2f} M parameters)")
        for row in result["metrics"]:
            scores = (
                f"macro AUROC {row['auroc']['macro']:.3f}" if "auroc" in row else f"loss {row['loss']:.4f}"
            )
            typer.echo(f"{row['set']}: {scores} on {row['n']} {row.get('what', 'records')}")


def _print_plan(plan: dict[str, Any]) -> None:
    """Print what `train --dry-run` found."""
    batch, tokens, gpu = plan["batch"], plan["tokens"], plan["gpu"]
    typer.echo(f"recipe       {plan['recipe']}")
    typer.echo(f"parameters   {plan['parameters']:,}, of which {plan['trainable']:,} are trained")
    typer.echo(
        f"data         {plan['conversations']:,} conversations of {tokens['visual']:,} visual "
        f"and {tokens['text']:,} text tokens; {plan['steps']:,} steps of {batch['global']}"
    )
    typer.echo(
        f"each GPU     {batch['per_gpu']} at a time, {batch['accumulate']} times a step; {plan['gpus']} GPUs"
    )
    for name, size in plan["memory_per_gpu"].items():
        typer.echo(f"  {name:11s}{size / 1e9:9.2f} GB")
    fits = "fits" if plan["fits"] else "does NOT fit; use more GPUs"
    typer.echo(f"             {fits} on {gpu['name']} ({gpu['peak_flops'] / 1e12:.0f} TFLOP/s, bf16)")
    work = plan["flops"]
    typer.echo(f"FLOPs        {work['step'] / 1e15:.3g} P a step, {work['total'] / 1e18:.4g} E in all")
    typer.echo(
        f"time         {plan['hours']:.3g} hours on {plan['gpus']} GPUs at an MFU of {plan['mfu']} "
        f"({plan['gpu_hours']:.4g} GPU-hours)"
    )


def main() -> None:
    """Entry point of the console script: run, and turn every error into one sentence and a code.

    Exit codes: 0 done, 1 failed or interrupted, 2 the command line or an input is at fault.
    """
    with suppress(ValueError):  # signals belong to the main thread; elsewhere the caller answers for them
        # A service manager stops a job with SIGTERM: it cleans up as it does after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_guard(lambda: app(standalone_mode=False)))


def _guard(call: Callable[[], Any]) -> int:
    try:
        result = call()
        if result == TYPERS_CTRL_C:
            raise KeyboardInterrupt
    except PulseEdgeError as error:
        return _complain(str(error), error.exit_code)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("Interrupted; nothing half-written was left. Run the same command again.", 1)
    except BrokenPipeError:
        _leave_stdout()
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # of standard output, for one
            return _complain("The disk is full. Free some space and run the same command again.", 1)
        # typer brings its own copy of click, or uses the one beside it: usage errors are known by form.
        if hasattr(error, "format_message"):
            return _complain(_usage(error.format_message()), 2)
        if os.environ.get("PULSE_EDGE_DEBUG"):
            raise
        return _complain(
            f"Unexpected {type(error).__name__}: {_sentence(str(error)[:300])} "
            "Set PULSE_EDGE_DEBUG=1 for the traceback and report it.",
            1,
        )
    return result if isinstance(result, int) else 0


def _usage(message: str) -> str:
    if message.startswith("No such command"):
        names = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
        return str(UnknownNameError("command", message.split("'")[1], names))
    return f"{_sentence(message)} See: pulse-edge --help"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _complain(message: str, code: int) -> int:
    try:
        if "--json" in sys.argv:
            _print_json({"error": message})
        typer.echo("", nl=False)  # flushes what was printed before
    except OSError:  # nobody reads it any more, or its disk is full; standard error still says it
        _leave_stdout()
    typer.echo(f"pulse-edge: {message}", err=True)
    return code


def _leave_stdout() -> None:
    """Write no more to standard output, so that Python does not fail again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


@contextmanager
def _steps(shown: bool) -> Iterator[Callable[[str], None]]:
    """Show the present step of a long job on a terminal."""
    if not shown or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda step: status.update(step)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with the time left, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
