"""What is tried on a bundle before it has its name, all of it in ONNX Runtime: ranges and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from pulse_edge.errors import GateError
from pulse_edge.export.audit import LARGEST, MARGIN, Danger, dangers, keep_wide, peaks
from pulse_edge.export.jetson import KINDS, profiles
from pulse_edge.export.prompts import Questions, text_tokens, tiles_of, visual_tokens
from pulse_edge.export.shape import DecoderShape
from pulse_edge.export.slices import Graph, open_model, run
from pulse_edge.machine import available_memory

# Work that a check may cost on a CPU; above it, it reads fewer tokens and pages, or runs fewer layers.
_FLOPS: Final = 4e12
_VISUAL: Final = 64
_SCORES: Final = 4  # arrays of the size of the attention scores that one layer holds at a time


@dataclass(frozen=True)
class Pages:
    """Calibration pages and what is asked about them.

    Attributes:
        images: uint8 [H, W, 3] RGB.
        questions: token ids.
        merge: how tiles are merged.
        newline: of ``spatial_unpad``, or None.
    """

    images: Sequence[NDArray[np.uint8]]
    questions: Questions
    merge: str
    newline: NDArray[np.float32] | None


def keep_in_range(folder: Path, shape: DecoderShape, pages: Pages) -> dict[str, Any]:
    """Observe every float16 tensor of a bundle on real pages; what comes near its end is kept in float32.

    Args:
        folder: of the bundle; graphs are rewritten in place where they must be.
        shape: of the decoder.
        pages: to calibrate on; of a large model, fewer of them and fewer visual tokens are read.

    Returns:
        ``pages``, ``visual_tokens`` (most that are read of a picture; None: all), ``limit``, ``largest``
        (magnitude by graph), ``endangered`` (graph, tensor, node, largest) and ``kept_fp32`` (nodes).

    Raises:
        GateError: an output of a graph is endangered, or a value is no number.
    """
    values = sum(int(np.prod(form)) for _, form in shape.weights())
    costly = 2.0 * values * shape.context
    images = list(pages.images)[: max(1, int(_FLOPS / costly))]
    most = _VISUAL if costly > _FLOPS else None
    tiles = [tiles_of(image) for image in images]
    seen, states = peaks(folder / "vision.onnx", [{"pixel_values": pixels} for pixels, _, _ in tiles])
    table = open_model(onnx.load(str(folder / "embed.onnx"), load_external_data=False), folder)
    feeds = []
    for state, (_, count, size) in zip(states, tiles, strict=True):
        picture = visual_tokens(state["image_features"], count, size, pages.merge, pages.newline, most)
        before, after = (text_tokens(ids, table) for ids in (pages.questions.before, pages.questions.report))
        feeds.append({"inputs_embeds": np.concatenate([before, picture, after])[None]})
    said, _ = peaks(folder / "decoder.onnx", feeds)
    found = {
        name: dangers(folder / name, top) for name, top in (("vision.onnx", seen), ("decoder.onnx", said))
    }
    endangered = [danger for listed in found.values() for danger in listed]
    _refuse_nonsense(endangered)
    kept = [
        f"{name}: {node}"
        for name, listed in found.items()
        if listed
        for node in keep_wide(folder / name, [danger.tensor for danger in listed])
    ]
    return {
        "pages": len(images),
        "visual_tokens": most,
        "limit": LARGEST / MARGIN,
        "largest": {"vision.onnx": max(seen.values()), "decoder.onnx": max(said.values())},
        "endangered": [danger.asdict() for danger in endangered],
        "kept_fp32": kept,
    }


def _refuse_nonsense(endangered: Sequence[Danger]) -> None:
    for danger in endangered:
        if not np.isfinite(danger.largest):
            raise GateError(
                f"{danger.graph}: {danger.node!r} gives {danger.largest} on a real ECG even in float32. "
                "The bundle was not kept. Use a sound checkpoint."
            )


def execute_profiles(
    folder: Path, shape: DecoderShape, tokens: int, report: Callable[[str], None] = lambda step: None
) -> dict[str, Any]:
    """Run every shape of every optimisation profile in ONNX Runtime.

    Of a decoder that is too large for that, the first layer and the head stand for all: every other layer
    has the same nodes.

    Returns:
        ``run`` (how many shapes), ``parts`` of the decoder, ``not_run`` (those that this machine's memory
        cannot hold).

    Raises:
        GateError: a shape does not run, or its results are no numbers.
    """
    values = sum(int(np.prod(form)) for _, form in shape.weights())
    whole = 2.0 * values * shape.context <= _FLOPS
    plan = profiles(shape, tokens)
    done, left = 0, []
    for name, uses in plan.items():
        graph = Graph.read(folder / f"{name}.onnx")
        cuts = list(graph.parts())
        ends = [value.name for value in graph.model.graph.output]
        parts = [([], ends)] if whole or len(cuts) == 1 else [cuts[0], cuts[-1]]
        for inputs, outputs in parts:
            session = open_model(graph.part(inputs, outputs), folder)
            for use, profile in uses.items():
                for kind in KINDS:
                    shapes = {key: entry[kind] for key, entry in profile.items()}
                    label = f"{name} {use} {kind}"
                    if not _fits(shape, shapes):
                        left.append(label)
                        continue
                    report(f"running the profile {label}")
                    _execute(label, session, {**shapes, **_cut_shapes(graph, inputs, shapes)}, outputs)
                    done += inputs == parts[0][0]
    return {
        "run": done,
        "parts": "all" if whole else "first layer and head",
        "not_run": sorted(set(left)),
    }


def _fits(shape: DecoderShape, shapes: Mapping[str, list[int]]) -> bool:
    """Whether the attention scores of a shape fit the memory."""
    length = shapes.get("inputs_embeds", [1, 0])[1]
    past = shapes.get("past_key_values.0.key", [1, 0, 0])[2]
    return _SCORES * 4 * shape.heads * length * (length + past) < available_memory() // 2


def _cut_shapes(graph: Graph, inputs: Sequence[str], shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {name: list(shapes["inputs_embeds"]) for name in inputs}


def _execute(label: str, session: Any, shapes: Mapping[str, list[int]], outputs: Sequence[str]) -> None:
    rng = np.random.default_rng(0)
    feed = {key: rng.integers(0, 2, form).astype(np.float32) for key, form in shapes.items()}
    try:
        found = run(session, feed, outputs)
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        reason = " ".join(str(error).split())[:200]
        raise GateError(f"The profile {label} does not run: {reason}. The bundle was not kept.") from error
    if not all(np.isfinite(value).all() for value in found.values()):
        raise GateError(f"The profile {label} gives values that are no numbers. The bundle was not kept.")
