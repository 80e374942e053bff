"""The application: routes, what guards them, and one form for everything that goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from pulse_edge import __version__
from pulse_edge.errors import PulseEdgeError
from pulse_edge.runtimes.serve import about, chat, ecg, history, page
from pulse_edge.runtimes.serve.answers import GONE
from pulse_edge.runtimes.serve.chat_schema import ChatRequest
from pulse_edge.runtimes.serve.errors import Refusal, as_refusal
from pulse_edge.runtimes.serve.guard import Guard
from pulse_edge.runtimes.serve.logs import log_failure
from pulse_edge.runtimes.serve.requests import explain
from pulse_edge.runtimes.serve.service import Service

_PURGE_S: Final = 3600.0
_FOLLOW_S: Final = 2.0
_CODES: Final = {
    404: ("not_found", "There is nothing here."),
    405: ("method_not_allowed", "This address does not take that method."),
}


def create_app(service: Service) -> ASGIApp:
    """Return the application around a service, which it starts and stops.

    ``GET /openapi.json`` describes it; there is no page for that, since such pages fetch from elsewhere.
    """
    app = FastAPI(
        title="pulse-edge",
        version=__version__,
        summary="Reads photos of ECGs on this machine. Research use; not a medical device.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = service
    describe = app.openapi
    app.openapi = lambda: _with_chat(describe())  # type: ignore[method-assign]
    for part in (page, about, ecg, history, chat):
        app.include_router(part.router)
    app.add_exception_handler(PulseEdgeError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)

    def record(method: str, route: str, status: int, seconds: float) -> None:
        service.metrics.requests.labels(method, route, str(status)).inc()
        service.metrics.seconds.labels(route).observe(seconds)

    return Guard(app, service.settings, record)


def _with_chat(description: dict[str, Any]) -> dict[str, Any]:
    """Add the form of a chat's request, which is read behind admission and not by the framework."""
    schemas = description["components"]["schemas"]
    if "ChatRequest" not in schemas:
        form = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**form.pop("$defs"), "ChatRequest": form}
    return description


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await run_in_threadpool(service.start)
    tasks = [asyncio.create_task(_purge(service)), asyncio.create_task(_follow(service))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await run_in_threadpool(service.stop)


async def _purge(service: Service) -> None:
    while True:
        await asyncio.sleep(_PURGE_S)
        await run_in_threadpool(service.purge)


async def _follow(service: Service) -> None:
    while not await run_in_threadpool(service.follow):
        await asyncio.sleep(_FOLLOW_S)


def _answer(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """What the service refuses on purpose."""
    return _answer(as_refusal(error) if isinstance(error, PulseEdgeError) else _internal())


async def _http(request: Request, error: Exception) -> JSONResponse:
    """What the framework refuses: no such address, a body that cannot be parsed."""
    cause: Any = error.__cause__ or error.__context__
    if isinstance(cause, Refusal):  # the guard's, raised while the body was read
        return _answer(cause)
    status = error.status_code if isinstance(error, HTTPException) else 500
    code, message = _CODES.get(status, ("bad_request", "The request cannot be read. Check its form."))
    answer = _answer(Refusal(status, code, message))
    if isinstance(error, HTTPException) and error.headers:
        answer.headers.update(error.headers)
    return answer


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """A parameter or body of another form than described."""
    text = (
        explain(error.errors())
        if isinstance(error, RequestValidationError)
        else "The request cannot be read."
    )
    return _answer(Refusal(400, "bad_request", text))


async def _gone(request: Request, error: Exception) -> Response:
    """The client left before it had sent everything; nobody reads this."""
    return Response(status_code=GONE)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """What nobody expected."""
    log_failure(error)
    return _answer(_internal())


def _internal() -> Refusal:
    return Refusal(500, "internal", "Something failed inside the service. Try again, then tell its keeper.")
