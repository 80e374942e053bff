"""A whole quantisation: the walk, the checkpoint it leaves, resuming, and the gate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pulse_edge import commands
from pulse_edge.compress import quantize_checkpoint as run
from pulse_edge.compress.form import Form
from pulse_edge.compress.journal import Journal
from pulse_edge.compress.methods import METHODS
from pulse_edge.compress.quantize import Settings, write_quantized
from pulse_edge.compress.walk import advance, enter, observe
from pulse_edge.errors import BudgetError, GateError, UserError
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.layouts import canonical
from pulse_edge.model.pieces import Pieces
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.quantized import quantized_names
from pulse_edge.model.weights import open_weights, take_quantized
from pulse_edge.samples import SAMPLES

TABLE = SAMPLES / "samples.csv"


@pytest.fixture(scope="module", autouse=True)
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration set of the shipped samples, whose patients are test patients."""
    global OWN
    OWN = tmp_path_factory.mktemp("calibration") / "own.yaml"
    OWN.write_text(f"records: {TABLE}\nside: test\nsize: 2\nphotos: 0\n")
    return OWN


OWN = Path()


def passed(folder: Path) -> dict[str, object]:
    return {"stage": "int4", "seen": sorted(path.name for path in folder.iterdir())}


def make(checkpoint: Path, output: Path, method: str = "rtn", form: Form | None = None, **more: object):
    calibration = {"calibration": OWN} if METHODS[method].calibrated else {}
    settings = Settings(form or Form(4, 32), method, **calibration)
    return write_quantized(checkpoint, output, settings, more.pop("gate", passed), **more)


def test_the_walk_computes_what_the_model_computes(small_checkpoint) -> None:
    model, pieces = load_model(small_checkpoint, "float32"), Pieces(small_checkpoint)
    page = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    ids = [1, 5, 6, -200, 7, 8, 9]
    prompt = (ids, torch.from_numpy(preprocess(page)), (260, 200))
    hidden = list(enter(pieces, [prompt]))
    with torch.inference_mode():
        whole = model.model.language_model(
            inputs_embeds=hidden[0], use_cache=False, output_hidden_states=True
        )
    for k in range(len(model.model.language_model.layers)):
        assert torch.allclose(hidden[0], whole.hidden_states[k], atol=1e-5)
        hidden = list(advance(model, pieces.layer(k), hidden))
    last = model.model.language_model.norm(hidden[0])
    assert torch.allclose(last, whole.last_hidden_state, atol=1e-4)


def test_second_moments_are_those_of_the_inputs(small_checkpoint) -> None:
    pieces = Pieces(small_checkpoint)
    layer = pieces.layer(0)
    hidden = [torch.randn(1, 9, 32), torch.randn(1, 4, 32)]
    grams = observe(pieces.model, layer, hidden)
    x = torch.cat([layer.input_layernorm(h)[0] for h in hidden])
    for name in ("q_proj", "k_proj", "v_proj"):
        assert torch.allclose(grams[f"self_attn.{name}"], x.T @ x / 13, atol=1e-5)
    assert grams["mlp.down_proj"].shape == (48, 48)


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_checkpoint_is_one_that_loads(small_checkpoint, tmp_path, method) -> None:
    result = make(small_checkpoint, tmp_path / "q", method)
    weights = open_weights(tmp_path / "q")
    # a width of 48 takes no groups of 32: those layers stay as they are, and it is said
    assert result["quantization"]["kept"] == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    assert len(quantized_names(weights)) == 2 * 6
    integers = take_quantized(weights)
    model = {canonical(n): t for n, t in load_model(tmp_path / "q", "float32").state_dict().items()}
    for name, weight in integers.items():
        assert np.array_equal(model[name].numpy(), weight.dequantize())
    untouched = {canonical(n): t for n, t in load_model(small_checkpoint, "float32").state_dict().items()}
    smoothed = ("norm", "down_proj") if method == "awq" else ()
    for name in set(untouched) - set(integers):
        if not any(part in name for part in smoothed):
            assert torch.equal(model[name], untouched[name]), name
    card = read_card(tmp_path / "q")
    assert card["parent"]["weights"].keys() == {"model.safetensors"}
    assert card["metrics"][-1]["stage"] == "int4"
    assert not (tmp_path / "q.quantizing").exists()


