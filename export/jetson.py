"""What a Jetson needs to make engines of a bundle: optimisation profiles and a script for trtexec.

Engines are tied to the GPU and the TensorRT version, so they are built on the device. The graphs
are strongly typed: TensorRT keeps the float32 norms and the float16 rest as the graph has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pulse_edge.bundle import write_atomic
from pulse_edge.contract import MAX_TILES
from pulse_edge.errors import GateError
from pulse_edge.export.decoder import DecoderShape
from pulse_edge.export.trt_support import problems

WORKSPACE_MIB = 1024
Profile = dict[str, dict[str, list[int]]]


def profiles(shape: DecoderShape, tokens_per_tile: int) -> dict[str, list[Profile]]:
    """Return the optimisation profiles of every graph with a dynamic dimension.

    The decoder has two: reading a prompt of up to the whole context, and generating one token.
    An empty cache is a dimension of length 0, which TensorRT takes as any other length ("Working
    with Empty Tensors" in its developer guide).
    """
    image = tokens_per_tile * MAX_TILES
    prompt = min(image + 64, shape.context)
    reading = _decoder_profile(shape, (1, prompt, shape.context), (0, 0, shape.context - 1))
    writing = _decoder_profile(shape, (1, 1, 1), (0, prompt, shape.context - 1))
    ids = {"input_ids": {"min": [1, 1], "opt": [1, 32], "max": [1, shape.context]}}
    return {"embed": [ids], "decoder": [reading, writing]}


def _decoder_profile(
    shape: DecoderShape, length: tuple[int, int, int], past: tuple[int, int, int]
) -> Profile:
    kinds = ("min", "opt", "max")
    profile = {
        "inputs_embeds": {k: [1, n, shape.hidden] for k, n in zip(kinds, length, strict=True)},
    }
    for i in range(shape.layers):
        for part in ("key", "value"):
            profile[f"past_key_values.{i}.{part}"] = {
                k: [1, shape.kv_heads, n, shape.head_dim] for k, n in zip(kinds, past, strict=True)
            }
    return profile


def write_build_files(
    folder: Path, shape: DecoderShape, tokens_per_tile: int, device: dict[str, Any]
) -> None:
    """Write ``build/profiles.json``, ``build/build.sh`` and ``build/README.md`` into a bundle."""
    build = folder / "build"
    build.mkdir()
    plan = profiles(shape, tokens_per_tile)
    write_atomic(build / "profiles.json", (json.dumps(plan, indent=1) + "\n").encode())
    write_atomic(build / "build.sh", _script(plan).encode())
    (build / "build.sh").chmod(0o755)
    write_atomic(build / "README.md", _README.format(device=device["name"]).encode())


def _script(plan: dict[str, list[Profile]]) -> str:
    lines = [
        "#!/bin/sh",
        "# Build the TensorRT engines of this bundle on the Jetson it runs on.",
        "set -eu",
        'cd "$(dirname "$0")/.."',
        'TRTEXEC="${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}"',
        "mkdir -p engines",
    ]
    for graph in ("vision", "embed", "decoder"):
        words = [
            '"$TRTEXEC"',
            f"--onnx={graph}.onnx",
            f"--saveEngine=engines/{graph}.engine",
            "--stronglyTyped",
            f"--memPoolSize=workspace:{WORKSPACE_MIB}M",
            "--timingCacheFile=engines/timing.cache",
            "--skipInference",
        ]
        many = len(plan.get(graph, [])) > 1
        for k, profile in enumerate(plan.get(graph, [])):
            words += [f"--profile={k}"] if many else []
            for kind in ("min", "opt", "max"):
                shapes = ",".join(f"{n}:{'x'.join(map(str, s[kind]))}" for n, s in profile.items())
                words.append(f"--{kind}Shapes={shapes}")
        lines.append(" \\\n  ".join(words))
    return "\n".join(lines) + "\n"


_README = """# Building the engines

Run `build/build.sh` on the {device}. It calls `trtexec` of the installed TensorRT (set `TRTEXEC` if
it stands elsewhere) and writes `engines/`. Engines work only on the GPU and TensorRT version they were
built with; after an update of JetPack, run it again. `profiles.json` holds the same shapes for
programs that use TensorRT's Python interface.

This script was not run on hardware: TensorRT cannot be installed where the bundle was tested. The
graphs were checked against the parser's documented operators, and every profile's shapes were
executed in ONNX Runtime.
"""


def check(folder: Path) -> None:
    """Check every graph of a bundle against TensorRT's documented support.

    Raises:
        GateError: names each node that would be refused, and the remedy.
    """
    found = [fault for path in sorted(folder.glob("*.onnx")) for fault in problems(path)]
    if found:
        raise GateError("TensorRT would refuse this bundle; it was not kept. " + " ".join(found[:5]))
