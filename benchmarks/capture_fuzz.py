"""Damaged and odd picture files against `pulse-edge capture`.

    python benchmarks/capture_fuzz.py --count 2000

JPEG and PNG files of a photo get bytes changed, cut, doubled and put in; whole ones come in every EXIF
orientation, mode and depth, at 1 x 1 and at 100 megapixels. Each goes through the command line in this
process. Passed is: exit code 0 or 2, one JSON object on stdout or one message, no traceback, none longer
than --hang seconds. Each case is made from its number: --only NUMBER repeats one.

Writes benchmarks/results/capture_fuzz.json; exit code 1 if not passed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from capture_sets import shoot
from machine import describe_machine
from PIL import Image
from serve_fuzz import mutate

from pulse_edge.cli.guard import main as command_line

RESULT = Path(__file__).parent / "results" / "capture_fuzz.json"
ORIENTATION = 0x0112


def whole_files() -> Iterator[tuple[str, str, bytes]]:
    """Yield sound but odd files: what they are, the suffix, the bytes."""
    photo = Image.fromarray(shoot(3, size=(640, 494)).photo.image)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        yield f"EXIF {orientation}", ".jpg", _save(photo, "JPEG", exif=exif)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"):
        kind = "TIFF" if mode in ("CMYK", "YCbCr", "LAB", "F", "I") else "PNG"
        if mode == "HSV":
            continue  # no format stores it
        yield f"mode {mode}", f".{kind.lower()}", _save(_in_mode(photo, mode), kind)
    yield "mode CMYK", ".jpg", _save(photo.convert("CMYK"), "JPEG")
    clear = photo.convert("RGBA")
    clear.putalpha(0)
    yield "clear all over", ".png", _save(clear, "PNG")
    for width, height in (
        (1, 1),
        (15, 900),
        (16, 16),
        (17, 3000),
        (64, 64),
        (10_000, 10_000),
        (10_001, 10_000),
    ):
        yield f"{width} x {height}", ".png", _save(Image.new("L", (width, height), 200), "PNG")
    large = photo.resize((12_000, 9_000), Image.Resampling.BILINEAR)
    yield "108 megapixels", ".jpg", _save(large, "JPEG", quality=60)
    yield "empty", ".jpg", b""
    yield "text", ".jpg", b"no picture at all\n" * 50
    yield "HEIC without its pictures", ".heic", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1"


def _in_mode(photo: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    return photo.convert("L").convert(mode) if mode in ("I", "F") else photo.convert(mode)


def _save(image: Image.Image, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def damaged(number: int, sound: list[tuple[str, bytes]]) -> tuple[str, str, bytes]:
    """Make one damaged file from its number."""
    rng = random.Random(number)
    kind, content = rng.choice(sound)
    return f"damaged {kind} {number}", f".{kind.lower()}", mutate(rng, content, rng.choice((1, 3, 8, 40)))


def try_file(path: Path) -> tuple[str, float]:
    """Run the command on a file; what went wrong (empty if nothing did), and seconds."""
    out, err = io.StringIO(), io.StringIO()
    start = time.monotonic()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.argv = ["pulse-edge", "capture", str(path), "--json"]
            command_line()
        except SystemExit as end:
            code = end.code
        except BaseException as error:  # whatever comes through is a finding
            return f"{type(error).__name__}: {error}"[:200], time.monotonic() - start
    seconds = time.monotonic() - start
    if "Traceback" in err.getvalue() or code not in (0, 2, None):
        return f"exit {code}: {err.getvalue().strip()[-200:]}", seconds
    if out.getvalue().strip():
        grade = json.loads(out.getvalue()).get("grade", "error")
        return ("" if (grade == "refuse" or "error" in json.loads(out.getvalue())) == (code == 2) else
                f"exit {code} for {grade}"), seconds  # fmt: skip
    return ("" if err.getvalue().strip() else f"exit {code} without a word"), seconds


def main() -> None:
    """Try every file, print the table, write the figures."""
    parser = argparse.ArgumentParser(description="Damaged and odd pictures against pulse-edge capture.")
    parser.add_argument("--count", type=int, default=2000, help="damaged files")
    parser.add_argument("--only", type=int, help="one damaged file, by its number")
    parser.add_argument("--hang", type=float, default=60.0, help="seconds that one file may take")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    about = describe_machine()
    photo = Image.fromarray(shoot(3, size=(420, 324)).photo.image)
    sound = [("JPEG", _save(photo, "JPEG", quality=80)), ("PNG", _save(photo, "PNG"))]
    sound.append(("JPEG", _save(photo, "JPEG", quality=60, progressive=True)))
    numbers = range(args.count) if args.only is None else [args.only]
    files: Iterator[tuple[str, str, bytes]] = (damaged(number, sound) for number in numbers)
    groups: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest = ("", 0.0)
    with TemporaryDirectory() as folder:
        for some in ([] if args.only is not None else whole_files(), files):
            for name, suffix, content in some:
                path = Path(folder) / f"picture{suffix}"
                path.write_bytes(content)
                problem, seconds = try_file(path)
                problem = problem or (f"took {seconds:.0f} s" if seconds > args.hang else "")
                path.unlink()
                groups["damaged" if name.startswith("damaged") else "odd"] += 1
                slowest = max(slowest, (name, seconds), key=lambda pair: pair[1])
                if problem:
                    failures.append({"file": name, "problem": problem})
                    print(f"{name}: {problem}", flush=True)
    print(f"{dict(groups)}: {len(failures)} failed; slowest {slowest[0]} with {slowest[1]:.1f} s")
    content_out = {"benchmark": "capture_fuzz", **about, "files": dict(groups), "failures": failures,
                   "slowest": {"file": slowest[0], "seconds": round(slowest[1], 1)}}  # fmt: skip
    if args.only is None:
        args.output.write_text(json.dumps(content_out, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
