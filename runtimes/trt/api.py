"""The part of TensorRT's Python interface that is used here, typed; 10.3 and later, 11 included.

Source: the bindings that NVIDIA publishes (tensorrt-cu12-bindings 10.3.0 and 10.13.3.9,
tensorrt-cu13-bindings 10.15.1.29 and 11.4.0.106). ``tests/runtimes/trt/record_api.py`` imports those
wheels and writes down their signatures; a test holds this file, and the stand-in that the tests run,
against that record. The two major versions differ for us in one thing: the numbers of the flags, which
are therefore only taken from the enumerations.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from pulse_edge.errors import PulseEdgeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Shape = Sequence[int]
Made = TypeVar("Made")


class Tensor(Protocol):
    """``ITensor`` of a network; dynamic dimensions are -1."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    @property
    def shape(self) -> Shape:
        """Its dimensions."""

    @property
    def dtype(self) -> Any:
        """One of ``DataType``."""


class INetwork(Protocol):
    """``INetworkDefinition``."""

    @property
    def num_inputs(self) -> int:
        """How many inputs the network has."""

    def get_input(self, index: int) -> Tensor:
        """One of them."""


class Profile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:
        """Set the smallest, the usual and the largest shape of an input."""


class TimingCache(Protocol):
    """``ITimingCache``."""

    def serialize(self) -> Buffer:
        """The cache as bytes."""


class Config(Protocol):
    """``IBuilderConfig``."""

    progress_monitor: Any

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """Bound a kind of memory, in bytes."""

    def set_flag(self, flag: Any) -> None:
        """Switch an option on."""

    def create_timing_cache(self, serialized_timing_cache: Buffer) -> TimingCache | None:
        """Make a cache of bytes, of none for an empty one; None if they are no cache."""

    def set_timing_cache(self, cache: TimingCache | None, ignore_mismatch: bool) -> bool:
        """Use a cache; False if it is another version's or device's."""

    def get_timing_cache(self) -> TimingCache | None:
        """The cache in use."""

    def add_optimization_profile(self, profile: Profile) -> int:
        """Add a profile; return its index, -1 if it is not valid."""


class IBuilder(Protocol):
    """``Builder``."""

    def create_network(self, flags: int = 0) -> INetwork:
        """Make an empty network; flags are bits, numbered by an enumeration."""

    def create_builder_config(self) -> Config:
        """Make the options of a build."""

    def create_optimization_profile(self) -> Profile:
        """Make an empty profile."""

    def build_serialized_network(self, network: INetwork, config: Config) -> Buffer | None:
        """Build; None if that failed or the monitor stopped it."""


class ParserError(Protocol):
    """``IParserError``."""

    def desc(self) -> str:
        """What is wrong."""

    def node_name(self) -> str:
        """The node in question."""

    def node_operator(self) -> str:
        """Its operator."""


class IParser(Protocol):
    """``OnnxParser``."""

    @property
    def num_errors(self) -> int:
        """How many errors there are."""

    def parse_from_file(self, model: str) -> bool:
        """Read a graph with the weights beside it."""

    def get_error(self, index: int) -> ParserError:
        """One of the errors."""


class IRefitter(Protocol):
    """``Refitter``."""

    def refit_cuda_engine(self) -> bool:
        """Put the new weights into the engine."""


class IParserRefitter(Protocol):
    """``OnnxParserRefitter``."""

    @property
    def num_errors(self) -> int:
        """How many errors there are."""

    def refit_from_file(self, model: str) -> bool:
        """Read the weights of a graph."""

    def get_error(self, index: int) -> ParserError:
        """One of the errors."""


class Context(Protocol):
    """``IExecutionContext``. The functions that return bool say False where C++ logs an error."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose the profile."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Set the memory for activations."""

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        """Set an input's shape."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set where an input or output lies."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Put an execution on the stream."""


