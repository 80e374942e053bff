"""`bench`: what a model costs on this machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.errors import PulseEdgeError, UserError

if TYPE_CHECKING:
    from pulse_edge.runtimes.bench.sensors import Sensors

SAMPLE_PAGE: Final = "inferior-mi.png"
_COMPARED: Final = (
    "--compare reads two results and measures nothing. Leave the model and the other options out."
)


def bench(
    model: str | None = None,
    image: Path | None = None,
    runs: int = 5,
    processes: int = 3,
    tokens: int = 64,
    sustained: float | None = None,
    runtime: str | None = None,
    output: Path | None = None,
    picture: Path | None = None,
    compare: tuple[Path, Path] | None = None,
    report: Callable[[str], None] = lambda text: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure a model in processes of its own, or compare two results.

    Args:
        model: bundle folder, checkpoint folder or shipped name.
        image: page that is read; a shipped one by default.
        runs: pages in each process, after one to warm up.
        processes: one after the other, each with its own peak of memory.
        tokens: of each answer.
        sustained: seconds of work without a pause, after the rest. Ctrl-C ends it early, with what there is.
        runtime: ``onnx`` or ``tensorrt``; by default what the bundle has engines for.
        output: JSON file of the result.
        picture: PNG file of it.
        compare: two such JSON files, before and after.
        report: called with the name of a step.
        tick: called with what is done of it and all of it: runs, or seconds.

    Returns:
        ``kind``, ``schema``, ``date``, ``machine``, ``model``, ``runtime``, ``settings``, ``metrics``
        (``runtimes.bench.result.summarise``), ``energy`` and ``sustained``; to compare see
        ``runtimes.bench.result.compare``.

    Raises:
        UserError: options that do not go together, or a model or file that cannot be used.
        PulseEdgeError: a process ended without a result.
    """
    if compare is not None:
        if any(value is not None for value in (model, image, sustained, runtime, output, picture)):
            raise UserError(_COMPARED)
        return _compare(*compare)
    if model is None:
        raise UserError("Name the MODEL to measure, or two results: --compare BEFORE.json AFTER.json")
    _refuse_nonsense({"runs": runs, "processes": processes, "tokens": tokens}, sustained)
    _refuse_lost(output, picture)
    from pulse_edge.runtimes.bench.result import KIND, SCHEMA, summarise
    from pulse_edge.runtimes.bench.sensors import Sensors
    from pulse_edge.samples import SAMPLES

    settings: dict[str, Any] = {
        "model": str(model), "page": str(image or SAMPLES / SAMPLE_PAGE), "runs": runs, "tokens": tokens,
        "warm_up": 1, "runtime": runtime, "seconds": None,
    }  # fmt: skip
    result = {
        "kind": KIND,
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "model": describe_model(str(model)),
        "settings": {
            "image": Path(settings["page"]).name,
            "runs": runs,
            "processes": processes,
            "tokens": tokens,
        },
    }
    report("measuring")
    with Sensors() as sensors:
        events = _repeat(settings, processes, tick)
    result |= {
        "runtime": events[0][0]["runtime"],
        "metrics": summarise(events),
        "energy": _energy(sensors, [e for part in events for e in part if e["event"] == "run"]),
        "sustained": None if sustained is None else _sustain(settings, sustained, report, tick),
    }
    _write(result, output, picture)
    return result


def _compare(before: Path, after: Path) -> dict[str, Any]:
    from pulse_edge.runtimes.bench.result import compare, read_result

    return compare(read_result(Path(before)), read_result(Path(after)))


def _repeat(
    settings: dict[str, Any], processes: int, tick: Callable[[int, int], None]
) -> list[list[dict[str, Any]]]:
    """Return the events of some processes, one after the other."""
    events: list[list[dict[str, Any]]] = []
    for number in range(processes):
        events.append([])
        for event in _child(settings):
            events[-1].append(event)
            done = number * settings["runs"] + sum(e["event"] == "run" for e in events[-1])
            tick(done, processes * settings["runs"])
    return events


def describe_machine() -> dict[str, Any]:
    """Return what a result was measured on; of a Jetson also its board, JetPack and power mode."""
    from pulse_edge.board import read_board

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    board = read_board()
    told = {name: board[name] for name in ("model", "jetpack", "power_mode") if board.get(name)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu or "unknown",
        "cores": cores,
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **told,
    }


