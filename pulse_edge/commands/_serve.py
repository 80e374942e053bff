"""`serve`: the HTTP service of a cart."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from pulse_edge.runtimes.serve.settings import Settings

TOKEN = "PULSE_EDGE_TOKEN"
_LEAST_TOKEN = 16  # characters
_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
           "prometheus_client": "prometheus-client"}  # fmt: skip


def serve(
    bundle: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8337,
    data: Path | None = None,
    token_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    keep_days: int | None = None,
    queue: int = 8,
    deadline: float = 120.0,
    max_photo_mb: int = 24,
    min_free_mb: int = 200,
    threads: int | None = None,
    require_key: Path | None = None,
    runtime: str | None = None,
    follow: bool = False,
    new_database: bool = False,
    check_log: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda about: None,
) -> dict[str, Any]:
    """Serve a bundle over HTTP until SIGTERM or Ctrl-C; or check the audit log of what was served.

    Args:
        bundle: folder of the bundle.
        host: address; another than loopback needs a token.
        port: 0 takes one that is free.
        data: folder of studies and audit log; by default the user's folder for state.
        token_file: file with the token that every request must bear; or the environment's PULSE_EDGE_TOKEN.
        tls_cert: certificate, PEM; with
        tls_key: its key, PEM.
        keep_days: studies are deleted after so many days; by default they are kept.
        queue: ECGs that may wait or be read at once; more get 429.
        deadline: seconds for one request.
        max_photo_mb: MB of a picture.
        min_free_mb: MB that must be free on the disk for a study to be taken.
        threads: for ONNX Runtime; all cores by default.
        require_key: public key that must have signed the bundle.
        runtime: ``onnx`` or ``tensorrt``; by default what the bundle has engines for.
        follow: end once BUNDLE, a link, leads to another sound bundle; for a supervisor that restarts it.
        new_database: begin an empty history after a damaged one was moved aside.
        check_log: verify the audit log and end; no bundle is needed.
        report: called with ``{"url", "data", "bundle"}`` once the address is listened on.

    Returns:
        ``{"stopped": True}``; of a check ``{"ok", "lines", "problem"}``.

    Raises:
        UserError: an option cannot be used, or the address or the data folder.
        BundleError: the bundle is damaged.
        MissingExtraError: the extra ``serve`` is not installed.
    """
    from pulse_edge.runtimes.serve.settings import Settings, default_data

    folder = Path(data).expanduser() if data is not None else default_data()
    if check_log:
        return _check_log(folder)
    if bundle is None:
        raise UserError("Name the bundle to serve: pulse-edge serve BUNDLE. Make one with: pulse-edge export")
    for module, package in _NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(package, "serve")
    token = _token(token_file, host)
    if (tls_cert is None) != (tls_key is None):
        raise UserError("--tls-cert and --tls-key belong together. Give both.")
    _check_numbers(
        keep_days=keep_days, queue=queue, deadline=deadline, max_photo_mb=max_photo_mb, threads=threads
    )
    if not 0 <= port <= 65535 or min_free_mb < 0:
        raise UserError("--port must be 0 to 65535, and --min-free-mb at least 0.")
    settings = Settings(
        folder, host, token, keep_days, queue, deadline, max_photo_mb << 20,
        min_free=min_free_mb << 20, follow=follow, new_database=new_database,
    )  # fmt: skip
    tls = (Path(tls_cert), Path(tls_key)) if tls_cert is not None and tls_key is not None else None
    _serve(settings, port, Path(bundle), tls, (threads, require_key, runtime), report)
    return {"stopped": True}


def _serve(
    settings: Settings,
    port: int,
    bundle: Path,
    tls: tuple[Path, Path] | None,
    options: tuple[int | None, Path | None, str | None],
    report: Callable[[dict[str, Any]], None],
) -> None:
    from pulse_edge.bundle import read_manifest
    from pulse_edge.runtimes.serve.model import Model
    from pulse_edge.runtimes.serve.server import serve

    read_manifest(bundle)  # what is no bundle at all is said before anything is opened

    def ready(url: str) -> None:
        report({"url": url, "data": str(settings.data), "bundle": str(bundle)})

    with suppress(KeyboardInterrupt):  # uvicorn hands the signal on when all is closed: the usual end
        serve(settings, port, lambda: Model(bundle, *options), tls, ready)


def _token(path: Path | None, host: str) -> str | None:
    from pulse_edge.runtimes.serve.settings import is_loopback

    if path is None:
        token = os.environ.get(TOKEN)
        if token is None and not is_loopback(host):
            raise UserError(
                f"{host} can be reached from other machines, so a token is needed: write one into a file "
                f"that only you can read and name it with --token-file, or set {TOKEN}."
            )
    else:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The token file {path} cannot be read ({error}). Check its name and rights."
            ) from error
    if token is not None and (len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"The token must have at least {_LEAST_TOKEN} characters, ASCII in one line. "
            "Write a longer one, such as `openssl rand -hex 24` prints."
        )
    return token


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not value >= 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1.")


def _check_log(folder: Path) -> dict[str, Any]:
    from pulse_edge.runtimes.serve.audit import NAME, check
    from pulse_edge.runtimes.serve.database import remembered_log

    path = folder / NAME
    if not path.is_file():
        raise UserError(f"There is no audit log {path}. Name the service's folder with --data.")
    found = check(path, remembered_log(folder))
    torn = (
        None
        if not found.torn
        else f"Line {found.lines + 1} was not finished: power was lost while it was written."
    )
    return {"ok": found.problem is None, "lines": found.lines, "problem": found.problem or torn}
