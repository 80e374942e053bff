"""How far a Core ML bundle, played by milrun, is from PyTorch in float32, in both of milrun's precisions.

    pulse-edge export --target coreml --precision fp32 --output nano-fp32
    pulse-edge export --target coreml --output nano-fp16
    python benchmarks/coreml_parity.py nano-fp32 nano-fp16

On the six shipped ECGs: the visual embeddings, the logits behind a prompt, and those of 64 steps with the
tokens that PyTorch chooses. Prints the greatest absolute differences and the greedy tokens that agree, and
writes benchmarks/results/coreml_parity.json with the machine and the date. "fp32" is what the program and the
stored weights mean; "fp16" adds the rounding of every result that the program declares fp16.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from pulse_edge.bundle import read_manifest
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.export.coreml.player import CoremlBackend
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples

RESULT = Path(__file__).parent / "results" / "coreml_parity.json"
QUESTION = "Write a report of this ECG."


def measure(bundle: Path, reference: TorchBackend, precision: str, steps: int) -> dict[str, Any]:
    """Compare a bundle with PyTorch; return one row of figures."""
    played = CoremlBackend(bundle, read_manifest(bundle), precision)
    prompt = encode_prompt(build_prompt([(QUESTION, None)]), Tokenizer.from_folder(bundle))
    worst = {"embeddings": 0.0, "prompt_logits": 0.0, "step_logits": 0.0}
    largest, agreed, asked = 0.0, 0, 0

    def note(key: str, one: Any, other: Any) -> None:
        worst[key] = max(worst[key], float(np.abs(one - other).max()))

    begin = time.perf_counter()
    for sample in samples():
        page = np.asarray(render(read_record(SAMPLES / sample["record"])).image)
        tiles, size = preprocess(page), (page.shape[1], page.shape[0])
        seen, other = reference.encode(tiles, size), played.encode(tiles, size)
        note("embeddings", seen, other)
        expected, got = reference.prefill(seen, prompt), played.prefill(other, prompt)
        note("prompt_logits", expected, got)
        for _ in range(steps):
            token = int(expected.argmax())
            agreed, asked = agreed + (token == int(got.argmax())), asked + 1
            expected, got = reference.step(token), played.step(token)
            note("step_logits", expected, got)
            largest = max(largest, float(np.abs(expected).max()))
    return {
        "bundle": bundle.name,
        "stored": (read_manifest(bundle).get("parity") or {}).get("precision"),
        "milrun": precision,
        **worst,
        "largest_logit": round(largest, 2),
        "greedy_agreement": [agreed, asked],
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Compare Core ML bundles with PyTorch.")
    parser.add_argument("bundles", nargs="+", type=Path, help="folders of bundles of the same checkpoint")
    parser.add_argument("--model", default="pulse-nano", help="the checkpoint that they were exported from")
    parser.add_argument("--steps", type=int, default=64, help="steps after each prompt")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    reference = TorchBackend(load_model(args.model, "float32").eval())
    about, rows = describe_machine(), []
    print(f"{'bundle':<16} {'milrun':<6} {'embeddings':>10} {'prompt':>9} {'steps':>9}   greedy tokens")
    for bundle in args.bundles:
        for precision in ("fp32", "fp16"):
            row = measure(bundle, reference, precision, args.steps)
            rows.append(row)
            agreed, asked = row["greedy_agreement"]
            print(
                f"{row['bundle']:<16} {precision:<6} {row['embeddings']:>10.1e} {row['prompt_logits']:>9.1e} "
                f"{row['step_logits']:>9.1e}   {agreed} of {asked}"
            )
    report = {**about, "model": args.model, "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
