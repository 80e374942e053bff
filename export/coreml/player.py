"""Play a Core ML bundle on any machine, through `export.milrun`: what the parity gate and `verify` run.

It calls the packages as an app does, with the same inputs in the same order, and follows the same
manifest; what an app does in Swift stands here in Python. It shows what the packages mean. It says
nothing about a device's speed, nor about the Neural Engine's own rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_MEAN, IMAGE_STD, IMAGE_TOKEN_ID, MAX_TILES, TILE_SIZE
from pulse_edge.errors import UserError
from pulse_edge.export.milrun import load_package
from pulse_edge.model.merge import merge_features

STACK = (MAX_TILES * TILE_SIZE, TILE_SIZE, 3)


class CoremlBackend:
    """The packages of a bundle; implements ``runtimes.session.Backend``.

    Args:
        folder: of the bundle, already verified.
        manifest: of the bundle.
        precision: of milrun: ``fp16`` rounds every float16 result, as a device does; ``fp32`` does not.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], precision: str = "fp16") -> None:
        graphs, layout = manifest["graphs"], manifest["coreml"]["decoder"]
        self._preprocess, self._vision, self._embed = (
            load_package(folder / graphs[role]["file"], precision)
            for role in ("preprocess", "vision", "embed")
        )
        self._chunks = [load_package(folder / graphs[role]["file"], precision) for role in layout["graphs"]]
        self._cache, self._rows, self._masked = layout["cache"], layout["prefill"], layout["masked"]
        self.context: int = manifest["generation"]["context"]
        self._merge: str = manifest["preprocessing"]["merge"]
        newline = folder / "image_newline.npy"
        self._newline: NDArray[np.float32] | None = np.load(newline) if newline.is_file() else None
        self.reset()

    def cut(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Run the package that preprocesses: RGB [H, W, 3] -> tiles uint8 [n, 336, 336, 3]."""
        made = self._preprocess.run(None, {"image": picture})
        count = int(made["shown"].sum())
        tiles: NDArray[np.uint8] = made["tiles"].reshape(MAX_TILES, TILE_SIZE, TILE_SIZE, 3)[:count]
        return tiles

    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Tiles [n, 3, 336, 336] -> embeddings [N, H]; the grey levels that made the tiles go in."""
        n = len(tiles)
        mean, std = (np.array(value, np.float32)[:, None, None] for value in (IMAGE_MEAN, IMAGE_STD))
        stack = np.zeros((MAX_TILES, TILE_SIZE, TILE_SIZE, 3), np.uint8)
        stack[:n] = np.rint((tiles * std + mean) * 255).transpose(0, 2, 3, 1)
        shown = (np.arange(MAX_TILES) < n).astype(np.float32)
        made = self._vision.run(None, {"tiles": stack.reshape(STACK), "shown": shown})
        features = made["image_features"].astype(np.float32)
        return merge_features(features, image_size, self._merge, self._newline, n)

    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything and read a prompt with one -200 for the image."""
        self.reset()
        if embeddings is None:
            return self.extend(tokens)
        at = list(tokens).index(IMAGE_TOKEN_ID)
        texts = tokens[:at], tokens[at + 1 :]
        before, after = (self._look_up(text) if len(text) else embeddings[:0] for text in texts)
        return self._read(np.concatenate([before, embeddings, after]))

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens; logits [V] behind the last."""
        if not len(tokens):
            raise ValueError("there are no tokens to read")
        return self._read(self._look_up(tokens))

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token."""
        return self.extend([token])

    def reset(self) -> None:
        """Forget everything."""
        self._states = [chunk.new_state() for chunk in self._chunks]
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``: it is masked from now on, and overwritten.

        Raises:
            ValueError: it lies ahead.
        """
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: {self.position} tokens were read")
        self.position = position

    def _look_up(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        rows = self._embed.run(None, {"input_ids": np.asarray([tokens], np.int32)})["inputs_embeds"][0]
        return np.asarray(rows, np.float32)

    def _read(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        total = self.position + len(rows)
        if total > self.context:
            raise UserError(
                f"Picture and text make {total} tokens, but the bundle's context is {self.context}. "
                "Ask a shorter question."
            )
        logits = np.zeros(0, np.float32)
        while len(rows):
            step = 1 if len(rows) == 1 else self._rows
            logits = self._call(rows[:step], step)
            rows = rows[step:]
        return logits

    def _call(self, rows: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        """Run all chunks on up to ``step`` rows, filled up behind with zeros that no row looks at."""
        function = "decode" if step == 1 else "prefill"
        padded = np.zeros((1, step, rows.shape[1]), np.float32)
        padded[0, : len(rows)] = rows
        at = self.position + np.arange(step)[:, None]
        mask = np.where(np.arange(self._cache) <= at, 0.0, self._masked)[None, None].astype(np.float32)
        given: dict[str, Any] = {"position": np.array([self.position], np.int32), "mask": mask}
        flow = {"inputs_embeds": padded}
        for chunk, state in zip(self._chunks, self._states, strict=True):
            last = {"last": np.array([len(rows) - 1], np.int32)} if "last" in chunk.inputs(function) else {}
            flow = chunk.run(function, {**given, **last, **flow}, state)
            flow = {name.removesuffix("_out"): value for name, value in flow.items()}
        self.position += len(rows)
        logits: NDArray[np.float32] = flow["logits"][0].astype(np.float32)
        return logits
