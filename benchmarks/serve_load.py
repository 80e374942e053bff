"""Many nurses at once: 50 clients for ten minutes against one `pulse-edge serve`.

    python benchmarks/serve_load.py --clients 50 --minutes 10

Each client sends photos of the shipped ECGs, asks further questions, lists, opens, exports and deletes, talks
OpenAI's chat with and without a stream, hangs up in the middle now and then, and comes back when it is told
to (429). Counted is every status; taken are the latencies of what was answered, and the server's memory,
threads and open files once a second. Before that, four ECGs are sent one after the other: the first is what
a cart takes right after its start. Prints a table and writes benchmarks/results/serve_load.json.

Passed is: no status but 200 and 429 and no connection that failed; memory flat, which is a slope below 1 MB a
minute over the second half and a median of the last quarter within 5 % of that of the second; every study
that was acknowledged and not deleted is there at the end; and a sound audit log. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from machine import describe_machine
from serve_client import Server, running

from pulse_edge.runtimes.serve.audit import NAME, check
from pulse_edge.samples import SAMPLES, samples

RESULT = Path(__file__).parent / "results" / "serve_load.json"
QUESTIONS = ("What is the heart rate?", "Does this ECG show atrial fibrillation?", "Is it normal?")
SLOPE_MB_PER_MINUTE, DRIFT = 1.0, 0.05
# Share of each kind of request.
KINDS = {"ecg": 40, "ecg, streamed": 15, "ask": 10, "list": 10, "open": 8, "picture": 5, "export": 2,
         "chat": 4, "chat, streamed": 3, "hang up": 3}  # fmt: skip


@dataclass
class Tally:
    """What happened so far."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kept: set[str] = field(default_factory=set)
    samples: list[dict[str, float]] = field(default_factory=list)


