"""pulse-edge: PULSE, the multimodal LLM that reads pictures of ECGs, on edge devices.

Research use; not a medical device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pulse_edge.errors import PulseEdgeError
    from pulse_edge.model.preprocess import preprocess, tiles
    from pulse_edge.runtimes.load import load

__version__ = "0.1.0"
__all__ = ["PulseEdgeError", "__version__", "load", "preprocess", "tiles"]

# Imported on first use: `import pulse_edge` and `pulse-edge --help` stay instant.
_HOMES = {
    "PulseEdgeError": "pulse_edge.errors",
    "load": "pulse_edge.runtimes.load",
    "preprocess": "pulse_edge.model.preprocess",
    "tiles": "pulse_edge.model.preprocess",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pulse_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
