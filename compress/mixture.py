"""Mixtures of forms: put into a model, measured, and noted on the disk so that a killed search goes on."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pulse_edge import interrupt
from pulse_edge.bundle import write_atomic
from pulse_edge.compress.assign import Point, pareto
from pulse_edge.compress.form import Form
from pulse_edge.compress.journal import Journal
from pulse_edge.compress.plan import FLOAT
from pulse_edge.compress.quantize import Settings
from pulse_edge.compress.questions import Questions, divergence
from pulse_edge.errors import UserError
from pulse_edge.evaluate.gate import Budget, compare
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import QuantizedWeight

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quest:
    """What is looked for.

    Attributes:
        settings: method and calibration; ``form`` and ``forms`` are not used.
        choices: forms that a layer may take; None leaves it as it is.
        records: labels.csv, of whose validation patients the harm is measured.
        limit: at most so many of them.
        budget: that the whole mixture may cost on them.
        cost: of a matrix [N, K] in a form: whole bytes, or picoseconds of a token.
        unit: ``bytes`` or ``picoseconds``.
    """

    settings: Settings
    choices: tuple[Form | None, ...]
    records: Path
    limit: int | None
    budget: Budget
    cost: Callable[[tuple[int, int], Form | None], int]
    unit: str


class Notes:
    """What was measured so far, on the disk: by layer and form, and by mixture."""

    def __init__(self, folder: Path, quest: Quest, weights: Mapping[str, str]) -> None:
        settings = {k: str(v) for k, v in asdict(quest.settings).items() if k not in ("form", "forms")}
        job = {"weights": dict(weights), "settings": settings, "records": str(quest.records),
               "limit": quest.limit, "choices": [name_of(form) for form in quest.choices]}  # fmt: skip
        self.journal = Journal(folder, job)
        self._file = folder / "found.json"
        found = json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        self.layers: dict[str, dict[str, float]] = found.get("layers", {})
        self.mixtures: dict[str, dict[str, float | None]] = found.get("mixtures", {})

    def write(self) -> None:
        """Put everything on the disk."""
        interrupt.check()
        write_atomic(self._file, json.dumps({"layers": self.layers, "mixtures": self.mixtures}).encode())

    def delete(self) -> None:
        """Delete the folder: the search is finished."""
        shutil.rmtree(self.journal.folder)


def name_of(form: Form | None) -> str:
    """Name of a form, or of its absence."""
    return form.name if form else FLOAT


class Mixer:
    """Puts mixtures of forms into a model and measures them.

    Args:
        model: float32; it is as it was after every measurement.
        questions: that it is asked.
        quest: what is looked for.
        rounded: every matrix by layer, in the order of ``quest.choices``; None where a form does not fit.
        notes: of what was measured.
    """

    def __init__(
        self,
        model: PulseForConditionalGeneration,
        questions: Questions,
        quest: Quest,
        rounded: dict[str, list[QuantizedWeight | None]],
        notes: Notes,
    ) -> None:
        self.model, self.questions, self.quest, self.rounded, self.notes = (
            model, questions, quest, rounded, notes
        )  # fmt: skip
        self.offered = {
            name: [k for k, form in enumerate(quest.choices) if form is None or weights[k] is not None]
            for name, weights in rounded.items()
        }
        stuck = [name for name, ways in self.offered.items() if not ways]
        if stuck:
            raise UserError(f"No form fits {stuck[0]}. Add 16 to --choices, or use another --group.")
        self.costs = {
            name: [quest.cost(self._shape(name), quest.choices[k]) for k in ways]
            for name, ways in self.offered.items()
        }
        self.before = questions.logits(model)
        self.scored = questions.scored(self.before)

    def _linear(self, name: str) -> nn.Linear:
        found: nn.Linear = self.model.model.language_model.get_submodule(name)
        return found

    def _shape(self, name: str) -> tuple[int, int]:
        rows, columns = self._linear(name).weight.shape
        return rows, columns

    def measure_layers(self, tick: Tick) -> None:
        """Round one layer at a time, in every form, and note the divergence."""
        for done, name in enumerate(self.rounded):
            tick("layers", done, len(self.rounded))
            row = self.notes.layers.setdefault(name, {})
            for k in self.offered[name]:
                form = self.quest.choices[k]
                if name_of(form) not in row:
                    row[name_of(form)] = 0.0 if form is None else self._diverge({name: k})
                    self.notes.write()
        tick("layers", len(self.rounded), len(self.rounded))

    def _diverge(self, ways: Mapping[str, int]) -> float:
        with self._mixed(ways):
            return max(0.0, divergence(self.before, self.questions.logits(self.model)))

    @contextmanager
    def _mixed(self, ways: Mapping[str, int]) -> Iterator[None]:
        """Put the values of rounded matrices into the model for as long as the context lasts."""
        own = {name: self._linear(name).weight.data for name in ways}
        try:
            for name, k in ways.items():
                weight = self.rounded[name][k]
                if weight is not None:
                    self._linear(name).weight.data = torch.from_numpy(weight.dequantize())
            yield
        finally:
            for name, data in own.items():
                self._linear(name).weight.data = data

    def harms(self) -> list[list[float]]:
        """Divergence of every layer's forms."""
        return [
            [self.notes.layers[name][name_of(self.quest.choices[k])] for k in ways]
            for name, ways in self.offered.items()
        ]

    def front(self) -> list[Point]:
        """Return the Pareto front of predicted divergence against cost."""
        return pareto(list(self.costs.values()), self.harms())

    def uniform(self) -> list[Point]:
        """Return the mixtures that are none: one form wherever it fits, the next in order elsewhere."""
        points = []
        for k in range(len(self.quest.choices)):
            picks = tuple(min(range(len(w)), key=lambda j: abs(w[j] - k)) for w in self.offered.values())
            cost = sum(row[j] for row, j in zip(self.costs.values(), picks, strict=True))
            harm = sum(row[j] for row, j in zip(self.harms(), picks, strict=True))
            points.append(Point(cost, harm, picks))
        return points

    def forms(self, point: Point) -> dict[str, Form | None]:
        """Return the form of every layer."""
        pairs = zip(self.offered.items(), point.picks, strict=True)
        return {name: self.quest.choices[ways[k]] for (name, ways), k in pairs}

    def known(self, point: Point) -> bool:
        """Say whether a mixture was measured."""
        return str(point.picks) in self.notes.mixtures

    def measure(self, point: Point) -> dict[str, float | None]:
        """Return ``divergence``, ``loss`` of macro AUROC and ``flip_share`` of a mixture."""
        key = str(point.picks)
        if key not in self.notes.mixtures:
            pairs = zip(self.offered.items(), point.picks, strict=True)
            with self._mixed({name: ways[k] for (name, ways), k in pairs}):
                logits = self.questions.logits(self.model)
            found = compare(self.scored, self.questions.scored(logits), intervals=False)
            self.notes.mixtures[key] = {
                "divergence": max(0.0, divergence(self.before, logits)),
                "loss": found["loss"],
                "flip_share": found["flip_share"],
            }
            self.notes.write()
        return self.notes.mixtures[key]

    def row(self, point: Point, chosen: bool) -> dict[str, Any]:
        """Return a row of the table; measures the mixture unless it was."""
        named = {name_of(form) for form in self.forms(point).values()}
        counts = collections.Counter(name_of(form) for form in self.forms(point).values())
        return {
            "cost": point.cost,
            "predicted": point.harm,
            **self.measure(point),
            "layers": dict(sorted(counts.items())),
            "uniform": len(named) == 1,
            "chosen": chosen,
        }
