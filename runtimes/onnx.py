"""Run a bundle with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN_ID, MAX_TILES
from pulse_edge.errors import BundleError, UserError
from pulse_edge.model.merge import merge_features

_TYPES = {"float": np.float32, "float16": np.float16}


class OnnxBackend:
    """The three graphs of a bundle on ONNX Runtime; implements ``session.Backend``.

    Args:
        folder: of the bundle, already verified.
        manifest: of the bundle.
        threads: for one graph; all cores by default.

    Raises:
        BundleError: ONNX Runtime cannot load a graph.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None) -> None:
        self._vision, self._embed, self._decoder = (
            _open(folder / manifest["graphs"][role]["file"], threads)
            for role in ("vision", "embed", "decoder")
        )
        decoder = manifest["graphs"]["decoder"]["inputs"]
        self._caches = {name: entry for name, entry in decoder.items() if name.startswith("past_key_values.")}
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._caches)]
        self.context: int = manifest["generation"]["context"]
        self._merge: str = manifest["preprocessing"]["merge"]
        newline = folder / "image_newline.npy"
        self._newline: NDArray[np.float32] | None = np.load(newline) if newline.is_file() else None
        self.reset()

    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Tiles [n, 3, 336, 336] -> embeddings [N, H]. The graph takes five tiles: fewer are filled up
        with zeros, as the model itself does where its tiles see each other."""
        n = len(tiles)
        if n < MAX_TILES:
            tiles = np.concatenate([tiles, np.zeros((MAX_TILES - n, *tiles.shape[1:]), np.float32)])
        features = self._vision.run(["image_features"], {"pixel_values": tiles})[0]
        return merge_features(features, image_size, self._merge, self._newline, n)

    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything and read a prompt with one -200 for the image."""
        self.reset()
        if embeddings is None:
            return self.extend(tokens)
        at = list(tokens).index(IMAGE_TOKEN_ID)
        parts = [self._look_up(tokens[:at]), embeddings, self._look_up(tokens[at + 1 :])]
        return self._run(np.concatenate([part for part in parts if part is not None]))

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens; logits [V] behind the last."""
        rows = self._look_up(tokens)
        if rows is None:
            raise ValueError("there are no tokens to read")
        return self._run(rows)

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token."""
        return self.extend([token])

    def reset(self) -> None:
        """Forget everything."""
        self._past = {
            name: np.zeros([n if isinstance(n, int) else 0 for n in entry["shape"]], _TYPES[entry["dtype"]])
            for name, entry in self._caches.items()
        }

    @property
    def position(self) -> int:
        """Tokens read so far, visual ones included."""
        return int(next(iter(self._past.values())).shape[2])

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``; raises ValueError if it lies ahead."""
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: {self.position} tokens were read")
        if position < self.position:
            self._past = {name: cache[:, :, :position] for name, cache in self._past.items()}

    def _look_up(self, tokens: Sequence[int]) -> NDArray[np.float32] | None:
        if not len(tokens):
            return None
        rows: NDArray[np.float32] = self._embed.run(None, {"input_ids": np.asarray([tokens], np.int64)})[0][0]
        return rows

    def _run(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        total = self.position + len(embeds)
        if total > self.context:
            raise UserError(
                f"Picture and text make {total} tokens, but the model's context is {self.context}. "
                "Ask a shorter question."
            )
        logits, *present = self._decoder.run(
            self._outputs, {"inputs_embeds": embeds[None].astype(np.float32), **self._past}
        )
        self._past = dict(zip(self._caches, present, strict=True))
        row: NDArray[np.float32] = logits[0]
        return row


def _open(path: Path, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _cores()
    options.log_severity_level = 3
    # Level 4, the default, would quantise activations to int8 behind 4-bit weights: 0.09 instead of 1e-5.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{path} cannot be loaded: {reason}. Export the bundle again.") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
