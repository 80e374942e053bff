"""Opening models: bundles, checkpoints, names; and bundles that are not what was exported."""

from __future__ import annotations

import json
import random
import shutil

import pytest

import pulse_edge
from pulse_edge.bundle import verify_bundle
from pulse_edge.errors import BundleError, CheckpointError, UnknownNameError
from pulse_edge.runtimes.load import load


def test_load_opens_a_bundle_and_its_checkpoint(small_bundle, small_checkpoint) -> None:
    assert type(pulse_edge.load(small_bundle).backend).__name__ == "OnnxBackend"
    session = pulse_edge.load(str(small_checkpoint))
    assert type(session.backend).__name__ == "TorchBackend"
    assert session.max_new_tokens == pulse_edge.load(small_bundle).max_new_tokens == 128


def test_a_shipped_model_is_opened_by_name_and_a_wrong_name_named(
    small_checkpoint, tmp_path, monkeypatch
) -> None:
    shutil.copytree(small_checkpoint, tmp_path / "pulse-nano")
    monkeypatch.setattr("pulse_edge.model.checkpoint.SHIPPED", tmp_path)
    assert load("pulse-nano").ask.__self__.backend.position == 0
    with pytest.raises(UnknownNameError, match=r"'pulse-nan'.*Did you mean 'pulse-nano'") as caught:
        load("pulse-nan")
    assert caught.value.nearest == "pulse-nano"


@pytest.mark.parametrize("path", ["no/such/folder", "./nowhere"])
def test_a_path_that_is_not_there_is_named(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((CheckpointError, UnknownNameError), match=path.split("/")[-1]):
        load(path)


def test_a_folder_with_graphs_but_no_manifest_is_a_broken_bundle(own_bundle) -> None:
    (own_bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load(own_bundle)


def test_every_file_of_a_bundle_is_guarded(small_bundle, own_bundle) -> None:
    """One byte of each file is flipped in turn, the manifest included; and each file is removed."""
    assert verify_bundle(own_bundle) == []
    for path in sorted(p for p in own_bundle.rglob("*") if p.is_file()):
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError):
            load(own_bundle)
        path.unlink()
        with pytest.raises(BundleError):
            load(own_bundle)
        path.write_bytes(sound)
    assert verify_bundle(own_bundle) == []


def test_no_flipped_bit_of_the_manifest_goes_unseen(own_bundle) -> None:
    path = own_bundle / "manifest.json"
    sound = path.read_bytes()
    meaning = json.loads(sound)
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            same = json.loads(damaged) == meaning  # white space that became other white space
        except ValueError:
            same = False
        problems = verify_bundle(own_bundle)
        assert same or problems
        for problem in problems:
            assert "\n" not in problem


def test_a_manifest_without_a_needed_field_gives_one_sentence(own_bundle) -> None:
    path = own_bundle / "manifest.json"
    for key, inner in (("labels", None), ("scoring", None), ("generation", "context"), ("graphs", "vision")):
        manifest = json.loads(path.read_text())
        sound = path.read_text()
        if inner:
            del manifest[key][inner]
        else:
            del manifest[key]
        path.write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=f"{inner or key}.*Export the bundle again"):
            load(own_bundle, verify=False)
        path.write_text(sound)


def test_a_damaged_graph_is_named_even_unverified(own_bundle) -> None:
    (own_bundle / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be loaded"):
        load(own_bundle, verify=False)
