"""Time, memory and size of an export of PULSE-7B's shapes, beside the exporters that people use today.

    python benchmarks/make_checkpoint.py /big/pulse7b
    python benchmarks/make_checkpoint.py /big/pulse1b --size 1b --plain /big/llama1b
    python benchmarks/export_size.py --full /big/pulse7b --small /big/pulse1b \
        --plain /big/llama1b --work /big [--optimum PYTHON] [--genai PYTHON]

Each exporter runs in a process of its own, with an interpreter of its own where it wants other versions
(``--optimum``: optimum-onnx 0.1.0 with transformers 4.57.6; ``--genai``: onnxruntime-genai 0.14.1). The peak
is that of the resident memory of the process and its children (VmHWM), the time is the wall's. The others
read a plain Llama and know no PULSE, so they are given the language model alone; ours exports the same
language model with tower, projector and embedding. Beside ours stands a copy of the checkpoint with fsync,
in the same run: an export reads it once and writes less. A process that needs more than ``--memory`` GB of
private memory is stopped; the table then says so. Nothing is left in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe_machine

RESULT = Path(__file__).parent / "results" / "export_size.json"
OURS = """
import sys
from pathlib import Path
from pulse_edge.export import export_bundle
export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4], device=sys.argv[5], precision=sys.argv[3])
"""
OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], output=sys.argv[2], task="text-generation-with-past", do_validation=False,
            no_post_process=True, trust_remote_code=False)
"""
GENAI = """
import sys
from onnxruntime_genai.models.builder import create_model
create_model(None, sys.argv[1], sys.argv[2], sys.argv[3], "cpu", sys.argv[2] + "/cache")
"""
TORCH = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, DynamicCache
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float16).eval()
class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, inputs_embeds):
        return self.model(inputs_embeds=inputs_embeds, use_cache=False).logits
width = model.config.hidden_size
Path(sys.argv[2]).mkdir()
length = torch.export.Dim("length", min=2, max=4096)
program = torch.onnx.export(Logits(), (torch.zeros(1, 8, width, dtype=torch.float16),), dynamo=True,
                            opset_version=18, dynamic_shapes=({1: length},), verbose=False)
program.save(sys.argv[2] + "/model.onnx", external_data=True)
"""
# Runs a script and says on its last line what it took, its children included.
MEASURE = """
import json, resource, subprocess, sys, time
limit = float(sys.argv[1]) * 2**30
def bound():
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
begin = time.perf_counter()
done = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=bound)
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
error = done.stderr.decode(errors="replace").strip().splitlines()[-1:] if done.returncode else []
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "code": done.returncode, "error": "".join(error)}))
"""


def measure(python: str, script: str, arguments: list[str], memory: float) -> dict[str, Any]:
    """Run a script in a process of its own: seconds, peak_bytes, code, error."""
    command = [sys.executable, "-c", MEASURE, str(memory), python, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def copy_with_fsync(checkpoint: Path, work: Path) -> float:
    """Seconds that a copy of a checkpoint's weights takes until it is on the disk."""
    place = work / "copy"
    place.mkdir()
    begin = time.perf_counter()
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as source, (place / file.name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())
    seconds = time.perf_counter() - begin
    shutil.rmtree(place)
    return seconds


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every exporter that was named."""
    here = sys.executable
    jobs: list[tuple[str, str, Path | None, str, str, list[str]]] = []
    for label, checkpoint in (("7B", args.full), ("1.1B", args.small)):
        for precision in ("int4", "fp16"):
            options = [precision, "jetson", "agx-orin-32gb"]
            jobs.append((f"pulse-edge {precision}", label, checkpoint, here, OURS, options))
    jobs += [
        ("optimum-onnx fp32", "1.1B", args.plain, args.optimum, OPTIMUM, []),
        ("onnxruntime-genai int4", "1.1B", args.plain, args.genai, GENAI, ["int4"]),
        ("torch.onnx fp16", "1.1B", args.plain, here, TORCH, []),
    ]
    found = []
    copies: dict[Path, float] = {}
    for name, label, checkpoint, python, script, options in jobs:
        if checkpoint is None or python is None:
            continue
        ours = script is OURS
        if ours:
            copies[checkpoint] = copy_with_fsync(checkpoint, args.work)
        output = args.work / "output"
        result = measure(python, script, [str(checkpoint), str(output), *options], args.memory)
        row = {"exporter": name, "checkpoint": label, "input_bytes": size_of(checkpoint), **result}
        row["output_bytes"] = size_of(output) if output.exists() else None
        row["copy_seconds"] = copies[checkpoint] if ours else None
        shutil.rmtree(output, ignore_errors=True)
        print(line(row), flush=True)
        found.append(row)
    if not found:
        raise SystemExit("Name at least one checkpoint with --full, --small or --plain.")
    return found


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    size = "-" if row["output_bytes"] is None else f"{row['output_bytes'] / 1e9:.2f} GB"
    copy = "" if row["copy_seconds"] is None else f"  copy {row['copy_seconds']:6.1f} s"
    state = "" if row["code"] == 0 else f"  FAILED: {row['error'][:90]}"
    return (
        f"{row['exporter']:24s}{row['checkpoint']:>5s}{row['seconds']:8.1f} s"
        f"{row['peak_bytes'] / 1e9:8.2f} GB peak{size:>11s}{copy}{state}"
    )


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time, memory and size of exports.")
    parser.add_argument("--full", type=Path, help="checkpoint of PULSE-7B's shapes")
    parser.add_argument("--small", type=Path, help="checkpoint with a language model of 1.1 billion weights")
    parser.add_argument("--plain", type=Path, help="that language model alone")
    parser.add_argument("--optimum", help="interpreter that has optimum-onnx")
    parser.add_argument("--genai", help="interpreter that has onnxruntime-genai")
    parser.add_argument("--work", type=Path, required=True, help="folder on the disk that is to be measured")
    parser.add_argument("--memory", type=float, default=14, help="GB of memory that an exporter may take")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    work = args.work / "export_size"
    work.mkdir(parents=True)
    args.work = work
    try:
        about = describe_machine()
        table = rows(args)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    full = [row for row in table if row["exporter"].startswith("pulse-edge") and row["checkpoint"] == "7B"]
    targets = {
        "peak_bytes_at_most_0.5e9": all(row["peak_bytes"] <= 0.5e9 for row in full) if full else None,
        "seconds_at_most_3_copies": all(r["seconds"] <= 3 * r["copy_seconds"] for r in full)
        if full
        else None,
    }
    print("targets on 7B:", targets)
    report = {"benchmark": "export_size", **about, "targets": targets, "rows": table}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
