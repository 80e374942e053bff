"""The part of OpenAI's chat completions that a model of ECG pages can honour.

Source: OpenAI's API reference, "Create chat completion". What would change the answer and cannot be done here
(tools, several choices, log probabilities, audio) is refused; what only steers sampling is accepted, since
decoding is greedy, as PULSE is evaluated.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from pulse_edge.runtimes.serve.errors import Refusal, bad_request
from pulse_edge.runtimes.serve.requests import sound_text

MAX_TURNS: Final = 32
_MAX_TEXT: Final = 8000  # characters of one message
_REMOTE: Final = (
    "Only pictures inside the request are read: image_url must be a data: URL. Nothing is fetched."
)


class Loose(BaseModel):
    """OpenAI's clients send fields that came after this was written; they are ignored."""

    model_config = ConfigDict(extra="ignore")


class ImageUrl(Loose):
    """A picture as ``data:image/jpeg;base64,…``."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Loose):
    """A piece of text."""

    type: Literal["text"]
    text: str = Field(max_length=_MAX_TEXT)


class ImagePart(Loose):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Loose):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=_MAX_TEXT)] | Annotated[list[Part], Field(max_length=16)]


class StreamOptions(Loose):
    """What a stream ends with."""

    include_usage: bool = False


class ResponseFormat(Loose):
    """The form of the answer."""

    type: Literal["text", "json_object"] = "text"


class ChatRequest(Loose):
    """A conversation to go on with."""

    model: str = Field(max_length=200)
    messages: list[Message] = Field(min_length=1, max_length=2 * MAX_TURNS)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=100_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=100_000)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: Literal[1] | None = 1
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None


class Usage(BaseModel):
    """Tokens read, those of the picture included, and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    """The one answer."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelEntry(BaseModel):
    """A model that can be named in a request."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models of this service: one."""

    object: Literal["list"]
    data: list[ModelEntry]


@dataclass(frozen=True)
class Conversation:
    """A request in the model's terms.

    Attributes:
        turns: (question, answer) pairs; the last answer is None.
        picture: the file's bytes.
    """

    turns: list[tuple[str, str | None]]
    picture: bytes


def conversation(request: ChatRequest) -> Conversation:
    """Turn OpenAI's messages into turns and one picture.

    A system message goes before the first question, since PULSE's own system prompt is fixed. Neighbouring
    messages of one side are joined.

    Raises:
        Refusal: not one picture, no question at the end, or a picture that would have to be fetched.
    """
    pictures: list[str] = []
    said: list[tuple[str, str]] = []
    for message in request.messages:
        text = _text(message, pictures)
        side = "assistant" if message.role == "assistant" else "user"
        if said and said[-1][0] == side:
            said[-1] = (side, f"{said[-1][1]}\n{text}".strip())
        elif text or message.role != "system":
            said.append((side, text))
    if not said or said[0][0] != "user" or said[-1][0] != "user":
        raise bad_request("A conversation begins and ends with a message of the user. Add the question.")
    if len(set(pictures)) != 1:
        raise bad_request(
            "A conversation is about one picture of an ECG: send it once as a part of type image_url, "
            f"as a data: URL. This one has {len(set(pictures))}."
        )
    texts = [text for _, text in said]
    if not all(texts):
        raise bad_request("A message has no text. Write the question beside the picture.")
    turns: list[tuple[str, str | None]] = [*zip(texts[:-1:2], texts[1::2], strict=True), (texts[-1], None)]
    return Conversation(turns, _decode(pictures[0]))


def stops(request: ChatRequest) -> list[str]:
    """Return the texts before which the answer ends."""
    found = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if any(not text or len(text) > 200 for text in found):
        raise bad_request("stop: each text must have 1 to 200 characters.")
    return found


def _text(message: Message, pictures: list[str]) -> str:
    parts = message.content
    if message.role == "assistant":  # what a model said comes back as it was
        if isinstance(parts, str):
            return parts
        return "\n".join(part.text for part in parts if isinstance(part, TextPart))
    if isinstance(parts, str):
        return sound_text(parts, _MAX_TEXT, "content")
    texts = []
    for part in parts:
        if isinstance(part, TextPart):
            texts.append(sound_text(part.text, _MAX_TEXT, "content"))
        elif message.role != "user":
            raise bad_request("Only messages of the user may hold a picture.")
        else:
            pictures.append(part.image_url.url)
    return "\n".join(text for text in texts if text)


def _decode(url: str) -> bytes:
    """Return the bytes of a data: URL (RFC 2397) in base64."""
    if not url[:5].lower() == "data:":
        raise Refusal(400, "remote_picture", _REMOTE)
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise bad_request("The picture's data: URL must be in base64 (data:image/jpeg;base64,…).")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request("The picture's base64 is damaged. Send it again.") from None
