"""Time and memory of quantising PULSE-7B's shapes, beside the quantisers that people use today.

    python benchmarks/make_checkpoint.py /big/pulse7b --layout hf
    python benchmarks/make_checkpoint.py /big/pulse1b --size 1b --layout hf --plain /big/llama1b
    python benchmarks/quantize_size.py --full /big/pulse7b --small /big/pulse1b --plain /big/llama1b \
        --labels ../shared/ecg/labels.csv --work /big [--optimum PYTHON] [--genai PYTHON]

Each runs in a process of its own; the peak is that of its resident memory (VmHWM). The data-free run on 7B
is done once whole and once killed with SIGKILL after a few layers and called again, and both must write the
same bytes. The calibrated one (GPTQ, ``--pages`` pages of 2,880 visual tokens) is killed and called again
likewise; a whole walk takes hours on two cores, so it is stopped after ``--layers`` layers and the rest is
extrapolated: ``extrapolated_seconds`` is so much a layer, 32 times. The others read a plain Llama and know no
PULSE, so they are given the language model alone, of 1.1 billion weights, the largest that they manage here.

Rows are written as they come. Called again, it goes on with those that are not there yet; ``--only`` names
some of them, and ``--again`` measures what is there once more. On two idle cores: a minute for 1.1 billion
weights, 8 minutes for each row of 7B without data, 5 to 7 minutes for each of the ``--layers`` with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe_machine

RESULT = Path(__file__).parent / "results" / "quantize_size.json"
# arguments: checkpoint, output, method, labels or "-", pages
OURS = """
import sys
from pathlib import Path
from pulse_edge.compress import quantize_checkpoint
checkpoint, output, method, labels, pages = sys.argv[1:6]
quantize_checkpoint(Path(checkpoint), Path(output), 4, 128, True, method, None if labels == "-" else labels,
                    int(pages), 0, False, lambda folder: {"stage": "int4", "set": None})
"""
NNCF = """
import sys
import nncf, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = torch.ones(1, 8, dtype=torch.long)
done = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=128, all_layers=False,
                             dataset=nncf.Dataset([{"input_ids": ids}]))
torch.save(done.state_dict(), sys.argv[2])
"""
GENAI = """
import sys
from onnxruntime_genai.models.builder import create_model
create_model(None, sys.argv[1], sys.argv[2], "int4", "cpu", sys.argv[2] + "/cache")
"""
OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
main_export(sys.argv[1], output=sys.argv[2] + "/fp32", task="text-generation-with-past", do_validation=False,
            no_post_process=True)
ORTQuantizer.from_pretrained(sys.argv[2] + "/fp32", file_name="model.onnx").quantize(
    save_dir=sys.argv[2] + "/int8", quantization_config=AutoQuantizationConfig.avx2(is_static=False))
"""


def run(
    python: str, script: str, arguments: list[str], memory: float, stop: Callable[[], bool] | None = None
) -> dict[str, Any]:
    """Run a script: seconds, peak_bytes, code, error. ``stop`` is asked ten times a second; it kills."""
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        limits = f"import resource as r; r.setrlimit(r.RLIMIT_DATA, ({int(memory * 2**30)},) * 2)\n"
        process = subprocess.Popen(
            [python, "-c", limits + script, *arguments], stdout=subprocess.DEVNULL, stderr=errors
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            if stop is not None and stop():
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.1)
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    code = process.returncode
    return {
        "seconds": time.perf_counter() - begin,
        "peak_bytes": peak,
        "code": code,
        "error": "".join(last) if code not in (0, -signal.SIGKILL) else "",
    }


def resident(pid: int) -> int:
    """The most memory that a process has held at one time, bytes; 0 once it is gone."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def parts(output: Path) -> int:
    """Layers that an unfinished quantisation has finished."""
    return len(list(output.with_name(output.name + ".quantizing").glob("part-*.safetensors")))


def data_free(args: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Round to nearest; ``sha256`` is that of the weights that come out."""
    output = args.work / "ours"
    row = run(sys.executable, OURS, [str(checkpoint), str(output), "rtn", "-", "1"], args.memory)
    row |= {"output_bytes": size_of(output), "sha256": digest(output)}
    shutil.rmtree(output, ignore_errors=True)
    return row


def killed(args: argparse.Namespace, checkpoint: Path, layers: int) -> dict[str, Any]:
    """Round to nearest, killed after so many layers and called again."""
    output = args.work / "ours"
    given = [str(checkpoint), str(output), "rtn", "-", "1"]
    first = run(sys.executable, OURS, given, args.memory, lambda: parts(output) >= layers)
    done = parts(output)
    second = run(sys.executable, OURS, given, args.memory)
    row = {
        **second,
        "seconds": first["seconds"] + second["seconds"],
        "peak_bytes": max(first["peak_bytes"], second["peak_bytes"]),
        "killed_after_layers": done,
        "killed_seconds": first["seconds"],
        "resumed_seconds": second["seconds"],
        "output_bytes": size_of(output),
        "sha256": digest(output),
    }
    shutil.rmtree(output, ignore_errors=True)
    return row


