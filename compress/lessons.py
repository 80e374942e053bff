"""What a student is taught on: training pages with questions, and what its teacher makes of them.

The teacher reads every page once. Of each are kept the tiles, the questions with their answers, the teacher's
visual features, its margin between "Yes" and "No" for every label, and the hidden states from which it says
each token of the answers: a head turns those into the whole distribution again, at a fraction of its size.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from pulse_edge.bundle import sha256_file
from pulse_edge.compress.journal import Journal
from pulse_edge.contract import IGNORE_ID, MAX_TILES
from pulse_edge.ecg import instruct
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import Record, read_record
from pulse_edge.ecg.split import split
from pulse_edge.ecg.vary import draw_picture, draw_style, vary_record
from pulse_edge.errors import RecordError, UserError
from pulse_edge.evaluate.labels import read_labels
from pulse_edge.model.packed import normalize, segment_mask, segment_positions
from pulse_edge.model.packing import PAD_SEGMENT, image_prefix, pack
from pulse_edge.model.preprocess import tiles
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer

SHARD: Final = 16  # pages that are made between two points from which a killed run goes on
ANSWERS: Final = ("labels", "teacher")
_REPORT_TOKENS: Final = 96


@dataclass(frozen=True)
class Plan:
    """Which lessons there are.

    Attributes:
        records: a labels.csv; only patients of the training side are taken.
        pages: to make, every one drawn, varied and photographed anew.
        seed: of order and variation.
        answers: whose report is learnt word by word: as the ``labels`` have it, or the ``teacher``'s own.
    """

    records: Path
    pages: int
    seed: int = 0
    answers: str = "labels"


@dataclass(frozen=True)
class Page:
    """One page before a teacher has seen it: uint8 [5, 336, 336, 3], what is asked, labels (NaN: unknown)."""

    tiles: NDArray[np.uint8]
    turns: list[instruct.Turn]
    truth: NDArray[np.float32]


def packed(pages: list[list[instruct.Turn]], tokenizer: Tokenizer, tokens: int) -> dict[str, Tensor]:
    """Pack the turns of several pages behind images of 5 ``tokens`` each: ids, segment, labels, weights
    [B, L], closed [B, labels]."""
    prefix = image_prefix(tokenizer, tokens)
    items = [pack(prefix, turns, tokenizer) for turns in pages]
    width = max(len(item["ids"]) for item in items)
    fill = {"ids": 0, "segment": PAD_SEGMENT, "labels": IGNORE_ID, "weights": 0.0}
    batch = {
        name: np.stack([np.pad(i[name], (0, width - len(i[name])), constant_values=v) for i in items])
        for name, v in fill.items()
    }
    batch["closed"] = np.stack([item["closed"] for item in items])
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def read(model: PulseForConditionalGeneration, visual: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the language model's last hidden states [B, L, H] over packed questions.

    Args:
        model: the whole PULSE.
        visual: projected tokens [B, N, H].
        batch: of :func:`packed`.
    """
    ids = batch["ids"]
    embeds = model.get_input_embeddings()(ids.clamp(min=0))
    embeds = embeds.masked_scatter((ids < 0).unsqueeze(-1), visual.to(embeds.dtype))
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=segment_mask(batch["segment"], embeds.dtype),
        position_ids=segment_positions(batch["segment"]),
        use_cache=False,
    ).last_hidden_state
    return hidden


