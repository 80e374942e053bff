"""What can be set of the service, and the limits that cannot."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PORT: Final = 8337
MAX_JSON: Final = 256 << 10  # bytes of a JSON body without a picture
MAX_FRAME: Final = 1 << 20  # bytes of a frame of the live camera
MAX_QUESTION: Final = 2000  # characters
MAX_REFERENCE: Final = 64  # characters
UPLOAD_S: Final = 60.0  # a body must have arrived after so long
DRAIN_S: Final = 8.0  # that the ECG being read is given at shutdown


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        data: folder of the studies and the audit log.
        host: address that is listened on.
        token: that every request must bear; None on loopback only.
        keep_days: studies are deleted after so many days; None keeps them.
        queue: ECGs that may wait or be read at once.
        deadline_s: seconds from a request's arrival to the end of its answer.
        max_photo: bytes of a picture.
        max_pixels: of a picture.
        min_free: bytes of the disk that must be free for a study to be taken.
        follow: end once the bundle's name leads to another sound one, so that a supervisor starts it anew.
        new_database: begin an empty history after a damaged one was moved aside.
    """

    data: Path
    host: str = "127.0.0.1"
    token: str | None = None
    keep_days: int | None = None
    queue: int = 8
    deadline_s: float = 120.0
    max_photo: int = 24 << 20
    max_pixels: int = 64_000_000
    min_free: int = 200 << 20
    follow: bool = False
    new_database: bool = False


def default_data() -> Path:
    """Return where the studies lie unless told: ``XDG_STATE_HOME``, or systemd's ``STATE_DIRECTORY``."""
    if named := os.environ.get("STATE_DIRECTORY"):
        return Path(named.split(":")[0])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "pulse-edge"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pulse-edge"


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
