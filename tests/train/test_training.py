from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from pulse_edge import cli
from pulse_edge.bundle import sha256_file
from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.runtimes.load import load
from pulse_edge.train import run, trainer


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def test_training_writes_a_model_that_answers(trained: Path) -> None:
    card = read_card(trained)
    assert [row["set"].split()[0] for row in card["metrics"]] == ["validation", "test"]
    assert card["data"]["records"] == 6
    assert card["data"]["split_sha256"] == sha256_file(trained.with_name("tiny.training") / "split.json")
    session = load(trained)
    from pulse_edge.samples import SAMPLES

    scores = session.label(SAMPLES / "normal.png")
    assert list(scores) == ["NORM", "MI", "STTC", "CD", "HYP"]
    assert all(0 < value < 1 for value in scores.values())


def test_both_stages_change_what_they_should(trained: Path) -> None:
    history = json.loads((trained.with_name("tiny.training") / "see" / "history.json").read_text())
    assert [row["step"] for row in history] == [2, 4]
    assert all(row["stage"] == "see" and row["measure_loss"] > 0 for row in history)
    see = torch.load(trained.with_name("tiny.training") / "see" / "best.pt", weights_only=True)
    speak = torch.load(trained.with_name("tiny.training") / "speak" / "best.pt", weights_only=True)
    assert all(torch.equal(see[name], speak[name]) for name in see if "vision_tower" in name)
    assert not torch.equal(see["model.lm_head.weight"], speak["model.lm_head.weight"])


def test_tuning_goes_on_from_a_model_and_changes_all_of_it(
    trained: Path, labels_csv: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load(tiny_recipe.read_text())
    raw["train"] = {"tune": raw["train"]["see"]}
    recipe = tmp_path / "tune.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"tune\.yaml tunes a model .* --init"):
        run(recipe, labels_csv, tmp_path / "tuned", workers=0)
    assert not list(tmp_path.glob("tuned*"))
    result = run(recipe, labels_csv, tmp_path / "tuned", workers=0, init=str(trained))
    assert [row["stage"] for row in result["history"]] == ["tune", "tune"]
    for row in result["history"]:
        assert row["score"] == (row["macro"] + row["photo_macro"]) / 2
    card = read_card(tmp_path / "tuned")
    assert card["recipe"].startswith("tune.yaml, seed 3, tune: 12 pages")
    assert card["parent"]["sha256"] == sha256_file(trained / "model.safetensors")
    one, two = weights(trained), weights(tmp_path / "tuned")
    for part in ("vision_tower.stages.0", "vision_tower.context", "multi_modal_projector", "language_model"):
        assert any(not torch.equal(one[name], two[name]) for name in one if part in name), part
    raw["train"]["tune"] |= {"parent": 0.25}
    recipe.write_text(yaml.safe_dump(raw))
    run(recipe, labels_csv, tmp_path / "between", workers=0, init=str(trained))
    for name, tensor in weights(tmp_path / "between").items():
        if tensor.is_floating_point():
            wanted = 0.25 * one[name].float() + 0.75 * two[name].float()
            assert torch.allclose(tensor.float(), wanted, rtol=2e-3, atol=1e-6), name


@pytest.mark.parametrize("stage", ["see", "speak"])
def test_an_interrupted_training_resumes_to_the_same_weights(
    trained: Path,
    stage: str,
    labels_csv: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trainer._Keeper.on_save

    def interrupted(
        self: trainer._Keeper, args: object, state: object, control: object, **more: object
    ) -> None:
        whole(self, args, state, control, **more)
        if self.objective.stage == stage:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Keeper, "on_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe, labels_csv, tmp_path / "tiny", workers=0)
    assert not (tmp_path / "tiny").exists()
    monkeypatch.setattr(trainer._Keeper, "on_save", whole)
    run(tiny_recipe, labels_csv, tmp_path / "tiny", workers=0)
    one, two = weights(trained), weights(tmp_path / "tiny")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bad_input_is_refused_before_anything_is_written(
    labels_csv: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        run(tiny_recipe, labels_csv, tmp_path / "there")
    with pytest.raises(UserError, match=r"There is no .*absent\.csv"):
        run(tiny_recipe, tmp_path / "absent.csv", tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


def test_the_command_prints_nothing_but_its_result(
    labels_csv: Path, tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cli.train.train(labels_csv, str(tiny_recipe), tmp_path / "tiny", 6, 0, as_json=True)
    result = json.loads(capfd.readouterr().out)
    assert result["checkpoint"] == str(tmp_path / "tiny")
    assert len(result["metrics"]) == 2
