"""Can a laptop convert PULSE-7B to Core ML? Time, memory and sizes at real shapes, with random weights.

    python benchmarks/coreml_size.py [--all-chunks] [--precisions int4 fp16]

Converts CLIP ViT-L/14-336 with PULSE's projector, plays the package on a shipped ECG beside PyTorch, and
converts one four-layer chunk of a decoder of Vicuna-7B's shape (all eight with --all-chunks). Every
conversion is a process of its own, whose greatest resident memory is what the system says at its end.
Prints a table and writes benchmarks/results/coreml_size.json. The target is less than 8 GB for each.
Random weights take the same time and memory as trained ones; parity says that the program is the same,
not how trained weights round.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

RESULT = Path(__file__).parent / "results" / "coreml_size.json"
TARGET_GB = 8.0
SAMPLE = Path(__file__).parents[1] / "pulse_edge" / "assets" / "samples" / "normal.png"


def vision_model() -> Any:
    """A PULSE with CLIP ViT-L/14-336 and the projector of the 7B model, and next to no decoder."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

    from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration

    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768, hidden_act="quick_gelu",
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=64, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=1, vocab_size=32,
    )  # fmt: skip
    config = PulseConfig(
        vision_config=tower, text_config=text, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return PulseForConditionalGeneration(config).eval()


def convert_vision(folder: Path, precision: str) -> dict[str, Any]:
    """Convert the vision tower; return seconds, T and the package's bytes."""
    from pulse_edge.export.coreml import vision
    from pulse_edge.export.coreml.package import finish
    from pulse_edge.export.weights import precision as read_precision

    model, path = vision_model(), folder / "vision.mlpackage"
    begin = time.perf_counter()
    made, tokens = vision.convert_vision(path, model, read_precision(precision, "coreml"))
    finish(made, path)
    return {"seconds": time.perf_counter() - begin, "tokens_per_tile": tokens, "bytes": size(path)}


def play_vision(folder: Path, precision: str) -> dict[str, Any]:
    """Run the converted tower on a page beside PyTorch; return the greatest difference and the range."""
    import torch

    from pulse_edge.export.milrun import load_package
    from pulse_edge.model.preprocess import normalize, tiles

    views = tiles(SAMPLE)
    with torch.inference_mode():
        expected = vision_model().encode_images(torch.from_numpy(normalize(views))).numpy()
    package = load_package(folder / "vision.mlpackage", "fp16")
    begin = time.perf_counter()
    given = {"tiles": views.reshape(-1, 336, 3), "shown": np.ones(5, np.float32)}
    made = package.run(None, given)["image_features"].astype(np.float32)
    return {
        "seconds": time.perf_counter() - begin,
        "max_abs": float(np.abs(made - expected).max()),
        "mean_abs": float(np.abs(made - expected).mean()),
        "greatest": float(np.abs(expected).max()),
    }


def convert_chunk(folder: Path, precision: str, index: int) -> dict[str, Any]:
    """Convert one chunk of a 7B decoder; return seconds, layers, weights and the package's bytes."""
    from pulse_edge.export.coreml.compress import check_compressed
    from pulse_edge.export.coreml.decoder import build_chunk
    from pulse_edge.export.coreml.layout import Source, plan_chunks, plan_layout
    from pulse_edge.export.coreml.package import convert, finish, program
    from pulse_edge.export.shape import DecoderShape
    from pulse_edge.export.weights import precision as read_precision

    shape = DecoderShape(32, 4096, 32, 32, 128, 32000, 4096, 10000.0, 1e-5)
    sides = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096),
             "gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008),
             "lm_head": (32000, 4096)}  # fmt: skip
    rng = np.random.default_rng(index)
    read = 0

    def weights(name: str) -> Any:
        nonlocal read
        kind = name.split(".")[-2]
        made = rng.standard_normal(sides.get(kind, (4096,)), np.float32)
        read += made.size
        made *= 0.02
        return made

    how = read_precision(precision, "coreml")
    layout, chunk = plan_layout(shape, 5 * 576 + 512, how), plan_chunks(shape, 11008)[index]
    path = folder / f"{chunk.name}-{precision}.mlpackage"
    begin = time.perf_counter()
    functions, compressed = build_chunk(layout, chunk, Source(weights), how)
    made = convert(program(functions), path)
    del functions
    finish(made, path)
    check_compressed(path, compressed)
    return {
        "seconds": time.perf_counter() - begin,
        "layers": chunk.stop - chunk.start,
        "weights": read,
        "bytes": size(path),
    }


def size(path: Path) -> int:
    """Bytes of all files of a package."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def apart(folder: Path, step: str, *arguments: str) -> dict[str, Any]:
    """Run one step in a process of its own; its greatest resident memory is added to what it returns."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one_step(step: str, folder: Path, precision: str, index: int) -> None:
    """What the processes of :func:`apart` do."""
    if step == "chunk":
        result = convert_chunk(folder, precision, index)
    else:
        result = {"vision": convert_vision, "play": play_vision}[step](folder, precision)
    unit = 1024 if sys.platform == "linux" else 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({**result, "peak_rss_gb": peak / 1e9}))


def measure(precisions: Sequence[str], every: bool) -> list[dict[str, Any]]:
    """Run all steps; return one row for each."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step, what in (("vision", "CLIP ViT-L/14-336 + projector"), ("play", "its parity in milrun")):
            rows.append({"what": what, "precision": "fp16", **apart(folder, step, "--precisions", "fp16")})
            show(rows[-1])
        for precision in precisions:
            for index in range(8 if every else 1):
                arguments = ("--precisions", precision, "--index", str(index))
                row = apart(folder, "chunk", *arguments)
                rows.append({"what": f"7B decoder, chunk {index + 1} of 8", "precision": precision, **row})
                show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row of the table."""
    made = f"{row['bytes'] / 1e6:8.0f} MB" if "bytes" in row else f"{row['max_abs']:8.3g} off"
    cost = f"{row['seconds']:7.1f} s {row['peak_rss_gb']:6.2f} GB"
    print(f"{row['what']:<32} {row['precision']:<6} {cost} {made}", flush=True)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Convert Core ML packages at PULSE-7B's shapes.")
    parser.add_argument("--precisions", nargs="+", default=["int4", "fp16"], help="of the decoder")
    parser.add_argument("--all-chunks", action="store_true", help="all eight chunks, not only the first")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        one_step(args.step, args.folder, args.precisions[0], args.index)
        return
    about = describe_machine()
    rows = measure(args.precisions, args.all_chunks)
    met = all(row["peak_rss_gb"] < TARGET_GB for row in rows)
    print(f"target: under {TARGET_GB:.0f} GB each, {'met' if met else 'MISSED'}")
    report = {"benchmark": "coreml_size", **about, "target_gb": TARGET_GB, "target_met": met, "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
