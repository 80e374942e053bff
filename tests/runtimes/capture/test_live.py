"""Recorded scenes through preview, shutter and camera: moving, out of focus, then still."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from pulse_edge.errors import PulseEdgeError, UserError
from pulse_edge.image_io import open_image
from pulse_edge.runtimes.capture.camera import frames, has_gstreamer, open_camera, take_live
from pulse_edge.runtimes.capture.preview import Preview, fine_detail, grid_scale
from pulse_edge.runtimes.capture.shutter import State, advance

RATE = 15
PARTS = {"moving": 7, "soft": 7, "still": 12}  # frames


def scene(picture, seed=0):
    """Yield (part, frame): a hand that moves, a lens that is out of focus, then a steady hand."""
    rng = np.random.default_rng(seed)
    at, speed = np.array([-250.0, 40.0]), np.array([21.0, -4.0])
    size = (picture.shape[1], picture.shape[0])
    smear = np.zeros((9, 25), np.float32)
    cv2.line(smear, (2, 6), (22, 2), 1.0)
    grain = rng.normal(0, 3, (picture.shape[0] + 64, picture.shape[1] + 64, 1)).astype(np.float32)
    for part, count in PARTS.items():
        for _ in range(count):
            at = at + speed if part == "moving" else rng.normal(0, 0.3, 2)
            frame = cv2.warpAffine(
                picture, np.array([[1, 0, at[0]], [0, 1, at[1]]]), size, borderMode=cv2.BORDER_REFLECT
            )
            if part == "moving":
                frame = cv2.filter2D(frame, -1, smear / smear.sum())
            if part == "soft":
                frame = cv2.GaussianBlur(frame, (0, 0), 2.5)
            y, x = rng.integers(0, 64, 2)
            noisy = frame + grain[y : y + size[1], x : x + size[0]]
            yield part, np.clip(noisy, 0, 255).astype(np.uint8)


def shots(pictures):
    """Return the parts in which the shutter fired, and everything that was said."""
    preview, state, fired, said = Preview(), State(), [], []
    for k, (part, frame) in enumerate(pictures):
        state, advice = advance(state, preview.look(frame, k / RATE), 4.0)
        said.append((part, advice.text))
        if advice.fire:
            fired.append(part)
    return fired, said


def record(path, pictures):
    """Write a recording that OpenCV reads as it reads a camera."""
    writer = None
    for _, frame in pictures:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, size)
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


@pytest.mark.parametrize("name", ["eik_29.jpg", "eik_33.jpg", "eik_41.jpg"])
def test_a_real_photo_is_taken_once_it_is_still_and_sharp(shared, name):
    fired, said = shots(scene(np.asarray(open_image(shared / "photos" / "images" / name, upright=True))))
    assert fired == ["still"]
    assert any("old still" in text for part, text in said if part == "moving")


def test_a_page_is_taken_once_it_is_still_and_sharp(plain):
    fired, _ = shots(scene(plain[0].image))
    assert fired == ["still"]


def test_other_things_are_not_taken():
    rng = np.random.default_rng(0)
    stone = cv2.resize(
        rng.integers(0, 255, (90, 128, 3), dtype=np.uint8), (1280, 900), interpolation=cv2.INTER_CUBIC
    )
    fired, said = shots(scene(stone))
    assert fired == []
    assert said[-1][1] == "Point the camera at the ECG."
    assert shots([("black", np.zeros((720, 1280, 3), np.uint8))] * 12)[1][-1][1].startswith("Too dark")


def test_sharpness_falls_with_blur_and_is_not_noise(plain):
    green = plain[0].image[..., 1]
    values = [fine_detail(green)]
    values += [fine_detail(cv2.GaussianBlur(green, (0, 0), sigma)) for sigma in (0.8, 1.6, 3.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.1 < values[0]
    noise = np.random.default_rng(0).normal(128, 12, (600, 800)).astype(np.uint8)
    assert fine_detail(noise) < 0.1


@pytest.mark.parametrize("size", [(1300, 1005), (1900, 1469)])
def test_the_preview_knows_the_scale(shoot, size):
    photo, _ = shoot(size)
    assert grid_scale(photo.image) == pytest.approx(photo.px_per_mm, rel=0.06)
    assert grid_scale(np.full_like(photo.image, 200)) == 0


def test_a_recording_gives_a_graded_page(plain, tmp_path):
    image = np.ascontiguousarray(plain[0].image[:1004])  # the encoder takes even sides
    path = record(tmp_path / "scene.avi", scene(image))
    heard = []
    shot = take_live(str(path), heard.append)
    assert shot.taken.verdict.grade in ("good", "usable")
    assert shot.image.shape == image.shape
    assert heard[-1] == "Taken."
    assert any("old still" in text for text in heard)
    # It is the still part that was taken: the page lies where it lies in the photo.
    assert shot.taken.found.px_per_mm == pytest.approx((plain[0].px_per_mm,) * 2, rel=0.05)


def test_a_recording_without_a_page_says_what_was_missing(tmp_path):
    path = record(tmp_path / "wall.avi", [("", np.full((480, 640, 3), 180, np.uint8))] * 8)
    with pytest.raises(PulseEdgeError, match=r"no page that was near.*Point the camera at the ECG") as caught:
        take_live(str(path))
    assert caught.value.exit_code == 1
    with pytest.raises(PulseEdgeError, match=r"gave no picture|no page"):
        take_live(str(path), timeout_s=1e-9)


def test_a_recording_runs_by_its_own_clock(tmp_path):
    path = record(tmp_path / "wall.avi", [("", np.full((480, 640, 3), 180, np.uint8))] * 8)
    stream = open_camera(str(path))
    times = [time for _, time in frames(stream)]
    stream.release()
    np.testing.assert_allclose(times, np.arange(8) / RATE, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("77", "Camera 77 cannot be opened .*devices here"),
        ("no/such.avi", "There is no camera or recording"),
        ("csi:front", "Write csi:0 or csi:1"),
    ],
)
def test_a_camera_that_is_not_there(source, message):
    with pytest.raises(UserError, match=message):
        open_camera(source)


def test_a_file_that_is_no_recording(tmp_path):
    (tmp_path / "a.avi").write_bytes(json.dumps({"a": 1}).encode() * 50)
    with pytest.raises(UserError, match="cannot be opened as a camera or recording"):
        open_camera(str(tmp_path / "a.avi"))


@pytest.mark.skipif(has_gstreamer(), reason="this OpenCV has GStreamer")
@pytest.mark.parametrize("source", ["csi:0", "videotestsrc ! appsink"])
def test_without_gstreamer_the_remedy_is_named(source):
    with pytest.raises(UserError, match=r"without GStreamer.*nvidia-opencv.*--camera 0"):
        open_camera(source)
