"""The same engines by `trtexec`, for a device that has the program but not TensorRT's Python package."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge.board import TRTEXEC
from pulse_edge.runtimes.trt.build import KINDS, ROLES, TIMING_CACHE, Options, read_profiles

FALLBACK: Final = f"/{TRTEXEC[0]}"


def find_trtexec() -> str | None:
    """Return the program: of the variable TRTEXEC, on the path, or where JetPack has it."""
    named = os.environ.get("TRTEXEC")
    places = [named] if named else [shutil.which("trtexec"), *(f"/{place}" for place in TRTEXEC)]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def trtexec_lines(
    program: str, folder: Path, manifest: Mapping[str, Any], output: Path, options: Options
) -> list[str]:
    """Return one command for the shell for each graph of a bundle.

    Args:
        program: path of trtexec.
        folder: of the bundle.
        manifest: of the bundle.
        output: folder for the engines, outside of the bundle, whose files are all accounted for.
        options: of the build.

    Raises:
        BundleError: the bundle has no profiles.
    """
    cache = options.timing_cache or output / TIMING_CACHE
    lines = [shlex.join(["mkdir", "-p", str(output)])]
    for role, uses in ((role, read_profiles(folder, manifest)[role]) for role in ROLES):
        words = [
            program,
            f"--onnx={folder / manifest['graphs'][role]['file']}",
            f"--saveEngine={output / f'{role}.engine'}",
            "--stronglyTyped",
            f"--memPoolSize=workspace:{options.workspace_mb}M",
            f"--timingCacheFile={cache}",
            "--skipInference",
        ]
        words += ["--stripWeights"] if options.strip_weights else []
        for k, use in enumerate(uses.values()):
            words.append(f"--profile={k}")
            for kind in KINDS:
                shapes = ",".join(f"{n}:{'x'.join(map(str, s[kind]))}" for n, s in use.items())
                words.append(f"--{kind}Shapes={shapes}")
        lines.append(shlex.join(words))
    return lines
