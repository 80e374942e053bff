"""What an export writes, known before it writes anything: graphs, bytes, memory and disk.

The graphs of a bundle are planned from the names and shapes of a checkpoint's weights. Their weights are
then streamed chunk by chunk (:mod:`.onnx_writer`, :mod:`.weights`), whatever the size of the checkpoint.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.bundle import need_space
from pulse_edge.device import Device
from pulse_edge.export.decoder import EMBED, plan_decoder, plan_embedding
from pulse_edge.export.jetson import check
from pulse_edge.export.linear import PANEL
from pulse_edge.export.onnx_writer import GraphWriter
from pulse_edge.export.source import Source
from pulse_edge.export.vision import ClipShape, plan_vision
from pulse_edge.export.weights import Precision
from pulse_edge.machine import available_memory
from pulse_edge.model.layouts import HEAD

_BASE: Final = 110_000_000  # the interpreter, numpy, onnx and what is read at once: see docs/export.md
_OTHER: Final = 4_000_000  # tokenizer, manifest, licences, build files
_TRACED: Final = 650_000_000  # torch.onnx, which traces a tower that is not CLIP's


@dataclass(frozen=True)
class Options:
    """What is asked of an export, checked.

    Attributes:
        target: ``jetson`` or ``onnx``.
        device: profile of the device.
        how: precision of the decoder.
        resume: go on with what a killed export left.
        pages: real ECG pages, uint8 [H, W, 3], on which ranges are observed; without them nothing is run.
        vision_tiles: calibration pages, float32 [5, 3, 336, 336], for a vision graph of 8 bits; empty for one
            of floats.
        capture: write the graph that makes tiles of photos, too.
        report: called with the name of every step.
        tick: called with the bytes of weights that are written, and of all.
    """

    target: str
    device: Device
    how: Precision
    resume: bool = False
    pages: Sequence[NDArray[np.uint8]] = ()
    vision_tiles: Sequence[NDArray[np.float32]] = ()
    capture: bool = False
    report: Callable[[str], None] = lambda step: None
    tick: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Plan:
    """What is written.

    Attributes:
        writers: of the graphs whose weights are streamed, in order.
        kept: layers that int4 does not fit, which stay in float16.
        traced: bytes of a vision tower that torch.onnx exports, about; 0 for CLIP's, which is streamed.
    """

    writers: tuple[GraphWriter, ...]
    kept: list[str]
    traced: int

    @property
    def weights(self) -> int:
        """Bytes of all weights that are streamed."""
        return sum(chunk.bytes for writer in self.writers for chunk in writer.chunks)

    @property
    def data(self) -> int:
        """Bytes of all weights."""
        return self.weights + self.traced

    @property
    def files(self) -> dict[str, int]:
        """Bytes of every large file, by name."""
        sizes = {}
        for writer in self.writers:
            sizes[writer.path.name] = writer.path.stat().st_size
            sizes[writer.data.name] = writer.size
        if self.traced:
            sizes["vision.onnx.data"] = self.traced
        return dict(sorted(sizes.items()))

    @property
    def bytes(self) -> int:
        """Bytes of the whole bundle, about."""
        return sum(self.files.values()) + _OTHER

    @property
    def memory(self) -> int:
        """Bytes of memory that writing takes at most, about; the parity check comes on top."""
        largest = max(
            place.bytes for writer in self.writers for chunk in writer.chunks for place in chunk.places
        )
        return _BASE + min(largest, PANEL) + (_TRACED + 3 * self.traced if self.traced else 0)


def plan_bundle(folder: Path, source: Source, how: Precision) -> Plan:
    """Write the graphs of a bundle, without their weights, into a folder.

    A tower that is not CLIP's has no graph yet: torch.onnx makes it with its weights (:mod:`.graphs`).
    """
    half = how.compute is np.float16
    embed, table = plan_embedding(folder / EMBED, source.weights, how)
    decoder, kept = plan_decoder(
        folder / "decoder.onnx", source.shape, source.weights, how, () if source.head == HEAD else table
    )
    decoders = [decoder]
    if how.profile == "ort" and how.bits == 4:  # which generates fast, and reads slowly: see ort_decoder
        wide = replace(how, name="int8", bits=8, given=False)
        prompt, _ = plan_decoder(
            folder / "prompt.onnx",
            source.shape,
            source.weights,
            wide,
            () if source.head == HEAD else table,
            decoder,
        )
        decoders.append(prompt)
    if source.clip:
        shape, integers = ClipShape.read(source.fields), how.profile == "ort" and how.bits < 16
        vision = plan_vision(folder / "vision.onnx", shape, source.weights, half, integers)
        return Plan((vision, embed, *decoders), kept, 0)
    parts = [s for name, s in source.weights.shapes.items() if name.startswith(("vision.", "projector."))]
    values = sum(int(np.prod(shape, dtype=np.int64)) for shape in parts)
    return Plan((embed, *decoders), kept, values * (2 if half else 4))


def refuse_full_disk(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        folder: on the disk; what it holds already counts as there.
        needed: bytes.

    Raises:
        PulseEdgeError: the disk has not enough space.
    """
    there = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    need_space(folder, needed - there, "The bundle")


def parity_bytes(shapes: Mapping[str, Sequence[int]], data: int) -> int:
    """Memory that comparing whole models takes, about.

    On one side the weights in float32; on the other what ONNX Runtime makes of the bundle's, which it widens
    on a CPU.

    Args:
        shapes: of the checkpoint's weights.
        data: bytes of the bundle's weights.
    """
    return 4 * sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) + 3 * data


def preview_bundle(source: Source, output: Path, options: Options) -> dict[str, Any]:
    """Do what ``pulse_edge.export.preview`` promises, once its arguments are checked."""
    with tempfile.TemporaryDirectory() as place:
        plan = plan_bundle(Path(place), source, options.how)
        if options.target == "jetson":
            check(Path(place), options.device)
        files, memory, data = plan.files, plan.memory, plan.data
    there = next(folder for folder in Path(output).absolute().parents if folder.is_dir())
    whole, free = parity_bytes(source.weights.shapes, data), available_memory()
    return {
        "files": files,
        "bytes": sum(files.values()) + _OTHER,
        "memory": {"writing": memory, "comparing": whole},
        "memory_available": free,
        "parity": "sessions" if whole < free else "streamed",
        "disk_free": shutil.disk_usage(there).free,
        "precision": options.how.name,
        "profile": options.how.profile,
        "kept_fp16": plan.kept,
    }
