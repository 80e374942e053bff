"""Who may ask and how much may be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pulse_edge.runtimes.serve import guard
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import MAX_JSON, Settings, is_loopback

from .conftest import Pace, client_of

TOKEN = "a-token-of-some-length"
PROTECTED = ["/v1/studies", "/v1/about", "/v1/models", "/metrics", "/openapi.json", "/v1/studies/x/photo"]


@pytest.fixture
def locked(pace: Pace, data: Path) -> Iterator[TestClient]:
    settings = Settings(data, host="0.0.0.0", token=TOKEN, min_free=0)
    with client_of(Service(settings, lambda: pace)) as client:  # type: ignore[arg-type,return-value]
        yield client


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN],
)
def test_without_the_token_nothing_is_given(locked: TestClient, path: str, header: str | None) -> None:
    answer = locked.get(path, headers={} if header is None else {"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


def test_with_the_token_everything_is(locked: TestClient) -> None:
    for kind in ("Bearer", "bearer"):
        headers = {
            "authorization": f"{kind} {TOKEN}",
            "host": "cart.example",
            "origin": "https://cart.example",
        }
        assert locked.get("/v1/studies", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/page/none.js"])
def test_the_page_and_the_state_need_no_token(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code in (200, 404)


@pytest.mark.parametrize(
    "path", ["//v1/studies", "/page/../v1/studies", "/page/%2e%2e/v1/studies", "/healthz/"]
)
def test_no_spelling_of_an_address_goes_round_the_token(locked: TestClient, path: str) -> None:
    assert locked.get(path, follow_redirects=False).status_code in (401, 404)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8337", "127.0.0.1.evil.example", "10.0.0.1", ""]
)
def test_on_loopback_another_host_name_is_refused(paced: TestClient, host: str) -> None:
    """A page that points its own name at 127.0.0.1 must not read studies (DNS rebinding)."""
    assert paced.get("/v1/studies", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8337", "[::1]:8337", "[::1]", "127.1.2.3"])
def test_on_loopback_its_own_names_are_taken(paced: TestClient, host: str) -> None:
    assert paced.get("/v1/studies", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:99", "http://["])
def test_pages_of_other_sites_may_not_post(paced: TestClient, origin: str) -> None:
    assert paced.post("/v1/ecg", headers={"origin": origin}).status_code == 403


def test_the_own_page_may(paced: TestClient) -> None:
    headers = {"host": "localhost:8337", "origin": "http://localhost:8337"}
    assert paced.get("/v1/studies", headers=headers).status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread(paced: TestClient) -> None:
    answer = paced.post("/v1/studies/x/ask", headers={"content-length": str(MAX_JSON + 1)})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "path", ["/v1/guidance", "/v1/ecg", "/v1/chat/completions", f"/v1/studies/{'a' * 32}/ask"]
)
def test_a_body_that_does_not_say_is_counted(pace: Pace, data: Path, path: str) -> None:
    settings = Settings(data, min_free=0, max_photo=1 << 20)

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    with client_of(Service(settings, lambda: pace)) as client:  # type: ignore[arg-type,return-value]
        headers = {
            "content-type": "multipart/form-data; boundary=x" if path == "/v1/ecg" else "application/json"
        }
        answer = client.post(path, content=parts(), headers=headers)
        assert answer.status_code in (400, 413)
        assert client.get("/healthz").json()["state"] == "ok"


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "٣", "9" * 40])
def test_a_length_that_is_no_number_is_refused(paced: TestClient, length: str) -> None:
    assert paced.post("/v1/guidance", headers={"content-length": length.encode()}).status_code in (400, 413)


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UPLOAD_S", 0.1)

    async def never() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(guard.Refusal) as refused:
        asyncio.run(guard._bounded(never, 10)())  # type: ignore[arg-type]
    assert refused.value.status == 408


def test_every_answer_carries_what_binds_a_browser(paced: TestClient) -> None:
    for path in ("/healthz", "/v1/studies", "/nothing", "/v1/studies/x"):
        headers = paced.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.5", False), ("cart.local", False), ("", False),
     ("localhost.evil.example", False)],
)  # fmt: skip
def test_loopback_is_what_no_other_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
