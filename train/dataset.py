"""Training pages: a page, many questions about it, each answered on its own.

All questions of a page share one image prefix. They are packed into one sequence and kept apart
by an attention mask (`objective.py`), so the tower and the image tokens are computed once per
page and the model still learns exactly what it is asked at inference: one question after one image.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pulse_edge.contract import IGNORE_ID, PAD_COLOUR, TILE_SIZE, exact_div
from pulse_edge.ecg import instruct
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.photo import draw_photo_style, photograph
from pulse_edge.ecg.vary import PHOTOS, draw_picture, draw_style, vary_record
from pulse_edge.model.packing import PAD_SEGMENT, image_prefix, pack
from pulse_edge.model.preprocess import geometry, tiles
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.examples import BeatBasis, Example
from pulse_edge.train.morph import Morphs
from pulse_edge.train.traces import cell_traces

BELIEF: Final = np.float32(0.7)  # share of the teacher's probability in the target, the label has the rest
PHOTO_DPI: Final = 122.0  # of the pages photographed for validation
PHOTO_SEVERITY: Final = 1.2
FINDINGS: Final = 3  # asked about on a page
EXACT: Final = 0.3  # share of pages that go through PULSE's own, slower resizing


class PageDataset(Dataset[dict[str, Any]]):
    """Endless varied pages of a list of examples, item ``k`` a function of ``(seed, k)`` only.

    Args:
        examples: the records.
        tokenizer: of the model.
        basis: of the median beats, the targets of the measurement head.
        tokens_per_tile: of the model's tower.
        length: how many pages there are.
        seed: of order and variation.
        beliefs: float32 [examples, 28], logits of a teacher on the targets of :func:`diagnoses`.
        photos: share of pages that come as a phone's photo.
        dense: whether pages come with what only the readout head learns: beats, rhythm and traces.
        morphs: records between records, and what their teacher says of them, logits float32 [morphs, 28].
        morphed: share of pages that show them; of the rest every record comes once an epoch.
    """

    def __init__(
        self,
        examples: list[Example],
        tokenizer: Tokenizer,
        basis: BeatBasis,
        tokens_per_tile: int,
        length: int,
        seed: int = 0,
        beliefs: NDArray[np.float32] | None = None,
        photos: float = PHOTOS,
        dense: bool = True,
        morphs: tuple[Morphs, NDArray[np.float32]] | None = None,
        morphed: float = 0.0,
    ) -> None:
        self.beliefs, self.photos, self.dense = beliefs, photos, dense
        self.morphs, self.morphed = morphs, morphed
        self.examples, self.tokenizer, self.basis = examples, tokenizer, basis
        self.length, self.seed = length, seed
        self.prefix = image_prefix(tokenizer, tokens_per_tile)
        self.cell = exact_div(TILE_SIZE, math.isqrt(tokens_per_tile))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> dict[str, Any]:
        drawn = int(k * self.morphed)  # morphs among the items before this one
        if self.morphs is not None and int((k + 1) * self.morphed) > drawn:
            return self._morph(*self.morphs, drawn, random.Random(f"{self.seed}/{k}"))
        epoch, place = divmod(k - drawn, len(self.examples))
        order = random.Random(f"{self.seed}/{epoch}").sample(range(len(self.examples)), len(self.examples))
        item = self.page(self.examples[order[place]], random.Random(f"{self.seed}/{k}"))
        if self.beliefs is not None:
            believed = 1 / (1 + np.exp(-self.beliefs[order[place]]))
            item["diagnoses"] += BELIEF * (believed - item["diagnoses"])  # unknown stays NaN
        return item

    def _morph(
        self, morphs: Morphs, logits: NDArray[np.float32], k: int, rng: random.Random
    ) -> dict[str, Any]:
        """A page of morph ``k``: the teacher says its superclasses, its rate is measured, that is all."""
        believed = 1 / (1 + np.exp(-logits[k]))
        groups = list(instruct.SUPERCLASS_PHRASES)
        # All superclasses and some findings are asked for; no stage with morphs learns these hard answers.
        likeliest = groups[int(believed[: len(groups)].argmax())]
        facts = instruct.Facts(frozenset(), frozenset({likeliest}), None, assignable=frozenset())
        asked = set(rng.choices(instruct.ASKED, believed[len(groups) :].tolist(), k=FINDINGS // 2))
        asked |= set(rng.sample(instruct.ASKED, FINDINGS - len(asked)))
        turns = [instruct.finding_turn(code, False, rng) for code in sorted(asked)]
        item = self.page(Example(morphs.record(k), "", facts), rng, turns)
        item["diagnoses"] = believed
        return item

    def page(
        self, example: Example, rng: random.Random, findings: list[instruct.Turn] | None = None
    ) -> dict[str, Any]:
        """Make one training item of an example, or of a morph, which comes with questions for findings."""
        record = vary_record(example.record, rng)
        style = draw_style(rng, record.duration)
        page = render(record, style)
        image, places = draw_picture(page, rng, self.photos)
        measured = measure(record)
        facts = replace(example.facts, rate_bpm=measured.rate_bpm)
        turns = [
            *instruct.superclass_turns(facts, rng),
            *(instruct.finding_turns(facts, rng, FINDINGS) if findings is None else findings),
            *instruct.rate_turn(facts, rng),
        ]
        if findings is None:
            turns.append(instruct.report_turn(facts))
        item = pack(self.prefix, turns, self.tokenizer)
        item["found"] = _found(turns, item)
        item["tiles"] = tiles(image) if rng.random() < EXACT else quick_tiles(image)
        item["diagnoses"] = diagnoses(facts)
        if not self.dense:
            return item
        item["traces"], item["leads"] = cell_traces(page, record, places, self.cell)
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
    """The unvaried default page of every example with the five superclass questions.

    Args:
        examples: the records.
        tokenizer: of the model.
        tokens_per_tile: of the model's tower.
        photos: whether each page comes as a photo, the same one every time.
    """

    def __init__(
        self, examples: list[Example], tokenizer: Tokenizer, tokens_per_tile: int, photos: bool = False
    ) -> None:
        self.examples, self.tokenizer, self.photos = examples, tokenizer, photos
        self.prefix = image_prefix(tokenizer, tokens_per_tile)
        self._tiles: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> dict[str, Any]:
        example = self.examples[k]
        turns = instruct.superclass_turns(example.facts, random.Random(0), plain_share=1.0)
        item = pack(self.prefix, turns, self.tokenizer)
        item["diagnoses"] = diagnoses(example.facts)
        if k not in self._tiles:  # drawn once: a validation set is small, and seen many times
            self._tiles[k] = tiles(self._picture(k))
        item["tiles"] = self._tiles[k]
        return item

    def _picture(self, k: int) -> NDArray[np.uint8]:
        page = render(self.examples[k].record, PaperStyle(dpi=PHOTO_DPI) if self.photos else PaperStyle())
        if not self.photos:
            return page.image
        style = draw_photo_style(random.Random(f"photo {k}"), PHOTO_SEVERITY)
        return photograph(page.image, page.px_per_mm, style).image


def quick_tiles(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As :func:`tiles`, three times as fast: resized by area, a grey level from bicubic in the mean."""
    place = geometry(image.shape[1], image.shape[0])
    page = cv2.resize(image, place.resized, interpolation=cv2.INTER_AREA)
    canvas = np.full((place.best[1], place.best[0], 3), PAD_COLOUR, np.uint8)
    x, y = place.paste
    canvas[y : y + place.resized[1], x : x + place.resized[0]] = page
    base = cv2.resize(page, (TILE_SIZE, TILE_SIZE), interpolation=cv2.INTER_AREA)
    across, down = place.grid
    cut = canvas.reshape(down, TILE_SIZE, across, TILE_SIZE, 3).swapaxes(1, 2)
    return np.concatenate([base[None], cut.reshape(-1, TILE_SIZE, TILE_SIZE, 3)]).astype(np.uint8)


