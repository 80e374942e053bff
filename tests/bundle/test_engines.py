"""The index of engines: damage of any kind is found or harmless, and never a traceback."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.bundle.engines import mismatch, read_engines, write_engines
from pulse_edge.bundle.signature import sign_bundle
from pulse_edge.errors import BundleError


@pytest.fixture
def built(tiny):
    folder = tiny / "engines"
    folder.mkdir()
    (folder / "vision.engine").write_bytes(b"plan")
    fields = {"portable": read_manifest(tiny)["digest"], "constraints": {"sm": "8.7", "tensorrt": "10.3.0"}}
    write_engines(folder, {**fields, "engines": {"vision": {"file": "vision.engine"}}})
    return tiny


def test_a_bundle_with_engines_is_sound_and_without_them_too(built) -> None:
    assert verify_bundle(built) == []
    (built / "engines" / "vision.engine").write_bytes(b"plam")
    (problem,) = verify_bundle(built)
    assert problem.startswith("engines/vision.engine differs from what was built; delete the folder")
    assert verify_bundle(built, engines=False) == []


def test_signing_again_does_not_part_bundle_and_engines(built, key) -> None:
    sign_bundle(built, key)
    assert verify_bundle(built) == []


def test_no_flipped_bit_of_the_index_goes_unseen(built) -> None:
    path, rng = built / "engines" / "engines.json", random.Random(0)
    sound = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            same = json.loads(damaged) == json.loads(sound)
        except ValueError:
            same = False
        problems = verify_bundle(built)
        assert same or problems
        assert all("\n" not in problem for problem in problems)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4)  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["schema", "portable", "constraints", "engines", "files", "digest", "signature"]),
    value=JSON,
)
def test_fields_of_any_form_are_problems_and_not_errors(built, name, value) -> None:
    path = built / "engines" / "engines.json"
    sound = path.read_text()
    index = json.loads(sound)
    path.write_text(json.dumps({**index, name: value}))
    problems = verify_bundle(built)
    path.write_text(sound)
    assert problems or value == index[name]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', "[" * 10000])
def test_an_index_that_is_none(built, content) -> None:
    (built / "engines" / "engines.json").write_text(content)
    assert len(verify_bundle(built)) == 1
    with pytest.raises(BundleError):
        read_engines(built / "engines")


def test_what_engines_are_tied_to() -> None:
    index = {"constraints": {"sm": "8.7", "tensorrt": "10.3.0", "driver": "12.6", "l4t": "36.4.3"}}
    assert mismatch(index, {"sm": "8.7", "tensorrt": "10.3.0"}) is None
    text = mismatch(index, {"sm": "11.0", "tensorrt": "10.13.3.9"})
    assert text == (
        "The engines were built for compute capability (SM) 8.7 and TensorRT 10.3.0, and this machine has "
        "compute capability (SM) 11.0 and TensorRT 10.13.3.9"
    )
    assert mismatch({"constraints": {}}, {"sm": "8.7", "tensorrt": "10.3.0"})
