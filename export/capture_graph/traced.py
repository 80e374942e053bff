"""The module as torch traces it, and what an exporter's packages would say meanwhile."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pulse_edge.export.capture_graph.module import CaptureGraph


@contextmanager
def quiet() -> Iterator[None]:
    """Silence tracing: lengths of axes are meant to become numbers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def example(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs for a trace: noise of the whole canvas, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, side, side, generator=generator) * 255, torch.tensor([float(side), float(side)])


def traced(side: int) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
    """Trace the path for a canvas; return the traced module and its example inputs."""
    inputs = example(side)
    with quiet():
        return torch.jit.trace(CaptureGraph(side).eval(), inputs, check_trace=False), inputs
