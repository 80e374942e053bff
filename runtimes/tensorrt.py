"""Run a bundle's engines with TensorRT: numpy, tensorrt and cuda-python, nothing else.

Not run on hardware: TensorRT cannot be installed where this is developed. It is tested against a stand-in
that enforces the published interface and computes with ONNX Runtime (tests/runtimes/trt).

The key-value cache lies in two static sets of buffers on the device, each for the whole context: the graph
reads one and writes the other, longer one. The vision graph, whose shape never changes, is captured as a
CUDA graph. The decoder is not: its cache grows with every token, and TensorRT asks for an execution
outside of a capture after every change of a shape (developer guide, "CUDA Graphs"), which is the very
execution that a graph would save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.bundle.engines import mismatch, read_engines
from pulse_edge.bundle.manifest import ENGINES
from pulse_edge.contract import IMAGE_TOKEN_ID, MAX_TILES
from pulse_edge.errors import BundleError, PulseEdgeError, UserError
from pulse_edge.model.merge import merge_features
from pulse_edge.runtimes.trt.api import import_tensorrt, make_logger
from pulse_edge.runtimes.trt.cuda import ALIGNMENT, Buffer, Cuda
from pulse_edge.runtimes.trt.engine import TYPES, Engine


def unusable(folder: Path) -> str | None:
    """Say why the engines of a bundle cannot run here, None if they can; without loading them.

    Raises:
        BundleError: their index is damaged.
    """
    from pulse_edge.board import cuda_device

    index = read_engines(folder / ENGINES)
    if index is None:
        return "The bundle has no engines"
    try:
        version = import_tensorrt().__version__
    except PulseEdgeError as error:
        return str(error).split(". ")[0]
    device = cuda_device()
    if device is None:
        return "No CUDA device answers"
    return mismatch(index, {"sm": device["sm"], "tensorrt": version})


class TensorRTBackend:
    """The three engines of a bundle; implements ``session.Backend``.

    Args:
        folder: of the bundle, already verified.
        manifest: of the bundle.
        engines: folder of the engines, that of the bundle by default.

    Attributes:
        runtime: the version, and whether the vision graph runs as a CUDA graph.

    Raises:
        BundleError: there are no engines, or they are not for this machine.
        MissingExtraError: cuda-python is not installed.
        PulseEdgeError: TensorRT does not load, or the device has not enough memory.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], engines: Path | None = None) -> None:
        reason = None if engines is not None else unusable(folder)
        if reason is not None:
            raise BundleError(f"{reason}. Build them from the portable half: pulse-edge build {folder}")
        place = engines or folder / ENGINES
        index = read_engines(place) or {}
        self._trt = import_tensorrt()
        self._logger, self._cuda = make_logger(self._trt), Cuda()
        graphs = manifest["graphs"]
        self._vision, self._embed, self._decoder = (
            Engine(
                self._trt,
                self._logger,
                self._cuda,
                place / index["engines"][role]["file"],
                graphs[role],
                folder / graphs[role]["file"] if index["engines"][role].get("stripped") else None,
            )
            for role in ("vision", "embed", "decoder")
        )
        self.context: int = manifest["generation"]["context"]
        self._merge: str = manifest["preprocessing"]["merge"]
        newline = folder / "image_newline.npy"
        self._newline: NDArray[np.float32] | None = np.load(newline) if newline.is_file() else None
        decoder = graphs["decoder"]
        self._caches = {n: e for n, e in decoder["inputs"].items() if n.startswith("past_key_values.")}
        self._lengths = self._decoder.bounds("inputs_embeds", 1)
        self._pasts = self._decoder.bounds(next(iter(self._caches)), 2)
        self._hidden: int = decoder["inputs"]["inputs_embeds"]["shape"][2]
        self._tokens_per_tile: int = manifest["preprocessing"]["tokens_per_tile"]
        self._tiles: tuple[int, ...] = tuple(graphs["vision"]["inputs"]["pixel_values"]["shape"])
        self._allocate(graphs)
        self._eye = self._capture_vision()
        self.runtime = f"TensorRT {self._trt.__version__}"
        if self._eye is None:
            self.runtime += ", the vision graph without a CUDA graph: it could not be captured"
        self.position = 0

    def _allocate(self, graphs: Mapping[str, Any]) -> None:
        """Reserve all memory at once: what fits now fits later."""
        new, row = self._cuda.allocate, self._hidden * 4
        self._pixels = new(int(np.prod(self._tiles)) * 4)
        self._features = new(MAX_TILES * self._tokens_per_tile * row)
        self._ids = new(self.context * 8)
        self._text, self._embeds = (new(self.context * row) for _ in range(2))
        self._sets: list[dict[str, Buffer]] = [
            {name: new(self._cache_bytes(name, self.context)) for name in self._caches} for _ in range(2)
        ]
        self._logits = np.zeros(graphs["decoder"]["outputs"]["logits"]["shape"][1], np.float32)
        self._logits_there = new(self._logits.nbytes)
        engines = (self._vision, self._embed, self._decoder)
        scratch = new(max(engine.scratch for engine in engines))
        for engine in engines:
            engine.use_scratch(scratch)
        self._now = 0  # which set holds the cache

    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Tiles [n, 3, 336, 336] -> embeddings [N, H]; fewer than five tiles are filled up with zeros."""
        n = len(tiles)
        if n < MAX_TILES:
            tiles = np.concatenate([tiles, np.zeros((MAX_TILES - n, *tiles.shape[1:]), np.float32)])
        self._cuda.upload(self._pixels, tiles.astype(np.float32, copy=False))
        if self._eye is not None:
            self._cuda.launch(self._eye)
        else:
            self._look()
        features = np.empty((MAX_TILES, self._tokens_per_tile, self._hidden), np.float32)
        self._cuda.download(features, self._features)
        return merge_features(features, image_size, self._merge, self._newline, n)

    def _capture_vision(self) -> Any:
        """Run the vision graph on nothing, as a capture needs it, and capture it; None where that fails."""
        self._cuda.upload(self._pixels, np.zeros(self._tiles, np.float32))
        self._look()
        self._cuda.synchronize()
        return self._cuda.capture(self._look)

    def _look(self) -> None:
        pixels = (self._pixels.address, self._tiles)
        self._vision.run({"pixel_values": pixels}, {"image_features": self._features.address})

    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything and read a prompt with one -200 for the image."""
        self.reset()
        if embeddings is None:
            return self.extend(tokens)
        at = list(tokens).index(IMAGE_TOKEN_ID)
        self._room(len(tokens) - 1 + len(embeddings))
        row, end = self._hidden * 4, at + len(embeddings)
        self._look_up(tokens[:at], 0)
        self._cuda.upload(self._embeds, embeddings.astype(np.float32, copy=False), at * row)
        self._look_up(tokens[at + 1 :], end)
        return self._read(end + len(tokens) - at - 1)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens; logits [V] behind the last."""
        if not len(tokens):
            raise ValueError("there are no tokens to read")
        self._room(len(tokens))
        self._look_up(tokens, 0)
        return self._read(len(tokens))

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token."""
        return self.extend([token])

    def reset(self) -> None:
        """Forget everything."""
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``; raises ValueError if it lies ahead."""
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: {self.position} tokens were read")
        if 0 < position < self.position:
            before, after = self._sets[self._now], self._sets[1 - self._now]
            for name, entry in self._caches.items():
                heads = entry["shape"][1]
                old, new = (self._cache_bytes(name, n) // heads for n in (self.position, position))
                self._cuda.copy_rows(after[name], before[name], heads, old, new)
            self._now = 1 - self._now
        self.position = position

    def _room(self, count: int) -> None:
        total = self.position + count
        if total > self.context:
            raise UserError(
                f"Picture and text make {total} tokens, but the model's context is {self.context}. "
                "Ask a shorter question."
            )

    def _cache_bytes(self, name: str, length: int) -> int:
        entry = self._caches[name]
        _, heads, _, width = entry["shape"]
        return int(heads) * length * int(width) * TYPES[entry["dtype"]][1]

    def _look_up(self, tokens: Sequence[int], at: int) -> None:
        """Put the embeddings of tokens into the decoder's input, from row ``at``."""
        if not len(tokens):
            return
        ids, row = np.asarray([tokens], np.int64), self._hidden * 4
        self._cuda.upload(self._ids, ids)
        self._embed.run({"input_ids": (self._ids.address, ids.shape)}, {"inputs_embeds": self._text.address})
        self._cuda.copy(self._embeds, self._text, len(tokens) * row, at * row)

    def _read(self, count: int) -> NDArray[np.float32]:
        """Run the decoder over the first ``count`` rows of its input, in as few pieces as profiles allow."""
        done = 0
        while done < count:
            profile, length = self._choose(count - done)
            self._run(done, length, profile)
            done += length
        self._cuda.download(self._logits, self._logits_there)
        return self._logits.copy()

    def _choose(self, length: int) -> tuple[int, int]:
        """Return the profile that takes most of the next ``length`` tokens, and how many it takes."""
        fitting = [
            (min(length, most), -i)
            for i, ((least, most), past) in enumerate(zip(self._lengths, self._pasts, strict=True))
            if past[0] <= self.position <= past[1] and least <= length
        ]
        if not fitting:
            raise BundleError(
                f"No optimisation profile of the decoder takes a token behind {self.position} others. "
                "Export the bundle again, and build its engines."
            )
        taken, i = max(fitting)
        return -i, taken

    def _run(self, start: int, length: int, profile: int) -> None:
        row = self._hidden * 4
        address = self._embeds.address + start * row
        if address % ALIGNMENT:  # a later piece of a short-rowed model: move it to where TensorRT takes it
            rest = Buffer(address, self._embeds.nbytes - start * row)
            self._cuda.copy(self._text, rest, length * row)
            address = self._text.address
        before, after = self._sets[self._now], self._sets[1 - self._now]
        inputs: dict[str, tuple[int, tuple[int, ...]]] = {
            "inputs_embeds": (address, (1, length, self._hidden))
        }
        for name, entry in self._caches.items():
            _, heads, _, width = entry["shape"]
            inputs[name] = (before[name].address, (1, heads, self.position, width))
        outputs = {name.replace("past_key_values", "present"): b.address for name, b in after.items()}
        self._decoder.run(inputs, {"logits": self._logits_there.address, **outputs}, profile)
        self._now = 1 - self._now
        self.position += length
