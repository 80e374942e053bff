"""Reading what clients send, with sentences for what is wrong with it."""

from __future__ import annotations

from typing import Any, TypeVar
from unicodedata import category

from fastapi import Request
from pydantic import BaseModel, ValidationError

from pulse_edge.runtimes.serve.errors import bad_request

Model = TypeVar("Model", bound=BaseModel)


async def drain(request: Request) -> None:
    """Read a body that is not wanted, so that the client gets to read the answer; the guard bounds it."""
    try:
        async for _ in request.stream():
            pass
    except Exception:  # it left, or sends too much: the refusal in hand is the answer
        return


async def read_json(request: Request, model: type[Model]) -> Model:
    """Read a JSON body.

    Raises:
        Refusal: it is none, or not of this form.
    """
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise bad_request(
            explain(error.errors(include_input=False, include_url=False, include_context=False))
        ) from None


def explain(errors: Any) -> str:
    """Return the first of pydantic's complaints as a sentence, without what was sent."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:80]
    return f"{place or 'The body'}: {first['msg']}."


def sound_text(value: Any, most: int, name: str) -> str:
    """Return a text without spaces around it.

    Raises:
        Refusal: it is too long, or holds what is no text.
    """
    text = str(value).strip()
    if len(text) > most:
        raise bad_request(f"The field {name} has more than {most} characters. Shorten it.")
    if any(category(character) in ("Cc", "Cs") and character not in "\n\t\r" for character in text):
        raise bad_request(f"The field {name} holds characters that are no text.")
    return text
