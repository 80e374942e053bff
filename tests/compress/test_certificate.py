"""The certificate: what report.html shows is what the gate's row says, whichever step made the model, and it
needs nothing from outside."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from pulse_edge import commands
from pulse_edge.evaluate.certify import calibration, matrix
from pulse_edge.evaluate.report import write_report
from pulse_edge.evaluate.score import Scored, label_intervals
from pulse_edge.samples import SAMPLES, samples

TABLE = SAMPLES / "samples.csv"
STAGES = {"quantised": "int4", "pruned": "pruned", "distilled": "distilled"}


class Page(HTMLParser):
    """Tables by id as rows of cells (a number where there is one), pictures, and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Any]]] = {}
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.texts: dict[str, str] = {}
        self._table = self._text = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.sources += [str(given[key]) for key in ("src", "href", "data", "srcset") if key in given]
        if tag == "table":
            self._table = str(given["id"])
            self.tables[self._table] = []
        elif tag == "tr" and self._table:
            self.tables[self._table].append([])
        elif tag == "td":
            value = given.get("data-value")
            self.tables[self._table][-1].append("" if value is None else float(value))
            self._cell = value is None
        elif tag == "p" and "id" in given:
            self._text = str(given["id"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = False
        elif tag == "p":
            self._text = ""

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[self._table][-1][-1] += data
        if self._text:
            self.texts[self._text] = self.texts.get(self._text, "") + data


@pytest.fixture(scope="module")
def quantised(
    small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("certificate") / "q"
    result = commands.quantize(
        str(small_checkpoint), folder, 4, 32, method="rtn", records=TABLE, split=None, accept_loss=True
    )
    return folder, result["gate"]


@pytest.fixture(scope="module")
def pruned(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("certificate") / "p"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pulse_edge.evaluate.certify.ANSWER", 8)
        result = commands.prune(
            str(small_checkpoint), folder, tokens=60, records=TABLE, split=None, accept_loss=True
        )
    return folder, result["gate"]


@pytest.fixture(scope="module")
def distilled(
    small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A student with another tower, family and width; its teacher's patients are samples called otherwise."""
    work = tmp_path_factory.mktemp("certificate")
    student = {
        "start": "fresh",
        "vision": {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
                   "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336, "patch_size": 48},
        "text": {"model_type": "qwen2", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
    }  # fmt: skip
    recipe = {"student": student, "lessons": {"pages": 4}, "course": {"steps": 1, "batch": 2}}
    (work / "own.yaml").write_text(yaml.safe_dump(recipe))
    learnt = work / "labels.csv"
    with learnt.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(samples()[0]))
        writer.writeheader()
        for k, row in enumerate(samples()):
            writer.writerow({**row, "record": str(SAMPLES / row["record"]), "patient_id": f"p{k}"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pulse_edge.compress.lessons.SHARD", 4)
        patch.setattr("pulse_edge.evaluate.certify.ANSWER", 8)
        result = commands.distill(
            str(small_checkpoint), work / "d", str(work / "own.yaml"), learnt, records=TABLE, split=None,
            accept_loss=True,
        )  # fmt: skip
    return work / "d", result["gate"]


@pytest.fixture(params=["quantised", "pruned", "distilled"])
def certified(request: pytest.FixtureRequest) -> tuple[str, Path, dict[str, Any]]:
    """What made a model smaller, the model, and the gate's row."""
    return (request.param, *request.getfixturevalue(request.param))


def test_every_figure_is_that_of_the_gate(certified) -> None:
    by, folder, gate = certified
    page = Page((folder / "report.html").read_text("utf-8"))
    shown = {row[0]: row[1:] for row in page.tables["auroc"][1:]}
    assert set(shown) == set(gate["auroc"])
    for name, (before, _, after, _, gap) in shown.items():
        assert (before, after) == (gate["auroc_before"][name], gate["auroc"][name])
        assert gap == pytest.approx(before - after)
    flips = {row[0]: row[1:] for row in page.tables["flips"][1:]}
    for name, cells in flips.items():
        assert cells[1:3] == [gate["flips"][name]["to_no"], gate["flips"][name]["to_yes"]]
        assert sum(cells) == gate["n"] == 6
    blank = {row[0]: row[1:] for row in page.tables["blank"][1:]}
    for name, cells in blank.items():
        assert cells == [gate["blank_image"][when][name] for when in ("before", "after")]
    last = page.tables["chain"][-1]
    assert (last[0], last[2], last[3], last[4], last[6]) == (
        STAGES[by], 6, gate["auroc"]["macro"], gate["loss"], gate["flip_share"]
    )  # fmt: skip
    assert [row[1] for row in page.tables["calibration"][1:]] == [
        gate["calibration"][when]["ece"] for when in ("before", "after")
    ]
    weights = page.tables["size"][1]
    assert weights[2] * 1e6 == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert json.loads((folder / "pulse.json").read_text("utf-8"))["metrics"][-1] == gate


def test_the_worst_pages_are_pictures_with_both_answers(certified) -> None:
    _, folder, gate = certified
    page = Page((folder / "report.html").read_text("utf-8"))
    assert len(page.sources) == len(gate["worst"]) == 4
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in page.sources)
    moved = [entry["moved"] for entry in gate["worst"]]
    assert moved == sorted(moved, reverse=True)
    for number, entry in enumerate(gate["worst"]):
        for row in page.tables[f"worst-{number}"][1:]:
            assert row[1:] == [entry["before"][row[0]], entry["after"][row[0]]]
        for when, answer in zip(("before", "after"), entry["answers"], strict=True):
            assert page.texts[f"answer-{number}-{when}"] == f"{when}: {answer}"


def test_it_needs_nothing_from_outside(quantised) -> None:
    text = (quantised[0] / "report.html").read_text("utf-8")
    assert not {"script", "link", "iframe", "object"} & Page(text).tags
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_what_a_checkpoint_says_cannot_become_markup(quantised, small_checkpoint, tmp_path) -> None:
    _, gate = quantised
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((small_checkpoint / name).read_bytes())
    (tmp_path / "pulse.json").write_text('{"schema": 1, "name": "<script>alert(1)</script>"}')
    worst = [{**gate["worst"][0], "answers": ["<img src=x>", "</p><script>"]}]
    blank = np.full((8, 8, 3), 255, np.uint8)
    write_report(tmp_path, small_checkpoint, {**gate, "worst": worst}, [blank])
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert "script" not in page.tags
    assert len(page.sources) == 1


def test_the_bundle_carries_it(quantised, tmp_path) -> None:
    folder, gate = quantised
    commands.export(target="onnx", model=str(folder), output=tmp_path / "b")
    assert (tmp_path / "b" / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text("utf-8"))
    assert "report.html" in manifest["files"]
    assert manifest["accuracy"][0] == gate
    assert commands.verify(tmp_path / "b")["ok"]


def scored(seed: int, n: int = 300) -> Scored:
    draw = np.random.default_rng(seed)
    truth = draw.random((n, 2)) < (0.3, 0.6)
    score = np.clip(draw.normal(0.4 + 0.2 * truth, 0.2), 0, 1).round(2)  # with ties
    return Scored(
        ["a", "b"], [str(k) for k in range(n)], [str(k // 2) for k in range(n)], score, truth, {}, 0.0
    )


def test_intervals_hold_the_area_that_scikit_learn_computes() -> None:
    s = scored(0)
    found = label_intervals(s.truth, s.score, s.patients, s.names)
    areas = [roc_auc_score(s.truth[:, k], s.score[:, k]) for k in range(2)]
    for name, area in {"a": areas[0], "b": areas[1], "macro": np.mean(areas)}.items():
        low, high = found[name]
        assert low < area < high
        assert high - low < 0.2
    assert label_intervals(s.truth[:9], s.score[:9], s.patients[:9], s.names)["macro"] is None


def test_a_calibrated_model_has_no_calibration_error() -> None:
    draw = np.random.default_rng(0)
    chance = draw.random((20000, 1))
    true = draw.random((20000, 1)) < chance
    good = Scored(["a"], [], [], chance, true, {}, 0.0)
    assert calibration(good)["ece"] < 0.02
    sure = Scored(["a"], [], [], np.round(chance), true, {}, 0.0)
    assert calibration(sure)["ece"] == pytest.approx(0.25, abs=0.02)
    assert sum(n for _, _, n in calibration(good)["bins"]) == 20000


def test_the_matrix_counts_every_answer_once() -> None:
    a, b = scored(1), scored(2)
    for k, (name, cells) in enumerate(matrix(a, b).items()):
        assert name == a.names[k]
        assert cells["yes_no"] == int(((a.score[:, k] >= 0.5) & (b.score[:, k] < 0.5)).sum())
        assert sum(cells.values()) == 300
