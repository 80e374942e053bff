"""A search of mixed precision: the knapsack, the probe, the plan, and what `quantize` makes of it."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import rel_entr

import pulse_edge
from pulse_edge import commands
from pulse_edge.compress import mixture
from pulse_edge.compress.assign import pareto
from pulse_edge.compress.cost import bytes_of, picoseconds_on
from pulse_edge.compress.form import GROUPS, Form
from pulse_edge.compress.plan import read_plan, write_plan
from pulse_edge.compress.questions import Questions, chances, divergence
from pulse_edge.ecg.split import split
from pulse_edge.errors import BudgetError, UnknownNameError, UserError
from pulse_edge.evaluate.labels import label_set
from pulse_edge.evaluate.score import score_records
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.quantized import quantized_names
from pulse_edge.model.shards import Shards
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped samples under patients of the validation side."""
    path = tmp_path_factory.mktemp("records") / "labels.csv"
    patients = (str(k) for k in itertools.count() if split(str(k)) == "validation")
    with (SAMPLES / "samples.csv").open(encoding="utf-8") as stream, path.open("w", newline="") as out:
        rows = list(csv.DictReader(stream))
        writer = csv.DictWriter(out, ["record", "superclass", "patient_id"])
        writer.writeheader()
        for row, patient in zip(rows, patients, strict=False):
            writer.writerow(
                {"record": SAMPLES / row["record"], "superclass": row["superclass"], "patient_id": patient}
            )
    return path


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_that_of_trying_everything(seed: int) -> None:
    draw = np.random.default_rng(seed)
    layers = [int(n) for n in draw.integers(1, 4, 6)]
    costs = [[int(c) for c in draw.integers(1, 9, n)] for n in layers]
    harms = [list(draw.random(n)) for n in layers]
    every = [
        tuple(sum(row[k] for row, k in zip(table, picks, strict=True)) for table in (costs, harms))
        for picks in itertools.product(*map(range, layers))
    ]
    best = {cost: min(h for c, h in every if c <= cost) for cost, _ in every}
    points = pareto(costs, harms)
    for point in points:
        assert point.cost == sum(c[k] for c, k in zip(costs, point.picks, strict=True))
        assert point.harm == pytest.approx(sum(h[k] for h, k in zip(harms, point.picks, strict=True)))
        assert point.harm == pytest.approx(best[point.cost])
    kept = [(p.cost, p.harm) for p in points]
    assert kept == sorted(kept)
    assert len({round(harm, 12) for harm in best.values()}) == len(points)