class CudaEngine(Protocol):
    """``ICudaEngine``."""

    @property
    def num_io_tensors(self) -> int:
        """How many inputs and outputs there are."""

    @property
    def num_optimization_profiles(self) -> int:
        """How many profiles there are."""

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that activations need, over all profiles."""

    def get_tensor_name(self, index: int) -> str:
        """Name of an input or output."""

    def get_tensor_mode(self, name: str) -> Any:
        """One of ``TensorIOMode``."""

    def get_tensor_shape(self, name: str) -> Shape:
        """Its shape; dynamic dimensions are -1."""

    def get_tensor_dtype(self, name: str) -> Any:
        """One of ``DataType``."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Shape]:
        """Smallest, usual and largest shape of an input in a profile."""

    def create_execution_context(self, strategy: Any) -> Context | None:
        """Make a context; None if there is no memory."""


class IRuntime(Protocol):
    """``Runtime``."""

    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> CudaEngine | None:
        """Load an engine; None if it is not for this machine."""


class TensorRT(Protocol):
    """The module ``tensorrt``. Enumerations and the two classes to derive from are left untyped."""

    __version__: str
    ILogger: Any
    IProgressMonitor: Any
    NetworkDefinitionCreationFlag: Any
    BuilderFlag: Any
    MemoryPoolType: Any
    TensorIOMode: Any
    DataType: Any
    ExecutionContextAllocationStrategy: Any

    def Builder(self, logger: Any) -> IBuilder:
        """Make a builder."""

    def OnnxParser(self, network: INetwork, logger: Any) -> IParser:
        """Make a parser into a network, which must outlive it."""

    def Runtime(self, logger: Any) -> IRuntime:
        """Make a runtime."""

    def Refitter(self, engine: CudaEngine, logger: Any) -> IRefitter:
        """Make a refitter of an engine."""

    def OnnxParserRefitter(self, refitter: IRefitter, logger: Any) -> IParserRefitter:
        """Make a parser that refits."""


def import_tensorrt() -> TensorRT:
    """Import TensorRT.

    Raises:
        PulseEdgeError: it is not installed, or does not load; with the command that brings it.
    """
    try:
        return cast(TensorRT, importlib.import_module("tensorrt"))
    except ImportError as error:
        raise PulseEdgeError(
            f"TensorRT's Python package does not load ({error}). On a Jetson: sudo apt install "
            "python3-libnvinfer, and an environment made with python3 -m venv --system-site-packages; "
            "on another machine with an NVIDIA GPU: pip install tensorrt"
        ) from error


def make_logger(trt: TensorRT) -> Any:
    """Return a logger that keeps what TensorRT complains of in ``errors`` and ``warnings``.

    TensorRT keeps a bare pointer to it: it must outlive everything that it was given to.
    """
    severity = trt.ILogger.Severity

    def start(self: Any) -> None:
        trt.ILogger.__init__(self)
        self.errors, self.warnings = [], []

    def log(self: Any, level: Any, text: str) -> None:
        if level in (severity.INTERNAL_ERROR, severity.ERROR):
            self.errors.append(" ".join(text.split()))
        elif level == severity.WARNING:
            self.warnings.append(" ".join(text.split()))

    return type("Logger", (trt.ILogger,), {"__init__": start, "log": log})()


def start(make: Callable[[Any], Made], logger: Any) -> Made:
    """Make a ``Builder`` or a ``Runtime``, which start CUDA.

    Raises:
        PulseEdgeError: they do not; the bindings then say TypeError.
    """
    try:
        return make(logger)
    except TypeError as error:
        raise PulseEdgeError(
            f"TensorRT does not start: {why(logger)}. `pulse-edge doctor --device` says what is missing; "
            "on a Jetson the user must be in the groups video and render."
        ) from error


def why(logger: Any) -> str:
    """Return the last thing that TensorRT complained of, as the middle of a sentence."""
    return str(logger.errors[-1]).rstrip(".")[:300] if logger.errors else "no reason was given"