def calibrated(args: argparse.Namespace) -> dict[str, Any]:
    """GPTQ on 7B: killed after a layer, called again, stopped after ``--layers``."""
    output = args.work / "gptq"
    given = [str(args.full), str(output), "gptq", str(args.labels), str(args.pages)]
    times: list[float] = []

    def until(layers: int) -> Callable[[], bool]:
        def stop() -> bool:
            while len(times) < parts(output):
                times.append(time.perf_counter())
            return len(times) >= layers

        return stop

    first = run(sys.executable, OURS, given, args.memory, until(1))
    second = run(sys.executable, OURS, given, args.memory, until(args.layers))
    each = [times[k] - times[k - 1] for k in range(2, len(times))]  # without the resumed run's beginning
    shutil.rmtree(output.with_name(output.name + ".quantizing"), ignore_errors=True)
    return {
        "seconds": first["seconds"] + second["seconds"],
        "peak_bytes": max(first["peak_bytes"], second["peak_bytes"]),
        "code": 0 if second["code"] == -signal.SIGKILL else second["code"],
        "error": second["error"] or first["error"],
        "pages": args.pages,
        "layers_run": len(times),
        "killed_and_resumed": len(times) > 1,
        "seconds_per_layer": each,
        "extrapolated_seconds": 32 * sum(each) / len(each) if each else None,
        "output_bytes": None,
    }


def digest(folder: Path) -> str:
    """One SHA-256 of the names and hashes of all weight files."""
    from pulse_edge.bundle import sha256_file

    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def size_of(folder: Path) -> int | None:
    """Bytes of all files below a folder, or of a file."""
    if folder.is_file():
        return folder.stat().st_size
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return sum(path.stat().st_size for path in files) or None


def other(args: argparse.Namespace, python: str, script: str) -> dict[str, Any]:
    """Run a peer on the plain language model."""
    output = args.work / "peer"
    row = run(python, script, [str(args.plain), str(output)], args.memory)
    row["output_bytes"] = size_of(output)
    shutil.rmtree(output, ignore_errors=True)
    output.unlink(missing_ok=True)
    return row


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    size = "-" if row["output_bytes"] is None else f"{row['output_bytes'] / 1e9:.2f} GB"
    state = "" if row["code"] == 0 else f"  FAILED: {row['error'][:90]}"
    if row.get("extrapolated_seconds"):
        state += f"  {row['layers_run']} layers of 32; all of them {row['extrapolated_seconds'] / 60:.0f} min"
    return (
        f"{row['name']:34s}{row['checkpoint']:>5s}{row['seconds']:8.0f} s"
        f"{row['peak_bytes'] / 1e9:8.2f} GB peak{size:>11s}{state}"
    )


def same_bytes(rows: dict[str, dict[str, Any]]) -> bool | None:
    """Whether the killed run on 7B wrote what the whole one did; None until both are there."""
    found = [rows[name]["sha256"] for name in ("pulse-edge int4 rtn", "the same, killed") if name in rows]
    return bool(found[0]) and found[0] == found[1] if len(found) == 2 else None


def write(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the file; a run that is stopped leaves whole rows."""
    report = {
        "benchmark": "quantize_size",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "killed_writes_the_same": same_bytes(rows),
        "rows": list(rows.values()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time and memory of quantisers.")
    parser.add_argument("--full", type=Path, help="checkpoint of PULSE-7B's shapes")
    parser.add_argument("--small", type=Path, help="checkpoint with a language model of 1.1 billion weights")
    parser.add_argument("--plain", type=Path, help="that language model alone")
    parser.add_argument("--labels", type=Path, help="labels.csv to calibrate on")
    parser.add_argument("--optimum", help="interpreter that has optimum-onnx")
    parser.add_argument("--genai", help="interpreter that has onnxruntime-genai")
    parser.add_argument("--nncf", default=sys.executable, help="interpreter that has nncf")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; deleted")
    parser.add_argument("--memory", type=float, default=16, help="GB of private memory that each may take")
    parser.add_argument("--pages", type=int, default=2, help="to calibrate on")
    parser.add_argument("--layers", type=int, default=4, help="of the calibrated run, at least 3")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--again", action="store_true", help="measure rows that are there once more")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    full, small, plain = args.full, args.small, args.plain
    jobs: list[tuple[str, str, Path | str | None, Callable[[], dict[str, Any]]]] = [
        ("pulse-edge int4 rtn, small", "1.1B", small, lambda: data_free(args, small)),
        ("nncf int4 (torch)", "1.1B", plain, lambda: other(args, args.nncf, NNCF)),
        ("onnxruntime-genai int4", "1.1B", plain and args.genai, lambda: other(args, args.genai, GENAI)),
        ("optimum-onnx int8", "1.1B", plain and args.optimum, lambda: other(args, args.optimum, OPTIMUM)),
        ("pulse-edge int4 rtn", "7B", full, lambda: data_free(args, full)),
        ("the same, killed", "7B", full, lambda: killed(args, full, 8)),
        ("pulse-edge int4 gptq", "7B", full and args.labels, lambda: calibrated(args)),
    ]
    args.work = args.work / "quantize_size"
    args.work.mkdir(parents=True)
    earlier = json.loads(args.output.read_text("utf-8"))["rows"] if args.output.exists() else []
    rows = {row["name"]: row for row in earlier}
    try:
        for name, checkpoint, given, job in jobs:
            if given is None or (args.only and name not in args.only) or (name in rows and not args.again):
                continue
            rows[name] = {"name": name, "checkpoint": checkpoint, **describe_machine(), **job()}
            print(line(rows[name]), flush=True)
            write(rows, args.output)
    finally:
        shutil.rmtree(args.work, ignore_errors=True)


if __name__ == "__main__":
    main()
