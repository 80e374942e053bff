from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pulse_edge.contract import EOS_ID, IGNORE_ID
from pulse_edge.ecg import instruct
from pulse_edge.ecg.split import SPLITS
from pulse_edge.model.packed import normalize, segment_positions
from pulse_edge.model.packing import pack
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.build import build_model
from pulse_edge.train.dataset import DefaultPages, PageDataset, collate
from pulse_edge.train.examples import fit_beat_basis, read_examples
from pulse_edge.train.objective import TrainingObjective
from pulse_edge.train.recipe import read_recipe
from pulse_edge.train.trainer import answer_ids


def test_sides_of_the_split_share_no_patient(labels_csv: Path) -> None:
    sides = [read_examples(labels_csv, (side,))[0] for side in SPLITS]
    patients = [{example.patient for example in side} for side in sides]
    assert all(len(side) == 6 for side in sides)
    assert len(set.union(*patients)) == sum(map(len, patients))


def test_a_broken_record_is_counted_and_left_out(labels_csv: Path, tmp_path: Path) -> None:
    text = labels_csv.read_text().replace(",00057,", ",gone,").replace("\n00057,", "\ngone,")
    (tmp_path / "labels.csv").write_text(text)
    for path in labels_csv.parent.glob("*.*"):
        if path.suffix in {".hea", ".dat"}:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    examples, left_out = read_examples(tmp_path / "labels.csv", ("train",))
    assert len(examples) == 5
    assert left_out["unreadable record"] == 1


def test_the_tokenizer_gives_back_what_is_written(tokenizer: Tokenizer) -> None:
    facts = instruct.Facts(frozenset({"AFIB", "IMI"}), frozenset({"MI"}), 104.6)
    text = instruct.report(facts)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("Ünlikely: 東京 ☃")) == "Ünlikely: 東京 ☃"
    assert tokenizer.decode(tokenizer.encode("72", bos=False)[-2:]) == "72"  # digit by digit


def test_an_item_depends_on_seed_and_index_only(labels_csv: Path, tokenizer: Tokenizer) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    basis = fit_beat_basis(examples)
    one, two = (PageDataset(examples, tokenizer, basis, 49, 24, seed=5) for _ in "ab")
    random.seed(1)
    first = [one[k] for k in (3, 11)]
    random.seed(2)
    again = [two[k] for k in (11, 3)][::-1]
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in a if name != "tiles")
        assert np.array_equal(a["tiles"], b["tiles"])
    assert not np.array_equal(first[0]["tiles"], first[1]["tiles"])


def test_an_epoch_shows_every_record_once(labels_csv: Path, tokenizer: Tokenizer) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    data = PageDataset(examples, tokenizer, fit_beat_basis(examples), 49, 12, seed=1)
    seen: list[str] = []
    data.page = lambda example, rng: seen.append(example.record.name)  # type: ignore[assignment,func-returns-value]
    for k in range(12):
        data[k]
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(e.record.name for e in examples)
    assert seen[:6] != seen[6:]


def test_only_answers_are_supervised(tokenizer: Tokenizer) -> None:
    turns = [
        instruct.Turn("superclass", "Is it?", "Yes"),
        instruct.Turn("report", "Report?", "Rate: 72 bpm."),
    ]
    item = pack([1, -200, -200], turns, tokenizer)
    asked = item["labels"] != IGNORE_ID
    assert tokenizer.decode(item["labels"][asked & (item["segment"] == 1)], skip_special=True) == "Yes"
    assert tokenizer.decode(item["labels"][asked & (item["segment"] == 2)]) == "Rate: 72 bpm."
    for segment in (1, 2):
        assert item["labels"][item["segment"] == segment][-1] == EOS_ID
        assert item["weights"][item["segment"] == segment].sum() == pytest.approx(1.0)
    assert item["weights"][~asked].sum() == 0


def test_packed_questions_are_answered_as_single_ones(
    labels_csv: Path, tiny_recipe: Path, tokenizer: Tokenizer
) -> None:
    """What training computes for many questions at once is what inference computes for one."""
    examples, _ = read_examples(labels_csv, ("train",))
    torch.manual_seed(0)
    model = build_model(read_recipe(tiny_recipe).model, tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model is nearly constant: shake it
            parameter += 0.05 * torch.randn_like(parameter)
    objective = TrainingObjective(model, 12, answer_ids(tokenizer)).eval()
    batch = collate([DefaultPages(examples, tokenizer, 49)[k] for k in (0, 1)])
    with torch.no_grad():
        hidden = objective.read(objective.look(batch["tiles"]), batch["ids"], batch["segment"])
        packed = objective.margins(hidden, batch["closed"]).numpy()
    backend = TorchBackend(model)
    yes, no = answer_ids(tokenizer)
    for row in range(2):
        image = backend.encode(normalize(batch["tiles"][row]).numpy(), (2200, 1700))
        for k, phrase in enumerate(instruct.SUPERCLASS_PHRASES.values()):
            question = instruct.CLOSED_QUESTIONS[0].format(phrase=phrase)
            ids = encode_prompt(build_prompt([(question, None)]), tokenizer)
            logits = backend.prefill(image, ids)
            assert packed[row, k] == pytest.approx(float(logits[yes] - logits[no]), abs=2e-5)
    assert np.ptp(packed) > 1e-3


def test_tuning_takes_closed_answers_from_the_soft_target_alone(
    labels_csv: Path, tiny_recipe: Path, tokenizer: Tokenizer
) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    torch.manual_seed(0)
    objective = TrainingObjective(
        build_model(read_recipe(tiny_recipe).model, tokenizer.vocab_size), 12, answer_ids(tokenizer)
    )
    data = PageDataset(examples, tokenizer, fit_beat_basis(examples), 49, 6, photos=1.0, dense=False)
    batch = collate([data[k] for k in (0, 1)])
    assert "beats" not in batch
    objective.set_stage("tune")
    objective.eval()
    loss = objective(**batch)["loss"].item()
    found = batch["found"]
    assert (found >= 0).all()
    answered = batch["labels"].gather(1, found[..., 0] + 1)
    said = [[tokenizer.decode([int(token)]).strip() == "Yes" for token in row] for row in answered]
    assert said == batch["diagnoses"].gather(1, found[..., 1]).bool().tolist()
    told = torch.cat([batch["closed"], found[..., 0]], 1) + 1
    other = batch | {"labels": batch["labels"].scatter(1, told, 5)}
    assert objective(**other)["loss"].item() == pytest.approx(loss, abs=1e-6)
    for part in (slice(0, 5), slice(5, None)):
        softer = batch | {"diagnoses": batch["diagnoses"].clone()}
        softer["diagnoses"][:, part] = 0.5
        assert abs(objective(**softer)["loss"].item() - loss) > 1e-4
    trained = {name.split(".")[0] for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {"model"}
    objective.set_stage("speak")
    objective.eval()
    assert abs(objective(**other)["loss"].item() - objective(**batch)["loss"].item()) > 1e-4


def test_a_validation_photo_is_the_same_every_time(labels_csv: Path, tokenizer: Tokenizer) -> None:
    examples, _ = read_examples(labels_csv, ("validation",))
    clean, photo, again = (DefaultPages(examples, tokenizer, 49, photos) for photos in (False, True, True))
    assert np.array_equal(photo[1]["tiles"], again[1]["tiles"])
    assert not np.array_equal(photo[1]["tiles"], clean[1]["tiles"])
    assert np.array_equal(photo[1]["closed"], clean[1]["closed"])


def test_positions_continue_behind_the_prefix() -> None:
    segment = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1]])
    assert segment_positions(segment)[0, :8].tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
