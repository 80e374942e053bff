"""The fast path on a CPU against the exact one: the shared cache, the integer graphs, the mapped table."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pulse_edge.bundle import read_manifest
from pulse_edge.errors import BundleError, UserError
from pulse_edge.export import export_bundle
from pulse_edge.model.checkpoint import resolve_model
from pulse_edge.runtimes.cache import PROMPT, GrowingCache, SharedCache
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.onnx import PIECE, OnnxBackend

CONTEXT = 512


def opened(folder: Path) -> OnnxBackend:
    return OnnxBackend(folder, read_manifest(folder), 1)


def picture(backend: OnnxBackend, seed: int) -> np.ndarray:
    """Embeddings as large as those of a picture."""
    width = backend._table.shape[1]
    return np.random.default_rng(seed).normal(size=(245, width)).astype(np.float32) * 0.3


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 600, count).tolist()


@pytest.fixture(scope="module")
def exported(small_checkpoint, tmp_path_factory):
    """The small model by precision and profile, once each."""
    made: dict[tuple[str, str], Path] = {}

    def export(precision: str, profile: str) -> Path:
        key = (precision, profile)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("fast") / "-".join(key)
            export_bundle(small_checkpoint, made[key], "onnx", precision=precision, profile=profile)
        return made[key]

    return export


@pytest.fixture
def fast(small_bundle) -> OnnxBackend:
    return opened(small_bundle)


def conversation(backend: OnnxBackend) -> list[np.ndarray]:
    """Logits of everything that a session does: a picture, a question, an answer, another question, another
    picture that is asked the same."""
    said = []
    for seed in (1, 2):
        said.append(backend.prefill(picture(backend, seed), [*tokens(30, 9), -200]))
        kept = backend.position
        for length in (40, 7):
            backend.rewind(kept)
            said.append(backend.extend(tokens(length, length)))
            said += [backend.step(token) for token in tokens(6, length + 1)]
    return said


def test_the_shared_cache_says_what_the_portable_graph_says(fast, exported):
    portable = opened(exported("fp32", "trt"))
    assert isinstance(fast._cache, SharedCache)
    assert isinstance(portable._cache, GrowingCache)
    ours, theirs = conversation(fast), conversation(portable)
    assert np.ptp(theirs[0]) > 1
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_was_forgotten_leaves_no_trace(small_bundle, fast):
    """The memory behind the cache's end still holds what was read there."""
    fast.prefill(None, tokens(400, 5))
    fast.rewind(20)
    after = [fast.extend(tokens(90, 6)), fast.step(7)]
    fresh = opened(small_bundle)
    fresh.prefill(None, tokens(400, 5)[:20])
    for a, b in zip(after, [fresh.extend(tokens(90, 6)), fresh.step(7)], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert fast.position == fresh.position == 111


def test_logits_belong_to_the_caller(fast):
    first = fast.prefill(None, tokens(9))
    kept = first.copy()
    assert not np.array_equal(fast.step(5), kept)
    np.testing.assert_array_equal(first, kept)


def test_numbers_do_not_depend_on_the_pictures_before(small_bundle, fast):
    """What stands before the picture is kept between pictures, and is the same to the last bit."""
    prompt = [*tokens(30, 9), -200, *tokens(12, 3)]
    fast.prefill(picture(fast, 1), prompt)
    for token in tokens(4):
        fast.step(token)
    read: list[int] = []
    inner = fast._cache.read
    fast._cache.read = lambda rows: read.append(len(rows)) or inner(rows)  # type: ignore[method-assign]
    again = fast.prefill(picture(fast, 2), prompt)
    assert read == [245 + 12]
    np.testing.assert_array_equal(again, opened(small_bundle).prefill(picture(fast, 2), prompt))
    read.clear()
    fast.prefill(picture(fast, 2), [*tokens(29, 9), -200, *tokens(12, 3)])  # another beginning is read
    assert read == [29, 245 + 12]


def test_the_context_can_be_filled_to_its_end_and_not_beyond(fast, exported):
    portable = opened(exported("fp32", "trt"))
    assert fast.context == CONTEXT
    for backend in (fast, portable):
        backend.prefill(None, tokens(CONTEXT - 2))
        backend.step(4)
    a, b = fast.step(5), portable.step(5)
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert fast.position == CONTEXT
    with pytest.raises(UserError, match=r"context is 512.*shorter question"):
        fast.step(6)
    assert fast.position == CONTEXT
    fast.rewind(CONTEXT - 1)
    np.testing.assert_array_equal(fast.step(5), a)


def test_a_long_prompt_is_read_in_pieces(small_bundle, fast, monkeypatch):
    assert PIECE >= PROMPT
    whole = fast.prefill(None, tokens(300))
    monkeypatch.setattr("pulse_edge.runtimes.onnx.PIECE", 64)
    pieces: list[int] = []
    inner = fast._cache.read
    fast._cache.read = lambda rows: pieces.append(len(rows)) or inner(rows)  # type: ignore[method-assign]
    np.testing.assert_allclose(fast.prefill(None, tokens(300)), whole, atol=1e-4)
    assert pieces == [64] * 4 + [44]


def test_two_sessions_at_once_do_not_disturb_each_other(small_bundle, fast):
    alone = conversation(fast)
    said: dict[int, list[np.ndarray]] = {}
    backends = [opened(small_bundle) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda i=i, b=b: said.update({i: conversation(b)}))
        for i, b in enumerate(backends)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in said.values():
        for a, b in zip(each, alone, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(said) == 2


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_thousand_steps_take_no_memory(precision, exported):
    backend = opened(exported(precision, "ort"))
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("reads /proc")

    def resident() -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        return int(found[1]) if found else 0

    def steps(count: int) -> None:
        for i in range(count):
            if backend.position == CONTEXT:
                backend.rewind(10)
            backend.step(3 + i % 500)

    buffers = {name: value.data_ptr() for name, value in backend._cache._outputs.items()}
    backend.prefill(None, tokens(200))
    steps(CONTEXT)  # every page of the cache has been touched
    before = resident()
    steps(1000)
    assert resident() - before < 3000  # kB; a copy of this small cache for each step would be 250 MB
    assert {name: value.data_ptr() for name, value in backend._cache._outputs.items()} == buffers


def test_int4_reads_with_one_graph_and_generates_with_another(exported):
    """Their rounding differs, so each is held against float32 on its own."""
    exact, fast = opened(exported("fp32", "ort")), opened(exported("int4", "ort"))
    used: list[str] = []
    for name in ("_session", "_prompt"):
        inner = getattr(fast._cache, name)
        run = inner.run_with_iobinding
        inner.run_with_iobinding = lambda binding, name=name, run=run: used.append(name) or run(binding)
    for count, graph, least in (
        (PROMPT - 1, "_session", 0.85),
        (PROMPT, "_prompt", 0.99),
        (1, "_session", 0.85),
    ):
        used.clear()
        a, b = (backend.prefill(None, tokens(count, 8)) for backend in (exact, fast))
        assert used == [graph]
        assert np.corrcoef(a, b)[0, 1] > least  # random weights do not take 4 bits well
    assert np.corrcoef(exact.step(9), fast.step(9))[0, 1] > 0.85


@pytest.mark.parametrize(("precision", "logits", "probability"), [("int4", 1.5, 0.05), ("int8", 0.4, 0.02)])
def test_the_shipped_models_integers_give_the_same_labels(precision, logits, probability, pages, tmp_path):
    """Activations are rounded to 8 bits; on a real page that costs little, and no label."""
    export_bundle(resolve_model("pulse-nano"), tmp_path / "nano", "onnx", precision=precision)
    manifest = read_manifest(tmp_path / "nano")
    assert manifest["precision"]["decoder_profile"] == "ort"
    assert manifest["precision"]["lm_head"] == "int8"
    ours, theirs = load(tmp_path / "nano", threads=1), load("pulse-nano")
    page = pages["page"]
    assert np.abs(ours.logits(page, "Report.") - theirs.logits(page, "Report.")).max() < logits
    a, b = ours.label(page), theirs.label(page)
    assert max(abs(a[name] - b[name]) for name in b) < probability
    assert {name for name in a if a[name] >= 0.5} == {name for name in b if b[name] >= 0.5}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_warming_up_leaves_nothing_behind(precision, exported):
    cold, warm = opened(exported(precision, "ort")), opened(exported(precision, "ort"))
    warm.prefill(None, tokens(9))
    warm.warm_up()
    assert warm.position == 0
    for a, b in zip(conversation(cold), conversation(warm), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_mapped_table_is_what_its_graph_looks_up(small_bundle, fast):
    graph = onnxruntime.InferenceSession(str(small_bundle / "embed.onnx"), providers=["CPUExecutionProvider"])
    ids = np.array([[0, 5, 699, 5]])
    np.testing.assert_array_equal(graph.run(None, {"input_ids": ids})[0][0], fast._look_up(ids[0].tolist()))
    assert isinstance(fast._table.base, np.memmap | np.ndarray)
    for wrong in (-200, -1, len(fast._table)):
        with pytest.raises(ValueError, match="not one of the model's"):
            fast.step(wrong)


def test_a_cut_table_is_refused(own_bundle):
    data = own_bundle / "embed.onnx.data"
    data.write_bytes(data.read_bytes()[:-3])
    with pytest.raises(BundleError, match=r"embed\.onnx\.data is not a table.*Export the bundle again"):
        opened(own_bundle)
