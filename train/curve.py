"""The loss curve of a training: TensorBoard's file and a picture, both renewed when a training resumes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from pulse_edge.bundle import write_atomic
from pulse_edge.train.events import EventFile

CURVE: Final = "curve.png"
_SIZE: Final = (900, 520)  # width, height
_BOX: Final = (80, 40, 870, 460)  # left, top, right, bottom of the axes
_INK: Final = {
    "loss": (180, 110, 40),
    "eval_loss": (40, 90, 220),
    "text": (60, 60, 60),
    "grid": (225, 225, 225),
}
_SHOWN: Final = 2000  # points of a line; more are averaged


class Curve(TrainerCallback):
    """Writes every logged number to TensorBoard's file, and ``curve.png`` at every checkpoint.

    Args:
        folder: where both go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events: EventFile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin TensorBoard's file with what is known of the steps before."""
        if not state.is_world_process_zero:
            return
        # What was logged behind the checkpoint that is resumed from will be logged again.
        for old in self.folder.glob("events.out.tfevents.*.pulse-edge"):
            old.unlink()
        self._events = EventFile(self.folder, time.time())
        for row in state.log_history:
            self._write(row)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the newest row to TensorBoard's file."""
        if state.is_world_process_zero and state.log_history:
            self._write(state.log_history[-1])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the picture anew."""
        if state.is_world_process_zero:
            write_atomic(self.folder / CURVE, draw(state.log_history))

    def _write(self, row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "epoch")}
        tags = {
            f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": float(
                value
            )
            for name, value in numbers.items()
        }
        if self._events is not None and "train_runtime" not in row:  # the summary at the end is no step
            self._events.write(int(row["step"]), tags, time.time())


def draw(history: list[dict[str, Any]]) -> bytes:
    """Draw the loss of every step and of every evaluation.

    Args:
        history: the Trainer's ``log_history``.

    Returns:
        A PNG file.
    """
    lines = {name: _points(history, name) for name in ("loss", "eval_loss")}
    every = np.concatenate(list(lines.values()))
    width, height = _SIZE
    image = np.full((height, width, 3), 255, np.uint8)
    left, top, right, bottom = _BOX
    low, high = (float(every[:, 1].min()), float(every[:, 1].max())) if len(every) else (0.0, 1.0)
    pad = 0.05 * (high - low) or 0.5
    low, high = low - pad, high + pad
    last = max(1.0, float(every[:, 0].max())) if len(every) else 1.0
    for k in range(6):
        share = k / 5
        x, y = round(left + share * (right - left)), round(bottom - share * (bottom - top))
        cv2.line(image, (left, y), (right, y), _INK["grid"], 1)
        _text(image, f"{low + share * (high - low):.4g}", (8, y + 4))
        _text(image, f"{share * last:.0f}", (x - 14, bottom + 20))
    _text(image, "step", ((left + right) // 2, height - 10))
    for place, (name, points) in enumerate(lines.items()):
        scale = np.array([(right - left) / last, -(bottom - top) / (high - low)])
        pixels = (points - [0.0, low]) * scale + [left, bottom]
        corners = np.round(pixels).astype(np.int32)
        cv2.polylines(image, [corners[:, None]], False, _INK[name], 1, cv2.LINE_AA)
        for corner in corners if name == "eval_loss" or len(corners) == 1 else corners[:0]:
            cv2.circle(image, (int(corner[0]), int(corner[1])), 3, _INK[name], -1, cv2.LINE_AA)
        if len(points):
            said = f"{name.replace('_', ' ')} {points[-1, 1]:.4f}"
            _text(image, said, (left + 10 + 200 * place, top - 14), _INK[name])
    return bytes(cv2.imencode(".png", image)[1])


def _points(history: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """Step and value [n, 2] of one number, at most ``_SHOWN`` of them; what is not finite is left out."""
    found = [(row["step"], row[name]) for row in history if math.isfinite(row.get(name, math.nan))]
    points = np.array(found, np.float64).reshape(-1, 2)
    parts = np.array_split(points, min(len(points), _SHOWN)) if len(points) else []
    return np.array([part.mean(0) for part in parts]).reshape(-1, 2)


def _text(
    image: NDArray[np.uint8], said: str, at: tuple[int, int], ink: tuple[int, int, int] = _INK["text"]
) -> None:
    cv2.putText(image, said, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, 1, cv2.LINE_AA)