def _found(turns: list[instruct.Turn], item: dict[str, Any]) -> NDArray[np.int64]:
    """Where answers about findings are read from, and which of :func:`diagnoses` they are; -1 for none."""
    found = np.full((FINDINGS, 2), -1, np.int64)
    asked = [(number, turn) for number, turn in enumerate(turns, start=1) if turn.kind == "finding"]
    for row, (number, turn) in zip(found, asked, strict=False):
        answer = np.flatnonzero((item["segment"] == number) & (item["labels"] != IGNORE_ID))
        row[:] = answer[0] - 1, len(instruct.SUPERCLASS_PHRASES) + instruct.ASKED.index(turn.about)
    return found


def diagnoses(facts: instruct.Facts) -> NDArray[np.float32]:
    """Return 1, 0 or NaN (not known) for the five superclasses, then for the findings asked about."""
    known = np.float32(np.nan if not facts.superclasses else 0.0)
    groups = [known + np.float32(name in facts.superclasses) for name in instruct.SUPERCLASS_PHRASES]
    found = [facts.has(code) for code in instruct.ASKED]
    return np.array(groups + [np.nan if has is None else has for has in found], np.float32)


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items, padding the sequences on the right; beats and rhythm only if all items have them."""
    width = max(len(item["ids"]) for item in items)
    fill = {"ids": 0, "segment": PAD_SEGMENT, "labels": IGNORE_ID, "weights": 0.0}

    def padded(name: str) -> NDArray[Any]:
        rows = [item[name] for item in items]
        return np.stack([np.pad(row, (0, width - len(row)), constant_values=fill[name]) for row in rows])

    batch = {name: torch.from_numpy(padded(name)) for name in fill}
    for name in ("tiles", "closed", "found", "diagnoses", "beats", "rhythm", "traces", "leads"):
        if name in items[0]:
            batch[name] = torch.from_numpy(np.stack([item[name] for item in items]))
    return batch
