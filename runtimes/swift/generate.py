"""Write what the Swift package takes over from Python: its constants and its golden vectors.

::

    python runtimes/swift/generate.py           # write the files anew
    python runtimes/swift/generate.py --check   # exit 1 if one of them is stale

`tests/runtimes/test_swift.py` runs the check, and the Swift tests read the same vectors.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pulse_edge import contract

HERE: Final = Path(__file__).resolve().parent
CONSTANTS: Final = HERE / "Sources" / "PulseEdgeCore" / "Constants.swift"
GOLDEN: Final = HERE / "Tests" / "PulseEdgeCoreTests" / "Golden"

# name in Swift -> (name in contract.py, what it is)
_CONSTANTS: Final = {
    "tileSize": ("TILE_SIZE", "Side of a tile in pixels."),
    "maxTiles": ("MAX_TILES", "Tiles of a page, the view of the whole page included."),
    "gridPinpoints": ("GRID_PINPOINTS", "Grids that a picture is fitted into, (width, height) in pixels."),
    "padColour": ("PAD_COLOUR", "RGB of the canvas beside the picture."),
    "imageMean": ("IMAGE_MEAN", "CLIP's mean of the channels, RGB."),
    "imageStd": ("IMAGE_STD", "CLIP's standard deviation of the channels, RGB."),
    "imageToken": ("IMAGE_TOKEN", "Stands for the picture in a prompt."),
    "imageTokenID": ("IMAGE_TOKEN_ID", "Stands for the picture in token ids."),
    "system": ("SYSTEM", "Opens every prompt."),
    "roles": ("ROLES", "The person's and the model's."),
    "sep": ("SEP", "Behind the system text and a question."),
    "sep2": ("SEP2", "Behind an answer."),
    "bundleSchema": ("BUNDLE_SCHEMA", "Newest manifest that is read."),
    "manifest": ("MANIFEST", "File name of the manifest."),
}
_TYPES: Final = {"padColour": ": (UInt8, UInt8, UInt8)", "gridPinpoints": ": [(Int, Int)]"}


def constants() -> str:
    """Return the text of ``Constants.swift``."""
    lines = [
        "// Generated from pulse_edge/contract.py by runtimes/swift/generate.py. Do not edit.",
        "// swift-format-ignore-file",
        "",
        "/// The constants that every port of PULSE shares.",
        "public enum Contract {",
    ]
    for name, (source, text) in _CONSTANTS.items():
        value = _swift(getattr(contract, source), tuples=name in _TYPES)
        lines += [f"    /// {text}", f"    public static let {name}{_TYPES.get(name, '')} = {value}"]
    return "\n".join([*lines, "}", ""])


def _swift(value: Any, tuples: bool = False) -> str:
    """Write a value as a Swift literal, innermost tuples as tuples where ``tuples`` says so."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        nested = any(isinstance(item, tuple) for item in value)
        parts = ", ".join(_swift(item, tuples) for item in value)
        return f"({parts})" if tuples and not nested else f"[{parts}]"
    return repr(value)


def outputs() -> dict[Path, str]:
    """Return the text of every generated file, by its path."""
    makers: dict[str, Callable[[], Any]] = {}
    for file in ("golden.py", "golden_bundle.py"):
        makers |= runpy.run_path(str(HERE / file))["MAKERS"]
    texts = {CONSTANTS: constants()}
    for name, make in makers.items():
        # One case a line: a change shows as the cases that it changes.
        parts = [
            f"{json.dumps(key)}: [\n" + ",\n".join(map(json.dumps, cases)) + "\n]"
            for key, cases in make().items()
        ]
        texts[GOLDEN / f"{name}.json"] = "{\n" + ",\n".join(parts) + "\n}\n"
    return texts


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` compare them; return the exit code."""
    made = outputs()
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text("utf-8") != text]
    if arguments == ["--check"]:
        for path in stale:
            sys.stderr.write(f"{path} is stale; run: python runtimes/swift/generate.py\n")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
