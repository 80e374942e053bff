"""``/v1/ecg``: a photo in; its grade, the flat page, findings and a report out, kept as a study."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.runtimes.serve.answers import DONE, respond, wants_events
from pulse_edge.runtimes.serve.errors import Refusal, bad_request
from pulse_edge.runtimes.serve.photo import read_photo
from pulse_edge.runtimes.serve.requests import drain, sound_text
from pulse_edge.runtimes.serve.schema import ECG_FORM, FAILURES, Study
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import MAX_QUESTION, MAX_REFERENCE
from pulse_edge.runtimes.serve.shelf import PAGE, PHOTO, fsync
from pulse_edge.runtimes.serve.studies import NewStudy
from pulse_edge.runtimes.serve.worker import Job

router = APIRouter()


@dataclass(frozen=True)
class Asked:
    """What came with a photo: the fields of the form, checked."""

    reference: str
    question: str
    capture: bool
    accept: bool


@router.post("/v1/ecg", openapi_extra=ECG_FORM, responses={200: {"model": Study}, **FAILURES})
async def read_ecg(request: Request) -> Response:
    """Read a photo of an ECG; it is stored as a study once the report is whole.

    With ``Accept: text/event-stream`` come the events quality, page, findings, text …, done.
    """
    service: Service = request.app.state.service
    try:
        service.health.require(stores=True)
        job = service.worker.admit(service.settings.deadline_s)
    except Refusal:
        await drain(request)
        raise
    study = ""
    try:
        async with request.form(max_files=1, max_fields=8, max_part_size=16 << 10) as form:
            asked, image = _asked(form)
            study = await run_in_threadpool(_keep, service, image.file)
    except BaseException as error:
        job.done()
        if isinstance(error, OSError):
            raise service.unwritten(error) from error
        raise
    service.worker.submit(job, lambda job: _read(service, job, study, asked))
    return await respond(job, request, wants_events(request))


def _asked(form: FormData) -> tuple[Asked, UploadFile]:
    known = {"image", "reference", "question", "capture", "accept"}
    unknown = sorted(set(form) - known)
    if unknown:
        raise bad_request(f"The form has a field that does not exist. Fields: {', '.join(sorted(known))}.")
    if any(len(form.getlist(name)) > 1 for name in form):
        raise bad_request("A field of the form is there twice.")
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise bad_request("The form has no file 'image'. Send the photo of the ECG there.")
    texts = {name: value for name, value in form.items() if name != "image"}
    if not all(isinstance(value, str) for value in texts.values()):
        raise bad_request("Only 'image' may be a file.")
    return (
        Asked(
            reference=sound_text(texts.get("reference", ""), MAX_REFERENCE, "reference"),
            question=sound_text(texts.get("question", ""), MAX_QUESTION, "question") or REPORT_QUESTION,
            capture=_one_of(texts.get("capture", "auto"), {"auto": True, "off": False}, "capture"),
            accept=_one_of(texts.get("accept", "false"), {"true": True, "false": False}, "accept"),
        ),
        image,
    )


def _one_of(value: Any, known: dict[str, bool], name: str) -> bool:
    if value not in known:
        raise bad_request(f"The field {name} must be one of: {', '.join(known)}.")
    return known[value]


def _keep(service: Service, stream: IO[bytes]) -> str:
    """Write the photo into a hidden folder of the shelf; return the study's id."""
    shelf = service.studies.shelf
    study = shelf.begin()
    try:
        path = shelf.hidden(study) / PHOTO
        with path.open("xb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        fsync(path)
    except BaseException:
        shelf.drop(study)
        raise
    return study


def _read(service: Service, job: Job, study: str, asked: Asked) -> None:
    """Do the work in the model's thread; a study that does not come to its end leaves nothing."""
    try:
        _read_and_store(service, job, study, asked)
    except BaseException as error:
        service.studies.shelf.drop(study)
        if isinstance(error, Refusal) and error.code == "photo_refused":
            service.metrics.grades.labels("refuse").inc()
            service.note("photo_refused")
        if isinstance(error, OSError):
            raise service.unwritten(error) from error
        raise
    finally:
        service.pages.pop(study, None)


def _read_and_store(service: Service, job: Job, study: str, asked: Asked) -> None:
    begin = time.perf_counter()
    service.health.require(stores=True)
    model, settings = service.model, service.settings
    photo = service.studies.shelf.hidden(study) / PHOTO
    shot = read_photo(photo, settings.max_pixels, asked.capture, asked.accept)
    page = shot.png()
    captured = time.perf_counter()
    job.check()
    service.metrics.grades.labels(shot.quality["grade"]).inc()
    job.emit("quality", shot.quality)
    service.pages[study] = page
    job.emit("page", {"study": study, "page": f"/v1/studies/{study}/{PAGE}"})
    findings = model.findings(shot.page, job.halted)
    found = time.perf_counter()
    job.check()
    job.emit("findings", findings)
    text = write_answer(service, job, shot.page, asked.question)
    end = time.perf_counter()
    for step, seconds in (
        ("capture", captured - begin),
        ("findings", found - captured),
        ("report", end - found),
    ):
        service.metrics.steps.labels(step).observe(seconds)
    timing = {
        "capture": round((captured - begin) * 1e3, 2),
        "findings": round((found - captured) * 1e3, 2),
        "report": round((end - found) * 1e3, 2),
        **model.timing_ms,
        "total": round((end - begin) * 1e3, 2),
    }
    new = NewStudy(
        study, asked.reference, shot.quality, findings, model.about, timing,
        shot.kind, _hash(photo), page, asked.question, text, model.finish,
    )  # fmt: skip
    job.emit(DONE, service.studies.store(new))


def write_answer(service: Service, job: Job, page: Any, question: str) -> str:
    """Let the model answer a question about a page and send the pieces; return the whole.

    Raises:
        Stopped: the client has gone.
        Refusal: the deadline has passed, the server stops, or the bundle was changed meanwhile.
    """
    text = ""
    for piece in service.model.answer(page, [(question, None)], job.halted):
        text += piece
        job.emit("text", {"delta": piece})
    job.check()
    service.metrics.tokens.inc(service.model.written)
    service.health.require(stores=True)
    return text.strip()


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()
