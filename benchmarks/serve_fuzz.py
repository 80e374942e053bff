"""Damaged pictures, bodies, headers and requests against one `pulse-edge serve`.

    python benchmarks/serve_fuzz.py --count 10000

Pictures of six formats get bytes changed, cut, doubled, put in and headers that lie about sizes; forms, JSON
and whole HTTP requests likewise. Each case is made from its number, so a failure can be sent again with
--only NUMBER. Passed is: no status 500, no answer that is missing where one is due, none later than --hang
seconds, the process alive and ready at the end, and every answer other than success a sentence in the
service's one form. Prints a table and writes benchmarks/results/serve_fuzz.json; exit code 1 if not passed.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import io
import json
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from machine import describe_machine
from PIL import Image
from serve_client import Server, running

from pulse_edge.samples import SAMPLES

RESULT = Path(__file__).parent / "results" / "serve_fuzz.json"
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
WORKERS = 4  # below the queue's size, so that few are turned away
# Share of each kind of case.
KINDS = {"picture": 25, "picture, flattened": 5, "chat picture": 10, "frame": 10, "form": 15, "json": 15,
         "query": 5, "request": 15}  # fmt: skip
VALUES = ("-1", "0", "1e9", "nan", "2026-13-01", "9999-12-31T23:59:59Z", "0001-01-01", "'--", "..", "%00",
          "\ud7ff", "2026-01-01T00:00:00+99:99")  # fmt: skip
PATHS = ("/v1/ecg", "/v1/chat/completions", "/v1/studies", "/v1/studies/{}/ask", "/v1/studies/{}/photo",
         "/v1/studies/{}", "/v1/guidance", "/healthz", "/metrics", "/v1/about", "/",
         "/page/app.js")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one case led to: a status, or what stood in its place; empty where that is allowed."""

    number: int
    kind: str
    status: str
    seconds: float
    problem: str


def mutate(rng: random.Random, content: bytes, most: int = 8) -> bytes:
    """Change, cut, double and put in bytes; half of the places lie in the first 400."""
    out = bytearray(content)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(max(1, min(len(out), rng.choice((40, 400, 1 << 30)))))
        action = rng.randrange(6)
        if action <= 1:
            out[place : place + 1] = rng.randbytes(1)
        elif action == 2:
            out[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif action == 3:
            del out[place : place + rng.choice((1, 16, 2000, 1 << 30))]
        elif action == 4:
            out[place:place] = rng.randbytes(rng.choice((1, 8, 300)))
        else:
            out += out[place : place + 5000]
    return bytes(out)


class Cases:
    """Makes and sends cases.

    Args:
        server: to send to.
        hang: seconds after which an answer counts as missing.
    """

    def __init__(self, server: Server, hang: float) -> None:
        self._server, self._hang = server, hang
        self._http = httpx.Client(base_url=server.url, timeout=hang)
        page = Image.open(SAMPLES / "normal.png").convert("RGB").resize((550, 425))
        self._pictures = {kind: _encode(page, kind) for kind in FORMATS}
        model = self._http.get("/v1/models").json()["data"][0]["id"]
        url = {"url": f"data:image/png;base64,{base64.b64encode(self._pictures['PNG']).decode()}"}
        content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": url}]
        self._chat = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        files = {"image": ("a.png", self._pictures["PNG"])}
        self._study = self._http.post("/v1/ecg", files=files, data={"capture": "off"}).json()["id"]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, number: int) -> Outcome:
        """Send case ``number`` and judge what comes back."""
        rng = random.Random(number)
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        begin = time.monotonic()
        try:
            if kind == "request":
                status, problem = self._request(rng)
            else:
                answer = getattr(self, "_" + kind.replace(", ", "_").replace(" ", "_"))(rng)
                status, problem = str(answer.status_code), _problem(answer)
        except httpx.TimeoutException:
            status, problem = "timeout", f"no answer within {self._hang} s"
        except httpx.HTTPError as error:
            status, problem = type(error).__name__, "the connection failed"
        return Outcome(number, kind, status, time.monotonic() - begin, problem)

    def _picture(self, rng: random.Random) -> httpx.Response:
        picture = mutate(rng, self._pictures[rng.choice(FORMATS)])
        return self._http.post("/v1/ecg", files={"image": ("a", picture)}, data={"capture": "off"})

    def _picture_flattened(self, rng: random.Random) -> httpx.Response:
        picture = mutate(rng, self._pictures[rng.choice(FORMATS)])
        return self._http.post("/v1/ecg", files={"image": ("a", picture)}, data={"accept": "true"})

    def _chat_picture(self, rng: random.Random) -> httpx.Response:
        picture = mutate(rng, self._pictures[rng.choice(FORMATS)])
        body = json.loads(json.dumps(self._chat))
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        body["messages"][0]["content"][1]["image_url"]["url"] = url
        return self._http.post("/v1/chat/completions", json=body)

    def _frame(self, rng: random.Random) -> httpx.Response:
        picture = mutate(rng, self._pictures["JPEG"])
        return self._http.post("/v1/guidance", content=picture, params={"camera": rng.choice("abc")})

    def _form(self, rng: random.Random) -> httpx.Response:
        request = self._http.build_request(
            "POST", "/v1/ecg", data={"capture": "off", "reference": "a", "question": "b"},
            files={"image": ("a.png", self._pictures["PNG"])},
        )  # fmt: skip
        kind = request.headers["content-type"]
        if rng.random() < 0.3:
            changed = mutate(rng, kind.encode(), 2)  # the client sends no control characters; "request" does
            kind = bytes(byte if 32 < byte < 127 else 95 for byte in changed[:4000]).decode()
        body = mutate(rng, request.read(), 4)
        headers = {"content-type": kind}
        return self._http.post("/v1/ecg", content=body, headers=headers)

    def _json(self, rng: random.Random) -> httpx.Response:
        if rng.random() < 0.5:
            path, body = "/v1/chat/completions", json.dumps(self._chat).encode()
        else:
            path, body = f"/v1/studies/{self._study}/ask", b'{"question": "What is the heart rate?"}'
        body = _changed_json(rng, body) if rng.random() < 0.5 else mutate(rng, body, 4)
        return self._http.post(path, content=body, headers={"content-type": "application/json"})

    def _query(self, rng: random.Random) -> httpx.Response:
        value = rng.choice((*VALUES, "x" * 3000, self._study))
        name = rng.choice(("limit", "before", "camera", "scale", "x"))
        path = rng.choice(PATHS).format(rng.choice((self._study, "a" * 32, "..", "%2e%2e", "x")))
        return self._http.get(path, params={name: value})

    def _request(self, rng: random.Random) -> tuple[str, str]:
        """Send bytes that are hardly HTTP; no answer is due, but what comes must not be 500."""
        target = urlsplit(self._server.url)
        path = rng.choice(PATHS).format(self._study)
        method = rng.choice(("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"))
        body = b'{"question": "x"}'
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection(
            (target.hostname or "", target.port or 0), timeout=self._hang
        ) as connection:
            connection.sendall(mutate(rng, head.encode() + body, 4))
            connection.shutdown(socket.SHUT_WR)
            got = b""
            try:
                while piece := connection.recv(65536):
                    got += piece
            except TimeoutError:
                return "timeout", f"the connection was not closed within {self._hang} s"
            except ConnectionResetError:
                pass
        status = got[9:12].decode("latin1") if got.startswith(b"HTTP/1.1 ") else "closed"
        return status, "status 500" if status == "500" else ""


