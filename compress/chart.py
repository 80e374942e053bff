"""Draw a front of cost against harm as a PNG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

from pulse_edge.bundle import write_atomic

_SIZE: Final = (960, 600)
_FRAME: Final = (90, 40, 930, 530)  # left, top, right, bottom
_LINE, _DOT, _CHOSEN, _UNIFORM = "#9aa7b5", "#1565c0", "#c62828", "#2e7d32"
_FLOOR: Final = 1e-9  # nats; a divergence of 0 has no logarithm


def draw_front(path: Path, result: Mapping[str, Any]) -> None:
    """Draw the result of a search: the predicted front, what was measured, and what was chosen.

    Args:
        path: of the PNG.
        result: of ``search.search``.
    """
    scale, unit = (
        (1e6, "MB of decoder layers") if result["unit"] == "bytes" else (1e9, "ms a token in decoder layers")
    )
    line = [(p["cost"] / scale, _log(p["divergence"])) for p in result["line"]]
    dots = [(row["cost"] / scale, _log(row["divergence"]), row) for row in result["front"]]
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    every = line + [(x, y) for x, y, _ in dots]
    place = _axes(draw, every, unit)
    draw.line([place(x, y) for x, y in line], fill=_LINE, width=2)
    small = ImageFont.load_default(14)
    for x, y, row in dots:
        colour = _CHOSEN if row["chosen"] else _UNIFORM if row["uniform"] else _DOT
        px, py = place(x, y)
        radius = 7 if row["chosen"] else 5
        draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=colour)
        if row["chosen"] or row["uniform"]:
            named = next(iter(row["layers"])) if row["uniform"] else "chosen"
            draw.text((px + 9, py - 18), named, fill=colour, font=small)
    from io import BytesIO

    stream = BytesIO()
    image.save(stream, "PNG")
    write_atomic(path, stream.getvalue())


def _log(value: float) -> float:
    return math.log10(max(value, _FLOOR))


def _axes(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], unit: str) -> Any:
    """Draw frame, ticks and titles; return what places (cost, log10 of harm) on the picture."""
    left, top, right, bottom = _FRAME
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = math.floor(min(y for _, y in points)), math.ceil(max(y for _, y in points))
    wide, high = (high_x - low_x) or 1.0, (high_y - low_y) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + 20 + (x - low_x) / wide * (right - left - 40),
            bottom - (y - low_y) / high * (bottom - top),
        )

    font = ImageFont.load_default(14)
    draw.rectangle(_FRAME, outline="#bbbbbb")
    for k in range(5):
        x = low_x + wide * k / 4
        draw.text((place(x, low_y)[0], bottom + 6), f"{x:.3g}", fill="#333333", font=font, anchor="ma")
    for y in range(low_y, high_y + 1):
        draw.line([(left, place(low_x, y)[1]), (right, place(low_x, y)[1])], fill="#eeeeee")
        draw.text((left - 8, place(low_x, y)[1]), f"1e{y}", fill="#333333", font=font, anchor="rm")
    draw.text(((left + right) / 2, bottom + 34), unit, fill="#333333", font=font, anchor="ma")
    title = "divergence of the labels' answers, nats; line predicted, dots measured"
    draw.text((left, top - 22), title, fill="#333333", font=font)
    return place
