"""What stands before every route: who may ask, how much may be sent, what is written about it.

A server on loopback without a token is open to programs of this machine, but not to web pages of others that
its browser shows: those send another ``Host`` (DNS rebinding) or an ``Origin`` that is not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pulse_edge.runtimes.serve.errors import Refusal, too_large
from pulse_edge.runtimes.serve.logs import log
from pulse_edge.runtimes.serve.settings import MAX_FRAME, MAX_JSON, UPLOAD_S, Settings, is_loopback

_OPEN: Final = ("/", "/healthz")  # and /page/…: they hold nothing of a patient
_HEADERS: Final = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-resource-policy": "same-origin",
}
_MOST_DISCARDED: Final = 64 << 20  # bytes
_FORM_ROOM: Final = 64 << 10  # bytes of a form beside its picture


class Guard:
    """The outermost layer of the application.

    Args:
        app: what is guarded.
        settings: of the service.
        record: called with method, route, status and seconds of every answer.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, record: Callable[[str, str, int, float], None]
    ) -> None:
        self._app, self._settings, self._record = app, settings, record
        self._token = None if settings.token is None else _hash(settings.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets are not spoken here
            await send({"type": "websocket.close", "code": 1008})
            return
        began, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check(scope["path"], headers)
            limit = self._limit(scope["path"])
            if int(headers.get("content-length") or 0) > limit:
                raise too_large(limit)
            await self._app(scope, _bounded(receive, limit), sending)
        except Refusal as refusal:
            if "expect" not in headers:  # such a client waits to be told before it sends
                await _discard(receive)
            await JSONResponse(refusal.body(), refusal.status, refusal.headers())(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - began
            self._record(_known(scope["method"]), route, status, seconds)
            log(
                "request",
                method=_known(scope["method"]),
                route=route,
                status=status,
                ms=round(seconds * 1e3, 1),
            )

    def _check(self, path: str, headers: Headers) -> None:
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
            raise Refusal(400, "bad_request", "The header Content-Length is not a number.")
        if self._token is None:
            self._check_origin(headers)
        elif path not in _OPEN and not path.startswith("/page/"):
            kind, _, token = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(_hash(token.strip()), self._token):
                raise Refusal(401, "unauthorized", "This service asks for its access token. Enter it again.")

    @staticmethod
    def _check_origin(headers: Headers) -> None:
        host = headers.get("host", "")
        if not is_loopback(_name(host)):
            raise Refusal(403, "forbidden_host", "Without a token this service answers to localhost only.")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            raise Refusal(403, "forbidden_origin", "Pages of other sites may not use this service.")

    def _limit(self, path: str) -> int:
        photo = self._settings.max_photo
        limits = {
            "/v1/ecg": photo + _FORM_ROOM,
            "/v1/chat/completions": photo * 4 // 3 + MAX_JSON,
            "/v1/guidance": MAX_FRAME,
        }
        return limits.get(path, MAX_JSON)


def _bounded(receive: Receive, limit: int) -> Receive:
    """Count what arrives, and wait for it no longer than a while."""
    begin = time.monotonic()
    count, whole = 0, False

    async def bounded() -> Message:
        nonlocal count, whole
        if whole:  # the body has been read: what comes next is that the client leaves
            return await receive()
        message = await _in_time(receive(), begin + UPLOAD_S - time.monotonic())
        if message["type"] == "http.request":
            count += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if count > limit:
                raise too_large(limit)
        return message

    return bounded


async def _discard(receive: Receive) -> None:
    """Read what a refused client still sends, within bounds: it would not read the answer before."""
    bounded = _bounded(receive, _MOST_DISCARDED)
    with contextlib.suppress(Refusal):
        while (message := await bounded())["type"] == "http.request" and message.get("more_body"):
            pass


async def _in_time(message: Awaitable[Message], seconds: float) -> Message:
    try:
        return await asyncio.wait_for(message, max(0.01, seconds))
    except asyncio.TimeoutError:
        raise Refusal(
            408, "slow_upload", "Sending took too long. Check the connection and try again."
        ) from None


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _netloc(origin: str) -> str:
    """Return host and port of an Origin header; empty if it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _known(method: str) -> str:
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"