class Client:
    """One nurse.

    Args:
        number: seeds the choice of requests.
        server: to talk to.
        tally: shared by all.
        until: ``time.monotonic()`` at which to stop.
        model: name of the model.
    """

    def __init__(self, number: int, server: Server, tally: Tally, until: float, model: str) -> None:
        self._random = random.Random(number)
        self._tally, self._until, self._model = tally, until, model
        self._mine: list[str] = []
        self._photos = [(SAMPLES / row["image"]).read_bytes() for row in samples()]
        limits = httpx.Limits(max_connections=2)
        self._http = httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits)

    async def run(self) -> None:
        """Send requests until the time is over."""
        async with self._http:
            while time.monotonic() < self._until:
                kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
                if kind in ("ask", "open", "picture", "export") and not self._mine:
                    kind = "ecg"
                wait = await self._one(kind)
                if len(self._mine) > 3:
                    await self._delete(self._mine.pop(0))
                await asyncio.sleep(wait + self._random.random() * 0.3)

    async def _one(self, kind: str) -> float:
        begin = time.monotonic()
        try:
            answer = await self._send(kind)
        except httpx.HTTPError as error:
            self._tally.statuses[kind][type(error).__name__] += 1
            return 0.5
        if answer is None:
            return 0.0
        self._tally.statuses[kind][str(answer.status_code)] += 1
        if answer.status_code == 200:
            self._tally.seconds[kind].append(time.monotonic() - begin)
            self._take(kind, answer)
        return float(answer.headers.get("retry-after", 0))

    async def _send(self, kind: str) -> httpx.Response | None:
        photo, question = self._random.choice(self._photos), self._random.choice(QUESTIONS)
        study = self._random.choice(self._mine) if self._mine else ""
        events = {"accept": "text/event-stream"}
        if kind in ("ecg", "ecg, streamed"):
            files = {"image": ("photo.png", photo)}
            return await self._http.post(
                "/v1/ecg", files=files, data={"reference": "bed 1"}, headers=events if "," in kind else {}
            )
        if kind == "ask":
            return await self._http.post(f"/v1/studies/{study}/ask", json={"question": question})
        if kind in ("chat", "chat, streamed"):
            return await self._http.post(
                "/v1/chat/completions", json=self._chat(photo, question, "," in kind)
            )
        if kind == "hang up":
            await self._hang_up(self._chat(photo, question, True))
            return None
        paths = {"list": "/v1/studies?limit=20", "open": f"/v1/studies/{study}"}
        paths |= {"picture": f"/v1/studies/{study}/page.png", "export": f"/v1/studies/{study}/export"}
        return await self._http.get(paths[kind])

    def _chat(self, photo: bytes, question: str, stream: bool) -> dict[str, Any]:
        url = f"data:image/png;base64,{base64.b64encode(photo).decode()}"
        parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
        return {"model": self._model, "messages": [{"role": "user", "content": parts}], "stream": stream}

    async def _hang_up(self, body: dict[str, Any]) -> None:
        """Close the connection while the answer is being made."""
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body, timeout=2) as answer:
                self._tally.statuses["hang up"][str(answer.status_code)] += 1
        except httpx.TimeoutException:
            self._tally.statuses["hang up"]["left while waiting"] += 1

    def _take(self, kind: str, answer: httpx.Response) -> None:
        if kind == "ecg":
            study = answer.json()["id"]
        elif kind == "ecg, streamed":
            name, content = answer.text.strip().split("\n\n")[-1].split("\n", 1)
            if name != "event: done":
                self._tally.statuses[kind][name] += 1
                return
            study = json.loads(content.removeprefix("data: "))["id"]
        else:
            return
        self._mine.append(study)
        self._tally.kept.add(study)

    async def _delete(self, study: str) -> None:
        self._tally.kept.discard(study)
        try:
            answer = await self._http.delete(f"/v1/studies/{study}")
            self._tally.statuses["delete"][str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            self._tally.statuses["delete"][type(error).__name__] += 1


def one_by_one(server: Server, times: int = 4) -> list[float]:
    """Return the seconds that an idle service takes for each of the first ECGs."""
    seconds = []
    for row in samples()[:times]:
        photo, begin = (SAMPLES / row["image"]).read_bytes(), time.monotonic()
        httpx.post(f"{server.url}/v1/ecg", files={"image": photo}, timeout=300).raise_for_status()
        seconds.append(round(time.monotonic() - begin, 3))
    return seconds


async def load(server: Server, clients: int, minutes: float) -> Tally:
    """Let the clients run, and look at the server once a second."""
    tally, begin = Tally(), time.monotonic()
    until = begin + minutes * 60
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    tasks = [asyncio.create_task(Client(n, server, tally, until, model).run()) for n in range(clients)]
    while not all(task.done() for task in tasks):
        tally.samples.append({"s": round(time.monotonic() - begin, 1), **server.status()})
        await asyncio.sleep(1)
    for task in tasks:
        task.result()
    return tally


def memory(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return what the memory did: slope over the second half in MB a minute, medians of two quarters."""
    rss = [sample["rss_mb"] for sample in samples]
    half, quarter = len(rss) // 2, max(1, len(rss) // 4)
    times = [sample["s"] / 60 for sample in samples]
    slope = statistics.linear_regression(times[half:], rss[half:]).slope if len(rss) - half > 1 else 0.0
    second, last = statistics.median(rss[quarter : 2 * quarter]), statistics.median(rss[-quarter:])
    return {
        "first_mb": rss[0],
        "second_quarter_mb": second,
        "last_quarter_mb": last,
        "most_mb": max(rss),
        "slope_mb_per_minute": round(slope, 3),
        "drift": round(last / second - 1, 4),
        "most_threads": max(sample["threads"] for sample in samples),
        "most_files": max(sample["files"] for sample in samples),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return count, median, 95th and 99th percentile and the largest, in seconds."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {"n": len(ordered), "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)}


def measure(bundle: Path | None, clients: int, minutes: float) -> dict[str, Any]:
    """Run the server and the clients; return the figures and what was not passed."""
    with running(bundle) as server:
        first = one_by_one(server)
        tally = asyncio.run(load(server, clients, minutes))
        state = httpx.get(f"{server.url}/healthz").json()["state"]
        missing = [s for s in tally.kept if httpx.get(f"{server.url}/v1/studies/{s}").status_code != 200]
        server.process.terminate()
        code = server.process.wait(30)
        log = check(server.data / NAME)
        failures = server.failures()
    used = memory(tally.samples)
    bad = {
        f"{kind}: {status}": count
        for kind, statuses in tally.statuses.items()
        for status, count in statuses.items()
        if status not in ("200", "429", "left while waiting")
    }
    passed = {
        "no status but 200 and 429": not bad,
        "memory flat": used["slope_mb_per_minute"] < SLOPE_MB_PER_MINUTE and used["drift"] < DRIFT,
        "no acknowledged study missing": not missing,
        "audit log sound": log.problem is None and not log.torn,
        "no failure logged": not failures,
        "ready at the end, exit code 0": state == "ok" and code == 0,
    }
    return {
        "statuses": {kind: dict(counts) for kind, counts in sorted(tally.statuses.items())},
        "bad": bad,
        "seconds": {kind: percentiles(values) for kind, values in sorted(tally.seconds.items())},
        "first_ecgs_s": first,
        "memory": used,
        "studies_kept": len(tally.kept),
        "audit_lines": log.lines,
        "failures": failures[:20],
        "passed": passed,
        "samples": tally.samples[:: max(1, len(tally.samples) // 120)],
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Load one service with many clients.")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bundle", type=Path, help="by default pulse-nano is exported")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    if args.clients < 1 or not args.minutes > 0:
        parser.error("--clients must be at least 1 and --minutes more than 0")
    about = describe_machine()
    figures = measure(args.bundle, args.clients, args.minutes)
    print(f"{'request':<16} {'answered':>8} {'429':>8} {'p50':>8} {'p95':>8} {'p99':>8}  s")
    for kind, counts in figures["statuses"].items():
        row = figures["seconds"].get(kind, {})
        times = " ".join(f"{row[key]:>8.2f}" if row else f"{'':>8}" for key in ("p50", "p95", "p99"))
        print(f"{kind:<16} {counts.get('200', 0):>8} {counts.get('429', 0):>8} {times}")
    print("the first ECGs, alone, s:", *figures["first_ecgs_s"])
    print("memory", figures["memory"])
    for what, passed in figures["passed"].items():
        print(f"{'passed' if passed else 'NOT PASSED':<10} {what}")
    if figures["bad"]:
        print("other", figures["bad"])
    report = {"benchmark": "serve_load", **about, "clients": args.clients, "minutes": args.minutes, **figures}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not all(figures["passed"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
