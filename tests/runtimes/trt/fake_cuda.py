"""A stand-in for ``cuda.bindings.runtime``: host memory, one device, streams that really are asynchronous.

Nothing that is put on a stream happens before the stream is synchronised, so a result that is read too
early is stale. Every access is checked against the allocations; one outside of them leaves the sticky error
700, as on a device. Graphs record what a stream was given and run it again.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ALIGNMENT = 256
Work = Callable[[], None]


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class IllegalAccess(Exception):
    """An address outside of every allocation."""


@dataclass
class Stream:
    handle: int
    queue: list[Work] = field(default_factory=list)
    capturing: list[Work] | None = None
    broken: bool = False
    alive: bool = True

    def __int__(self) -> int:
        return self.handle

    def put(self, work: Work) -> None:
        (self.queue if self.capturing is None else self.capturing).append(work)


@dataclass
class Graph:
    work: list[Work]
    alive: bool = True


class FakeCuda:
    """The functions, with the state of one device. ``memory`` bounds what can be allocated, in bytes."""

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaError_t = cudaError_t

    def __init__(self, memory: int = 1 << 32) -> None:
        self.memory, self.used = memory, 0
        self.blocks: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {}
        self.sticky = cudaError_t.cudaSuccess
        self.captures = self.launches = 0

    # --- what the fake TensorRT uses ---------------------------------------------------------------

    def view(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes at an address, as uint8; raises IllegalAccess."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + len(block):
                return block[address - start : address - start + nbytes]
        raise IllegalAccess(f"{nbytes} bytes at {address:#x}")

    def stream(self, handle: int) -> Stream:
        return self.streams[handle]

    # --- memory -------------------------------------------------------------------------------------

    def cudaMalloc(self, size: int) -> tuple[cudaError_t, int | None]:
        assert type(size) is int
        if any(s.capturing is not None for s in self.streams.values()):
            return self._break_captures(), None
        if self.used + size > self.memory:
            return cudaError_t.cudaErrorMemoryAllocation, None
        raw = np.empty(size + ALIGNMENT, np.uint8)
        raw[:] = 0xCD  # what was not written is no number that anyone expects
        start = -raw.ctypes.data % ALIGNMENT
        block = raw[start : start + size]
        self.blocks[block.ctypes.data] = block
        self.used += size
        return cudaError_t.cudaSuccess, block.ctypes.data

    def cudaFree(self, devPtr: int) -> tuple[cudaError_t]:
        block = self.blocks.pop(devPtr, None)
        if block is None:
            return (cudaError_t.cudaErrorInvalidValue,)
        self.used -= len(block)
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Stream
    ) -> tuple[cudaError_t]:
        assert all(type(value) is int for value in (dst, src, count))
        assert isinstance(kind, cudaMemcpyKind)
        if not stream.alive:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        if kind is not cudaMemcpyKind.cudaMemcpyDeviceToDevice and stream.capturing is not None:
            return (self._break_captures(),)  # memory that is not page-locked cannot be captured
        if kind is cudaMemcpyKind.cudaMemcpyHostToDevice:
            staged = np.frombuffer(ctypes.string_at(src, count), np.uint8)  # taken before the call returns
            stream.put(lambda: self._write(dst, staged))
        elif kind is cudaMemcpyKind.cudaMemcpyDeviceToHost:
            stream.put(lambda: ctypes.memmove(dst, self.view(src, count).ctypes.data, count) and None)
        else:
            stream.put(lambda: self._write(dst, self.view(src, count).copy()))
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int,
        kind: cudaMemcpyKind, stream: Stream,
    ) -> tuple[cudaError_t]:  # fmt: skip
        assert kind is cudaMemcpyKind.cudaMemcpyDeviceToDevice
        if width > dpitch or width > spitch:
            return (cudaError_t.cudaErrorInvalidValue,)

        def work() -> None:
            for row in range(height):
                self._write(dst + row * dpitch, self.view(src + row * spitch, width).copy())

        stream.put(work)
        return (cudaError_t.cudaSuccess,)

    def _write(self, address: int, content: np.ndarray) -> None:
        self.view(address, len(content))[:] = content

    # --- streams and graphs ---------------------------------------------------------------------

    def cudaStreamCreate(self) -> tuple[cudaError_t, Stream]:
        stream = Stream(0x5000 + len(self.streams))
        self.streams[stream.handle] = stream
        return cudaError_t.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[cudaError_t]:
        stream.alive = False
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[cudaError_t]:
        if stream.capturing is not None:
            return (self._break_captures(),)
        queue, stream.queue = stream.queue, []
        try:
            for work in queue:
                work()
        except IllegalAccess:
            self.sticky = cudaError_t.cudaErrorIllegalAddress
        return (self.sticky,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
        assert isinstance(mode, cudaStreamCaptureMode)
        stream.capturing, stream.broken = [], False
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[cudaError_t, Graph | None]:
        assert stream.capturing is not None
        work, stream.capturing = stream.capturing, None
        if stream.broken:
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        self.captures += 1
        return cudaError_t.cudaSuccess, Graph(work)

    def cudaGraphInstantiate(self, graph: Graph, flags: int) -> tuple[cudaError_t, Graph]:
        assert isinstance(graph, Graph)
        assert graph.alive
        assert type(flags) is int
        return cudaError_t.cudaSuccess, Graph(list(graph.work))

    def cudaGraphDestroy(self, graph: Graph) -> tuple[cudaError_t]:
        graph.alive = False
        return (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec: Graph, stream: Stream) -> tuple[cudaError_t]:
        self.launches += 1
        for work in graphExec.work:
            stream.put(work)
        return (cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return cudaError_t.cudaSuccess, error.name.encode()

    def _break_captures(self) -> cudaError_t:
        for stream in self.streams.values():
            stream.broken = stream.broken or stream.capturing is not None
        return cudaError_t.cudaErrorStreamCaptureUnsupported

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the CUDA runtime of these tests has no {name}; add it as it is documented")
