"""What to tell the person who holds a camera, frame by frame. Frames are looked at and forgotten."""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.runtimes.capture.limits import LEAST_PX_PER_MM
from pulse_edge.runtimes.capture.preview import Preview, grid_scale
from pulse_edge.runtimes.capture.shutter import FIRED, State, advance
from pulse_edge.runtimes.serve.errors import Refusal, bad_request, busy

_CAMERAS: Final = 16
_FORGET_S: Final = 5.0
_MOST_PIXELS: Final = 16_000_000
_LEAST_SIDE: Final = 64
_SHARE: Final = 0.3  # of a core that looking at frames may take
_SLOWEST: Final = 2  # frames a second; with fewer the page counts as lost from one to the next
_FASTEST: Final = 8
_WAITING: Final = 3
READY: Final = "Ready: take the picture."


class _Camera:
    def __init__(self) -> None:
        self.preview, self.state, self.seen_s = Preview(), State(), time.monotonic()


class Guide:
    """Remembers of each camera what the shutter needs: a tiny copy of its last frame."""

    def __init__(self) -> None:
        self._cameras: OrderedDict[str, _Camera] = OrderedDict()
        self._lock, self._waiting = threading.Lock(), 0
        self._cost_s = 0.05

    def look(self, name: str, frame: bytes, scale: float = 1.0) -> dict[str, Any]:
        """Look at one frame.

        Args:
            name: of the camera.
            frame: JPEG.
            scale: pixels of the photo for each of the frame.

        Returns:
            ``{"message", "ready", "grade": good | usable | refuse, "sharpness", "px_per_mm", "fps_hint"}``

        Raises:
            Refusal: it is no JPEG, or frames come faster than they are looked at.
        """
        if self._waiting >= _WAITING:
            raise busy(1)
        self._waiting += 1
        try:
            with self._lock:
                return self._look(name, frame, scale)
        finally:
            self._waiting -= 1

    def _look(self, name: str, frame: bytes, scale: float) -> dict[str, Any]:
        begin = time.monotonic()
        picture = _decode(frame)
        camera = self._camera(name)
        glimpse = camera.preview.look(picture, time.monotonic())
        if glimpse.px_per_mm is None:  # frames come too seldom here to look for the grid in every fourth only
            glimpse = replace(glimpse, px_per_mm=grid_scale(picture))
        camera.state, advice = advance(camera.state, glimpse, LEAST_PX_PER_MM / scale)
        camera.seen_s = time.monotonic()
        self._cost_s += 0.2 * (camera.seen_s - begin - self._cost_s)
        ready = camera.state.phase == FIRED
        return {
            "message": READY if ready else advice.text,
            "ready": ready,
            "grade": "good" if ready else "usable" if camera.state.steady_since_s is not None else "refuse",
            "sharpness": round(glimpse.sharpness, 4),
            "px_per_mm": round(camera.state.px_per_mm * scale, 2),
            "fps_hint": int(min(_FASTEST, max(_SLOWEST, _SHARE / max(self._cost_s, 1e-3)))),
        }

    def _camera(self, name: str) -> _Camera:
        now = time.monotonic()
        for old in [key for key, camera in self._cameras.items() if now - camera.seen_s > _FORGET_S]:
            del self._cameras[old]
        camera = self._cameras.pop(name, None) or _Camera()
        self._cameras[name] = camera
        while len(self._cameras) > _CAMERAS:
            self._cameras.popitem(last=False)
        return camera


def _decode(frame: bytes) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(frame), formats=("JPEG", "MPO")) as image:
                if image.width * image.height > _MOST_PIXELS or min(image.size) < _LEAST_SIDE:
                    raise bad_request(
                        "A frame must have sides of 64 pixels or more, and at most 16 megapixels."
                    )
                return np.asarray(image.convert("RGB"), np.uint8)
    except Refusal:
        raise
    except Exception:  # decoders raise whatever damaged bytes lead to
        raise bad_request("The frame is not a JPEG picture that can be read.") from None
