"""Run a bundle with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN_ID, MAX_TILES, TILE_SIZE
from pulse_edge.errors import BundleError, UserError
from pulse_edge.machine import usable_cores
from pulse_edge.model.merge import merge_features
from pulse_edge.runtimes.cache import PROMPT, GrowingCache, SharedCache, open_cache

# Longer prompts are read in pieces: the attention scores of one piece at a time are in memory.
_FLASH: Final = "ORT_GQA_DISABLE_FLASH_ATTENTION"
PIECE: Final = 1024
_FLOATS: Final[dict[str, type[np.floating[Any]]]] = {"fp16": np.float16, "fp32": np.float32}


class OnnxBackend:
    """The three graphs of a bundle on ONNX Runtime; implements ``session.Backend``.

    The embedding table is mapped from its file: of it, only the rows that are used are ever in memory.

    Args:
        folder: of the bundle, already verified.
        manifest: of the bundle.
        threads: for one graph; all cores that this process may use by default.

    Raises:
        BundleError: ONNX Runtime cannot load a graph, or the embedding table is not one.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None) -> None:
        graphs = manifest["graphs"]
        self._table: NDArray[np.floating[Any]] | LookUp
        file, width = (
            folder / graphs["embed"]["file"],
            graphs["embed"]["outputs"]["inputs_embeds"]["shape"][2],
        )
        kind = _FLOATS.get(manifest["precision"]["embed"])
        if kind is None:
            size = graphs["decoder"]["outputs"]["logits"]["shape"][1]
            self._table = LookUp(_open(file, threads), (size, width))
        else:
            self._table = _map_table(file, width, kind)
        self._vision, decoder = (
            _open(folder / graphs[role]["file"], threads) for role in ("vision", "decoder")
        )
        prompt = _open(folder / graphs["prompt"]["file"], threads, True) if "prompt" in graphs else None
        self.context: int = manifest["generation"]["context"]
        self._cache: SharedCache | GrowingCache = open_cache(decoder, graphs["decoder"], self.context, prompt)
        self._merge: str = manifest["preprocessing"]["merge"]
        newline = folder / "image_newline.npy"
        self._newline: NDArray[np.float32] | None = np.load(newline) if newline.is_file() else None
        self._start: list[int] = []  # what was read before the present picture

    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Tiles [n, 3, 336, 336] -> embeddings [N, H], in one run. The graph takes five tiles: fewer are
        filled up with zeros, as the model itself does where its tiles see each other."""
        n = len(tiles)
        if n < MAX_TILES:
            tiles = np.concatenate([tiles, np.zeros((MAX_TILES - n, *tiles.shape[1:]), np.float32)])
        features = self._vision.run(["image_features"], {"pixel_values": tiles})[0]
        return merge_features(features, image_size, self._merge, self._newline, n)

    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything and read a prompt with one -200 for the image. What stands before the image is
        the same for every picture: it is read on its own, so that the numbers never depend on what was asked
        before, and not again where it is still in the cache."""
        if embeddings is None:
            self.reset()
            return self.extend(tokens)
        at = list(tokens).index(IMAGE_TOKEN_ID)
        before = list(tokens[:at])
        if self._start != before or self.position < at:
            self.reset()
            if before:
                self.extend(before)
            self._start = before
        self.rewind(at)
        return self._read(np.concatenate([embeddings, self._look_up(tokens[at + 1 :])]))

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens; logits [V] behind the last."""
        if not len(tokens):
            raise ValueError("there are no tokens to read")
        return self._read(self._look_up(tokens))

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token."""
        return self.extend([token])

    def warm_up(self) -> None:
        """Run every graph once on nothing, so that the first question does not pay for what is done but once:
        reading weights from the disk, and reserving memory. Forgets everything."""
        width = self._table.shape[1]
        self.reset()
        self._vision.run(None, {"pixel_values": np.zeros((MAX_TILES, 3, TILE_SIZE, TILE_SIZE), np.float32)})
        for count in (min(PROMPT, self.context - 1), 1):
            self._cache.read(np.zeros((count, width), np.float32))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.rewind(0)

    @property
    def position(self) -> int:
        """Tokens read so far, visual ones included."""
        return self._cache.length

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``; raises ValueError if it lies ahead."""
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: {self.position} tokens were read")
        self._cache.cut(position)
        if position < len(self._start):
            self._start = []

    def _look_up(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        ids = np.asarray(tokens, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self._table):
            raise ValueError(f"a token is not one of the model's {len(self._table)}")
        return self._table[ids].astype(np.float32)

    def _read(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        total = self.position + len(rows)
        if total > self.context:
            raise UserError(
                f"Picture and text make {total} tokens, but the model's context is {self.context}. "
                "Ask a shorter question."
            )
        for start in range(0, len(rows), PIECE):
            logits = self._cache.read(rows[start : start + PIECE])
        return logits


class LookUp:
    """An embedding table of integers: its graph looks the rows up.

    Args:
        session: of ``embed.onnx``.
        shape: tokens, and the width of a row.
    """

    def __init__(self, session: Any, shape: tuple[int, int]) -> None:
        self._session, self.shape = session, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._session.run(None, {"input_ids": ids[None]})[0][0]
        return rows


def _map_table(path: Path, width: int, kind: type[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Map the embedding table [V, H] from the data of its graph, which is the table and nothing else."""
    data = path.with_name(path.name + ".data")
    size = data.stat().st_size if data.is_file() else 0
    if not size or size % (width * np.dtype(kind).itemsize):
        raise BundleError(f"{data} is not a table of rows of {width} values. Export the bundle again.")
    return np.memmap(data, kind, "r").reshape(-1, width)


def _open(path: Path, threads: int | None, mapped: bool = False) -> Any:
    """Open a graph; one that is ``mapped`` takes its weights as they lie in the file, without a copy."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # nothing about a patient's machine is counted or sent
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    # Of portable int4 graphs, level 4, the default, would quantise activations to int8: 0.09 instead of 1e-5.
    # Graphs of the profile ort say themselves what they want.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.add_session_config_entry("session.disable_prepacking", "1" if mapped else "0")
    try:
        with _without_flash():
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{path} cannot be loaded: {reason}. Export the bundle again.") from error


@contextmanager
def _without_flash() -> Iterator[None]:
    """Open a graph whose attention keeps the scores of a piece in memory, as :data:`PIECE` allows: ONNX
    Runtime 1.32's flash attention takes half as long again for prompts on a CPU, and no less for a token."""
    before = os.environ.get(_FLASH)
    os.environ[_FLASH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FLASH]
        else:
            os.environ[_FLASH] = before
