"""The cart's page: the files of ``page/``, which need nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from pulse_edge.runtimes.serve.errors import Refusal

router = APIRouter(include_in_schema=False)
FOLDER: Final = Path(__file__).parent / "page"
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}


@router.get("/")
def index() -> Response:
    """Return the page."""
    return file("index.html")


@router.get("/favicon.ico")
def favicon() -> Response:
    """Browsers ask for one whatever the page says."""
    return Response(status_code=204)


@router.get("/page/{name}")
def file(name: str) -> Response:
    """Return one of the page's files; only names that lie in the folder exist."""
    kind = _KINDS.get(Path(name).suffix)
    names = {path.name for path in FOLDER.iterdir()} if FOLDER.is_dir() else set()
    if kind is None or name not in names:
        raise Refusal(404, "not_found", "There is no such file.")
    return Response((FOLDER / name).read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})
