"""`pulse-edge plan`: what it prints, what it refuses, and what it says as JSON."""

from __future__ import annotations

import re

import pytest

from pulse_edge import commands
from pulse_edge.device import list_devices
from pulse_edge.errors import UserError


def test_pulse_7b_on_an_orin_nano_is_refused_with_reasons(pulse) -> None:
    done = pulse("plan", "pulse-7b", "--device", "orin-nano-8gb")
    assert done.code == 2
    assert done.err == ""
    assert "7,062,906,880 parameters in int4" in done.out
    assert re.search(r"language model +3\.86", done.out)
    assert re.search(r"key-value cache +3\.56 +binding", done.out)
    assert re.search(r"planned as usable +5\.20", done.out)
    assert "does not fit the Jetson Orin Nano 8 GB" in done.out
    assert "Every speed is an estimate" in done.out
    assert "fitted to TensorRT-Edge-LLM 0.10's published rows" in done.out
    for number in ("(1) the student pulse-2b", "(2) ", "(3) "):
        assert number in done.out
    assert "Traceback" not in done.out


def test_pulse_7b_fits_an_orin_nx_of_16_gb(pulse) -> None:
    done = pulse("plan", "pulse-7b", "--device", "orin-nx-16gb")
    assert done.code == 0
    assert re.search(r"all +10\.15 +fits", done.out)
    assert "cheapest first" not in done.out


def test_json_holds_everything_and_nothing_else_is_printed(pulse) -> None:
    done = pulse("plan", "pulse-7b", "--device", "iphone-15-pro", "--json")
    assert done.code == 2
    result = done.json
    assert result["parameters"] == 7_062_906_880
    assert result["target"] == "coreml"
    assert result["memory"]["fits"] is False
    assert result["memory"]["total"] == sum(result["memory"]["lines"].values())
    assert len(result["remedies"]) == 3
    assert result["speed"]["label"] == "estimate"
    assert result["speed"]["sustained_tokens_s"]["value"] < result["speed"]["decode_tokens_s"]["value"]
    assert "the language-model weights alone (3.86 GB) pass the limit" in result["refusal"]
    assert set(result["setup"]) == {"precision", "tiles", "keep", "context", "kv", "entitled"}


def test_every_option_changes_the_plan(pulse) -> None:
    def total(*options: object) -> float:
        return float(
            pulse("plan", "pulse-7b", "--device", "orin-nx-16gb", *options, "--json").json["memory"]["total"]
        )

    plain = total()
    assert total("--tiles", 1) < plain
    assert total("--keep", 0.5) < plain
    assert total("--kv", "int8") < plain
    assert total("--context", 4096) > plain
    assert total("--precision", "int8") > plain
    phone = ("plan", "pulse-7b", "--device", "iphone-17-pro", "--json")
    assert pulse(*phone, "--entitled").json["memory"]["usable"] == 6e9
    assert pulse(*phone).json["memory"]["usable"] == 4.2e9


def test_own_memory_and_bandwidth_take_the_place_of_the_profiles(pulse) -> None:
    asked = ("plan", "pulse-2b", "--device", "x86-cpu", "--json")
    before = pulse(*asked).json
    assert before["memory"]["fits"] is None
    assert before["speed"]["decode_tokens_s"] is None
    after = pulse(*asked, "--ram-gb", 16, "--bandwidth-gb-s", 40).json
    assert after["memory"]["usable"] == pytest.approx(0.8 * 16e9)
    assert after["memory"]["fits"] is True
    assert after["speed"]["decode_tokens_s"]["value"] > 0
    assert pulse(*asked).json == before  # nothing was kept


