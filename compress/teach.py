"""A student learns from its teacher, one lesson after another; a killed run goes on from where it was.

What it may be told, each part with a weight of its own:

* ``answers``: the words of the answers themselves, as in training (without a teacher, all there is);
* ``response``: the teacher's distribution over every word of them, softened by a temperature (Hinton et al.,
  2015);
* ``labels``: the teacher's probability of every label, which is what the model is scored by;
* ``features``: the teacher's visual tokens, through a linear map where the widths differ (Romero et al.,
  2015).
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pulse_edge import interrupt
from pulse_edge.compress.lessons import Lessons, margins, packed, read, spoken, yes_no_ids
from pulse_edge.contract import IGNORE_ID, MAX_TILES
from pulse_edge.errors import UserError
from pulse_edge.model.packed import normalize
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer

SAVE_S: Final = 60.0  # between two points from which a killed run goes on
_STATE: Final = "state.pt"


@dataclass(frozen=True)
class Weights:
    """How much each part counts; 0 leaves it out."""

    answers: float = 0.5
    response: float = 1.0
    labels: float = 1.0
    features: float = 1.0


@dataclass(frozen=True)
class Course:
    """How a student is taught.

    Attributes:
        steps: of the optimiser.
        batch: pages a step.
        learning_rate: at its height; it rises over the first 5 % of the steps and falls as a cosine.
        weight_decay: of AdamW.
        temperature: that softens ``response``.
        average: decay of the moving average of the weights, which is what is kept.
        weights: of what is taught.
        vision: teach tower and projector too, and not the language model alone.
        seed: of the pages' order.
    """

    steps: int
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    temperature: float = 2.0
    average: float = 0.99
    weights: Weights = Weights()
    vision: bool = True
    seed: int = 0


def teach(
    student: PulseForConditionalGeneration,
    tokenizer: Tokenizer,
    head: Tensor,
    lessons: Lessons,
    course: Course,
    folder: Path,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Teach a student in place.

    Args:
        student: float32.
        tokenizer: the student's.
        head: the teacher's [V, H], float32, which turns the states that were kept into distributions.
        lessons: with the teacher's targets.
        course: what is taught, and how.
        folder: for the state that a killed run goes on from.
        tick: called with steps done and in all.

    Returns:
        The mean of every part of the loss over the last tenth of the steps.

    Raises:
        UserError: the teacher's words are not the student's, and ``response`` is asked for; or the unfinished
            run in ``folder`` was another.
    """
    if course.weights.response and not _same_words(tokenizer, lessons.tokenizer):
        raise UserError(
            "The student has another tokenizer than its teacher, so their distributions over words cannot be "
            "compared. Set the weight of response to 0; answers: teacher teaches the teacher's words as text."
        )
    torch.manual_seed(course.seed)
    pupil = _Pupil(student, tokenizer, head, lessons, course)
    optimiser = torch.optim.AdamW(
        [p for p in pupil.parameters() if p.requires_grad],
        lr=course.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=course.weight_decay,
    )
    average = torch.optim.swa_utils.AveragedModel(
        pupil, multi_avg_fn=_moving_average(course.average), use_buffers=True
    )
    file = folder / _STATE
    tally: dict[str, list[float]] = {}
    first = _resume(file, course, pupil, optimiser, average, tally)
    saved = time.monotonic()
    for step in range(first, course.steps):
        tick(step, course.steps)
        for group in optimiser.param_groups:
            group["lr"] = course.learning_rate * _rate(step, course.steps)
        optimiser.zero_grad(set_to_none=True)
        parts = pupil(_numbers(len(lessons), course, step))
        total = torch.stack([getattr(course.weights, name) * loss for name, loss in parts.items()]).sum()
        total.backward()
        nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(pupil)
        for name, loss in parts.items():
            if step >= 0.9 * course.steps - 1:
                tally.setdefault(name, []).append(float(loss.detach()))
        if time.monotonic() - saved > SAVE_S or step + 1 == course.steps:
            _save(file, course, step + 1, pupil, optimiser, average, tally)
            saved = time.monotonic()
    tick(course.steps, course.steps)
    if course.steps:
        pupil.load_state_dict(average.module.state_dict())
    student.eval().requires_grad_(False)
    return {name: sum(values) / len(values) for name, values in tally.items()}


