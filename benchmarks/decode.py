"""How fast a bundle reads a page and answers on this CPU, beside other runtimes with the same weights.

    python benchmarks/decode.py [--shapes mini 0.5b 1.1b] [--work DIR] [--runtimes NAME …]

Weights are random (benchmarks/make_checkpoint.py), so answers mean nothing; what each runtime computes is
compared all the same, by the logits behind 16 tokens with those of PyTorch in float32. Each runtime is a
process of its own, with its own Python, and they take turns, so that a busy machine hits all alike; the best
round is reported, with the median beside it in the JSON. Checkpoints and models stay in ``--work``.

A peer is measured if its Python is there, and reported as not installed otherwise:

    python -m venv PEERS/genai    && PEERS/genai/bin/pip install onnxruntime-genai onnx-ir torch transformers
    python -m venv PEERS/llama    && PEERS/llama/bin/pip install llama-cpp-python gguf
    python -m venv PEERS/openvino && PEERS/openvino/bin/pip install openvino-genai

Columns: ms from tiles to the first token, of that vision and prompt; ms until the first token of a further
question about the same picture; tokens a second; bytes that a token must read against the bandwidth that this
machine showed in the same run; peak memory. Those that cannot run our tower have the prompt's time only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine
from make_checkpoint import SIZES, VOCABULARY, make

from pulse_edge.export import export_bundle
from pulse_edge.machine import usable_cores

HERE = Path(__file__).parent
SHAPES = {
    "mini": SIZES["mini"],
    "0.5b": SIZES["500m"],
    # TinyLlama's language model, and PULSE's tower with a student's patches (recipes/pulse-2b.yaml)
    "1.1b": {**SIZES["1b"], "vision": {"width": 1024, "mlp": 4096, "layers": 24, "patch": 28}},
}
TOKENS = {"prompt": 5 * 144 + 40, "question": 24}
PEERS = {
    "transformers bf16": None,
    "transformers fp32": None,
    "onnxruntime-genai": "genai",
    "llama.cpp": "llama",
    "OpenVINO": "openvino",
}


@dataclass
class Runner:
    """A runtime's process, or why there is none.

    Attributes:
        name: of the runtime.
        model: what it runs.
        bytes: that a token must read, weights and cache.
        why: it does not run, else empty.
    """

    name: str
    model: Path
    bytes: int
    why: str = ""
    process: Any = None
    ready: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def start(self, python: Path, plan: dict[str, Any]) -> None:
        """Start it, and wait until it has loaded its model."""
        command = [str(python), str(HERE / "decode_peers.py"), self.name, str(self.model), json.dumps(plan)]
        own = python == Path(sys.executable)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path) if own else ""}
        environment.pop("OMP_NUM_THREADS", None)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self.ready = self._line()

    def measure(self) -> None:
        """Let it run once."""
        if not self.why:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            self.rounds.append(self._line())

    def stop(self) -> None:
        """Let it go."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()

    def _line(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            errors = self.process.stderr.read().strip().splitlines() or ["no message"]
            self.why = f"failed: {errors[-1][:160]}"
            return {}
        result: dict[str, Any] = json.loads(line)
        return result


def cache_bytes(size: dict[str, Any], tokens: int, width: int) -> int:
    """Bytes of keys and values of a sequence, ``width`` bytes a value."""
    head = size["hidden_size"] // size["num_attention_heads"]
    return int(2 * size["num_hidden_layers"] * size["num_key_value_heads"] * head * tokens * width)


def prepare(name: str, work: Path, peers: Path) -> list[Runner]:
    """Make checkpoint, bundles and the peers' models, unless they are there; say what runs."""
    size = SHAPES[name]
    checkpoint, plain = work / name, work / f"{name}-plain"
    if not checkpoint.exists():
        make(checkpoint, size, "hf", plain)
    tokens = TOKENS["prompt"] + 16
    cache = {width: cache_bytes(size, tokens, width) for width in (2, 4)}
    table = size.get("vocab_size", VOCABULARY) * size["hidden_size"]
    values = next(plain.glob("*.safetensors")).stat().st_size // 2 - table  # all but the embedding table
    runners = []
    for label, precision in (("ours", "int4"), ("ours fp32", "fp32")):
        bundle = work / f"{name}-{precision}"
        if precision == "int4" or name == "mini":
            if not bundle.exists():
                export_bundle(checkpoint, bundle, "onnx", precision=precision)
            runners.append(Runner(label, bundle, (bundle / "decoder.onnx.data").stat().st_size + cache[4]))
    runners.append(Runner("transformers bf16", checkpoint, 2 * values + cache[2]))
    runners.append(Runner("transformers fp32", checkpoint, 4 * values + cache[4]))
    (work / f"{name}-llama").mkdir(exist_ok=True)
    genai, gguf = work / f"{name}-genai", work / f"{name}-llama/model.gguf"
    why = _build(peers / "genai/bin/python", genai, _genai(plain, genai))
    data = genai / "model.onnx.data"
    read = data.stat().st_size - 4 * table + cache[4] if data.is_file() else 0  # its table is float32
    runners.append(Runner("onnxruntime-genai", genai, read, why))
    why = _build(peers / "llama/bin/python", gguf, [str(HERE / "decode_gguf.py"), str(plain), str(gguf)])
    read = gguf.stat().st_size - table * 18 // 32 + cache[2] if gguf.is_file() else 0  # Q4_0: 18 bytes for 32
    runners.append(Runner("llama.cpp", gguf, read, why))
    runners.append(Runner("OpenVINO", gguf, read, why and "needs llama.cpp's file"))
    return runners


def _genai(plain: Path, output: Path) -> list[str]:
    return [
        "-m", "onnxruntime_genai.models.builder", "-i", str(plain), "-o", str(output), "-p", "int4",
        "-e", "cpu", "-c", str(output.with_name(f"{output.name}-cache")),
        "--extra_options", "int4_accuracy_level=4",
    ]  # fmt: skip


def _build(python: Path, output: Path, arguments: list[str]) -> str:
    """Make a peer's model with its own Python; return why it cannot be had, or nothing."""
    if not python.is_file():
        return "not installed"
    if not output.exists():
        done = subprocess.run([str(python), *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no model: {(done.stderr.strip().splitlines() or ['no message'])[-1][:160]}"
    config = output / "genai_config.json"
    if config.is_file():  # a random model may say the end token
        fields = json.loads(config.read_text())
        fields["model"]["eos_token_id"] = fields["model"]["vocab_size"] - 1
        options = fields["model"]["decoder"]["session_options"]
        options["intra_op_num_threads"] = usable_cores()
        config.write_text(json.dumps(fields, indent=1))
    return ""


def measure(name: str, runners: list[Runner], peers: Path, rounds: int, new: int) -> list[dict[str, Any]]:
    """Start all runtimes, let them take turns, and return a row for each."""
    size = SHAPES[name]
    plan = {
        **TOKENS, "new": new, "threads": usable_cores(), "vocabulary": size.get("vocab_size", VOCABULARY),
    }  # fmt: skip
    for runner in runners:
        venv = PEERS.get(runner.name)
        python = Path(sys.executable) if venv is None else peers / venv / "bin/python"
        if not runner.why and not python.is_file():
            runner.why = "not installed"
        if not runner.why:
            print(f"  {name}: {runner.name}", file=sys.stderr)
            runner.start(python, plan)
    for _ in range(rounds):
        for runner in runners:
            runner.measure()
    for runner in runners:
        runner.stop()
    known = {runner.name: runner.ready.get("logits") for runner in runners}
    return [row(runner, known.get("transformers fp32")) for runner in runners]


def row(runner: Runner, reference: list[float] | None) -> dict[str, Any]:
    """What one runtime did."""
    if runner.why or not runner.rounds:
        return {"runtime": runner.name, "why": runner.why}
    steps = [step for each in runner.rounds for step in each["steps"]]
    first = [(each["vision"] or 0.0) + each["prefill"] for each in runner.rounds]
    follow = [each["follow_up"] for each in runner.rounds if each.get("follow_up")]
    best = min(median(each["steps"]) for each in runner.rounds)
    logits = runner.ready["logits"]
    vision = [each["vision"] for each in runner.rounds if each["vision"] is not None]
    return {
        "runtime": runner.name,
        "vision_ms": min(vision) * 1e3 if vision else None,
        "prefill_ms": min(r["prefill"] for r in runner.rounds) * 1e3,
        "first_token_ms": min(first) * 1e3,
        "first_token_median_ms": median(first) * 1e3,
        "follow_up_ms": min(follow) * 1e3 if follow else None,
        "tokens_per_s": 1 / best,
        "tokens_per_s_median": 1 / median(steps),
        "bytes_per_token": runner.bytes,
        "bytes_per_s": runner.bytes / best,
        "peak_rss": max(r["rss"] for r in runner.rounds),
        "load_s": runner.ready["load"],
        "agreement": float(np.corrcoef(logits, reference)[0, 1]) if logits and reference else None,
    }  # fmt: skip


def show(name: str, rows: list[dict[str, Any]], limit: float) -> None:
    """Print a shape's table."""
    print(f"\n{name}: prompt of {TOKENS['prompt']} tokens, bandwidth {limit / 1e9:.1f} GB/s")
    heads = {"first": 9, "vision": 9, "prompt": 9, "again": 8, "tokens/s": 10, "of limit": 10, "MB": 7}
    print(" " * 20 + "".join(f"{head:>{width}s}" for head, width in heads.items()))
    for each in rows:
        if "tokens_per_s" not in each:
            print(f"{each['runtime']:20s} {each['why']}")
            continue
        cells = [
            "" if each[key] is None else f"{each[key]:,.0f}"
            for key in ("first_token_ms", "vision_ms", "prefill_ms", "follow_up_ms")
        ]
        print(
            f"{each['runtime']:20s}{cells[0]:>9s}{cells[1]:>9s}{cells[2]:>9s}{cells[3]:>8s}"
            f"{each['tokens_per_s']:10.1f}{each['bytes_per_s'] / limit:10.0%}{each['peak_rss'] / 1e6:7,.0f}"
        )


def main() -> None:
    """Measure and write benchmarks/results/decode.json."""
    parser = argparse.ArgumentParser(description="Decoding speed beside other runtimes.")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    names = ["ours", "ours fp32", *PEERS]
    parser.add_argument("--runtimes", nargs="+", choices=names, default=names)
    parser.add_argument("--work", type=Path, default=Path("decode-work"))
    parser.add_argument("--peers", type=Path, default=Path("decode-peers"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--output", type=Path, default=HERE / "results/decode.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {**describe_machine(), "threads": usable_cores(), **TOKENS, "shapes": {}}
    probe = [
        sys.executable,
        str(HERE / "decode_peers.py"),
        "bandwidth",
        "-",
        json.dumps({"threads": usable_cores()}),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in args.shapes:
        runners = prepare(name, args.work, args.peers.absolute())
        runners = [runner for runner in runners if runner.name in args.runtimes]
        speeds = json.loads(subprocess.check_output(probe, env=environment))
        rows = measure(name, runners, args.peers.absolute(), args.rounds, args.new)
        limit = max(speeds.values())
        result["shapes"][name] = {"bandwidth": speeds, "load_1min": os.getloadavg()[0], "rows": rows}
        show(name, rows, limit)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
