"""What the benchmarks of the service share: a server in a process of its own, and a look at that process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_S = 120.0


@dataclass(frozen=True)
class Server:
    """A running service.

    Attributes:
        url: where it listens.
        data: its folder.
        log: its log lines.
        process: what runs it.
    """

    url: str
    data: Path
    log: Path
    process: subprocess.Popen[bytes]

    def status(self) -> dict[str, float]:
        """Return resident memory in MB, threads and open files, as Linux tells them."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return {
            "rss_mb": round(int(fields["VmRSS"].split()[0]) / 1024, 1),
            "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"/proc/{self.process.pid}/fd")),
        }

    def failures(self) -> list[dict[str, object]]:
        """Return the log's lines about failures that nobody expected."""
        lines = (json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines() if line)
        return [line for line in lines if line["level"] in ("error", "critical")]


@contextmanager
def running(bundle: Path | None, options: Sequence[str] = ()) -> Iterator[Server]:
    """Run the service on a free port and an empty data folder, which vanishes behind the block.

    Args:
        bundle: to serve; by default pulse-nano is exported first.
        options: further ones of `pulse-edge serve`.
    """
    with tempfile.TemporaryDirectory(prefix="pulse-edge-serve-") as place:
        folder = Path(place)
        if bundle is None:
            bundle = folder / "bundle"
            command = [sys.executable, "-m", "pulse_edge.cli", "export", "--target", "onnx"]
            subprocess.run([*command, "--output", str(bundle)], check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "pulse_edge.cli", "serve", str(bundle), "--port", "0", "--json"]
        log = folder / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, "--data", str(folder / "data"), *options], stdout=subprocess.PIPE, stderr=stream
            )
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise SystemExit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
            server = Server(json.loads(line)["url"], folder / "data", log, process)
            _wait(server)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait(server: Server) -> None:
    end = time.monotonic() + START_S
    while httpx.get(f"{server.url}/healthz").status_code != 200:
        if time.monotonic() > end or server.process.poll() is not None:
            raise SystemExit("the server did not become ready")
        time.sleep(0.1)
