"""`doctor`: what is installed, and what is missing."""

from __future__ import annotations

from typing import Any


def doctor(device: bool = False) -> dict[str, Any]:
    """Say what is installed and what is missing; see ``pulse_edge.doctor.examine``."""
    from pulse_edge.doctor import examine

    return examine(device)
