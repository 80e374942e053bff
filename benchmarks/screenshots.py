"""Make the pictures of the cart's page in docs/images: Chromium at the real service, its camera a recording.

    python benchmarks/screenshots.py [--output docs/images]

Needs `pip install -e ".[dev]"` and Chromium (`apt-get install chromium`). The ECG is a shipped sample
(PTB-XL, CC BY 4.0), rendered on paper and photographed by :mod:`pulse_edge.ecg.photo`; the answers are
pulse-nano's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.photo import PhotoStyle, Wave, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.samples import SAMPLES, samples

SAMPLE = "inferior-mi.png"
CAMERA = (1600, 1200)  # pixels
SCREEN: Any = {"width": 1366, "height": 768}
WIDTH = 1100  # pixels of the pictures in the documents
LIMIT = 190_000  # bytes of each
STYLE = PhotoStyle(
    seed=3, tilt_deg=5, toward_deg=40, rotation_deg=2, distance=1.5, zoom=0.95, background="wood",
    waves=(Wave(2.0, 400, 20, 60),), raking=0.3, exposure=0.95, noise=0.006, jpeg=92,
)  # fmt: skip


def photo() -> NDArray[np.uint8]:
    """Photograph the sample: uint8 [1200, 1600, 3], RGB."""
    record = next(row["record"] for row in samples() if row["image"] == SAMPLE)
    page = render(read_record(SAMPLES / record), PaperStyle(dpi=180.0))
    return photograph(page.image, page.px_per_mm, STYLE, CAMERA).image


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode a picture, uint8 [H, W, 3], RGB."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def record(path: Path, image: NDArray[np.uint8]) -> Path:
    """Write a recording of a camera that is held still: other noise in every frame."""
    rng = np.random.default_rng(0)
    frames = [np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8) for _ in range(4)]
    path.write_bytes(b"".join(jpeg(frame) for frame in frames))
    return path


@contextmanager
def service(work: Path) -> Iterator[str]:
    """Serve pulse-nano on a free port; yields the address once the model is loaded."""
    from pulse_edge.export import export_bundle
    from pulse_edge.model.checkpoint import resolve_model

    export_bundle(resolve_model("pulse-nano"), work / "bundle", "onnx")
    command = [sys.executable, "-m", "pulse_edge.cli", "serve", str(work / "bundle"), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--data", str(work / "data")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            url = str(json.loads(line)["url"]).rstrip("/")
            ready = False
            while not ready:
                with suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(f"{url}/healthz", timeout=5).close()
                    ready = True
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def save(page: Any, path: Path) -> None:
    """Write what the page shows as a small PNG: fewer pixels, then as few colours as the limit needs."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 32, 16):
        stream = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if stream.tell() <= LIMIT:
            break
    path.write_bytes(stream.getvalue())
    print(f"{path}  {len(stream.getvalue()) / 1000:.0f} kB, {colours} colours")


def walk(page: Any, url: str, cut: Path, output: Path) -> None:
    """Take the four pictures on a nurse's way."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.goto(url)
    page.fill("#reference", "cart 7 / 0815")
    page.uncheck("#auto")
    expect(page.locator("#guidance")).to_have_text("Ready: take the picture.")
    save(page, output / "cart-photo.png")
    page.click("#shutter")
    page.wait_for_url(re.compile("#/study/"), timeout=60_000)
    page.locator("#suggestions button").first.click()
    expect(page.locator("#answers article")).to_have_count(2)
    expect(page.locator("#answers")).to_have_attribute("aria-busy", "false")
    # With report and questions, which a cart scrolls to.
    hidden = page.locator("#main").evaluate("node => node.scrollHeight - node.clientHeight")
    page.set_viewport_size({**SCREEN, "height": SCREEN["height"] + hidden})
    page.locator("#main").evaluate("node => { node.scrollTop = 0; }")
    save(page, output / "cart-result.png")
    page.set_viewport_size(SCREEN)
    page.click("#nav-take")
    page.set_input_files("#file", cut)
    expect(page.locator("#view-refused h1")).to_be_visible()
    save(page, output / "cart-refused.png")
    page.click("#nav-history")
    expect(page.locator("#studies li")).not_to_have_count(0)
    save(page, output / "cart-history.png")


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    output = parser.parse_args().output
    program = shutil.which("chromium")
    if program is None:
        sys.exit("No Chromium is installed. Install it with: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, service(Path(scratch)) as url, sync_playwright() as driver:
        image = photo()
        cut = Path(scratch) / "cut.jpg"
        cut.write_bytes(jpeg(np.ascontiguousarray(image[:, : image.shape[1] // 2])))
        flags = [
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={record(Path(scratch) / 'camera.mjpeg', image)}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        browser = driver.chromium.launch(executable_path=program, args=flags)
        walk(browser.new_page(viewport=SCREEN, locale="en-GB"), url, cut, output)
        browser.close()


if __name__ == "__main__":
    main()
