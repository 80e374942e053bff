"""A real browser at the real service: Debian's Chromium, driven by Playwright, its camera a recording."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.photo import PhotoStyle, Wave, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.samples import SAMPLES

PAGE = Path(__file__).resolve().parents[4] / "runtimes" / "serve" / "page"
CAMERA = (1300, 1004)  # pixels; the recording's sides must be even
TOKEN = "a-token-of-this-test-0123456789"
READING_MS = 60_000  # patience for a whole reading on a busy machine
STUDY = re.compile(r"#/study/[0-9a-f]{32}$")  # how the address of a result ends
HERE = PhotoStyle(
    seed=3, tilt_deg=6, toward_deg=40, rotation_deg=2, distance=1.5, zoom=0.93, background="wood",
    waves=(Wave(3.0, 400, 20, 60),), raking=0.3, exposure=0.95, noise=0.008, jpeg=88,
)  # fmt: skip


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait a while; imported late, since it may not be installed."""
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    return expect(locator)


def read(page: Any, path: Path) -> None:
    """Choose a file and wait for the whole result."""
    page.set_input_files("#file", path)
    page.wait_for_url(STUDY, timeout=READING_MS)
    expect(page.locator("#ask")).to_be_visible()


def chromium() -> str:
    """Debian's Chromium, or another one that is installed; the test is skipped without it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed: apt-get install chromium")


def shoot(**changes: Any) -> NDArray[np.uint8]:
    """Photograph a sample ECG: uint8 [1004, 1300, 3], RGB."""
    page = render(read_record(SAMPLES / "00057"), PaperStyle(dpi=150.0))
    return photograph(page.image, page.px_per_mm, replace(HERE, **changes), CAMERA).image


def jpeg(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[
        1
    ].tobytes()


def record(path: Path, image: NDArray[np.uint8]) -> Path:
    """Write what a camera that is held still sees: the picture with other noise in every frame."""
    rng = np.random.default_rng(0)
    frames = [np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    path.write_bytes(b"".join(jpeg(frame) for frame in frames))
    return path


@pytest.fixture(scope="session")
def good() -> NDArray[np.uint8]:
    """A photo that the gate takes."""
    return shoot()


@pytest.fixture(scope="session")
def cut(good: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half of the page: the gate refuses it."""
    return np.ascontiguousarray(good[:, :600])


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a bundle; what it answers is held elsewhere, so its parity is not measured."""
    from pulse_edge.export import export_bundle
    from pulse_edge.model.checkpoint import resolve_model

    output = tmp_path_factory.mktemp("served") / "nano"
    export_bundle(resolve_model("pulse-nano"), output, "onnx")
    return output


@pytest.fixture(scope="session")
def serve(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Start `pulse-edge serve` and return its address, once it answers."""
    pytest.importorskip("fastapi", reason='needs pip install "pulse-edge[serve]"')
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> str:
        data = tmp_path_factory.mktemp("data")
        command = [sys.executable, "-m", "pulse_edge.cli", "serve", str(bundle), "--port", "0", "--json"]
        env = {name: value for name, value in os.environ.items() if name != "PULSE_EDGE_TOKEN"}
        process = subprocess.Popen(
            [*command, "--data", str(data), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=env,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        url = str(json.loads(process.stdout.readline())["url"]).rstrip("/")
        wait_until_ready(url)
        return url

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def service(serve: Callable[..., str]) -> str:
    """The address of a service that all tests share."""
    return serve()


def wait_until_ready(url: str) -> None:
    """Return once the model of a service is loaded."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/healthz", timeout=5).close()
            return
        time.sleep(0.1)
    pytest.fail("the service did not become ready")


def make_study(service: str, good: NDArray[np.uint8]) -> dict[str, Any]:
    """Let the service read the good photo, without a browser."""
    edge = "a-boundary-that-no-photo-holds"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + jpeg(good) + f"\r\n--{edge}--\r\n".encode()
    request = urllib.request.Request(
        f"{service}/v1/ecg", body, {"Content-Type": f"multipart/form-data; boundary={edge}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


@pytest.fixture(scope="session")
def study(service: str, good: NDArray[np.uint8]) -> dict[str, Any]:
    """A study that is in the history."""
    return make_study(service, good)


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[[Path | None], Any]]:
    """Start browsers; a module's are closed at its end, since Playwright's event loop blocks others."""
    playwright = pytest.importorskip("playwright.sync_api", reason='needs pip install -e ".[dev]"')
    program = chromium()
    with playwright.sync_playwright() as driver:
        browsers: list[Any] = []

        def start(camera: Path | None) -> Any:
            flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
            if camera is not None:
                flags.append(f"--use-file-for-fake-video-capture={camera}")
            if os.geteuid() == 0:  # Chromium refuses its sandbox to root
                flags.append("--no-sandbox")
            browsers.append(driver.chromium.launch(executable_path=program, args=flags))
            return browsers[-1]

        yield start
        for browser in browsers:
            browser.close()


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any], good: NDArray[np.uint8], tmp_path_factory: Any) -> Any:
    """A browser whose camera sees a good page, held still."""
    return launch(record(tmp_path_factory.mktemp("camera") / "good.mjpeg", good))


@pytest.fixture
def visit(service: str) -> Iterator[Callable[..., Any]]:
    """Open the page: ``visit(browser)``. What the console complains about fails the test.

    A test appends to ``expected`` the statuses that Chromium reports there although the page handles them.
    """
    complaints: list[str] = []
    expected: list[str] = []
    contexts = []

    def go(browser: Any, address: str = service, path: str = "/", **options: Any) -> Any:
        settings = {"viewport": {"width": 1366, "height": 768}, "locale": "en-GB", **options}
        contexts.append(context := browser.new_context(**settings))
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.expected = expected
        page.goto(address + path)
        return page

    yield go
    for context in contexts:
        context.close()
    assert [text for text in complaints if not any(part in text for part in expected)] == []


@pytest.fixture
def page(visit: Callable[..., Any], browser: Any) -> Any:
    """The page, with a good ECG before the camera, which is not taken before the test says so."""
    opened = visit(browser)
    opened.uncheck("#auto")
    return opened


@pytest.fixture
def photo_file(good: NDArray[np.uint8], tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(good))
    return path


@pytest.fixture
def cut_file(cut: NDArray[np.uint8], tmp_path: Path) -> Path:
    path = tmp_path / "cut.jpg"
    path.write_bytes(jpeg(cut))
    return path
