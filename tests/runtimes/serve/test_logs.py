"""Nothing that a client sent stands in a log, the audit log or a metric."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pulse_edge.runtimes.serve import logs
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import Settings

from .conftest import Pace, client_of

SECRET = "SECRET4711"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    names = ("pulse_edge.serve", "uvicorn", "asyncio")
    before = [(logging.getLogger(name), logging.getLogger(name).handlers[:]) for name in names]
    logs.set_up(stream)
    yield stream
    for logger, handlers in before:
        logger.handlers, logger.propagate = handlers, True
        logger.setLevel(logging.NOTSET)


def test_nothing_that_was_sent_is_logged(pace: Pace, data: Path, picture: bytes, log: io.StringIO) -> None:
    for _ in range(99):
        pace.go.release()
    with client_of(Service(Settings(data, min_free=0), lambda: pace)) as client:  # type: ignore[arg-type,return-value]
        headers = {"x-secret": SECRET, "user-agent": SECRET, "referer": f"http://localhost/{SECRET}"}
        files = {"image": (f"{SECRET}.png", picture)}
        fields = {"reference": SECRET, "question": SECRET, "capture": "off"}
        study = client.post("/v1/ecg", files=files, data=fields, headers=headers).json()
        assert study["reference"] == SECRET
        client.post(f"/v1/studies/{study['id']}/ask", json={"question": SECRET}, headers=headers)
        client.post(f"/v1/studies/{study['id']}/ask", json={"question": SECRET * 999, SECRET: SECRET})
        client.post("/v1/ecg", files={"image": SECRET.encode()}, data={SECRET: SECRET})
        client.post("/v1/ecg", files={"image": SECRET.encode()})
        client.post("/v1/chat/completions", json={"model": SECRET, "messages": [{"role": SECRET}]})
        client.get(f"/{SECRET}")
        client.get(f"/v1/studies/{SECRET}")
        client.get("/v1/studies", params={"before": SECRET, SECRET: SECRET})
        client.request(SECRET, "/v1/studies")
        client.get("/v1/studies", headers={"host": SECRET})
        client.get(f"/v1/studies/{study['id']}/export")
        pace.answer = _fail  # type: ignore[method-assign,assignment]
        broken = client.post(f"/v1/studies/{study['id']}/ask", json={"question": "?"})
        assert broken.status_code == 500
        assert SECRET not in broken.text
        metrics = client.get("/metrics").text
    assert SECRET not in metrics
    assert SECRET not in (data / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert SECRET not in log.getvalue()
    assert {"request", "failure", "start", "stop"} <= {line["event"] for line in lines}
    (failure,) = [line for line in lines if line["event"] == "failure"]
    assert failure["error"] == "ZeroDivisionError"
    assert any("_fail" in place for place in failure["places"])


def _fail(*_: Any) -> Any:
    raise ZeroDivisionError(SECRET)


def test_other_libraries_lines_lose_what_they_were_filled_with(log: io.StringIO) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in %s", SECRET)
    line = json.loads(log.getvalue())
    assert line["template"] == "Exception in %s"
    assert line["error"] == "ValueError"
    assert SECRET not in log.getvalue()