def spoken(hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the states [M, H] from which the answers' tokens are said, in the order of the batch."""
    states: Tensor = hidden[:, :-1][labels[:, 1:] != IGNORE_ID]
    return states


def margins(
    model: PulseForConditionalGeneration, hidden: Tensor, closed: Tensor, answers: tuple[int, int]
) -> Tensor:
    """Return logit(Yes) - logit(No) of the closed questions at ``closed`` [B, 5], float32 [B, 5]."""
    at = hidden.gather(1, closed.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    logits: Tensor = model.lm_head(at).float()
    return logits[..., answers[0]] - logits[..., answers[1]]


def yes_no_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the token ids of "Yes" and "No" where they follow "ASSISTANT:"."""
    yes, no = (tokenizer.encode(f": {word}", bos=False)[-1] for word in ("Yes", "No"))
    return yes, no


class Lessons:
    """Pages with a teacher's targets; made where they are missing, and read by number.

    Args:
        folder: kept; a call goes on from what is there, an interrupted one's or one's with fewer pages.
        plan: which pages.
        teacher: of whom the targets are; its folder.
        model: the teacher, float32.
        tick: called with pages made and in all.

    Raises:
        UserError: the table has no usable training record.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        teacher: Path,
        model: PulseForConditionalGeneration,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        job = {
            "plan": {"records": sha256_file(plan.records), "seed": plan.seed, "answers": plan.answers},
            "teacher": {path.name: sha256_file(path) for path in sorted(teacher.glob("*.safetensors"))},
        }
        self.journal, self.plan = Journal(folder, job), plan
        self.tokenizer = Tokenizer.from_folder(teacher)
        rows = list(_usable(plan.records))
        if not rows:
            raise UserError(f"No record of a training patient in {plan.records}. Name another table.")
        for number in range(self.shards):
            if not self.journal.done(number):
                tick(number * SHARD, plan.pages)
                made = [make(rows, plan, k) for k in range(number * SHARD, (number + 1) * SHARD)]
                self.journal.finish(number, *self._shown(model, made))
        tick(plan.pages, plan.pages)

    @property
    def shards(self) -> int:
        """Files that hold the pages."""
        return -(-self.plan.pages // SHARD)

    def __len__(self) -> int:
        return self.plan.pages

    def batch(self, numbers: list[int], wanted: tuple[str, ...]) -> dict[str, Any]:
        """Return pages by number: the tensors ``wanted``, stacked (``said`` joined), and their ``turns``."""
        found: dict[str, list[Any]] = {name: [] for name in (*wanted, "turns")}
        for k in numbers:
            with safe_open(self.journal.part(k // SHARD), framework="pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
                place = k % SHARD
                found["turns"].append([instruct.Turn(*turn) for turn in facts["turns"][place]])
                for name in wanted:
                    if name == "said":
                        start = sum(facts["said"][:place])
                        rows = opened.get_slice("said")[start : start + facts["said"][place]]
                        found[name].append(rows)
                    else:
                        found[name].append(opened.get_slice(name)[place])
        joined = {name: torch.stack(found[name]) for name in wanted if name != "said"}
        if "said" in wanted:
            joined["said"] = torch.cat(found["said"])
        return {**joined, "turns": found["turns"]}

    @torch.no_grad()
    def _shown(
        self, model: PulseForConditionalGeneration, pages: list[Page]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Let the teacher see the pages of one shard."""
        seen = torch.from_numpy(np.stack([page.tiles for page in pages]))
        views = [normalize(page) for page in seen]
        features = torch.stack([model.encode_images(view, every=True).flatten(0, 1) for view in views])
        visual = torch.stack([model.choose_tokens(v, f) for v, f in zip(views, features, strict=True)])
        turns = [page.turns for page in pages]
        if self.plan.answers == "teacher":
            turns = [_reworded(model, v, t, self.tokenizer) for v, t in zip(visual, turns, strict=True)]
        batch = packed(turns, self.tokenizer, visual.shape[1] // MAX_TILES)
        hidden = read(model, visual, batch)
        counts = (batch["labels"][:, 1:] != IGNORE_ID).sum(1)
        asked = batch["closed"][:, :1] >= 0
        margin = margins(model, hidden, batch["closed"].clamp(min=0), yes_no_ids(self.tokenizer))
        tensors = {
            "tiles": seen,
            "features": features.half(),
            "truth": torch.from_numpy(np.stack([page.truth for page in pages])),
            "margins": margin.masked_fill(~asked, float("nan")),
            "said": spoken(hidden, batch["labels"]).half(),
        }
        facts = {
            "turns": [[[t.kind, t.question, t.answer] for t in page] for page in turns],
            "said": counts.tolist(),
        }
        return tensors, facts


def _usable(table: Path) -> Iterator[tuple[dict[str, str], Path]]:
    for row in read_labels(table):
        patient = row.get("patient_id")
        if patient and split(patient) == "train":
            yield row, table.parent / row["record"]


def make(rows: list[tuple[dict[str, str], Path]], plan: Plan, number: int) -> Page:
    """Make one page, a function of its number and the plan's seed only.

    Raises:
        UserError: none of the records that it may show can be read.
    """
    epoch, place = divmod(number, len(rows))
    order = random.Random(f"lessons/{plan.seed}/{epoch}").sample(range(len(rows)), len(rows))
    rng = random.Random(f"lessons/{plan.seed}/{number}")
    for step in range(len(rows)):
        row, path = rows[order[(place + step) % len(rows)]]
        try:
            return _page(row, read_record(path), rng)
        except RecordError:
            continue
    raise UserError(f"No record of {plan.records} can be read. Check that its paths lead to records.")


def _page(row: dict[str, str], record: Record, rng: random.Random) -> Page:
    record = vary_record(record, rng)
    page = render(record, draw_style(rng, record.duration))
    image, _ = draw_picture(page, rng)
    names = frozenset(name for name in row["superclass"].split(";") if name)
    codes = frozenset(code for code in row.get("codes", "").split(";") if code)
    assignable = None if row.get("scheme", "scp") == "scp" else codes
    facts = instruct.Facts(codes, names, measure(record).rate_bpm, assignable)
    turns = [
        *instruct.superclass_turns(facts, rng),
        *instruct.finding_turns(facts, rng, count=2),
        *instruct.rate_turn(facts, rng),
        instruct.report_turn(facts),
    ]
    truth = [float(name in names) if names else float("nan") for name in instruct.SUPERCLASS_PHRASES]
    views = tiles(image)
    filled = np.zeros((MAX_TILES, *views.shape[1:]), np.uint8)
    filled[: len(views)] = views  # every page that is drawn has five
    return Page(filled, turns, np.asarray(truth, np.float32))


def _reworded(
    model: PulseForConditionalGeneration, visual: Tensor, turns: list[instruct.Turn], tokenizer: Tokenizer
) -> list[instruct.Turn]:
    """Put the teacher's own report in the place of the labels'.

    Sequence-level distillation (Kim and Rush, 2016), with the greedy answer, which is the one that is used.
    """
    backend = TorchBackend(model)
    said = []
    for turn in turns:
        if turn.kind == "report":
            ids = encode_prompt(build_prompt([(turn.question, None)]), tokenizer)
            logits, tokens = backend.prefill(visual.numpy(), ids), list[int]()
            while len(tokens) < _REPORT_TOKENS and (token := int(logits.argmax())) != tokenizer.eos_id:
                tokens.append(token)
                logits = backend.step(token)
            turn = replace(turn, answer=tokenizer.decode(tokens).strip())
        said.append(turn)
    return said