class _Pupil(nn.Module):
    """A student and what it needs while it is taught; ``forward`` takes page numbers and gives the losses."""

    def __init__(
        self,
        student: PulseForConditionalGeneration,
        tokenizer: Tokenizer,
        head: Tensor,
        lessons: Lessons,
        course: Course,
    ) -> None:
        super().__init__()
        self.student, self.tokenizer, self.lessons, self.course = student, tokenizer, lessons, course
        self.register_buffer("head", head, persistent=False)
        own, wide = student.config.text_config.hidden_size, head.shape[1]
        self.map = nn.Identity() if own == wide else nn.Linear(own, wide)
        self.yes_no = yes_no_ids(tokenizer)
        for name, parameter in student.named_parameters():
            seen = "vision_tower" in name or "multi_modal_projector" in name
            parameter.requires_grad_((course.vision or not seen) and "image_newline" not in name)
        student.model.vision_tower.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> _Pupil:
        """Switch between training and evaluation; what is not taught stays in evaluation."""
        super().train(mode)
        if not self.course.vision:
            self.student.model.vision_tower.eval()
        return self

    def forward(self, numbers: list[int]) -> dict[str, Tensor]:
        weights, student = self.course.weights, self.student
        names = ["tiles", "margins"]
        names += ["features"] if weights.features or not self.course.vision else []
        names += ["said"] if weights.response else []
        batch = self.lessons.batch(numbers, tuple(names))
        rows = self._look(batch)
        kept = torch.stack(
            [student.choose_tokens(normalize(t), r) for t, r in zip(batch["tiles"], rows, strict=True)]
        )
        asked = packed(batch["turns"], self.tokenizer, kept.shape[1] // MAX_TILES)
        hidden = read(student, kept, asked)
        parts = {}
        if weights.answers or weights.response:
            logits = student.lm_head(spoken(hidden, asked["labels"])).float()
            wanted = asked["labels"][:, 1:]
            weight = asked["weights"][:, 1:][wanted != IGNORE_ID]
            if weights.answers:
                each = nn.functional.cross_entropy(logits, wanted[wanted != IGNORE_ID], reduction="none")
                parts["answers"] = (each * weight).sum() / weight.sum()
            if weights.response:
                each = _divergence(logits, batch["said"].float() @ self.head.T, self.course.temperature)
                parts["response"] = (each * weight).sum() / weight.sum()
        known = batch["margins"].isfinite()
        if weights.labels and known.any():
            own = margins(student, hidden, asked["closed"].clamp(min=0), self.yes_no)
            parts["labels"] = nn.functional.binary_cross_entropy_with_logits(
                own[known], batch["margins"][known].sigmoid()
            )
        if weights.features and self.course.vision:
            parts["features"] = _unlike(self.map(rows), batch["features"].float())
        return parts

    def _look(self, batch: dict[str, Any]) -> Tensor:
        """The student's projected tokens [B, 5 T, H]; those of its parent where its eyes are the parent's."""
        if not self.course.vision:
            found: Tensor = batch["features"].float()
            return found
        views = normalize(batch["tiles"].flatten(0, 1))
        seen = self.student.encode_images(views, every=True)
        return seen.reshape(len(batch["tiles"]), -1, seen.shape[-1])


def _divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL of each token's distribution from the teacher's, scaled back by the squared temperature: [M]."""
    log_own, log_wanted = ((x / temperature).log_softmax(-1) for x in (logits, target))
    return (log_wanted.exp() * (log_wanted - log_own)).sum(-1) * temperature**2


def _unlike(own: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of visual tokens [B, 5 T, H], relative to the spread of the wanted ones.

    Where the grids of a tile differ, the finer one is pooled to the coarser.
    """
    sides = [math.isqrt(x.shape[1] // MAX_TILES) for x in (own, wanted)]
    if sides[0] != sides[1]:
        own, wanted = (_pooled(x, side, min(sides)) for x, side in zip((own, wanted), sides, strict=True))
    return nn.functional.mse_loss(own, wanted) / wanted.var().clamp(min=1e-6)


def _pooled(x: Tensor, side: int, small: int) -> Tensor:
    grid = x.unflatten(1, (MAX_TILES, side, side)).permute(0, 1, 4, 2, 3).flatten(0, 1)
    return nn.functional.adaptive_avg_pool2d(grid, small)


def _numbers(count: int, course: Course, step: int) -> list[int]:
    """The pages of a step: every page once, in an order of its own for each round."""
    numbers = []
    for k in range(step * course.batch, (step + 1) * course.batch):
        order = random.Random(f"course/{course.seed}/{k // count}").sample(range(count), count)
        numbers.append(order[k % count])
    return numbers


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _moving_average(decay: float) -> Any:
    """Moving average whose horizon grows with the steps, so that it forgets the start."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)

    return update


def _save(file: Path, course: Course, step: int, *parts: Any) -> None:
    pupil, optimiser, average, tally = parts
    state = {
        "course": repr(asdict(course)),
        "step": step,
        "pupil": pupil.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average.state_dict(),
        "tally": tally,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    work = file.with_suffix(".partial")
    torch.save(state, work)
    interrupt.check()
    os.replace(work, file)


def _resume(file: Path, course: Course, *parts: Any) -> int:
    """Take up the state that a killed run left; return the step to go on with."""
    pupil, optimiser, average, tally = parts
    if not file.is_file():
        return 0
    state = torch.load(file, weights_only=True)
    if state["course"] != repr(asdict(course)):
        raise UserError(
            f"{file.parent} holds an unfinished course with other settings. Run that one to its end, or "
            "delete the folder."
        )
    pupil.load_state_dict(state["pupil"])
    optimiser.load_state_dict(state["optimiser"])
    average.load_state_dict(state["average"])
    tally.update(state["tally"])
    return int(state["step"])


def _same_words(one: Tokenizer, other: Tokenizer) -> bool:
    return one.path.read_bytes() == other.path.read_bytes()
