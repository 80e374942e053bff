"""Label scores of a model that is changed again and again: pictures are read once, the decoder every time."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from pulse_edge.contract import IMAGE_TOKEN_ID, ROLES
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.errors import RecordError, UserError
from pulse_edge.evaluate.labels import read_labels
from pulse_edge.evaluate.score import Scored
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.reference import cache_argument
from pulse_edge.model.tokenizer import Tokenizer

BATCH: Final = 16  # pages that are read together


class Questions:
    """Pages with the closed question of every label.

    Args:
        model: reads the pictures, once.
        tokenizer: of the model.
        labels: the label set, see ``evaluate.labels.label_set``.
        scoring: likewise.
        table: labels.csv.
        side: of the split by patient.
        limit: at most so many records.
        tick: called with pages that were read and all.

    Raises:
        UserError: no record of this side has a label.
    """

    def __init__(
        self,
        model: PulseForConditionalGeneration,
        tokenizer: Tokenizer,
        labels: Mapping[str, Mapping[str, str]],
        scoring: Mapping[str, str],
        table: Path,
        side: str,
        limit: int | None = None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.names = list(labels)
        asked = [
            encode_prompt(build_prompt([(scoring["question"].format(**labels[name]), None)]), tokenizer)
            for name in self.names
        ]
        self.before = asked[0][: asked[0].index(IMAGE_TOKEN_ID)]
        self.after = [ids[ids.index(IMAGE_TOKEN_ID) + 1 :] for ids in asked]
        start = len(tokenizer.encode(f"{ROLES[1]}:", bos=False))
        self.answers = [
            tokenizer.encode(f"{ROLES[1]}: {scoring[word]}", bos=False)[start]
            for word in ("positive", "negative")
        ]
        rows = [
            row
            for row in read_labels(table)
            if row.get("patient_id") and split(row["patient_id"]) == side and _of(row) & set(self.names)
        ][:limit]
        self.records: list[str] = []
        self.patients: list[str] = []
        truth, images = [], []
        for done, row in enumerate(rows):
            tick(done, len(rows))
            try:
                page = render(read_record(table.parent / row["record"])).image
            except RecordError:
                continue
            images.append(_see(model, page))
            truth.append([name in _of(row) for name in self.names])
            self.records.append(row["record"])
            self.patients.append(row["patient_id"])
        if not images:
            raise UserError(f"No record of the side {side} in {table} has a label. Name another table.")
        self.truth = np.array(truth)
        self._images = images

    @torch.inference_mode()
    def logits(self, model: PulseForConditionalGeneration) -> NDArray[np.float64]:
        """Return by how much the positive answer's logit is above the negative's, [pages, labels]."""
        out = np.empty((len(self._images), len(self.names)))
        decoder = model.model.language_model
        look_up = model.get_input_embeddings()
        heads = model.lm_head.weight[self.answers].float()
        by_length: dict[int, list[int]] = collections.defaultdict(list)
        for k, image in enumerate(self._images):
            by_length[len(image)].append(k)
        groups = [same[k : k + BATCH] for same in by_length.values() for k in range(0, len(same), BATCH)]
        first = look_up(torch.tensor(self.before))
        for group in groups:
            pages = torch.stack([torch.cat([first, self._images[k].to(first.dtype)]) for k in group])
            kept: Any = DynamicCache()
            _read(decoder, pages, kept)
            for j, ids in enumerate(self.after):
                text = look_up(torch.tensor(ids)).expand(len(group), -1, -1)
                hidden = _read(decoder, text, copy.deepcopy(kept))[:, -1].float()
                said = hidden @ heads.T
                out[group, j] = (said[:, 0] - said[:, 1]).numpy()
        return out

    def scored(self, logits: NDArray[np.float64]) -> Scored:
        """Return the scores that :meth:`logits` stand for."""
        return Scored(self.names, self.records, self.patients, chances(logits), self.truth, {}, 0.0)


def chances(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the positive answer against the negative one."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(-logits, -80.0, 80.0))))


def divergence(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Mean Kullback-Leibler divergence of the answers, in nats, from their logits [pages, labels]."""
    p = chances(before)
    # log p - log q of a logit x is softplus(-y) - softplus(-x)
    yes = np.logaddexp(0, -after) - np.logaddexp(0, -before)
    no = np.logaddexp(0, after) - np.logaddexp(0, before)
    return float((p * yes + (1 - p) * no).mean())


def _of(row: Mapping[str, str]) -> set[str]:
    return {name.strip() for name in row["superclass"].split(";")}


@torch.inference_mode()
def _see(model: PulseForConditionalGeneration, page: NDArray[np.uint8]) -> Tensor:
    features = model.encode_images(torch.from_numpy(preprocess(page)))
    return model.merge_images(features, (page.shape[1], page.shape[0]))


def _read(decoder: Any, embeds: Tensor, cache: Any) -> Tensor:
    start, length = int(cache.get_seq_length()), embeds.shape[1]
    hidden: Tensor = decoder(
        inputs_embeds=embeds,
        position_ids=torch.arange(start, start + length)[None],
        use_cache=True,
        **cache_argument(decoder, cache),
    ).last_hidden_state
    return hidden
