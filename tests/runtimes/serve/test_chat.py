"""OpenAI's chat completions: what is honoured, and what is refused instead of being passed over."""

from __future__ import annotations

import base64
import copy
import io
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.serve.chat_schema import ChatRequest, conversation
from pulse_edge.runtimes.serve.errors import Refusal

from .conftest import Running

QUESTION = "What does this ECG show?"


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def user(image: bytes, text: str = QUESTION) -> dict[str, Any]:
    url = {"type": "image_url", "image_url": {"url": data_url(image)}}
    return {"role": "user", "content": [{"type": "text", "text": text}, url]}


@pytest.fixture
def body(picture: bytes) -> dict[str, Any]:
    return {"model": "pace", "messages": [user(picture)]}


def test_the_answer_is_the_sessions(real: TestClient, picture: bytes, small_bundle: Path) -> None:
    name = real.get("/v1/models").json()["data"][0]["id"]
    answer = real.post("/v1/chat/completions", json={"model": name, "messages": [user(picture)]}).json()
    session = load(small_bundle, threads=1)
    expected = session.ask(np.asarray(Image.open(io.BytesIO(picture))), QUESTION)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.strip()}
    assert answer["object"] == "chat.completion"
    visual = len(session.backend.encode(np.zeros((3, 3, 336, 336), np.float32), (96, 64)))  # wide: 3 tiles
    read = len(encode_prompt(build_prompt([(QUESTION, None)]), session.tokenizer)) - 1 + visual
    assert answer["usage"]["prompt_tokens"] == read
    assert real.get("/v1/studies").json() == {"studies": []}  # nothing is kept


