"""Guidance for a live camera: the shutter's advice, frame by frame, with nothing kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pulse_edge.runtimes.serve import guidance
from pulse_edge.runtimes.serve.guidance import READY, Guide


def jpeg(image: Any) -> bytes:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=90)
    return stream.getvalue()


@pytest.fixture(scope="module")
def frame() -> bytes:
    from pulse_edge.samples import SAMPLES

    image = Image.open(SAMPLES / "normal.png").convert("RGB")
    return jpeg(image.resize((1280, 1280 * image.height // image.width)))


def look(client: TestClient, frame: bytes, **query: Any) -> Any:
    return client.post("/v1/guidance", content=frame, params=query, headers={"content-type": "image/jpeg"})


def test_a_still_page_becomes_ready_and_an_empty_table_does_not(
    paced: TestClient, frame: bytes, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            now[0] += 0.1
            return now[0]

    monkeypatch.setattr(guidance, "time", Time)
    table = jpeg(Image.fromarray(np.full((720, 1280, 3), 180, np.uint8)))
    before = sorted(data.rglob("*"))
    for _ in range(8):
        answer = look(paced, table, camera="b").json()
        assert not answer["ready"]
    assert answer["message"].startswith("Point the camera at the ECG")
    assert answer["grade"] == "refuse"
    advice = [look(paced, frame, camera="a").json() for _ in range(10)]
    assert not advice[0]["ready"]
    assert advice[-1]["ready"]
    assert (advice[-1]["message"], advice[-1]["grade"]) == (READY, "good")
    assert advice[-1]["px_per_mm"] > 4
    assert 2 <= advice[-1]["fps_hint"] <= 8
    assert sorted(data.rglob("*")) == before


def test_a_small_preview_counts_as_what_the_photo_will_have(paced: TestClient, frame: bytes) -> None:
    image = Image.open(io.BytesIO(frame))
    small = jpeg(image.resize((image.width // 2, image.height // 2)))
    for _ in range(5):
        far, near = (
            look(paced, small, camera=name, scale=scale).json() for name, scale in (("a", 1), ("b", 4))
        )
    assert far["message"].startswith("Move closer")
    assert not near["message"].startswith("Move closer")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xd8\xff", b"GIF89a" + b"\0" * 50])
def test_what_is_no_jpeg_is_refused(paced: TestClient, content: bytes) -> None:
    assert look(paced, content).status_code == 400


def test_other_formats_and_sizes_are_refused(paced: TestClient, picture: bytes, frame: bytes) -> None:
    assert look(paced, picture).status_code == 400  # PNG
    assert look(paced, jpeg(Image.new("RGB", (40, 40)))).status_code == 400
    assert look(paced, frame + b"\0" * (1 << 20)).status_code == 413
    assert look(paced, frame, scale=0).status_code == 400
    assert look(paced, frame, camera="c" * 41).status_code == 400


def test_no_more_cameras_are_remembered_than_there_is_room_for(frame: bytes) -> None:
    guide = Guide()
    for number in range(20):
        guide.look(str(number), frame)
    assert len(guide._cameras) <= 16
