"""``/v1/models`` and ``/v1/chat/completions``, for OpenAI's clients. Nothing of it is kept."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from pulse_edge.runtimes.serve.answers import DONE, respond
from pulse_edge.runtimes.serve.chat_schema import (
    ChatRequest,
    ChatResponse,
    Conversation,
    ModelList,
    conversation,
    stops,
)
from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.photo import open_photo
from pulse_edge.runtimes.serve.requests import drain, read_json
from pulse_edge.runtimes.serve.schema import FAILURES
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.worker import Job

router = APIRouter(responses=FAILURES)
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
}


@router.get("/v1/models", response_model=ModelList)
def models(request: Request) -> dict[str, Any]:
    """Return the one model that is served."""
    service: Service = request.app.state.service
    entry = {"id": service.model.about["name"], "object": "model", "created": 0, "owned_by": "pulse-edge"}
    return {"object": "list", "data": [entry]}


@router.post("/v1/chat/completions", openapi_extra=_BODY, responses={200: {"model": ChatResponse}})
async def complete(request: Request) -> Response:
    """Go on with a conversation about a picture of an ECG, which is read as it is."""
    service: Service = request.app.state.service
    try:
        service.health.require(stores=False)
        job = service.worker.admit(service.settings.deadline_s)
    except Refusal:
        await drain(request)
        raise
    try:
        asked = await read_json(request, ChatRequest)
        _check_model(service, asked)
        work = _Completion(service, asked, conversation(asked), stops(asked))
    except BaseException:
        job.done()
        raise
    service.worker.submit(job, work)
    return await respond(job, request, bool(asked.stream), _data)


def _data(name: str, content: Any) -> str:
    """Write an event as OpenAI does: without a name, and ``[DONE]`` behind the last."""
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"


def _check_model(service: Service, asked: ChatRequest) -> None:
    known = service.model.about["name"]
    if asked.model != known:
        raise Refusal(404, "model_not_found", f"This service runs one model: {known}. Name that one.")
    if asked.response_format is not None and asked.response_format.type != "text":
        raise Refusal(400, "bad_request", "response_format: this model answers in text. Leave it out.")


class _Completion:
    """One conversation in the model's thread."""

    def __init__(self, service: Service, asked: ChatRequest, talk: Conversation, stop: list[str]) -> None:
        self._service, self._asked, self._talk, self._stop = service, asked, talk, stop
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.model.about["name"],
        }

    def __call__(self, job: Job) -> None:
        service, asked = self._service, self._asked
        service.health.require(stores=False)
        page = _opened(service, self._talk.picture)
        job.check()
        send = self._chunk if asked.stream else None
        if send:
            job.emit("chunk", send({"role": "assistant", "content": ""}, None))
        text = ""
        budget = asked.max_completion_tokens or asked.max_tokens
        for piece in service.model.answer(page, self._talk.turns, job.halted, budget, self._stop):
            piece = piece if text else piece.lstrip()
            text += piece
            if send and piece:
                job.emit("chunk", send({"content": piece}, None))
        job.check()
        service.health.require(stores=False)
        service.metrics.tokens.inc(service.model.written)
        service.note("chat_answered")
        self._end(job, text, send)

    def _end(self, job: Job, text: str, send: Callable[..., dict[str, Any]] | None) -> None:
        model = self._service.model
        reason = "length" if model.finish == "length" else "stop"
        read, written = model.read, model.written
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        if send is None:
            message = {"role": "assistant", "content": text.rstrip()}
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            job.emit(DONE, {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        job.emit("chunk", send({}, reason))
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            job.emit("chunk", {**send({}, None), "choices": [], "usage": usage})
        job.emit(DONE, "[DONE]")

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


def _opened(service: Service, picture: bytes) -> Any:
    """Decode a picture by way of a file that is gone behind it."""
    try:
        handle, name = tempfile.mkstemp(dir=service.scratch)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(picture)
            return open_photo(Path(name), service.settings.max_pixels)[0]
        finally:
            os.unlink(name)
    except OSError as error:
        raise service.unwritten(error) from error
