"""Search a form for every layer: how much each hurts, what that costs, and the cheapest mixture that keeps
the accuracy.

Harm is the divergence of the labels' answers on validation patients when one layer alone is rounded; small
harms of different layers add up (to second order, as in HAWQ, Dong et al., 2019). The sums give the front;
points on it are then measured whole, because sums are an approximation and AUROC is what counts.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from pulse_edge.bundle import sha256_file
from pulse_edge.compress.assign import Point
from pulse_edge.compress.calibrate import build, read_recipe
from pulse_edge.compress.methods import find_method
from pulse_edge.compress.mixture import Mixer, Notes, Quest, Tick, name_of
from pulse_edge.compress.plan import write_plan
from pulse_edge.compress.quantize import encoded
from pulse_edge.compress.questions import Questions
from pulse_edge.compress.walk import advance, enter, observe
from pulse_edge.errors import BudgetError, UserError
from pulse_edge.evaluate.gate import Budget
from pulse_edge.evaluate.labels import label_set
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.pieces import Pieces
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import QuantizedWeight
from pulse_edge.model.tokenizer import Tokenizer

MEASURED: Final = 9  # points of the front, the ends included
HALVINGS: Final = 4  # between the last that is good and the next cheaper one


def search(
    checkpoint: Path, plan: Path, quest: Quest, tick: Tick = lambda what, done, total: None
) -> dict[str, Any]:
    """Find the cheapest mixture within a budget and write it down as a plan.

    An interrupted call leaves ``<plan>.searching`` and is resumed from it.

    Returns:
        ``plan``, ``method``, ``unit``, ``budget``, ``records``; ``front``, the mixtures that were measured:
        ``cost``, ``predicted`` (sum of the layers' divergences), ``divergence``, ``loss`` of macro AUROC,
        ``flip_share``, ``layers`` (how many have each form), ``uniform``, ``chosen``; ``line``, the whole
        front as predicted; ``sensitivity`` by layer and form; ``forms`` by layer.

    Raises:
        BudgetError: no point of the front is within the budget.
        UserError: the checkpoint is quantised already, or the settings do not go together.
    """
    pieces, method = Pieces(checkpoint), find_method(quest.settings.method)
    if pieces.shards.forms:
        raise UserError(f"{checkpoint} is quantised already. Search for the checkpoint that it came from.")
    if method.calibrated and quest.settings.calibration is None:
        raise UserError(
            f"--method {quest.settings.method} needs ECGs to calibrate on. Add --calibration LABELS_CSV, or "
            "use --method rtn."
        )
    weights = {path.name: sha256_file(path) for path in pieces.shards.files}
    notes = Notes(plan.with_name(plan.name + ".searching"), quest, weights)
    model = load_model(checkpoint, "float32")
    questions = Questions(
        model, Tokenizer.from_folder(checkpoint), *label_set(read_card(checkpoint)), quest.records,
        "validation", quest.limit, lambda done, total: tick("reading pages", done, total),
    )  # fmt: skip
    mixer = Mixer(model, questions, quest, _round(model, pieces, quest, tick), notes)
    mixer.measure_layers(tick)
    front = mixer.front()
    chosen = _choose(front, mixer, quest.budget, tick)
    measured = [point for point in front if mixer.known(point)]
    rows = [mixer.row(point, point is chosen) for point in measured]
    rows += [mixer.row(point, False) for point in mixer.uniform() if point.picks not in _picks(measured)]
    forms = mixer.forms(chosen)
    facts = {
        "method": quest.settings.method,
        "unit": quest.unit,
        "budget": asdict(quest.budget),
        "records": {"set": f"validation patients of {quest.records.name}", "n": len(questions.records)},
        "front": rows,
        "sensitivity": notes.layers,
    }
    write_plan(plan, forms, weights, facts)
    notes.delete()
    line = [{"cost": point.cost, "divergence": point.harm} for point in front]
    return {
        "plan": str(plan),
        **facts,
        "line": line,
        "forms": {k: name_of(form) for k, form in forms.items()},
    }


def _picks(points: list[Point]) -> set[tuple[int, ...]]:
    return {point.picks for point in points}


def _round(
    model: PulseForConditionalGeneration, pieces: Pieces, quest: Quest, tick: Tick
) -> dict[str, list[QuantizedWeight | None]]:
    """Round every matrix in every form that fits it: by layer, in the order of ``quest.choices``.

    Every layer is calibrated on what the unrounded ones before it make of the pages: how a layer is rounded
    must not depend on the others' forms while those are still looked for.
    """
    method, settings = find_method(quest.settings.method), quest.settings
    hidden: list[Tensor] = []
    if method.calibrated and settings.calibration is not None:
        recipe = read_recipe(settings.calibration, settings.size, settings.seed)
        prompts, _ = build(recipe, settings.force_text, lambda done, n: tick("calibration pages", done, n))
        hidden = list(enter(pieces, encoded(pieces, prompts)))
    rounded: dict[str, list[QuantizedWeight | None]] = {}
    for k, layer in enumerate(model.model.language_model.layers):
        tick("rounding", k, pieces.layers)
        grams = observe(model, layer, hidden) if hidden else None
        for at, out in enumerate(advance(model, layer, hidden)):
            hidden[at] = out
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                weight, gram = module.weight.data, None if grams is None else grams[name]
                rounded[f"layers.{k}.{name}"] = [
                    method.quantize(weight, gram, form) if form and form.fits(tuple(weight.shape)) else None
                    for form in quest.choices
                ]
    return rounded


def _choose(front: list[Point], mixer: Mixer, budget: Budget, tick: Tick) -> Point:
    """Measure points spread over the front, then halve the gap below the cheapest within the budget."""

    def good(point: Point) -> bool:
        found = mixer.measure(point)
        loss, flips = found["loss"], found["flip_share"]
        if loss is None:
            raise UserError(
                "The validation patients do not tell: every label needs ECGs with and without it. "
                "Name a larger table with --records."
            )
        return loss <= budget.auroc and (flips or 0.0) <= budget.flips

    low, high = front[0].cost, front[-1].cost
    wanted = [low + (high - low) * k / (MEASURED - 1) for k in range(MEASURED)]
    places = sorted({min(range(len(front)), key=lambda i: abs(front[i].cost - cost)) for cost in wanted})
    verdicts = []
    for done, place in enumerate(places):
        tick("mixtures", done, len(places) + HALVINGS)
        verdicts.append(good(front[place]))
    if not any(verdicts):
        raise BudgetError(
            f"No mixture loses at most {budget.auroc} of macro AUROC and flips at most "
            f"{budget.flips:.2%} of the labels. Allow more with --budget and --flips, or more bits with "
            "--choices."
        )
    first = verdicts.index(True)
    best, bad = places[first], places[first - 1] if first else -1
    for done in range(HALVINGS):
        tick("mixtures", len(places) + done, len(places) + HALVINGS)
        middle = (best + bad) // 2
        if first == 0 or middle in (best, bad):
            break
        if good(front[middle]):
            best = middle
        else:
            bad = middle
    tick("mixtures", len(places) + HALVINGS, len(places) + HALVINGS)
    return front[best]