def test_all_devices_are_ranked(pulse) -> None:
    result = pulse("plan", "pulse-7b", "--all", "--json").json
    assert {entry["device"] for entry in result["devices"]} | set(result["left_out"]) == set(list_devices())
    fits = [entry["memory"]["fits"] for entry in result["devices"]]
    assert fits == sorted(fits, key=[True, None, False].index)
    seconds = [
        entry["speed"]["report_s"]["value"]
        for entry in result["devices"]
        if entry["memory"]["fits"] and entry["speed"]["report_s"]
    ]
    assert seconds == sorted(seconds)
    assert len(seconds) >= 5
    fitting = {entry["device"] for entry in result["devices"] if entry["memory"]["fits"]}
    assert {"orin-nx-16gb", "agx-orin-64gb", "thor-t5000"} <= fitting
    assert not {"orin-nano-8gb", "iphone-16-pro", "orin-nano-4gb"} & fitting
    text = pulse("plan", "pulse-7b", "--all")
    assert text.code == 0
    assert all(name in text.out for name in list_devices())


def test_devices_without_the_precision_are_left_out(pulse) -> None:
    result = pulse("plan", "pulse-7b", "--all", "--precision", "nvfp4", "--json").json
    assert result["left_out"]["orin-nano-8gb"] == "has no nvfp4"
    assert {"thor-t4000", "thor-t5000"} <= {entry["device"] for entry in result["devices"]}


@pytest.mark.parametrize("model", ["pulse-nano", "pulse-2b", "pulse-0.5b"])
def test_smaller_models_fit_an_orin_nano(pulse, model) -> None:
    assert pulse("plan", model, "--device", "orin-nano-8gb", "--json").json["memory"]["fits"] is True


def test_a_checkpoint_folder_is_planned(pulse, small_checkpoint) -> None:
    result = pulse(
        "plan", small_checkpoint, "--device", "raspberry-pi-5", "--precision", "fp32", "--json"
    ).json
    assert result["memory"]["fits"] is True
    assert result["speed"]["extrapolated"] is True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("pulse-7b",), "Name the device with --device NAME, or rank all of them with --all"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--all"), "but not both"),
        (("pulse-7", "--device", "orin-nx-16gb"), "Did you mean 'pulse-7b'?"),
        (("no/such/model", "--device", "orin-nx-16gb"), "no/such/model is not a folder"),
        (("no-such.yaml", "--device", "orin-nx-16gb"), "Cannot read the recipe no-such.yaml"),
        (("pulse-7b", "--device", "orin-nx-16g"), "Did you mean 'orin-nx-16gb'?"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--precision", "nvfp4"), "has no nvfp4"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--precision", "int5"), "Did you mean 'int8'?"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--tiles", "2"), "1, 3, 4, 5 tiles, not 2"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--keep", "0"), "above 0 and at most 1"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--context", "99"), "is of no use"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--kv", "int4"), "Unknown precision of the cache"),
        (("pulse-7b", "--device", "orin-nx-16gb", "--ram-gb", "-1"), "--ram-gb must be a positive number"),
        (("pulse-7b", "--device", "x86-cpu", "--ram-gb", "nan"), "--ram-gb must be a positive number"),
        (("pulse-7b", "--all", "--ram-gb", "8"), "describe one device"),
        (("pulse-7b", "--all", "--precision", "int5"), "Did you mean 'int8'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(arguments, sentence, pulse, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in pulse("plan", *arguments).refused()


def test_a_recipe_file_is_planned_and_one_of_another_kind_is_not(pulse, root, tmp_path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((root / "train" / "recipes" / "pulse-2b.yaml").read_text())
    assert pulse("plan", own, "--device", "orin-nano-8gb", "--json").json["model"] == "pulse-2b"
    own.write_text((root / "train" / "recipes" / "pulse-nano.yaml").read_text())
    assert (
        "Plan the checkpoint it trains instead" in pulse("plan", own, "--device", "orin-nano-8gb").refused()
    )
    own.write_text("kind: sft\nname: x\nmodel: 3\n")
    assert "does not describe PULSE's architecture" in pulse("plan", own, "--all").refused()
    own.write_text("kind: sft\nname: x\nmodel: {text: {}, vision: {}}\n")
    assert "Use a checkpoint with one of those" in pulse("plan", own, "--all").refused()


def test_the_function_is_the_command(pulse) -> None:
    called = commands.plan("pulse-2b", device="iphone-16")
    assert called == pulse("plan", "pulse-2b", "--device", "iphone-16", "--json").json
    with pytest.raises(UserError):
        commands.plan("pulse-2b")
