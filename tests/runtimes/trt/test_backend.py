"""Engines against ONNX Runtime on the same bundle, through everything that a session does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pulse_edge import commands
from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.contract import IMAGE_TOKEN_ID
from pulse_edge.errors import BundleError, MissingExtraError, PulseEdgeError, UserError
from pulse_edge.model.preprocess import preprocess
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.tensorrt import TensorRTBackend
from pulse_edge.samples import SAMPLES

QUESTIONS = ("What is the heart rate?", "Is this ECG normal?")


@pytest.fixture(scope="module")
def pages():
    page = np.asarray(Image.open(SAMPLES / "normal.png").convert("RGB"))
    return [page, page[700:950]]


@pytest.fixture
def built(own, plug):
    """A bundle with engines, and the device that they were built on."""

    def make(version="10.3.0", precision="fp16", **options):
        machine, folder = plug(version), own(precision)
        commands.build(folder, device="any", parity=False, **options)
        return folder, machine

    return make


@pytest.mark.parametrize(
    ("version", "precision", "strip"),
    [("10.3.0", "fp16", False), ("10.13.3.9", "int8", False), ("11.4.0.106", "fp16", True),
     ("11.4.0.106", "int4", True)],
)  # fmt: skip
def test_answers_and_labels_are_those_of_onnx_runtime(built, pages, version, precision, strip) -> None:
    folder, machine = built(version, precision, strip_weights=strip)
    ours, theirs = load(folder), load(folder, runtime="onnx")
    assert type(ours.backend).__name__ == "TensorRTBackend"
    assert (ours.runtime, theirs.runtime) == (f"TensorRT {version}", "ONNX Runtime")
    for page, question in zip([*pages, pages[0]], [*QUESTIONS, QUESTIONS[1]], strict=True):
        np.testing.assert_allclose(ours.logits(page, question), theirs.logits(page, question), atol=1e-3)
        assert ours.ask(page, question, 6) == theirs.ask(page, question, 6)
    assert ours.label(pages[0]) == pytest.approx(theirs.label(pages[0]), abs=1e-5)
    assert machine.cuda.sticky == 0
    assert machine.cuda.captures == 1  # the vision graph, once
    assert machine.cuda.launches == 3


def test_reading_in_pieces_and_rewinding_equal_reading_at_once(built) -> None:
    folder, _ = built()
    ours, theirs = load(folder), load(folder, runtime="onnx")
    tokens = ours.tokenizer.encode("Does this ECG show hypertrophy, and which leads say so?")
    for session in (ours, theirs):
        session.backend.prefill(None, tokens[:3])
    for token in tokens[3:6]:
        np.testing.assert_allclose(ours.backend.step(token), theirs.backend.step(token), atol=1e-3)
    for backend in (ours.backend, theirs.backend):
        backend.rewind(2)
        assert backend.position == 2
    rest = tokens[6:]
    np.testing.assert_allclose(ours.backend.extend(rest), theirs.backend.extend(rest), atol=1e-3)
    for wrong in (-1, ours.backend.position + 1):
        with pytest.raises(ValueError, match="cannot rewind"):
            ours.backend.rewind(wrong)
    ours.backend.rewind(0)
    theirs.backend.reset()
    np.testing.assert_allclose(ours.backend.extend(tokens), theirs.backend.extend(tokens), atol=1e-3)
    with pytest.raises(ValueError, match="no tokens"):
        ours.backend.extend([])


def test_a_prompt_with_text_on_both_sides_of_the_image(built, pages) -> None:
    """A session reads the image last; the protocol allows text behind it, too."""
    folder, _ = built()
    ours, theirs = load(folder), load(folder, runtime="onnx")
    encode = ours.tokenizer.encode
    prompt = [*encode("Look:"), IMAGE_TOKEN_ID, *encode(" Which leads?", bos=False)]
    tiles, size = preprocess(pages[1]), pages[1].shape[1::-1]
    logits = [s.backend.prefill(s.backend.encode(tiles, size), prompt) for s in (ours, theirs)]
    np.testing.assert_allclose(*logits, atol=1e-3)
    assert ours.backend.position == theirs.backend.position
    with pytest.raises(UserError, match="context is 512"):
        ours.backend.prefill(np.zeros((512, 32), np.float32), prompt)
    assert ours.backend.prefill(None, prompt[:1]).shape == logits[0].shape


def test_longer_than_any_profile_is_read_in_pieces_up_to_the_context(built) -> None:
    """`question` takes 128 tokens behind at most 384; `token` goes on from there, one by one."""
    folder, _ = built()
    ours, theirs = load(folder).backend, load(folder, runtime="onnx").backend
    tokens = [5 + i % 40 for i in range(512)]
    for backend in (ours, theirs):
        backend.prefill(None, tokens[:100])
    a, b = ours.extend(tokens[100:395]), theirs.extend(tokens[100:395])
    np.testing.assert_allclose(a, b, atol=2e-3)
    assert ours.position == 395
    np.testing.assert_allclose(ours.extend(tokens[395:399]), theirs.extend(tokens[395:399]), atol=2e-3)
    with pytest.raises(UserError, match=r"513 tokens.*context is 512"):
        ours.extend(tokens[:114])
    assert ours.position == 399
    for token in tokens[399:]:
        a, b = ours.step(token), theirs.step(token)
    np.testing.assert_allclose(a, b, atol=2e-3)
    assert ours.position == 512
    with pytest.raises(UserError, match="context is 512"):
        ours.step(5)


def test_a_graph_that_cannot_be_captured_is_run_without(built, pages, monkeypatch) -> None:
    folder, machine = built()
    monkeypatch.setattr(machine.cuda, "cudaStreamBeginCapture", lambda s, m: _broken(s))

    def _broken(stream):
        stream.capturing, stream.broken = [], True
        return (0,)

    session = load(folder)
    assert "without a CUDA graph" in session.runtime
    first = session.logits(pages[0], QUESTIONS[0])
    session.logits(pages[1], QUESTIONS[0])
    np.testing.assert_array_equal(session.logits(pages[0], QUESTIONS[0]), first)
    assert machine.cuda.launches == 0


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "sm", "reason"),
    [
        ("10.13.3.9", "8.7", r"built for TensorRT 10\.3\.0, and this machine has TensorRT 10\.13\.3\.9"),
        ("10.3.0", "11.0", r"built for compute capability \(SM\) 8\.7, and this machine has .* 11\.0"),
    ],
)
def test_engines_of_another_machine_are_explained_and_built_again(
    built, plug, pages, version, sm, reason
) -> None:
    folder, _ = built("10.3.0")
    machine = plug(version, sm)
    session = load(folder)
    assert type(session.backend).__name__ == "OnnxBackend"
    assert session.ask(pages[0], QUESTIONS[0], 2) is not None
    import re

    assert re.search(rf"ONNX Runtime, not TensorRT: .*{reason}.*pulse-edge build", session.runtime)
    with pytest.raises(BundleError, match=rf"{reason}\. Build them from the portable half: pulse-edge build"):
        load(folder, runtime="tensorrt")
    commands.build(folder, device="any", parity=False)
    assert load(folder).runtime.startswith("TensorRT ")
    assert machine.builds == 3


def test_without_tensorrt_or_a_device_the_bundle_still_runs(built, pages, monkeypatch) -> None:
    folder, _ = built()
    import sys

    with monkeypatch.context() as patch:
        patch.setattr("pulse_edge.board.cuda_device", lambda: None)
        assert "No CUDA device answers" in load(folder).runtime
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    session = load(folder)
    assert "TensorRT's Python package does not load" in session.runtime
    assert session.ask(pages[0], QUESTIONS[0], 2) is not None
    with pytest.raises(BundleError, match="does not load"):
        load(folder, runtime="tensorrt")


def test_without_cuda_python_the_extra_is_named(built, monkeypatch) -> None:
    folder, _ = built()
    import sys

    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r'pip install "pulse-edge\[jetson\]"'):
        load(folder)


def test_a_bundle_without_engines_says_so_when_asked(own, plug) -> None:
    plug()
    folder = own()
    assert load(folder).runtime == "ONNX Runtime"
    with pytest.raises(BundleError, match=r"has no engines\. Build them"):
        load(folder, runtime="tensorrt")


def test_too_little_memory_is_one_sentence_and_nothing_stays_allocated(built, monkeypatch) -> None:
    folder, machine = built()
    load(folder)
    import gc

    gc.collect()
    assert machine.cuda.used == 0
    machine.cuda.memory = 4 << 20
    with pytest.raises(PulseEdgeError, match=r"CUDA could not reserve \d+ MB .*Close other programs"):
        load(folder)
    gc.collect()
    assert machine.cuda.used == 0


def test_damaged_engines_are_found_by_hash_and_by_tensorrt(built) -> None:
    folder, _ = built()
    path = folder / "engines" / "decoder.engine"
    sound = path.read_bytes()
    path.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    with pytest.raises(BundleError, match=r"engines/decoder\.engine differs.*pulse-edge build"):
        load(folder)
    with pytest.raises(BundleError, match=r"magic tag does not match.*pulse-edge build"):
        load(folder, verify=False)
    path.write_bytes(b"")
    with pytest.raises(BundleError, match=r"decoder\.engine cannot be read"):
        load(folder, verify=False)


def test_an_engine_of_another_graph_is_refused(built) -> None:
    folder, _ = built()
    engines = folder / "engines"
    (engines / "embed.engine").write_bytes((engines / "vision.engine").read_bytes())
    with pytest.raises(BundleError, match="has other inputs or outputs than its graph"):
        load(folder, verify=False)


def test_stripped_engines_need_the_weights_of_their_graph(built) -> None:
    folder, _ = built(strip_weights=True)
    stripped = {p.name: p.stat().st_size for p in (folder / "engines").glob("*.engine")}
    assert load(folder).runtime.startswith("TensorRT ")
    index = folder / "engines" / "engines.json"
    index.write_text(index.read_text().replace('"stripped": true', '"stripped": false'))
    with pytest.raises(PulseEdgeError, match="weights were stripped and not refitted"):
        TensorRTBackend(folder, read_manifest(folder))
    assert stripped


def test_an_error_of_the_device_is_reported_with_what_to_do(built, pages) -> None:
    folder, machine = built()
    session = load(folder)
    machine.cuda.blocks.pop(session.backend._logits_there.address)
    with pytest.raises(PulseEdgeError, match=r"error 700\)\. Run `pulse-edge doctor --device`"):
        session.ask(pages[0], QUESTIONS[0], 2)


def test_the_portable_half_stays_as_it_was_exported(built, jetson_bundles) -> None:
    folder, _ = built()
    before = jetson_bundles("fp16")
    for path in before.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(before)).read_bytes() == path.read_bytes()
    assert verify_bundle(folder) == []
