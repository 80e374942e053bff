"""From a job's events to an HTTP answer: one JSON object at the end, or server-sent events as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.worker import Event, Job, Stopped

DONE: Final = "done"
GONE: Final = 499  # what logs and metrics say of a client that left; nobody is sent it
Frame = Callable[[str, Any], str]


def wants_events(request: Request) -> bool:
    """Whether the client asked for server-sent events."""
    return "text/event-stream" in request.headers.get("accept", "")


def frame(name: str, content: Any) -> str:
    """Write an event for ``EventSource``: its name, and its content as one line of JSON."""
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


async def respond(job: Job, request: Request, events: bool, write: Frame = frame) -> Response:
    """Answer with the job's events, or with the content of its event ``done``.

    What ends the job before its first event is raised, so that it becomes the answer's status; later it
    becomes an event ``error``.
    """
    if events:
        return await _streamed(job, request, write)
    content: Any = None
    try:
        async for name, value in job.events(request.is_disconnected):
            content = value if name == DONE else content
    except Stopped:
        return Response(status_code=GONE)
    return JSONResponse(content)


async def _streamed(job: Job, request: Request, write: Frame) -> Response:
    events = job.events(request.is_disconnected)
    try:
        first = await anext(events)
    except (Stopped, StopAsyncIteration):
        return Response(status_code=GONE)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(
        _body(job, first, events, write), media_type="text/event-stream", headers=headers
    )


async def _body(job: Job, first: Event, events: AsyncIterator[Event], write: Frame) -> AsyncIterator[str]:
    try:
        yield write(*first)
        async for event in events:
            yield write(*event)
    except Refusal as refusal:
        yield write("error", refusal.body())
    except Stopped:
        return
    finally:
        job.leave()
