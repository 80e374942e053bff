"""Training pages: a page, many questions about it, each answered on its own.

All questions of a page share one image prefix. They are packed into one sequence and kept apart
by an attention mask (`objective.py`), so the tower and the image tokens are computed once per
page and the model still learns exactly what it is asked at inference: one question after one image.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pulse_edge.contract import EOS_ID, IGNORE_ID, IMAGE_TOKEN, IMAGE_TOKEN_ID, MAX_TILES, ROLES
from pulse_edge.ecg import instruct
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.record import LEADS
from pulse_edge.model.preprocess import tiles
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.augment import draw_style, vary_picture, vary_record
from pulse_edge.train.examples import BeatBasis, Example

# How much one answer of a kind counts; a report has some forty tokens, a closed answer one.
ANSWER_WEIGHT: Final = {"superclass": 1.0, "finding": 0.5, "rate": 0.5, "report": 1.0}
PAD_SEGMENT: Final = -1
# Reports are long: only every third block of this many pages is asked for words beside yes and no.
WORDY_BLOCK: Final = 16


class PageDataset(Dataset[dict[str, Any]]):
    """Endless varied pages of a list of examples, item ``k`` a function of ``(seed, k)`` only.

    Args:
        examples: the records.
        tokenizer: of the model.
        basis: of the median beats, the targets of the measurement head.
        tokens_per_tile: of the model's tower.
        length: how many pages there are.
        seed: of order and variation.
    """

    def __init__(
        self,
        examples: list[Example],
        tokenizer: Tokenizer,
        basis: BeatBasis,
        tokens_per_tile: int,
        length: int,
        seed: int = 0,
    ) -> None:
        self.examples, self.tokenizer, self.basis = examples, tokenizer, basis
        self.length, self.seed = length, seed
        self.prefix = image_prefix(tokenizer, tokens_per_tile)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> dict[str, Any]:
        epoch, place = divmod(k, len(self.examples))
        order = random.Random(f"{self.seed}/{epoch}").sample(range(len(self.examples)), len(self.examples))
        wordy = k // WORDY_BLOCK % 3 == 0
        return self.page(self.examples[order[place]], random.Random(f"{self.seed}/{k}"), wordy)

    def page(self, example: Example, rng: random.Random, wordy: bool) -> dict[str, Any]:
        """Make one training item of an example; a wordy one is asked for findings, rate and report too."""
        record = vary_record(example.record, rng)
        style = draw_style(rng, record.duration)
        image = render(record, style).image
        if rng.random() < 0.4:
            image = vary_picture(image, rng)
        measured = measure(record)
        facts = instruct.Facts(example.facts.codes, example.facts.superclasses, measured.rate_bpm)
        turns = instruct.superclass_turns(facts, rng)
        if wordy or not turns:
            turns += instruct.finding_turns(facts, rng)
            turns += instruct.rate_turn(facts, rng)
            turns += [instruct.report_turn(facts)]
        item = pack(self.prefix, turns, self.tokenizer)
        item["tiles"] = tiles(image)
        item["beats"] = self.basis.project(measured.beats)
        item["rhythm"] = np.array(
            [
                np.log((measured.rate_bpm or np.nan) / 75.0) * 4.0,
                np.log(max(measured.irregularity, 0.003) / 0.05) if measured.irregularity else np.nan,
            ],
            np.float32,
        )
        return item


class DefaultPages(Dataset[dict[str, Any]]):
    """The unvaried default page of every example with the five superclass questions."""

    def __init__(self, examples: list[Example], tokenizer: Tokenizer, tokens_per_tile: int) -> None:
        self.examples, self.tokenizer = examples, tokenizer
        self.prefix = image_prefix(tokenizer, tokens_per_tile)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> dict[str, Any]:
        example = self.examples[k]
        turns = instruct.superclass_turns(example.facts, random.Random(0), plain_share=1.0)
        item = pack(self.prefix, turns, self.tokenizer)
        item["tiles"] = tiles(render(example.record, PaperStyle()).image)
        return item


def image_prefix(tokenizer: Tokenizer, tokens_per_tile: int) -> list[int]:
    """Token ids up to and including the image, one sentinel per visual token of five flat tiles."""
    prompt = build_prompt([("", None)])
    ids = encode_prompt(prompt[: prompt.index(IMAGE_TOKEN)] + IMAGE_TOKEN, tokenizer)
    at = ids.index(IMAGE_TOKEN_ID)
    return ids[:at] + [IMAGE_TOKEN_ID] * (tokens_per_tile * MAX_TILES)


def after_image(question: str, tokenizer: Tokenizer, answer: str | None = None) -> list[int]:
    """Token ids of what follows the image: question, assistant's turn and, if given, the answer."""
    text = f"\n{question} {ROLES[1]}:" + (f" {answer}" if answer is not None else "")
    ids = tokenizer.encode(text, bos=False)
    return ids + [EOS_ID] if answer is not None else ids


def pack(prefix: list[int], turns: list[instruct.Turn], tokenizer: Tokenizer) -> dict[str, Any]:
    """Pack the prefix, one measuring segment per lead and one for the rhythm, and all turns.

    Returns:
        ids, segment (0 is the shared prefix), labels, weights: 1-D arrays of equal length; probes:
        indices of the 13 positions that the measurement heads read (12 leads, then the rhythm).
    """
    segments = [(tokenizer.encode(f"\n{name}:", bos=False), 0, 0.0) for name in (*LEADS, "Rate")]
    probes = np.cumsum([len(ids) for ids, _, _ in segments]) + len(prefix) - 1
    for turn in turns:
        asked = len(after_image(turn.question, tokenizer))
        ids = after_image(turn.question, tokenizer, turn.answer)
        segments.append((ids, len(ids) - asked, ANSWER_WEIGHT[turn.kind]))
    ids, segment = list(prefix), [0] * len(prefix)
    labels, weights = [IGNORE_ID] * len(prefix), [0.0] * len(prefix)
    for number, (tokens, answered, weight) in enumerate(segments, start=1):
        quiet = len(tokens) - answered
        ids += tokens
        segment += [number] * len(tokens)
        labels += [IGNORE_ID] * quiet + tokens[quiet:]
        # The first token carries a closed answer; in longer answers every token counts the same.
        weights += [0.0] * quiet + [weight / max(answered, 1)] * answered
    return {
        "ids": np.asarray(ids, np.int64),
        "segment": np.asarray(segment, np.int64),
        "labels": np.asarray(labels, np.int64),
        "weights": np.asarray(weights, np.float32),
        "probes": np.asarray(probes, np.int64),
    }


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items, padding the sequences on the right; beats and rhythm only if all items have them."""
    width = max(len(item["ids"]) for item in items)
    fill = {"ids": 0, "segment": PAD_SEGMENT, "labels": IGNORE_ID, "weights": 0.0}

    def padded(name: str) -> NDArray[Any]:
        rows = [item[name] for item in items]
        return np.stack([np.pad(row, (0, width - len(row)), constant_values=fill[name]) for row in rows])

    batch = {name: torch.from_numpy(padded(name)) for name in fill}
    for name in ("tiles", "probes", "beats", "rhythm"):
        if name in items[0]:
            batch[name] = torch.from_numpy(np.stack([item[name] for item in items]))
    return batch