def test_a_stream_says_the_same_and_ends_as_openai_does(real: TestClient, picture: bytes) -> None:
    name = real.get("/v1/models").json()["data"][0]["id"]
    body: dict[str, Any] = {"model": name, "messages": [user(picture)]}
    whole = real.post("/v1/chat/completions", json=body).json()
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    lines = real.post("/v1/chat/completions", json=body).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text.strip() == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another model": lambda b: b.update(model="gpt-4o"),
    "no messages": lambda b: b.update(messages=[]),
    "no model": lambda b: b.pop("model"),
    "only a system": lambda b: b.update(messages=[{"role": "system", "content": "x"}]),
    "no picture": lambda b: b.update(messages=[{"role": "user", "content": "x"}]),
    "no text": lambda b: b["messages"][0]["content"].pop(0),
    "the last word is the assistant's": lambda b: b["messages"].append({"role": "assistant", "content": "x"}),
    "the first word is the assistant's": lambda b: b["messages"].insert(
        0, {"role": "assistant", "content": "x"}
    ),
    "another part": lambda b: b["messages"][0]["content"].append({"type": "input_audio"}),
    "another role": lambda b: b["messages"].append({"role": "tool", "content": "x"}),
    "several answers": lambda b: b.update(n=2),
    "tools": lambda b: b.update(tools=[{"type": "function"}]),
    "log probabilities": lambda b: b.update(logprobs=True),
    "no tokens": lambda b: b.update(max_tokens=0),
    "an empty stop": lambda b: b.update(stop=""),
    "five stops": lambda b: b.update(stop=list("abcde")),
    "json": lambda b: b.update(response_format={"type": "json_object"}),
    "damaged base64": lambda b: b["messages"][0]["content"][1].update(image_url={"url": "data:;base64,###"}),
    "no base64": lambda b: b["messages"][0]["content"][1].update(image_url={"url": "data:image/png,x"}),
    "no picture in it": lambda b: b["messages"][0]["content"][1].update(
        image_url={"url": "data:;base64,eHg="}
    ),
    "a picture of the system's": lambda b: b["messages"][0].update(role="system"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    paced: TestClient, body: dict[str, Any], name: str
) -> None:
    BROKEN[name](body)
    answer = paced.post("/v1/chat/completions", json=body)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["message"].endswith(".")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "pulse_edge_queued 0.0" in paced.get("/metrics").text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[" * 100_000, b"\xff\xfe", b'{"model": "pace", "messages": "x"}']
)
def test_what_is_no_json_is_refused(paced: TestClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert paced.post("/v1/chat/completions", content=content, headers=headers).status_code == 400


@pytest.mark.parametrize("scheme", ["http", "https", "file", "ftp", ""])
def test_nothing_is_ever_fetched(paced: TestClient, body: dict[str, Any], scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        place = f"127.0.0.1:{trap.getsockname()[1]}/x.png"
        url = {"http": f"http://{place}", "https": f"https://{place}", "file": f"file://{__file__}",
               "ftp": f"ftp://{place}", "": __file__}[scheme]  # fmt: skip
        body["messages"][0]["content"][1]["image_url"]["url"] = url
        answer = paced.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "remote_picture"
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_turns_are_read_as_a_conversation(picture: bytes) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user(picture, "First?"),
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Second"},
        user(picture, "part?"),  # clients send the picture again with each turn
    ]
    request = ChatRequest.model_validate({"model": "m", "messages": messages})
    found = conversation(request)
    assert found.turns == [("Be brief.\nFirst?", "Yes."), ("Second\npart?", None)]
    assert found.picture == picture


def test_two_different_pictures_are_one_too_many(picture: bytes) -> None:
    messages = [user(picture), {"role": "assistant", "content": "Yes."}, user(picture + b"x")]
    with pytest.raises(Refusal, match="This one has 2"):
        conversation(ChatRequest.model_validate({"model": "m", "messages": messages}))


def test_bound_and_stop_reach_the_model(paced: TestClient, pace: Any, body: dict[str, Any]) -> None:
    seen: list[Any] = []
    inner = pace.answer

    def answer(page: Any, turns: Any, halted: Any, budget: Any = None, stop: Any = ()) -> Any:
        seen.append((turns, budget, stop))
        return inner(page, turns, halted)

    pace.answer = answer
    for _ in range(6):
        pace.go.release()
    paced.post("/v1/chat/completions", json=body | {"max_tokens": 9, "stop": "."})
    paced.post("/v1/chat/completions", json=body | {"max_completion_tokens": 8, "stop": [".", "!"]})
    assert seen == [([(QUESTION, None)], 9, ["."]), ([(QUESTION, None)], 8, [".", "!"])]


def test_the_openai_client_works_against_it(start: Callable[..., Running], page_file: Path) -> None:
    server = start()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    (model,) = client.models.list().data
    picture = page_file.read_bytes()
    messages: Any = [{"role": "system", "content": "Be brief."}, user(picture)]
    whole = client.chat.completions.create(model=model.id, messages=messages, max_tokens=12)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage is not None
    assert 1 <= whole.usage.completion_tokens <= 12
    stream = client.chat.completions.create(model=model.id, messages=messages, max_tokens=12, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces).strip() == text
    turns = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": "And the rate?"}]
    follow_up = client.chat.completions.create(model=model.id, messages=turns, max_tokens=4, stop=["never"])
    assert follow_up.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.NotFoundError, match="one model"):
        client.chat.completions.create(model="gpt-4o", messages=messages)
    remote = copy.deepcopy(messages)
    remote[1]["content"][1]["image_url"]["url"] = "https://example.org/ecg.png"
    with pytest.raises(openai.BadRequestError, match="Nothing is fetched"):
        client.chat.completions.create(model=model.id, messages=remote)
    client.close()


def test_a_client_that_hangs_up_frees_the_model(start: Callable[..., Running], page_file: Path) -> None:
    """Of a real connection: the stream is closed after its first piece, and the next question is answered."""
    server = start("--queue", "1")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    messages: Any = [user(page_file.read_bytes())]
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while True:
        try:
            client.chat.completions.create(model=model, messages=messages, max_tokens=1)
            break
        except openai.RateLimitError:  # until the server has seen that nobody reads
            assert time.monotonic() < end
            time.sleep(0.05)
    client.close()
