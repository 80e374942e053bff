"""One function for each verb of the command line, with the same parameters; results are plain dicts.

Each stands in a module of its own, and everything heavy is imported inside the function that needs it.
"""

from __future__ import annotations

from pulse_edge.commands._bench import bench
from pulse_edge.commands._build import build
from pulse_edge.commands._bundle import (
    bundle_diff,
    bundle_install,
    bundle_keygen,
    bundle_kit,
    bundle_rollback,
    bundle_sign,
)
from pulse_edge.commands._calibrate import calibrate
from pulse_edge.commands._capture import capture
from pulse_edge.commands._distill import distill
from pulse_edge.commands._doctor import doctor
from pulse_edge.commands._evaluate import evaluate
from pulse_edge.commands._export import export
from pulse_edge.commands._plan import plan
from pulse_edge.commands._prune import prune
from pulse_edge.commands._quantize import quantize
from pulse_edge.commands._run import run
from pulse_edge.commands._search import search
from pulse_edge.commands._serve import serve
from pulse_edge.commands._train import train
from pulse_edge.commands._verify import verify

__all__ = [
    "bench",
    "build",
    "bundle_diff",
    "bundle_install",
    "bundle_keygen",
    "bundle_kit",
    "bundle_rollback",
    "bundle_sign",
    "calibrate",
    "capture",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "plan",
    "prune",
    "quantize",
    "run",
    "search",
    "serve",
    "train",
    "verify",
]
