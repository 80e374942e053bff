"""What the service answers when it does not do what was asked: a status, a code and a sentence."""

from __future__ import annotations

from typing import Any

from pulse_edge.errors import ImageError, PulseEdgeError, UserError


class Refusal(PulseEdgeError):
    """An answer other than success.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: a sentence for people, with the next step.
        retry_after: seconds after which it may work, where waiting helps.
        more: further fields of the error.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        retry_after: int | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after
        self.more = more or {}

    def body(self) -> dict[str, Any]:
        """Return ``{"error": {"code", "message", "type", …}}``; ``type`` is what OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"code": self.code, "message": str(self), "type": kind, **self.more}}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found


def bad_request(message: str) -> Refusal:
    """What was sent is at fault."""
    return Refusal(400, "bad_request", message)


def not_found() -> Refusal:
    """There is no such study."""
    return Refusal(404, "not_found", "There is no such study. It may have been deleted.")


def busy(retry_after: int) -> Refusal:
    """The queue is full."""
    return Refusal(429, "busy", "Other ECGs are being read. Try again in a moment.", retry_after)


def too_large(limit: int) -> Refusal:
    """A body exceeds ``limit`` bytes."""
    size = f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 2**10} kB"
    return Refusal(
        413, "too_large", f"This is too large: at most {size} can be sent. Send a smaller picture."
    )


def deadline() -> Refusal:
    """The time for a request has passed."""
    return Refusal(504, "deadline", "Reading took too long and was stopped. Try again.")


def stopping() -> Refusal:
    """The server is being shut down."""
    return Refusal(503, "stopping", "The service is shutting down. Try again once it is back.", 10)


def as_refusal(error: PulseEdgeError) -> Refusal:
    """Return what any error of pulse-edge means to a client; paths of this machine stay here."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ImageError):
        return Refusal(400, "not_an_image", str(error))
    if isinstance(error, UserError):
        return bad_request(str(error))
    return Refusal(
        503, "model_failed", "The model gave no usable answer. Tell whoever looks after this cart."
    )
