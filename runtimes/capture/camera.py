"""A live camera: guide the person, take the picture when it is still and sharp, and judge it.

Cameras come through OpenCV: a number is a V4L2 device (or the platform's own), ``csi:N`` the camera port of a
Jetson, a text with an exclamation mark a GStreamer pipeline that ends in ``appsink``, and anything else a
file or address. Nothing is shown on a screen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import PulseEdgeError, UserError
from pulse_edge.runtimes.capture import limits
from pulse_edge.runtimes.capture.preview import Preview
from pulse_edge.runtimes.capture.quality import REFUSE
from pulse_edge.runtimes.capture.shutter import State, advance
from pulse_edge.runtimes.capture.take import Taken, take

Picture = NDArray[np.uint8]

_SIZE: Final = (3840, 2160)  # what is asked for; the driver gives the nearest that it has
_LEAST_SIDE: Final = 64
_READ_S: Final = 2.0
# NVIDIA's camera stack to pictures in memory, as in the Jetson Linux multimedia guide ("Accelerated
# GStreamer"): nvarguscamerasrc, conversion off the camera's memory, and only the newest frame kept.
_CSI: Final = (
    "nvarguscamerasrc sensor-id={port} ! video/x-raw(memory:NVMM),width=3840,height=2160,framerate=30/1 ! "
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
    "appsink drop=true max-buffers=1 sync=false"
)


@dataclass(frozen=True)
class Shot:
    """A picture that the shutter took.

    Attributes:
        image: uint8 [H, W, 3], RGB, the whole frame.
        taken: the flat page and its grade, which is not ``refuse``.
    """

    image: Picture
    taken: Taken


def take_live(
    source: str, say: Callable[[str], None] = lambda text: None, timeout_s: float | None = None
) -> Shot:
    """Watch a camera until it has shown a page that can be read.

    Args:
        source: see this module.
        say: called with each new sentence for the person.
        timeout_s: give up after so long; None waits for ever.

    Raises:
        UserError: the camera cannot be opened.
        PulseEdgeError: it stopped, or the time passed, before there was a picture.
    """
    preview, state, said, resume_s = Preview(), State(), "", -1.0
    stream = open_camera(source)
    last = None
    try:
        for frame, time_s in frames(stream, timeout_s):
            last = frame
            glimpse = preview.look(frame, time_s)
            if time_s < resume_s:
                continue
            state, advice = advance(state, glimpse, limits.LEAST_PX_PER_MM)
            text = advice.text
            if advice.fire:
                say(text)
                shot = Shot(frame, take(frame))
                if shot.taken.verdict.grade != REFUSE:
                    return shot
                # Time to read why; then the same page may be tried again without moving, in a better light.
                text, state, resume_s = shot.taken.verdict.reasons[0], State(), time_s + _READ_S
            if text != said:
                say(text)
                said = text
    finally:
        stream.release()
    what = "gave no picture" if last is None else "showed no page that was near, still and sharp enough"
    raise PulseEdgeError(f"The camera {source} {what}. {said or 'Check the cable'} Then run it again.")


def open_camera(source: str) -> cv2.VideoCapture:
    """Open a camera, a GStreamer pipeline, a file or an address.

    Raises:
        UserError: it cannot be opened; the message says what is there, or what OpenCV lacks.
    """
    if source.startswith("csi:") or "!" in source:
        return _open_pipeline(source)
    if source.isdigit():
        stream = _open_device(source)
        # Most cameras give full size at a useful rate only as JPEG.
        stream.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        stream.set(cv2.CAP_PROP_FRAME_WIDTH, _SIZE[0])
        stream.set(cv2.CAP_PROP_FRAME_HEIGHT, _SIZE[1])
        stream.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return stream
    if "://" not in source and not Path(source).is_file():
        raise UserError(f"There is no camera or recording {source}. Give a number, csi:0 or a file.")
    stream = cv2.VideoCapture(source)
    if not stream.isOpened():
        raise UserError(f"{source} cannot be opened as a camera or recording. Check it, or give a number.")
    return stream


def _open_device(number: str) -> cv2.VideoCapture:
    linux = sys.platform == "linux"
    if not linux or Path(f"/dev/video{number}").exists():  # OpenCV complains on its own about one that is not
        stream = cv2.VideoCapture(int(number), cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
        if stream.isOpened():
            return stream
    there = ", ".join(path.name for path in sorted(Path("/dev").glob("video*"))) or "none"
    raise UserError(
        f"Camera {number} cannot be opened (devices here: {there}). "
        "Plug it in, or name another with --camera."
    )


def _open_pipeline(source: str) -> cv2.VideoCapture:
    pipeline = source
    if source.startswith("csi:"):
        port = source.removeprefix("csi:")
        if not port.isdigit():
            raise UserError(f"{source} is no camera port. Write csi:0 or csi:1.")
        pipeline = _CSI.format(port=port)
    if not has_gstreamer():
        raise UserError(
            "This OpenCV was built without GStreamer, which a pipeline needs. On a Jetson use JetPack's own: "
            "pip uninstall opencv-python-headless && sudo apt install nvidia-opencv. "
            "Cameras on USB work as they are: --camera 0"
        )
    stream = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not stream.isOpened():
        raise UserError(f"GStreamer does not start this pipeline: {pipeline}. Try it with gst-launch-1.0.")
    return stream


def has_gstreamer() -> bool:
    """Whether this OpenCV reads GStreamer pipelines."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def frames(stream: cv2.VideoCapture, timeout_s: float | None = None) -> Iterator[tuple[Picture, float]]:
    """Yield frames, uint8 [H, W, 3], RGB, and when they were taken in seconds.

    A recording runs by its own clock as fast as it is read, a camera by the wall's.
    """
    begin = time.monotonic()
    count, rate = stream.get(cv2.CAP_PROP_FRAME_COUNT), stream.get(cv2.CAP_PROP_FPS)
    recorded = count > 0 and rate > 0
    index = 0
    while True:
        good, frame = stream.read()
        time_s = index / rate if recorded else time.monotonic() - begin
        if not good or (timeout_s is not None and time_s > timeout_s):
            return
        index += 1
        if frame.ndim == 3 and frame.shape[2] == 3 and min(frame.shape[:2]) >= _LEAST_SIDE:
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8), time_s
