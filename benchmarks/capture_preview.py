"""How many preview frames one core analyses in a second, and when the shutter fires.

    python benchmarks/capture_preview.py

Makes the frames of a hand-held scene from a packaged sample page (moving, out of focus, still), looks at each
as `pulse-edge capture --camera` does, with one OpenCV thread, and takes the processor time of that alone.
Writes benchmarks/results/capture_preview.json. The target is 10 frames a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from capture_sets import Picture, shoot
from machine import describe_machine

from pulse_edge.runtimes.capture import limits
from pulse_edge.runtimes.capture.preview import Preview
from pulse_edge.runtimes.capture.shutter import State, advance

RESULT = Path(__file__).parent / "results" / "capture_preview.json"
TARGET_PER_S = 10.0
RATE = 30.0
SIZES = {"1080p": (1920, 1080), "4K": (3840, 2160)}
PARTS = {"moving": 30, "soft": 30, "still": 30}  # frames


def scene(picture: Picture) -> Iterator[tuple[str, Picture]]:
    """Yield (part, frame) of a hand that moves, a lens that hunts, and a steady hand."""
    rng = np.random.default_rng(0)
    size = (picture.shape[1], picture.shape[0])
    at = np.array([-0.3, 0.05]) * size
    for part, count in PARTS.items():
        for _ in range(count):
            at = at + np.array([0.01, -0.002]) * size if part == "moving" else rng.normal(0, 0.3, 2)
            matrix = np.array([[1, 0, at[0]], [0, 1, at[1]]])
            frame = cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REFLECT)
            if part == "soft":
                frame = cv2.GaussianBlur(frame, (0, 0), size[0] / 700)
            yield part, np.asarray(frame, np.uint8)


def measure(size: tuple[int, int]) -> dict[str, Any]:
    """Time the analysis of every frame of one scene."""
    preview, state, times, fired = Preview(), State(), [], []
    for k, (part, frame) in enumerate(scene(shoot(3, size=size).photo.image)):
        begin = time.process_time()  # what a core works on it, whatever else runs there
        glimpse = preview.look(frame, k / RATE)
        state, advice = advance(state, glimpse, limits.LEAST_PX_PER_MM)
        times.append(1000 * (time.process_time() - begin))
        if advice.fire:
            fired.append(part)
    return {
        "frames_per_s": round(1000 * len(times) / sum(times), 1),
        "median_ms": round(statistics.median(times), 1),
        "max_ms": round(max(times), 1),
        "fired": fired,
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time the analysis of preview frames on one core.")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    about = describe_machine()
    rows = {name: measure(size) for name, size in SIZES.items()}
    where = about["machine"]
    print(f"{where['cpu']}, one of {where['cores']} cores, load {where['load_1min']}")
    print(f"{'frame':<8} {'frames/s':>9} {'median':>10} {'max':>10}  fired in")
    for name, row in rows.items():
        print(
            f"{name:<8} {row['frames_per_s']:>9.1f} {row['median_ms']:>7.1f} ms {row['max_ms']:>7.1f} ms  "
            f"{', '.join(row['fired']) or 'never'}"
        )
    met = all(row["frames_per_s"] >= TARGET_PER_S for row in rows.values())
    print(f"target: {TARGET_PER_S:.0f} frames a second, {'met' if met else 'MISSED'}")
    content = {"benchmark": "capture_preview", **about, "target_per_s": TARGET_PER_S, "target_met": met,
               "opencv": cv2.__version__, "opencv_threads": 1, "frames": rows}  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
