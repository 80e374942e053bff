"""`pulse-edge capture` as people type it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from pulse_edge.ecg.paper import render
from pulse_edge.ecg.photo import PhotoStyle, Wave, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.samples import SAMPLES

KEYS = ["grade", "reasons", "px_per_mm", "rotation", "residual_mm", "timing_ms"]


@pytest.fixture(scope="module")
def photo():
    """A sample page as a phone sees it."""
    page = render(read_record(SAMPLES / "00299"))
    style = PhotoStyle(
        seed=1, tilt_deg=5, rotation_deg=-2, zoom=0.95, waves=(Wave(2.0, 300, 10),), noise=0.01, jpeg=90
    )
    return photograph(page.image, page.px_per_mm, style, (1300, 1004)).image  # even sides, as video has


@pytest.fixture
def jpeg(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=92)
    return tmp_path / "photo.jpg"


def test_a_photo(pulse, jpeg, tmp_path):
    done = pulse(
        "capture", jpeg, "--json", "--grid", tmp_path / "grid.json", "--output", tmp_path / "page.png"
    )
    assert done.code == 0, done.err
    assert list(done.json) == KEYS
    assert done.json["grade"] == "good", done.json["reasons"]
    nodes = json.loads((tmp_path / "grid.json").read_text())
    assert {len(node) for node in nodes} == {4}
    with Image.open(tmp_path / "page.png") as page:
        assert page.mode == "RGB"
        assert min(page.size) > 1000


def test_a_refused_picture_leaves_no_page_and_ends_with_2(pulse, tmp_path):
    Image.fromarray(np.full((300, 400, 3), 128, np.uint8)).save(tmp_path / "wall.png")
    done = pulse("capture", tmp_path / "wall.png", "--output", tmp_path / "page.png", "--json")
    assert done.code == 2
    assert done.json["grade"] == "refuse"
    assert done.json["residual_mm"] is None
    assert not (tmp_path / "page.png").exists()
    plain = pulse("capture", tmp_path / "wall.png")
    assert plain.code == 2
    assert plain.out.startswith("refuse\n  This does not look like an ECG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name one source"),
        (("a.png", "--camera", "0"), "Name one source"),
        (("a.png", "--photo", "b.png"), "belong to --camera"),
        (("a.png", "--timeout", "3"), "belong to --camera"),
        (("--watch", ".", "--output", "b.png"), "Leave --output and --grid out"),
        (("--camera", "0", "--timeout", "-1"), "more than 0 seconds"),
        (("a.png", "--output", "."), "is a folder"),
        (("a.png", "--grid", "no/such/grid.json"), "There is no folder"),
        (("a.png", "--output", "a.png"), "is the picture itself"),
        (("no.png",), "There is no picture"),
        (("--camera", "88"), "Camera 88 cannot be opened"),
        (("--watch", "no/such"), "There is no folder"),
    ],
)
def test_options_that_do_not_go_together(pulse, arguments, message):
    assert message in pulse("capture", *arguments).refused()


def test_a_recording_as_the_camera(pulse, photo, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 15, photo.shape[1::-1])
    for _ in range(15):
        writer.write(cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    writer.release()
    done = pulse("capture", "--camera", tmp_path / "a.avi", "--json", "--photo", tmp_path / "frame.png")
    assert done.code == 0, done.err
    assert list(done.json) == KEYS
    said = [json.loads(line)["guidance"] for line in done.err.splitlines()]
    assert said[-1] == "Taken."
    with Image.open(tmp_path / "frame.png") as image:
        frame = np.asarray(image).astype(int)
    assert np.abs(frame - photo).mean() < 6