def describe_model(model: str) -> dict[str, Any]:
    """Return what a result is of: a bundle's name, target, precision and digest, or a checkpoint's name."""
    from pulse_edge.bundle import read_manifest
    from pulse_edge.contract import MANIFEST

    if not (Path(model) / MANIFEST).is_file():
        return {"name": Path(model).name}
    manifest = read_manifest(Path(model))
    return {
        "name": manifest["model"]["name"],
        "target": manifest["target"],
        "precision": manifest.get("precision", {}).get("decoder"),
        "digest": manifest.get("digest"),
    }


def _child(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of one process; it is ended with the caller."""
    command = [sys.executable, "-m", "pulse_edge.commands._bench_child", json.dumps(settings)]
    with tempfile.TemporaryFile("w+", errors="replace") as said:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        last: dict[str, Any] = {"event": None}
        try:
            for line in process.stdout or ():
                last = json.loads(line)
                if last["event"] == "error":
                    kind = UserError if last["exit_code"] == UserError.exit_code else PulseEdgeError
                    raise kind(last["message"])
                yield last
            if process.wait() or last["event"] != "end":
                said.seek(0)
                lines = said.read().strip().splitlines()
                raise PulseEdgeError(
                    "A process of the benchmark ended without a result "
                    f"({lines[-1] if lines else f'exit code {process.returncode}'}). If the machine ran out "
                    "of memory, `pulse-edge plan` says what the model needs."
                )
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _energy(sensors: Sensors, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Joules of pages and tokens, where the machine counts them and they take long enough to be counted."""
    from pulse_edge.runtimes.bench.sensors import MIN_SECONDS

    if sensors.source is None:
        return {"source": None, "reason": sensors.reason}
    whole = [sensors.joules(run["start"], run["end"]) for run in runs]
    decoding = [sensors.joules(run["decode_start"], run["end"]) for run in runs]
    lasted = sum(run["end"] - run["decode_start"] for run in runs)
    counted = [value for value in (*whole, *decoding) if value is not None]
    if len(counted) < 2 * len(runs) or lasted < MIN_SECONDS:
        reason = f"decoding took {lasted:.2f} s in all, too little for a figure: add --runs or --tokens"
        return {"source": sensors.source, "reason": reason}
    joules, seconds = sum(map(float, filter(None, whole))), sum(run["end"] - run["start"] for run in runs)
    return {
        "source": sensors.source,
        "joules_per_page": joules / len(runs),
        "joules_per_token": sum(map(float, filter(None, decoding))) / sum(run["tokens"] for run in runs),
        "watts": joules / seconds,
    }


def _sustain(
    settings: dict[str, Any], seconds: float, report: Callable[[str], None], tick: Callable[[int, int], None]
) -> dict[str, Any]:
    """Work for so long, or until Ctrl-C."""
    from pulse_edge import interrupt
    from pulse_edge.runtimes.bench.sensors import Sensors
    from pulse_edge.runtimes.bench.sustained import curve

    report("sustained")
    runs: list[dict[str, Any]] = []
    interrupted, began = False, time.monotonic()
    with Sensors(period=0.5) as sensors:
        try:
            for event in _child({**settings, "seconds": seconds}):
                runs += [event] if event["event"] == "run" else []
                tick(min(round(time.monotonic() - began), round(seconds)), round(seconds))
        except KeyboardInterrupt:
            interrupted = True
            interrupt.forget()  # answered: what was measured is kept
    found = curve(runs, sensors.samples, seconds)
    return {**found, "interrupted": interrupted, "energy_source": sensors.source}


def _refuse_nonsense(counts: dict[str, int], sustained: float | None) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"--{name} must be at least 1.")
    if sustained is not None and not 0 < sustained < float("inf"):
        raise UserError("--sustained must be a number of seconds above 0.")


def _refuse_lost(output: Path | None, picture: Path | None) -> None:
    """Complain about where results shall go before minutes of work."""
    for path in (output, picture):
        if path is not None and not Path(path).parent.is_dir():
            raise UserError(f"There is no folder {Path(path).parent} for {Path(path).name}. Make it first.")


def _write(result: dict[str, Any], output: Path | None, picture: Path | None) -> None:
    from pulse_edge.bundle import write_atomic

    if output is not None:
        write_atomic(Path(output), (json.dumps(result, indent=1) + "\n").encode())
    if picture is not None:
        from pulse_edge.runtimes.bench.picture import draw_result

        write_atomic(Path(picture), draw_result(result))
