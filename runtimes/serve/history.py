"""``/v1/studies``: the history, its pictures, follow-up questions, export and deletion."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi import Path as Part
from PIL import Image
from starlette.responses import Response

from pulse_edge.runtimes.serve.answers import DONE, respond, wants_events
from pulse_edge.runtimes.serve.clock import iso, seconds_of
from pulse_edge.runtimes.serve.ecg import write_answer
from pulse_edge.runtimes.serve.errors import bad_request
from pulse_edge.runtimes.serve.requests import sound_text
from pulse_edge.runtimes.serve.schema import (
    ARCHIVE,
    FAILURES,
    PICTURE,
    Answer,
    Deleted,
    Question,
    Study,
    StudyList,
)
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import MAX_QUESTION
from pulse_edge.runtimes.serve.shelf import PAGE, PHOTO, digest, is_id
from pulse_edge.runtimes.serve.worker import Job

router = APIRouter(responses=FAILURES)
StudyId = Annotated[str, Part(pattern="^[0-9a-f]{32}$", description="Of the study.")]
_SUFFIX: Final = {"image/jpeg": ".jpg", "image/png": ".png", "image/heic": ".heic", "image/tiff": ".tif"}

_GRADES: Final = {
    "good": "The photo is good.",
    "usable": "The photo is readable, but not perfect:",
    "refuse": "The photo was refused, and read all the same: nothing below may be trusted.",
    "unchecked": "The picture was read as it is; nothing checked it.",
}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _time(text: str) -> str:
    """Bring a time into the form that the database compares."""
    try:
        return iso(seconds_of(text))
    except (ValueError, OverflowError, OSError):
        raise bad_request("before: not a time in ISO 8601, such as 2026-11-24T08:00:00Z.") from None


@router.get("/v1/studies", response_model=StudyList)
def list_studies(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[
        str | None, Query(max_length=40, description="A study's id, or a time in ISO 8601.")
    ] = None,
) -> dict[str, Any]:
    """Return the latest studies, the latest first."""
    if before is not None and not is_id(before):
        before = _time(before)
    return {"studies": _service(request).studies.list(limit, before)}


@router.delete("/v1/studies", response_model=Deleted)
def purge(request: Request, before: Annotated[str, Query(max_length=40)]) -> dict[str, Any]:
    """Delete every study from before a time in ISO 8601."""
    return {"deleted": _service(request).studies.purge(_time(before))}


@router.get("/v1/studies/{study}", response_model=Study)
def get_study(request: Request, study: StudyId) -> dict[str, Any]:
    """Return a study."""
    service = _service(request)
    found = service.studies.get(study)
    service.note("study_opened", study=study)
    return found


@router.delete("/v1/studies/{study}", response_model=Deleted)
def delete_study(request: Request, study: StudyId) -> dict[str, Any]:
    """Delete a study with its pictures and answers."""
    _service(request).studies.delete(study)
    return {"deleted": 1}


@router.get("/v1/studies/{study}/photo", response_class=Response, responses={200: PICTURE})
def get_photo(request: Request, study: StudyId) -> Response:
    """Return the photo as it was sent."""
    content, kind = _service(request).studies.picture(study, PHOTO)
    return Response(content, media_type=kind)


@router.get(f"/v1/studies/{{study}}/{PAGE}", response_class=Response, responses={200: PICTURE})
def get_page(request: Request, study: StudyId) -> Response:
    """Return the flat page, also of a study that is being read."""
    service = _service(request)
    content = service.pages.get(study) or service.studies.picture(study, PAGE)[0]
    return Response(content, media_type="image/png")


@router.get("/v1/studies/{study}/export", response_class=Response, responses={200: ARCHIVE})
def export(request: Request, study: StudyId) -> Response:
    """Return a study as one archive: study.json, the report as text, both pictures and their hashes."""
    service = _service(request)
    found = service.studies.get(study)
    photo, kind = service.studies.picture(study, PHOTO)
    files = {
        "study.json": json.dumps(found, indent=2, ensure_ascii=False).encode(),
        "answers.txt": _text(found).encode(),
        f"photo{_SUFFIX.get(kind, '')}": photo,
        PAGE: service.studies.picture(study, PAGE)[0],
    }
    sums = "".join(f"{digest(content)}  {name}\n" for name, content in files.items())
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**files, "SHA256SUMS": sums.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    service.note("study_exported", study=study)
    headers = {"content-disposition": f'attachment; filename="study-{found["number"]}.zip"'}
    return Response(stream.getvalue(), media_type="application/zip", headers=headers)


def _text(study: dict[str, Any]) -> str:
    """Write a study's answers for people."""
    lines = [
        f"Study {study['number']}, {study['created']}, reference: {study['reference'] or 'none'}",
        f"Model {study['model']['name']}, bundle {study['model']['bundle_sha256']}",
        "Research use; not a medical device. No answer below may guide a patient's care.",
        " ".join([_GRADES[study["quality"]["grade"]], *study["quality"]["reasons"]]),
        "",
        *(
            f"{name} ({f['phrase']}): {f['probability']:.3f}, {f['answer']}"
            for name, f in study["findings"].items()
        ),
    ]
    for answer in study["answers"]:
        lines += ["", answer["question"], answer["text"]]
        if answer["finish"] == "length":
            lines.append("[cut off here: the model had more to say]")
    return "\n".join(lines) + "\n"


@router.post("/v1/studies/{study}/ask", responses={200: {"model": Answer}})
async def ask(request: Request, study: StudyId, body: Question) -> Response:
    """Ask about a study's page; the answer is kept with it.

    With ``Accept: text/event-stream`` come the events text …, done. Each question is answered from the page
    alone, so what is answered does not depend on what was asked before.
    """
    service = _service(request)
    question = sound_text(body.question, MAX_QUESTION, "question")
    if not question:
        raise bad_request("The question is empty. Type one.")
    service.health.require(stores=True)
    job = service.worker.admit(service.settings.deadline_s)
    service.worker.submit(job, lambda job: _ask(service, job, study, question))
    return await respond(job, request, wants_events(request))


def _ask(service: Service, job: Job, study: str, question: str) -> None:
    service.health.require(stores=True)
    content, _ = service.studies.picture(study, PAGE)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        page = np.asarray(image.convert("RGB"), np.uint8)
    text = write_answer(service, job, page, question)
    job.emit(DONE, service.studies.answer(study, question, text, service.model.finish))
