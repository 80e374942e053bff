"""Memory, one stream and graphs of the CUDA runtime, through cuda-python (12.6.2 and later, 13 included)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import MissingExtraError, PulseEdgeError

ALIGNMENT: Final = 256  # of every address that TensorRT is given
_REMEDIES: Final = {
    2: "The device has no memory left for it. Close other programs, or export with a lower --precision.",
    35: "The driver is older than cuda-python. On JetPack 6: pip install 'cuda-python<13'",
    100: "There is no NVIDIA GPU. Run the bundle without engines, in ONNX Runtime.",
}


@dataclass(frozen=True)
class Buffer:
    """Memory on the device; ``address`` is a multiple of :data:`ALIGNMENT`."""

    address: int
    nbytes: int


class Cuda:
    """The device's memory and one stream, on which everything happens in order.

    Memory is freed with the object, or by :meth:`close`.

    Raises:
        MissingExtraError: cuda-python is not installed.
        PulseEdgeError: a call fails; the remedy is named where it is known.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingExtraError("cuda-python", "jetson") from error
        self._api: Any = runtime
        self.stream = self._call("cudaStreamCreate")
        self._addresses: list[int] = []
        self.close = weakref.finalize(self, _free, runtime, self._addresses, self.stream)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def allocate(self, nbytes: int) -> Buffer:
        """Reserve memory on the device; an empty tensor gets an address, too."""
        address = int(self._call("cudaMalloc", max(nbytes, 1), what=f"reserve {nbytes / 1e6:.0f} MB"))
        self._addresses.append(address)
        return Buffer(address, nbytes)

    def upload(self, to: Buffer, array: NDArray[Any], offset: int = 0) -> None:
        """Copy an array to the device, ``offset`` bytes into the buffer."""
        array = np.ascontiguousarray(array)
        self._fits(to, offset + array.nbytes)
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        # Of memory that is not page-locked, CUDA has taken what it needs when the call returns.
        self._call("cudaMemcpyAsync", to.address + offset, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: NDArray[Any], source: Buffer) -> None:
        """Fill an array from the device and wait for it."""
        self._fits(source, array.nbytes)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, source.address, array.nbytes, kind, self.stream)
        self.synchronize()

    def copy(self, to: Buffer, source: Buffer, nbytes: int, offset: int = 0) -> None:
        """Copy the first ``nbytes`` on the device, to ``offset`` bytes into the other buffer."""
        self._fits(to, offset + nbytes)
        self._fits(source, nbytes)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to.address + offset, source.address, nbytes, kind, self.stream)

    def copy_rows(self, to: Buffer, source: Buffer, rows: int, old: int, new: int) -> None:
        """Copy the first ``new`` bytes of each of ``rows`` rows of ``old`` bytes, closing the gaps."""
        self._fits(to, rows * new)
        self._fits(source, rows * old)
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", to.address, new, source.address, old, new, rows, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until the device has done everything that it was given."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what ``work`` gives to the stream as a graph, without running it; None if it cannot be.

        Whatever the graph touches must stay as it is: addresses, shapes, the state of a context.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        failed = False
        try:
            work()
        except PulseEdgeError:
            failed = True
        finally:
            error, graph = self._api.cudaStreamEndCapture(self.stream)
        if failed or int(error):
            return None
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return executable

    def launch(self, graph: Any) -> None:
        """Run a captured graph on the stream."""
        self._call("cudaGraphLaunch", graph, self.stream)

    def _fits(self, buffer: Buffer, nbytes: int) -> None:
        if nbytes > buffer.nbytes:
            raise ValueError(f"{nbytes} bytes do not fit a buffer of {buffer.nbytes}")

    def _call(self, name: str, *arguments: Any, what: str = "") -> Any:
        error, *result = getattr(self._api, name)(*arguments)
        if int(error):
            text = self._api.cudaGetErrorString(error)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            step = _REMEDIES.get(int(error), "Run `pulse-edge doctor --device` and report what it says.")
            raise PulseEdgeError(f"CUDA could not {what or name} ({reason}, error {int(error)}). {step}")
        return result[0] if result else None


def _free(api: Any, addresses: list[int], stream: Any) -> None:
    for address in addresses:
        api.cudaFree(address)
    addresses.clear()
    api.cudaStreamDestroy(stream)
