"""The PyTorch backend's cache: reading in pieces, rewinding, forgetting."""

from __future__ import annotations

import numpy as np
import pytest

from pulse_edge.errors import UserError
from pulse_edge.model.reference import TorchBackend

TOKENS = [1, 5, 9, 11, 30, 7, 12]
SIZE = (2200, 1700)


@pytest.fixture(scope="module")
def backend(student):
    return TorchBackend(student)


@pytest.fixture(scope="module")
def embeddings(backend):
    tiles = np.random.default_rng(0).normal(size=(5, 3, 336, 336)).astype(np.float32)
    return backend.encode(tiles, SIZE)


def test_the_small_tower_gives_49_tokens_a_tile(backend, embeddings):
    assert embeddings.shape == (5 * 49, 32)
    assert embeddings.dtype == np.float32


def test_reading_in_pieces_equals_reading_at_once(backend, embeddings):
    whole = backend.prefill(embeddings, [1, -200, *TOKENS])
    assert backend.position == 1 + 245 + len(TOKENS)
    backend.prefill(embeddings, [1, -200])
    backend.extend(TOKENS[:3])
    for token in TOKENS[3:]:
        last = backend.step(token)
    np.testing.assert_allclose(last, whole, atol=1e-5)


def test_rewinding_forgets_exactly_what_came_after(backend, embeddings):
    backend.prefill(embeddings, [1, -200])
    start = backend.position
    first = backend.extend(TOKENS)
    backend.rewind(start)
    other = backend.extend([3, 3, 3])
    assert np.abs(other - first).max() > 1e-3
    backend.rewind(start)
    assert backend.position == start
    np.testing.assert_allclose(backend.extend(TOKENS), first, atol=1e-6)
    with pytest.raises(ValueError, match="cannot rewind"):
        backend.rewind(backend.position + 1)
    backend.rewind(0)
    assert backend.position == 0


def test_prefill_starts_anew(backend, embeddings):
    first = backend.prefill(embeddings, [1, -200, 4])
    backend.extend(TOKENS)
    np.testing.assert_array_equal(backend.prefill(embeddings, [1, -200, 4]), first)
    backend.reset()
    assert backend.position == 0


def test_the_context_has_an_end(backend, embeddings):
    backend.prefill(embeddings, [1, -200, *range(3, 57)])
    assert backend.position == 300
    with pytest.raises(UserError, match="context is 300"):
        backend.step(5)
    with pytest.raises(UserError, match="context is 300"):
        backend.prefill(embeddings, [1, -200, *range(3, 58)])
