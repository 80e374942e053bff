"""Damaged pictures: refused in a sentence, or decoded; never anything else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.photo import open_photo

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
MOST = 1_000_000  # pixels


def encode(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with bytes changed, cut, doubled or put in."""
    content = bytearray(encode(draw(st.sampled_from(FORMATS))))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, min(len(content) - 1, draw(st.sampled_from([40, 400, 10**6]))))))
        match draw(st.sampled_from(["change", "cut", "put in", "double"])):
            case "change":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[place : place + draw(st.integers(1, 2000))]
            case "put in":
                content[place:place] = draw(st.binary(max_size=64))
            case _:
                content += content[place:]
    return bytes(content)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures") / "photo"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=damaged())
def test_a_damaged_picture_is_refused_or_decoded(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refused, pixels, kind = None, None, ""
    try:
        pixels, kind = open_photo(file, MOST)
    except Refusal as refusal:
        refused = refusal
    if refused is not None:
        assert refused.status in (400, 413)
        assert str(file) not in str(refused)
        assert str(refused).endswith((".", '"pulse-edge[heic]"'))
        return
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert pixels.shape[0] * pixels.shape[1] <= MOST
    assert kind.startswith("image/")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sound_picture_keeps_its_kind(file: Path, kind: str) -> None:
    file.write_bytes(encode(kind))
    pixels, mime = open_photo(file, MOST)
    assert pixels.shape == (40, 60, 3)
    assert mime == {"JPEG": "image/jpeg", "PPM": "image/x-portable-anymap"}.get(kind, f"image/{kind.lower()}")
