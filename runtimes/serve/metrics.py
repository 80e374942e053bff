"""Figures for Prometheus. Labels are our own words only: routes as they are declared, codes, states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

from pulse_edge.runtimes.serve.health import STATES

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160)


class Metrics:
    """The service's figures, in a registry of their own.

    Args:
        state: the service's state.
        queued: jobs that wait or run.
    """

    def __init__(self, state: Callable[[], str], queued: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._state = state
        self.requests = Counter(
            "pulse_edge_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "pulse_edge_request_seconds", "Time to the end of an answer.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.steps = Histogram(
            "pulse_edge_step_seconds", "Time of a step of reading an ECG.", ("step",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.grades = Counter("pulse_edge_photos", "Photos by grade.", ("grade",), registry=self._registry)
        self.tokens = Counter("pulse_edge_tokens", "Generated tokens.", registry=self._registry)
        queue = Gauge("pulse_edge_queued", "ECGs that wait or are read.", registry=self._registry)
        queue.set_function(lambda: float(queued()))
        self._states = Gauge(
            "pulse_edge_state", "1 for the present state.", ("state",), registry=self._registry
        )
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        now = self._state()
        for state in STATES:
            self._states.labels(state).set(float(state == now))
        return generate_latest(self._registry)