def _encode(page: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    page.save(stream, kind)
    return stream.getvalue()


def _changed_json(rng: random.Random, body: bytes) -> bytes:
    """Put another value in a place of a JSON document, which stays one."""
    document = json.loads(body)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(document)
    node, key = rng.choice(places)
    node[key] = rng.choice((None, True, -1, 10**40, 1e308, "", "\0", "<image>", "x" * 9000, [], {}, [[]] * 50,
                            "data:image/png;base64,", "data:;base64,====", "file:///etc/passwd"))  # fmt: skip
    return json.dumps(document).encode()


def _problem(answer: httpx.Response) -> str:
    """Say what is wrong with an answer; empty if nothing is."""
    if answer.status_code == 500:
        return "status 500"
    if answer.status_code < 400 or answer.headers.get("content-type") != "application/json":
        return ""
    body = answer.json()
    if "state" in body or {"code", "message"} <= set(body.get("error", {})):
        return ""
    return "an error of another form"


def measure(bundle: Path | None, numbers: list[int], hang: float) -> dict[str, Any]:
    """Run the server and the cases; return the figures and what was not passed."""
    with running(bundle, ["--queue", str(2 * WORKERS), "--keep-days", "1"]) as server:
        cases = Cases(server, hang)
        before = server.status()
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            outcomes = list(pool.map(cases.run, numbers))
        cases.close()
        alive = server.process.poll() is None
        state = httpx.get(f"{server.url}/healthz", timeout=hang).json()["state"] if alive else "dead"
        after = server.status() if alive else {}
        failures = server.failures()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for outcome in outcomes:
        counts[outcome.kind][outcome.status] += 1
    problems = [f"{o.number}: {o.kind}: {o.status}: {o.problem}" for o in outcomes if o.problem]
    return {
        "count": len(outcomes),
        "statuses": {kind: dict(sorted(found.items())) for kind, found in counts.items()},
        "slowest_s": round(max(outcome.seconds for outcome in outcomes), 2),
        "before": before,
        "after": after,
        "problems": problems[:50],
        "failures": failures[:20],
        "passed": {
            "no 500, hang, failed connection or odd error": not problems,
            "alive and ready at the end": state == "ok",
            "no failure logged": not failures,
        },
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Send damaged requests to one service.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", type=int, help="send one case again")
    parser.add_argument("--hang", type=float, default=60.0, help="seconds after which an answer is missing")
    parser.add_argument("--bundle", type=Path, help="by default pulse-nano is exported")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    if args.count < 1:
        parser.error("--count must be at least 1")
    about = describe_machine()
    numbers = list(range(args.count)) if args.only is None else [args.only]
    figures = measure(args.bundle, numbers, args.hang)
    for kind, found in figures["statuses"].items():
        print(f"{kind:<20} " + "  ".join(f"{status} {count}" for status, count in found.items()))
    print(f"slowest {figures['slowest_s']} s; before {figures['before']}, after {figures['after']}")
    for what, passed in figures["passed"].items():
        print(f"{'passed' if passed else 'NOT PASSED':<10} {what}")
    for line in [*figures["problems"], *figures["failures"]][:20]:
        print(" ", line)
    if args.only is None:
        report = {"benchmark": "serve_fuzz", **about, **figures}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not all(figures["passed"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