def test_round_to_nearest_is_what_the_exporter_rounds(small_checkpoint, tmp_path) -> None:
    """The same integers as `export --precision int8` makes of the checkpoint."""
    from pulse_edge.export.weights import quantize as export_rounds

    make(small_checkpoint, tmp_path / "q", form=Form(8, None))
    mine = take_quantized(open_weights(tmp_path / "q"))
    original = open_weights(small_checkpoint)
    for name, weight in mine.items():
        integers, scale = export_rounds(original[name].float().numpy().T, weight.shape[1], 127)
        assert np.array_equal(weight.integers, integers.T)
        assert np.array_equal(weight.scale[:, 0].astype(np.float32), scale[0])


def test_a_killed_run_goes_on_and_ends_in_the_same_weights(small_checkpoint, tmp_path) -> None:
    make(small_checkpoint, tmp_path / "whole", "gptq")

    def stop_at_second(what: str, done: int, total: int) -> None:
        if (what, done) == ("layers", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(small_checkpoint, tmp_path / "twice", "gptq", tick=stop_at_second)
    assert not (tmp_path / "twice").exists()
    began = []
    make(
        small_checkpoint,
        tmp_path / "twice",
        "gptq",
        tick=lambda what, done, total: began.append((what, done)),
    )
    assert ("layers", 0) not in began
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


def test_a_kill_before_a_layer_is_finished_does_not_lose_what_enters_it(
    small_checkpoint, tmp_path, monkeypatch
) -> None:
    make(small_checkpoint, tmp_path / "whole", "gptq")
    finish = Journal.finish

    def killed(self: Journal, number: int, *rest: object) -> None:
        if number == 1:
            raise KeyboardInterrupt  # the next layer's inputs are kept already
        finish(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            make(small_checkpoint, tmp_path / "twice", "gptq")
    make(small_checkpoint, tmp_path / "twice", "gptq")
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


def test_other_settings_do_not_go_on_with_the_same_work(small_checkpoint, tmp_path) -> None:
    def refuse(folder: Path) -> dict[str, object]:
        raise GateError("no")

    with pytest.raises(GateError):
        make(small_checkpoint, tmp_path / "q", gate=refuse)
    assert not (tmp_path / "q").exists()
    with pytest.raises(UserError, match="other settings"):
        make(small_checkpoint, tmp_path / "q", form=Form(8, None))
    make(small_checkpoint, tmp_path / "q")


def test_what_cannot_be_quantised(small_checkpoint, tmp_path) -> None:
    make(small_checkpoint, tmp_path / "q")
    with pytest.raises(UserError, match="quantised already"):
        make(tmp_path / "q", tmp_path / "again")
    with pytest.raises(UserError, match="exists already"):
        run(small_checkpoint, tmp_path / "q", 4, 32, True, "rtn", None, None, None, False, passed)
    with pytest.raises(UserError, match="--calibration"):
        run(small_checkpoint, tmp_path / "r", 4, 32, True, "gptq", None, None, None, False, passed)


def test_the_command_measures_both_models_and_writes_it_down(small_checkpoint, tmp_path) -> None:
    result = commands.quantize(
        str(small_checkpoint), tmp_path / "q", 8, method="rtn", records=TABLE, split=None, accept_loss=True
    )
    gate = result["gate"]
    assert gate["n"] == 6
    assert set(gate["flips"]) == set(gate["auroc"]) - {"macro"}
    assert json.loads((tmp_path / "q" / "pulse.json").read_text())["metrics"][-1] == gate
    with pytest.raises(UserError, match="--records"):
        commands.quantize(str(small_checkpoint), tmp_path / "r", method="rtn")


def test_a_broken_budget_leaves_nothing_and_exits_3(small_checkpoint, tmp_path, monkeypatch) -> None:
    from pulse_edge.evaluate import gate

    monkeypatch.setitem(gate.BUDGETS, 4, gate.Budget(-1.0, 0.0))  # no model can gain that much
    with pytest.raises(BudgetError, match="--accept-loss") as caught:
        commands.quantize(
            str(small_checkpoint), tmp_path / "q", 4, 32, method="rtn", records=TABLE, split=None
        )
    assert caught.value.exit_code == 3
    assert not (tmp_path / "q").exists()
