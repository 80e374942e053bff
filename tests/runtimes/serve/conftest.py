from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from pulse_edge.contract import MANIFEST
from pulse_edge.runtimes.serve.app import create_app
from pulse_edge.runtimes.serve.clock import Clock
from pulse_edge.runtimes.serve.health import Bundle
from pulse_edge.runtimes.serve.model import Model
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import Settings
from pulse_edge.samples import SAMPLES

PAGE = SAMPLES / "inferior-mi.png"


@dataclass
class Pace:
    """A model's stand-in that writes one word whenever it is let: for what is about time, not about ECGs."""

    folder: Path
    words: Sequence[str] = ("one ", "two ", "three ")
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    asked: int = 0  # tokens
    finish: str = "stop"
    read: int = 7
    written: int = 3
    intended_use: str = "Tests."
    timing_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / MANIFEST).write_text("{}")
        self.bundle = Bundle(self.folder, self.folder, [])
        self.labels = {"NORM": {"phrase": "a normal ECG"}}
        self.about = {"name": "pace", "bundle_sha256": self.bundle.sha256, "calibrated": False}

    def findings(self, page: Any, halted: Any) -> dict[str, Any]:
        return {"NORM": {"phrase": "a normal ECG", "probability": 0.5, "answer": "uncertain"}}

    def answer(
        self, page: Any, turns: Any, halted: Callable[[], bool], budget: int | None = None, stop: Any = ()
    ) -> Iterator[str]:
        for word in self.words:
            while not self.go.acquire(timeout=0.02):
                if halted():
                    return
            self.asked += 1
            yield word


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def picture() -> bytes:
    """A small picture, which is decoded in no time."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), 250, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pace(tmp_path: Path) -> Pace:
    (tmp_path / "paced").mkdir()
    return Pace(tmp_path / "paced")


@contextmanager
def client_of(service: Service) -> Iterator[TestClient]:
    """A client in this process; the model has been loaded when it is given."""
    with TestClient(create_app(service), base_url="http://localhost") as client:
        end = time.monotonic() + 30
        while client.get("/healthz").json()["state"] == "loading":
            assert time.monotonic() < end
            time.sleep(0.01)
        yield client


@pytest.fixture
def paced(pace: Pace, data: Path) -> Iterator[TestClient]:
    """A service around the stand-in."""
    settings = Settings(data, queue=2, deadline_s=20.0, min_free=0)
    with client_of(Service(settings, lambda: pace)) as client:  # type: ignore[arg-type,return-value]
        yield client
        for _ in range(100):
            pace.go.release()


@pytest.fixture
def real(small_bundle: Path, data: Path) -> Iterator[TestClient]:
    """A service around a small bundle that was exported for real."""
    service = Service(Settings(data, min_free=0), lambda: Model(small_bundle, threads=1), Clock())
    with client_of(service) as client:
        yield client


class Running:
    """`pulse-edge serve` in a process of its own, on a port that was free."""

    def __init__(self, bundle: Path, data: Path, *options: str, cwd: Path) -> None:
        self.log = cwd / "serve.log"
        command = [
            sys.executable,
            "-m",
            "pulse_edge.cli",
            "serve",
            str(bundle),
            "--data",
            str(data),
            "--port",
            "0",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--threads", "1", "--min-free-mb", "0", "--json", *options],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self.url = ""

    def wait_for_address(self) -> None:
        """Wait until it listens, and learn where."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.url = json.loads(line)["url"]

    def wait(self, **options: Any) -> None:
        """Wait until the model is loaded."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            if httpx.get(f"{self.url}/healthz", **options).status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(small_bundle: Path, data: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start servers, which end with the test."""
    running: list[Running] = []

    def begin(*options: str, bundle: Path = small_bundle, data: Path = data, wait: bool = True) -> Running:
        server = Running(bundle, data, *options, cwd=tmp_path)
        running.append(server)
        server.wait_for_address()
        if wait:
            server.wait()
        return server

    yield begin
    for server in running:
        server.close()


@pytest.fixture
def page_file() -> Path:
    """A shipped ECG page."""
    return PAGE


def events(text: str) -> list[tuple[str, Any]]:
    """Read server-sent events."""
    found = []
    for block in text.strip().split("\n\n"):
        name, content = block.split("\n", 1)
        found.append((name.removeprefix("event: "), json.loads(content.removeprefix("data: "))))
    return found


@pytest.fixture
def read_events() -> Callable[[str], list[tuple[str, Any]]]:
    return events