def test_a_thinned_front_stays_near_the_whole_one() -> None:
    draw = np.random.default_rng(0)
    costs = [[int(c) for c in sorted(draw.integers(1, 10**6, 3))] for _ in range(30)]
    harms = [sorted(draw.random(3), reverse=True) for _ in range(30)]
    whole, thin = pareto(costs, harms), pareto(costs, harms, limit=100)
    assert len(thin) <= 101 < len(whole)
    for point in whole[:: len(whole) // 20]:
        near = min(p.harm for p in thin if p.cost <= point.cost + 30 * (whole[-1].cost // 100))
        assert near <= point.harm + 1e-9


def test_forms_are_read_from_their_names() -> None:
    for bits, group, symmetric in itertools.product((4, 8), (None, *GROUPS), (True, False)):
        form = Form(bits, group, symmetric)
        assert Form.parse(form.name) == form
    with pytest.raises(ValueError, match="int5"):
        Form.parse("int5 group 64 symmetric")


def test_costs() -> None:
    assert bytes_of((10, 256), None) == 5120
    assert bytes_of((10, 256), Form(4, 128)) == 1280 + 10 * 2 * 2
    jetson = picoseconds_on("orin-nx-16gb")
    ratio = jetson((64, 256), None) / jetson((64, 256), Form(4, 128))
    assert ratio == pytest.approx(5120 / 1320, rel=1e-3)
    with pytest.raises(UnknownNameError, match="orin"):
        picoseconds_on("orin-nx")


def test_the_probe_scores_as_a_session_does(small_checkpoint, table) -> None:
    model = load_model(small_checkpoint, "float32")
    labels = label_set(read_card(small_checkpoint))
    questions = Questions(model, Tokenizer.from_folder(small_checkpoint), *labels, table, "validation")
    expected = score_records(pulse_edge.load(small_checkpoint), table, "validation")
    scored = questions.scored(questions.logits(model))
    assert scored.names == expected.names
    assert scored.patients == expected.patients
    assert np.array_equal(scored.truth, expected.truth)
    assert np.abs(scored.score - expected.score).max() < 1e-5
    with pytest.raises(UserError, match="train"):
        Questions(model, Tokenizer.from_folder(small_checkpoint), *labels, table, "train")


def test_divergence_is_that_of_the_two_answers() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(7, 3)), draw.normal(size=(7, 3))
    p, q = chances(a), chances(b)
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean()
    assert divergence(a, b) == pytest.approx(expected)
    assert divergence(a, a) == 0


def test_a_plan_is_found_drawn_and_applied(small_checkpoint, table, tmp_path) -> None:
    found = commands.search(
        str(small_checkpoint), tmp_path / "plan.json", records=table, group=32, method="rtn", budget=1.0,
        flips=1.0,
    )  # fmt: skip
    chosen = [row for row in found["front"] if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["cost"] == min(row["cost"] for row in found["front"])  # everything is allowed
    assert {tuple(row["layers"]) for row in found["front"] if row["uniform"]} >= {("float",)}
    assert len(found["sensitivity"]) == 14
    for name, row in found["sensitivity"].items():
        # a width of 48 takes no groups of 32
        assert ("int4 group 32 symmetric" in row) == ("down_proj" not in name)
        assert row["float"] == 0
        assert row["int8 per row symmetric"] < row.get("int4 group 32 symmetric", np.inf)
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.size == (960, 600)
    assert not (tmp_path / "plan.json.searching").exists()
    made = commands.quantize(
        str(small_checkpoint), tmp_path / "q", group=32, method="rtn", plan=tmp_path / "plan.json",
        accept_loss=True,
    )  # fmt: skip
    assert made["quantization"]["forms"] == found["forms"]
    shards = Shards(tmp_path / "q")
    for name, form in found["forms"].items():
        stands = shards.form(f"text.{name}.weight")
        assert (
            (stands and stands.bits) == {"i": int(form[3]), "f": None}[form[0]]
            if form[0] == "i"
            else not stands
        )
    assert found["forms"]["layers.0.mlp.down_proj"].startswith("int8")


def test_a_budget_decides(small_checkpoint, table, tmp_path, monkeypatch) -> None:
    found = commands.search(
        str(small_checkpoint), tmp_path / "tight.json", records=table, group=32, method="rtn", budget=0.0,
        flips=0.0,
    )  # fmt: skip
    row = next(row for row in found["front"] if row["chosen"])
    assert row["loss"] <= 0
    assert row["flip_share"] == 0
    monkeypatch.setattr(mixture, "compare", lambda *_, **__: {"loss": 0.5, "flip_share": 0.0})
    with pytest.raises(BudgetError, match="--choices"):
        commands.search(str(small_checkpoint), tmp_path / "none.json", records=table, group=32, method="rtn")
    assert not (tmp_path / "none.json").exists()


def test_a_killed_search_goes_on(small_checkpoint, table, tmp_path, monkeypatch) -> None:
    def run(name: str, tick=lambda *_: None):
        return commands.search(
            str(small_checkpoint), tmp_path / name, records=table, group=32, method="rtn", budget=1.0,
            flips=1.0, tick=tick,
        )  # fmt: skip

    counted = []
    logits = Questions.logits
    monkeypatch.setattr(Questions, "logits", lambda self, model: counted.append(1) or logits(self, model))
    whole = run("whole.json")
    needed = len(counted)
    counted.clear()

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("layers", 9):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("twice.json", stop)
    twice = run("twice.json")
    assert {k: v for k, v in twice.items() if k not in ("plan", "picture")} == {
        k: v for k, v in whole.items() if k not in ("plan", "picture")
    }
    assert len(counted) == needed + 1  # only what the answers were before is asked again


def test_plans_that_cannot_be_used(small_checkpoint, tmp_path) -> None:
    plan = tmp_path / "plan.json"
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(plan)
    for text in ("[]", "{}", '{"schema": 1, "forms": {"a": "int3"}, "weights": {}}', "{"):
        plan.write_text(text)
        with pytest.raises(UserError, match="not a plan"):
            read_plan(plan)
    write_plan(plan, {"layers.0.mlp.up_proj": None}, {"model.safetensors": "0" * 64}, {})
    with pytest.raises(UserError, match="other weights"):
        commands.quantize(str(small_checkpoint), tmp_path / "q", method="rtn", plan=plan, accept_loss=True)
    raw = json.loads(plan.read_text())
    from pulse_edge.bundle import sha256_file

    raw["weights"] = {"model.safetensors": sha256_file(small_checkpoint / "model.safetensors")}
    raw["forms"] = {"layers.0.mlp.upproj": "float"}
    plan.write_text(json.dumps(raw))
    with pytest.raises(UnknownNameError, match="up_proj"):
        commands.quantize(str(small_checkpoint), tmp_path / "q", method="rtn", plan=plan, accept_loss=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"records": None}, "--records"),
        ({"choices": "4,5"}, "--choices"),
        ({"method": "gptq"}, "--calibration"),
        ({"budget": -1.0}, "--budget"),
        ({"plan": Path("/nowhere/at/all.json")}, "no folder"),
    ],
)
def test_what_cannot_be_searched(small_checkpoint, table, tmp_path, options, match) -> None:
    given = {"plan": tmp_path / "p.json", "records": table, "method": "rtn", **options}
    with pytest.raises(UserError, match=match):
        commands.search(str(small_checkpoint), **given)


