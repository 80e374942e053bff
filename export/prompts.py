"""What a bundle is asked while it is checked: real pages, the prompts of a report and of every label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN_ID, MAX_TILES
from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.model.merge import merge_features
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer

ANSWER = "The ECG shows"  # tokens that are read one by one behind the report's question


@dataclass(frozen=True)
class Questions:
    """Token ids of questions on one picture.

    Attributes:
        before: up to the image.
        report: behind it, for a report.
        answer: of an answer, read one by one.
        labels: behind the image, for each label.
        positive, negative: first tokens of the two answers to a label's question.
    """

    before: list[int]
    report: list[int]
    answer: list[int]
    labels: dict[str, list[int]]
    positive: int
    negative: int

    @classmethod
    def read(
        cls, tokenizer: Tokenizer, labels: Mapping[str, Mapping[str, str]], scoring: Mapping[str, str]
    ) -> Questions:
        """Encode the prompts of a label set."""

        def split(question: str) -> tuple[list[int], list[int]]:
            ids = encode_prompt(build_prompt([(question, None)]), tokenizer)
            at = ids.index(IMAGE_TOKEN_ID)
            return ids[:at], ids[at + 1 :]

        before, report = split(REPORT_QUESTION)
        asked = {name: split(scoring["question"].format(**entry))[1] for name, entry in labels.items()}
        start = tokenizer.encode("ASSISTANT:", bos=False)
        positive, negative = (
            tokenizer.encode(f"ASSISTANT: {scoring[kind]}", bos=False)[len(start)]
            for kind in ("positive", "negative")
        )
        answer = tokenizer.encode(f"ASSISTANT: {ANSWER}", bos=False)[len(start) :]
        return cls(before, report, answer, asked, positive, negative)


def tiles_of(page: NDArray[np.uint8]) -> tuple[NDArray[np.float32], int, tuple[int, int]]:
    """The graph's input for a page [H, W, 3]: float32 [5, 3, 336, 336]; tiles that count; (width, height)."""
    tiles = preprocess(page)
    count = len(tiles)
    filled = np.zeros((MAX_TILES, *tiles.shape[1:]), np.float32)
    filled[:count] = tiles
    return filled, count, (page.shape[1], page.shape[0])


def visual_tokens(
    features: NDArray[np.float32],
    count: int,
    size: tuple[int, int],
    merge: str,
    newline: Any,
    most: int | None,
) -> NDArray[np.float32]:
    """Merge features [5, T, H] into [N, H]; of more than ``most``, that many at even distances."""
    merged = merge_features(features, size, merge, newline, count)
    if most is None or len(merged) <= most:
        return merged
    return merged[np.linspace(0, len(merged) - 1, most).astype(int)]


def text_tokens(ids: Sequence[int], table: Any) -> NDArray[np.float32]:
    """Rows of the bundle's embedding graph, an ONNX Runtime session: [S, H]."""
    rows: NDArray[np.float32] = table.run(["inputs_embeds"], {"input_ids": np.asarray([ids], np.int64)})[0][0]
    return rows
