"""The OpenAPI description: schemathesis reads it and tries to break the service by it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings

from pulse_edge.runtimes.serve.app import create_app
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import Settings

from .conftest import Pace

CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
]


@dataclass
class Served:
    """A service that listens: where, with what description, and a connection to it."""

    url: str
    description: dict[str, Any]
    session: requests.Session


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("schema")
    (folder / "paced").mkdir()
    pace = Pace(folder / "paced")
    for _ in range(100_000):
        pace.go.release()
    app = create_app(Service(Settings(folder / "data", min_free=0), lambda: pace))  # type: ignore[arg-type,return-value]
    server = uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener, requests.Session() as session:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while session.get(f"{url}/healthz").status_code != 200:
            time.sleep(0.05)
        yield Served(url, session.get(f"{url}/openapi.json").json(), session)
        server.should_exit = True
        thread.join()


def test_the_description_is_whole(served: Served) -> None:
    description = served.description
    known = ("ecg", "studies", "studies/{study}", "studies/{study}/ask", "chat/completions", "models")
    assert {f"/v1/{name}" for name in known} | {"/v1/guidance", "/healthz", "/metrics"} <= set(
        description["paths"]
    )
    for path in description["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert "422" not in operation["responses"]
            assert "4XX" in operation["responses"]


QUICK = settings(
    max_examples=8, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
OPERATIONS = [
    ("POST", "/v1/ecg"), ("POST", "/v1/guidance"), ("POST", "/v1/chat/completions"), ("GET", "/v1/studies"),
    ("DELETE", "/v1/studies"), ("GET", "/v1/studies/{study}"), ("DELETE", "/v1/studies/{study}"),
    ("GET", "/v1/studies/{study}/photo"), ("GET", "/v1/studies/{study}/page.png"),
    ("GET", "/v1/studies/{study}/export"), ("POST", "/v1/studies/{study}/ask"), ("GET", "/v1/models"),
    ("GET", "/v1/about"), ("GET", "/healthz"), ("GET", "/metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_that_fits_the_description_breaks_the_service(served: Served, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_dict(served.description)

    def send(case: Any) -> None:
        case.call_and_validate(base_url=served.url, checks=CHECKS, session=served.session)

    QUICK(given(case=schema[path][method].as_strategy())(send))()
