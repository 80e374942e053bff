"""Conversations about a picture become training items, exactly as PULSE's own dataset makes them.

Every item depends on its number only, in whichever process and after whatever interruption it is asked
for: the order of all epochs is one permutation after the other, and batches are consecutive items.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pulse_edge.contract import IGNORE_ID, IMAGE_TOKEN_ID, PAD_ID, TILE_SIZE
from pulse_edge.errors import ImageError
from pulse_edge.image_io import open_image
from pulse_edge.model.merge import merge_index
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import encode_training
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.sources.ecginstruct import InstructExample

_BLANK: Final = (TILE_SIZE * 2, TILE_SIZE * 2)


class Conversations(Dataset[dict[str, Any]]):
    """Items of supervised fine-tuning; item ``k`` is a function of ``(seed, k)`` only.

    What cannot be learned from (a picture that does not decode, a conversation that cannot be aligned or
    whose answers all lie behind the cut) becomes an item without any supervised token, as in PULSE, and
    its reason is written to ``log``: a long training neither stops nor learns from it.

    Args:
        examples: with ``image`` and ``conversations``.
        places: which of the examples.
        tokenizer: the model's.
        merge: "flat" or "spatial_unpad".
        tokens_per_tile: of the model's tower.
        max_length: longest item in tokens, those of the image included.
        length: how many items there are; epoch follows epoch. ``None`` takes each once, in order.
        seed: of the order.
        log: file that a line is appended to for every item that is left out.
    """

    def __init__(
        self,
        examples: Sequence[InstructExample],
        places: NDArray[np.int64],
        tokenizer: Tokenizer,
        merge: str,
        tokens_per_tile: int,
        max_length: int,
        length: int | None = None,
        seed: int = 0,
        log: Path | None = None,
    ) -> None:
        self.examples, self.places, self.tokenizer = examples, places, tokenizer
        self.merge, self.tokens_per_tile, self.max_length = merge, tokens_per_tile, max_length
        self.length, self.seed, self.log = length, seed, log
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.places) if self.length is None else self.length

    def __getitem__(self, k: int) -> dict[str, Any]:
        """Return input_ids and labels [L] (labels of the merged sequence [M]), pixel_values, image_size."""
        return self.item(self.examples[self.place(k)])

    def place(self, k: int) -> int:
        """Return which example item ``k`` is."""
        if self.length is None:
            return int(self.places[k])
        epoch, rank = divmod(k, len(self.places))
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, rng.permutation(len(self.places))
        return int(self.places[self._order[1][rank]])

    def item(self, example: InstructExample) -> dict[str, Any]:
        """Make the item of one example."""
        ids, labels = encode_training(example.conversations, self.tokenizer, self.max_length)
        reason = "" if any(label != IGNORE_ID for label in labels) else "conversation cannot be aligned"
        try:
            image = open_image(example.image)
            size, pixels = image.size, preprocess(image)
        except ImageError as error:
            reason, size = str(error), _BLANK
            pixels = preprocess(np.zeros((*_BLANK, 3), np.uint8))
        visual = len(merge_index(len(pixels), self.tokens_per_tile, size, self.merge))
        at = ids.index(IMAGE_TOKEN_ID) if IMAGE_TOKEN_ID in ids else None
        if at is None or at + visual >= self.max_length:
            # encode_training cuts the text at max_length; <image> stands some 40 tokens from the start.
            reason, at = "the image does not fit max_length", 1
            ids, labels = [ids[0], IMAGE_TOKEN_ID], [IGNORE_ID] * 2
        if not reason and all(label == IGNORE_ID for label in labels[: self.max_length - visual + 1]):
            reason = "all answers lie behind max_length"
        if reason:
            labels = [IGNORE_ID] * len(ids)
            self._note(example, reason)
        # The reference cuts behind max_length after the image has been merged in.
        ids, labels = ids[: self.max_length - visual + 1], labels[: self.max_length - visual + 1]
        merged = labels[:at] + [IGNORE_ID] * visual + labels[at + 1 :]
        return {
            "input_ids": np.asarray(ids, np.int64),
            "labels": np.asarray(merged, np.int64),
            "pixel_values": pixels,
            "image_size": size,
        }

    def _note(self, example: InstructExample, reason: str) -> None:
        line = " ".join(f"{example.id}: {reason}".split())
        print(f"left out: {line}", file=sys.stderr)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")


def divide(
    examples: Sequence[InstructExample], hold_out: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the examples into those that are learned and those that are held out.

    Every page of a record is on one side, and every record of a patient where the path says whose it is,
    as MIMIC-IV-ECG's does (``p1127/p11273115/s44111511``).

    Args:
        examples: with ``image``.
        hold_out: share of the records or patients to hold out.

    Returns:
        Places of the learned and of the held-out examples.
    """
    every = np.arange(len(examples))
    if not hold_out:
        return every, every[:0]
    limit = math.ceil(hold_out * 2**32)
    held = np.array([_draw(_group(examples[k].image)) < limit for k in every.tolist()])
    return every[~held], every[held]


def _group(image: Path) -> str:
    patient = [part for part in image.parts if re.fullmatch(r"p\d{8}", part)]
    return patient[-1] if patient else re.sub(r"-\d+$", "", image.stem)  # pages of a record end in -0, -1, …


def _draw(name: str) -> int:
    """A number below 2**32 that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch; rows are padded on the right.

    Returns:
        input_ids and attention_mask [B, L]; labels [B, M] of the sequence with the images merged in;
        pixel_values, B tensors [n, 3, 336, 336]; image_sizes [B, 2] (width, height); logits_to_keep [P], the
        positions from which any row's supervised tokens are predicted: only there are logits computed.
    """
    ids = _pad([item["input_ids"] for item in items], PAD_ID)
    labels = _pad([item["labels"] for item in items], IGNORE_ID)
    mask = _pad([np.ones_like(item["input_ids"]) for item in items], 0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": [torch.from_numpy(item["pixel_values"]) for item in items],
        "image_sizes": torch.tensor([item["image_size"] for item in items]),
        "logits_to_keep": predicting(labels),
    }


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """Return the positions [P] that predict a supervised token of any row of labels [B, M]."""
    return (labels[:, 1:] != IGNORE_ID).any(0).nonzero().flatten()


def _pad(rows: list[NDArray[np.int64]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.from_numpy(np.stack([np.pad(r, (0, width - len(r)), constant_values=value) for r in rows]))
