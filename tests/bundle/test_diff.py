"""Comparing bundles: every kind of change is told in its section, and nothing else is."""

from __future__ import annotations

import hashlib
import json

import pytest

from pulse_edge.bundle import read_manifest, write_manifest
from pulse_edge.bundle.diff import diff_bundles
from pulse_edge.bundle.signature import sign_bundle
from pulse_edge.errors import BundleError


def sections(a, b):
    result = diff_bundles(a, b)
    assert result["same"] is (not result["changes"])
    json.dumps(result)
    return result["changes"]


def test_equal_bundles_do_not_differ(make_bundle) -> None:
    assert sections(make_bundle("a"), make_bundle("b")) == {}


def test_weights_are_told_by_graph_and_hash(make_bundle) -> None:
    changes = sections(make_bundle("a"), make_bundle("b", weights=b"others"))
    hashes = [hashlib.sha256(content).hexdigest() for content in (b"weights", b"others")]
    row = {"what": "vision (vision.onnx.data)", "a": hashes[0], "b": hashes[1]}
    assert changes == {"weights": [row]}


@pytest.mark.parametrize(
    ("fields", "section", "row"),
    [
        ({"precision": {"vision": "int8"}}, "precision", ("precision", None, {"vision": "int8"})),
        ({"prompt": {"system": "Be long."}}, "prompt", ("prompt.system", "Be brief.", "Be long.")),
        ({"preprocessing": {"merge": "x"}}, "preprocessing", ("preprocessing.merge", "flat", "x")),
        ({"generation": {"context": 9}}, "generation", ("generation.context", 512, 9)),
        ({"calibration": {"set": "ptb-xl"}}, "calibration", ("calibration", None, {"set": "ptb-xl"})),
        ({"toolchain": {"torch": "2"}}, "toolchain", ("toolchain", None, {"torch": "2"})),
        ({"accuracy": [{"auroc": 0.8}]}, "accuracy", ("accuracy", None, [{"auroc": 0.8}])),
        ({"licences": ["MIT"]}, "licences", ("licences", None, ["MIT"])),
        ({"target": "jetson"}, "target", ("target", "onnx", "jetson")),
        ({"invented": 1}, "other", ("invented", None, 1)),
        ({"invented": True}, "other", ("invented", None, True)),
        ({"graphs": {"vision": {"file": "vision.onnx", "x": 1}}}, "graphs", ("vision.x", None, 1)),
    ],
)  # fmt: skip
def test_a_field_is_told_in_its_section(make_bundle, fields, section, row) -> None:
    changes = sections(make_bundle("a"), make_bundle("b", **fields))
    assert changes == {section: [dict(zip(("what", "a", "b"), row, strict=True))]}


def test_lists_are_compared_entry_by_entry(make_bundle) -> None:
    one = make_bundle("a", accuracy=[{"stage": "fp32", "auroc": 0.84}])
    two = make_bundle("b", accuracy=[{"stage": "fp32", "auroc": 0.83}, {"stage": "int4"}])
    assert sections(one, two)["accuracy"] == [
        {"what": "accuracy[0].auroc", "a": 0.84, "b": 0.83},
        {"what": "accuracy[1]", "a": None, "b": {"stage": "int4"}},
    ]


def test_one_is_not_true_and_a_new_file_is_told(make_bundle) -> None:
    assert sections(make_bundle("a", x=1), make_bundle("b", x=True))["other"]
    one, two = make_bundle("c"), make_bundle("d")
    (two / "more").write_text("x")
    write_manifest(two, {k: v for k, v in read_manifest(one).items() if k not in ("files", "digest")})
    assert sections(one, two)["files"][0]["what"] == "more"


def test_a_signature_is_a_change_of_its_own(make_bundle, key) -> None:
    one, two = make_bundle("a"), make_bundle("b")
    sign_bundle(two, key)
    assert set(sections(one, two)) == {"signature"}


def test_a_folder_that_is_no_bundle(make_bundle, tmp_path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        diff_bundles(make_bundle("a"), tmp_path)
