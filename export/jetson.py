"""What a Jetson needs to make engines of a bundle: optimisation profiles and a script for trtexec.

Engines are tied to the GPU and the TensorRT version, so they are built on the device. The graphs
are strongly typed: TensorRT keeps the float32 norms and the float16 rest as the graph has them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from pulse_edge.bundle import write_atomic
from pulse_edge.contract import MAX_TILES
from pulse_edge.device import Device
from pulse_edge.errors import GateError
from pulse_edge.export.shape import DecoderShape
from pulse_edge.export.trt_support import problems
from pulse_edge.fit import ROOM

WORKSPACE_MIB: Final = 1024
TEXT: Final = 64  # tokens beside the image in a usual prompt: system, roles and question
QUESTION: Final = 256  # longest that is read behind an image already read
KINDS: Final = ("min", "opt", "max")
Profile = dict[str, dict[str, list[int]]]  # input -> min, opt, max -> shape


def bounded(shape: DecoderShape, tokens_per_tile: int) -> DecoderShape:
    """Return a shape whose context holds a page and a conversation about it, and no more.

    On a board the cache has one size, reserved in full; ``fit`` counts this one.
    """
    return replace(shape, context=min(shape.context, tokens_per_tile * MAX_TILES + ROOM))


def profiles(shape: DecoderShape, tokens_per_tile: int) -> dict[str, dict[str, Profile]]:
    """Return the optimisation profiles of every graph with a dynamic dimension, by graph and use.

    The decoder has three, in this order: ``prompt`` reads anything up to the whole context into an empty
    cache; ``question`` reads a few tokens behind a kept image; ``token`` generates. In each, cache and
    new tokens together fit the context, so that no profile makes TensorRT reserve memory for lengths
    that cannot occur.
    """
    context, image = shape.context, tokens_per_tile * MAX_TILES
    prompt = min(image + TEXT, context)
    question = max(1, min(QUESTION, context // 4))
    kept = max(1, context - question)
    decoder = {
        "prompt": _decoder_profile(shape, (1, prompt, context), (0, 0, 0)),
        "question": _decoder_profile(
            shape, (1, min(TEXT // 2, question), question), (1, min(image + TEXT // 2, kept), kept)
        ),
        "token": _decoder_profile(shape, (1, 1, 1), (1, min(prompt, context - 1), context - 1)),
    }
    text = {"input_ids": {"min": [1, 1], "opt": [1, min(TEXT, context)], "max": [1, context]}}
    return {"embed": {"text": text}, "decoder": decoder}


def _decoder_profile(
    shape: DecoderShape, length: tuple[int, int, int], past: tuple[int, int, int]
) -> Profile:
    profile = {"inputs_embeds": {k: [1, n, shape.hidden] for k, n in zip(KINDS, length, strict=True)}}
    for i in range(shape.layers):
        for part in ("key", "value"):
            profile[f"past_key_values.{i}.{part}"] = {
                k: [1, shape.kv_heads, n, shape.head_dim] for k, n in zip(KINDS, past, strict=True)
            }
    return profile


def write_build_files(folder: Path, shape: DecoderShape, tokens_per_tile: int, device: Device) -> None:
    """Write ``build/profiles.json``, ``build/build.sh`` and ``build/README.md`` into a bundle."""
    build = folder / "build"
    build.mkdir()
    plan = profiles(shape, tokens_per_tile)
    write_atomic(build / "profiles.json", (json.dumps(plan, indent=1) + "\n").encode())
    write_atomic(build / "build.sh", _script(plan).encode())
    (build / "build.sh").chmod(0o755)
    write_atomic(build / "README.md", _README.format(device=device.title).encode())


def check(folder: Path, device: Device) -> None:
    """Check every graph of a bundle against TensorRT's documented support.

    Raises:
        GateError: names the nodes that would be refused, and the remedy.
    """
    version = device.values["tensorrt"].value
    found = [fault for path in sorted(folder.glob("*.onnx")) for fault in problems(path, version)]
    if found:
        more = f" There are {len(found) - 5} more such nodes." if len(found) > 5 else ""
        raise GateError("TensorRT would refuse this bundle; it was not kept. " + " ".join(found[:5]) + more)


def _script(plan: dict[str, dict[str, Profile]]) -> str:
    lines = [
        "#!/bin/sh",
        "# Build the TensorRT engines of this bundle on the Jetson it runs on.",
        "set -eu",
        'cd "$(dirname "$0")/.."',
        'TRTEXEC="${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}"',
        "mkdir -p engines",
    ]
    for graph in ("vision", "embed", "decoder"):
        words = _words(graph)
        for k, profile in enumerate(plan.get(graph, {}).values()):
            words.append(f"--profile={k}")
            for kind in KINDS:
                shapes = ",".join(f"{n}:{'x'.join(map(str, s[kind]))}" for n, s in profile.items())
                words.append(f"--{kind}Shapes={shapes}")
        lines.append(" \\\n  ".join(words))
    return "\n".join(lines) + "\n"


def _words(graph: str) -> list[str]:
    """The call of trtexec for a graph without dynamic dimensions."""
    return [
        '"$TRTEXEC"',
        f"--onnx={graph}.onnx",
        f"--saveEngine=engines/{graph}.engine",
        "--stronglyTyped",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}M",
        "--timingCacheFile=engines/timing.cache",
        "--skipInference",
    ]


def add_capture_engine(folder: Path) -> None:
    """Let ``build/build.sh`` make an engine of the capture graph, too; its shapes are fixed."""
    path = folder / "build" / "build.sh"
    write_atomic(path, (path.read_text("utf-8") + " \\\n  ".join(_words("capture")) + "\n").encode())
    path.chmod(0o755)


_README = """# Building the engines

Run `build/build.sh` on the {device}. It calls `trtexec` of the installed TensorRT (set `TRTEXEC` if
it stands elsewhere) and writes `engines/`. Engines work only on the GPU and TensorRT version they were
built with; after an update of JetPack, run it again. `profiles.json` holds the same shapes for
programs that use TensorRT's Python interface; its order is that of the profiles in the engine.

This script was not run on hardware: TensorRT cannot be installed where the bundle was made. The
graphs were checked against the parser's documented operators, and every profile's shapes are
executed in ONNX Runtime by the tests of pulse-edge. What to look at first on a device:

- The profile `prompt` has an empty cache: a dimension of length 0. TensorRT takes such tensors
  ("Working with Empty Tensors" in its developer guide; pytorch/TensorRT pull request 4665 reports a
  profile with a minimum of 0 executed on 11.1; 7.0 refused one, NVIDIA/TensorRT issue 337).
- int4 weights need opset 21. The parser of TensorRT 10.1 and later takes them, though versions before
  10.9 state opset 20 as their highest. All other graphs are of opset 18 or 19.
- int8 weights are dequantised into fp16 matrix products. If a build of them fails (NVIDIA/TensorRT
  issue 4832 reports one on Orin), export with `--precision fp16` or `int4`.
"""
