"""The forms of what is sent and answered: pydantic models, from which the OpenAPI description is made."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from pulse_edge.runtimes.serve.settings import MAX_QUESTION, MAX_REFERENCE


class Strict(BaseModel):
    """A body in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Trouble(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="allow")
    code: str
    message: str
    type: str


class Failure(BaseModel):
    """The answer to a request that was not fulfilled."""

    error: Trouble


class Quality(BaseModel):
    """The photo's grade; numbers are null where nothing was measured."""

    grade: Literal["good", "usable", "refuse", "unchecked"]
    reasons: list[str]
    px_per_mm: list[float] | None
    rotation: float | None
    residual_mm: float | None


class Finding(BaseModel):
    """What the model says of one label."""

    phrase: str
    probability: float
    answer: Literal["yes", "no", "uncertain"]


class Answer(BaseModel):
    """A question and what the model answered."""

    question: str
    text: str
    created: str
    finish: str


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    bundle_sha256: str
    calibrated: bool


class Study(BaseModel):
    """A photo of an ECG and everything that was answered about it."""

    id: str
    number: int
    created: str
    reference: str
    quality: Quality
    photo: str
    page: str
    findings: dict[str, Finding]
    answers: list[Answer]
    model: ModelName
    timing_ms: dict[str, float]


class StudyList(BaseModel):
    """Studies, the latest first."""

    studies: list[Study]


class Deleted(BaseModel):
    """How many studies were deleted."""

    deleted: int


class Question(Strict):
    """A follow-up question."""

    question: str = Field(min_length=1, max_length=MAX_QUESTION)


class Guidance(BaseModel):
    """What to tell the person who holds the camera."""

    message: str
    ready: bool
    grade: Literal["good", "usable", "refuse"]
    sharpness: float
    px_per_mm: float
    fps_hint: int


class Report(BaseModel):
    """The service's state."""

    state: str
    message: str
    ready: bool
    stores: bool


class About(BaseModel):
    """What this service is."""

    name: str
    version: str
    model: ModelName
    labels: dict[str, dict[str, str]]
    calibrated: bool
    intended_use: str
    limits: dict[str, float]


_FAILURE: Final[dict[str, Any]] = {"model": Failure, "description": "Not done; the sentence says why."}
FAILURES: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": _FAILURE,
    503: _FAILURE,
    504: _FAILURE,
    507: _FAILURE,
}
ECG_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "additionalProperties": False,
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "JPEG, PNG, HEIC, TIFF …",
                        },
                        "reference": {"type": "string", "maxLength": MAX_REFERENCE},
                        "question": {"type": "string", "maxLength": MAX_QUESTION},
                        "capture": {"type": "string", "enum": ["auto", "off"], "default": "auto"},
                        "accept": {"type": "string", "enum": ["true", "false"], "default": "false"},
                    },
                }
            }
        },
    }
}
FRAME: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
    }
}
PICTURE: Final[dict[str, Any]] = {
    "description": "The picture.",
    "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
}
ARCHIVE: Final[dict[str, Any]] = {
    "description": "study.json and the pictures.",
    "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
}
