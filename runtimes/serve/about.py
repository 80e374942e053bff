"""What the service is and how it does: ``/healthz``, ``/metrics``, ``/v1/about``; a camera's guidance."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from pulse_edge import __version__
from pulse_edge.runtimes.serve.health import STATES
from pulse_edge.runtimes.serve.metrics import CONTENT_TYPE
from pulse_edge.runtimes.serve.schema import FAILURES, FRAME, About, Guidance, Report
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import MAX_FRAME, MAX_QUESTION, MAX_REFERENCE

router = APIRouter()


@router.get("/healthz", responses={200: {"model": Report}, 503: {"model": Report}, "4XX": FAILURES["4XX"]})
def healthz(request: Request) -> Response:
    """Return the service's state; the status is 503 unless it answers and what it says is kept."""
    report = request.app.state.service.health.report()
    return JSONResponse(report, 200 if report["ready"] and report["stores"] else 503)


healthz.__doc__ = f"{healthz.__doc__}\n\nStates: {', '.join(STATES)}."


@router.get("/metrics", response_class=Response, responses={"4XX": FAILURES["4XX"]})
def metrics(request: Request) -> Response:
    """Return the figures for Prometheus."""
    return Response(request.app.state.service.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/about", responses={200: {"model": About}, **FAILURES})
def about(request: Request) -> dict[str, Any]:
    """Return what this service is, which model it runs and what it must not be used for."""
    service: Service = request.app.state.service
    model, settings = service.model, service.settings
    return {
        "name": "pulse-edge",
        "version": __version__,
        "model": model.about,
        "labels": model.labels,
        "calibrated": model.about["calibrated"],
        "intended_use": model.intended_use,
        "limits": {
            "photo_bytes": settings.max_photo,
            "photo_pixels": settings.max_pixels,
            "frame_bytes": MAX_FRAME,
            "question_characters": MAX_QUESTION,
            "reference_characters": MAX_REFERENCE,
            "deadline_s": settings.deadline_s,
            "queue": settings.queue,
            "keep_days": settings.keep_days or 0,
        },
    }


@router.post("/v1/guidance", openapi_extra=FRAME, responses={200: {"model": Guidance}, **FAILURES})
async def guidance(
    request: Request,
    camera: Annotated[str, Query(max_length=40, description="Keeps frames of cameras apart.")] = "",
    scale: Annotated[
        float, Query(ge=1, le=16, description="Pixels of the photo for each of the frame.")
    ] = 1.0,
) -> dict[str, Any]:
    """Say what to do about a frame of the live camera; nothing of it is kept."""
    service: Service = request.app.state.service
    return await run_in_threadpool(service.guide.look, camera, await request.body(), scale)