def test_search_finishes_with_a_checkpoint(small_checkpoint, table, tmp_path) -> None:
    rows = table.read_text().splitlines()
    tested = [str(k) for k in range(500) if split(str(k)) == "test"]
    both = rows + [
        ",".join([*row.split(",")[:2], patient]) for row, patient in zip(rows[1:], tested, strict=False)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(both) + "\n")
    found = commands.search(
        str(small_checkpoint), tmp_path / "p.json", tmp_path / "q", tmp_path / "labels.csv", group=32,
        method="rtn", budget=1.0, flips=1.0, device="orin-nano-8gb",
    )  # fmt: skip
    assert found["unit"] == "picoseconds"
    gate = found["quantized"]["gate"]
    assert gate["set"] == "test patients of labels.csv"
    assert gate["budget"] == {"auroc": 1.0, "flips": 1.0}
    assert (tmp_path / "q" / "report.html").is_file()
    shutil.rmtree(tmp_path / "q")


@pytest.mark.parametrize("bits", [8, 16])
def test_table_and_head_take_8_bits(small_checkpoint, tmp_path, bits) -> None:
    from pulse_edge.model.layouts import HEAD, TABLE

    tied = load_model(small_checkpoint).config.tie_word_embeddings
    made = commands.quantize(
        str(small_checkpoint), tmp_path / "q", 8, method="rtn", embedding=bits, lm_head=bits, accept_loss=True
    )
    assert (made["quantization"]["embedding"], made["quantization"]["head"]) == (bits, bits)
    held = {name for name in (TABLE, HEAD) if name in quantized_shapes(tmp_path / "q")}
    assert held == (set() if bits == 16 else {TABLE} if tied else {TABLE, HEAD})
    before = load_model(small_checkpoint, "float32").get_input_embeddings().weight
    after = load_model(tmp_path / "q", "float32").get_input_embeddings().weight
    step = before.abs().amax(1, keepdim=True) / 127
    assert torch.all((before - after).abs() <= step * 0.51 + 1e-6)
    assert torch.equal(before, after) == (bits == 16)
    with pytest.raises(UserError, match="--embedding 4"):
        commands.quantize(
            str(small_checkpoint), tmp_path / "r", 8, method="rtn", embedding=4, accept_loss=True
        )


def quantized_shapes(folder: Path) -> list[str]:
    from pulse_edge.model.weights import open_weights

    return quantized_names(open_weights(folder))
