"""What makes a model fit: every remedy is computed again here, and must do what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pulse_edge.commands._plan import read_model
from pulse_edge.device import list_devices, load_device
from pulse_edge.fit import TARGET_OF, Setup, fit, refusal
from pulse_edge.remedies import find_remedies, students

PULSE = read_model("pulse-7b")
MODELS = {shape.name: shape for shape in (PULSE, *students())}


def test_the_students_are_those_of_the_recipes():
    assert [read_model(shape.name) for shape in students()] == list(students())


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("device", [name for name in list_devices() if name != "raspberry-pi-5"])
def test_every_remedy_makes_it_fit(device, precision):
    profile = load_device(device)
    setup = Setup(precision=precision, target=TARGET_OF[profile.kind])
    for shape in MODELS.values():
        before = fit(shape, profile, setup)
        remedies = find_remedies(shape, profile, setup, how_many=50)
        assert bool(remedies) >= (before["fits"] is False)
        for remedy in remedies:
            other = load_device(remedy["device"])
            after = fit(MODELS[remedy["model"]], other, replace(setup, **remedy["change"]))
            assert after["fits"]
            assert (after["total"], after["usable"]) == (remedy["total"], remedy["usable"])
            assert remedy["needs"] == f"{after['total'] / 1e9:.2f} of {after['usable'] / 1e9:.2f} GB"
            assert remedy["speed"]["label"] == "estimate"


def test_what_fits_needs_no_remedy():
    assert find_remedies(PULSE, load_device("agx-orin-64gb"), Setup()) == []
    assert find_remedies(PULSE, load_device("x86-cpu"), Setup(target="onnx")) == []


def test_no_remedy_holds_another_one():
    profile, setup = load_device("orin-nx-16gb"), Setup(precision="fp16")
    changes = [
        frozenset(r["change"].items())
        for r in find_remedies(PULSE, profile, setup, how_many=50)
        if r["device"] == profile.name and r["model"] == PULSE.name
    ]
    assert len(changes) >= 3
    assert not [(a, b) for a in changes for b in changes if a < b]


def test_the_cheapest_comes_first():
    said = [r["what"] for r in find_remedies(PULSE, load_device("orin-nx-16gb"), Setup(precision="fp16"))]
    assert said == [
        "int4 instead of fp16",
        "an int8 key-value cache, int8 instead of fp16 and half of the visual tokens pruned",
        "int8 instead of fp16 and the base view alone instead of 5 tiles",
    ]
    phone = find_remedies(PULSE, load_device("iphone-17-pro"), Setup(target="coreml"))
    assert phone[0]["what"] == "both memory entitlements in the app and an int8 key-value cache"
    assert phone[0]["change"] == {"entitled": True, "kv": "int8"}


def test_a_student_comes_in_the_highest_precision_that_fits():
    found = find_remedies(PULSE, load_device("iphone-15-pro"), Setup("fp16", target="coreml"), how_many=50)
    said = [r["what"] for r in found if r["model"] != PULSE.name]
    assert said == ["the student pulse-2b in int4", "the student pulse-0.5b in fp16"]


def test_a_given_context_is_not_pruned_away():
    nx = load_device("orin-nx-8gb")
    for remedy in find_remedies(PULSE, nx, Setup(context=4096), how_many=50):
        assert not {"tiles", "keep"} & set(remedy["change"])


def test_a_sentence_without_remedies_says_so():
    tiny = load_device("iphone-13")
    assert "Nothing that is planned makes it fit." in refusal(PULSE, tiny, Setup(target="coreml"), [])
