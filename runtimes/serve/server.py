"""The process: binds, serves, and ends in good order on SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn

from pulse_edge.errors import UserError
from pulse_edge.runtimes.serve.app import create_app
from pulse_edge.runtimes.serve.logs import alone, set_up
from pulse_edge.runtimes.serve.memory import keep_heap
from pulse_edge.runtimes.serve.model import Model
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import DRAIN_S, Settings

_MOST_CONNECTIONS: Final = 512  # beyond, uvicorn answers 503 at once
_BACKLOG: Final = 256
_IDLE_S: Final = (
    75  # longer than clients keep a connection: who closes first must not be us, or a request is lost
)


class _Server(uvicorn.Server):
    """Tells the service of the signal at once, so that no request waits for one that will not be read."""

    service: Service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take in a signal."""
        self.service.drain()
        super().handle_exit(sig, frame)


def serve(
    settings: Settings,
    port: int,
    open_model: Callable[[], Model],
    tls: tuple[Path, Path] | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until a signal ends it.

    Args:
        settings: of the service.
        port: 0 takes one that is free.
        open_model: opens the bundle.
        tls: files of certificate and key, PEM.
        ready: called with the address once it is listened on; the model may still be loading.

    Raises:
        UserError: the address, the files for TLS or the data folder cannot be used.
        BundleError: the bundle cannot be run.
    """
    keep_heap()
    if tls is not None:
        _check_tls(*tls)
    listener = _listen(settings.host, port)
    with contextlib.closing(listener), alone() as stream:
        set_up(stream)
        service = Service(settings, open_model, end=lambda: setattr(server, "should_exit", True))
        config = uvicorn.Config(
            create_app(service),
            http="h11",
            interface="asgi3",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=round(DRAIN_S) + 4,
            backlog=_BACKLOG,
            ssl_certfile=None if tls is None else str(tls[0]),
            ssl_keyfile=None if tls is None else str(tls[1]),
        )
        server = _Server(config)
        server.service = service
        host, bound = listener.getsockname()[:2]
        ready(f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{bound}")
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is not an address of this machine ({error}).") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"{host}:{port} cannot be listened on ({error}). Stop what uses it, or choose another --port."
        ) from error
    return listener


def _check_tls(certificate: Path, key: Path) -> None:
    """Load both before anything is listened on, so that what is wrong with them is a sentence."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{certificate} and {key} cannot be used for TLS ({error}). Give a certificate and its "
            "key in PEM, the key without a password."
        ) from error


def _no_password(*_: Any) -> str:
    raise ValueError("the key has a password")
