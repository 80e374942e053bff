"""One engine: loaded, checked against the bundle's manifest, and run profile by profile."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pulse_edge.errors import BundleError, PulseEdgeError
from pulse_edge.runtimes.trt.api import Context, CudaEngine, TensorRT, start, why
from pulse_edge.runtimes.trt.cuda import Buffer, Cuda

# dtype in the manifest -> name in tensorrt.DataType, and bytes.
TYPES: Final = {"float": ("FLOAT", 4), "float16": ("HALF", 2), "int64": ("INT64", 8)}
Bindings = Mapping[str, tuple[int, tuple[int, ...]]]  # name -> address and shape


class Engine:
    """An engine with one execution context for each optimisation profile.

    The contexts share one piece of memory for activations (:meth:`use_scratch`): everything runs in order
    on one stream.

    Args:
        trt: the module.
        logger: outlives the engine.
        cuda: memory and stream.
        path: of the serialised engine.
        graph: the graph's entry in the manifest, ``inputs`` and ``outputs``.
        weights: ONNX file to refit an engine from that was stored without weights.

    Raises:
        BundleError: the engine does not load here, or is not that of the graph.
    """

    def __init__(
        self,
        trt: TensorRT,
        logger: Any,
        cuda: Cuda,
        path: Path,
        graph: Mapping[str, Any],
        weights: Path | None = None,
    ) -> None:
        self._trt, self._logger, self._cuda, self.path = trt, logger, cuda, path
        self.runtime = start(trt.Runtime, logger)
        self.engine = self._load()
        self._check(graph)
        if weights is not None:
            self._refit(weights)
        self._contexts: dict[int, Context] = {}
        self._scratch: Buffer | None = None

    @property
    def scratch(self) -> int:
        """Bytes that its activations need, in the largest profile."""
        return int(self.engine.device_memory_size_v2)

    def use_scratch(self, buffer: Buffer) -> None:
        """Set the memory for activations, before the first run."""
        self._scratch = buffer

    def bounds(self, name: str, axis: int) -> list[tuple[int, int]]:
        """Return the smallest and largest length of an input's axis in every profile."""
        shapes = (
            self.engine.get_tensor_profile_shape(name, i)
            for i in range(self.engine.num_optimization_profiles)
        )
        return [(int(low[axis]), int(high[axis])) for low, _, high in shapes]

    def run(self, inputs: Bindings, outputs: Mapping[str, int], profile: int = 0) -> None:
        """Put one execution on the stream.

        Args:
            inputs: address and shape of every input.
            outputs: address of every output.
            profile: optimisation profile.

        Raises:
            PulseEdgeError: TensorRT refuses a shape or an address, or fails.
        """
        context = self._contexts.get(profile) or self._context(profile)
        for name, (address, shape) in inputs.items():
            self._expect(context.set_input_shape(name, shape), f"the shape {shape} of {name}")
            self._expect(context.set_tensor_address(name, address), f"the memory of {name}")
        for name, address in outputs.items():
            self._expect(context.set_tensor_address(name, address), f"the memory of {name}")
        self._expect(context.execute_async_v3(self._cuda.handle), "to run")

    def _context(self, profile: int) -> Context:
        if self._scratch is None or self._scratch.nbytes < self.scratch:
            raise ValueError("use_scratch comes before the first run")
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.engine.create_execution_context(strategy)
        if context is None:
            raise PulseEdgeError(
                f"TensorRT made no context for {self.path.name}: {why(self._logger)}. "
                "Close other programs on the device and try again."
            )
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        chosen = context.set_optimization_profile_async(profile, self._cuda.handle)
        self._expect(chosen, f"the optimisation profile {profile}")
        self._contexts[profile] = context
        return context

    def _expect(self, done: bool, what: str) -> None:
        if not done:
            raise PulseEdgeError(
                f"TensorRT refused {what} ({self.path.name}): {why(self._logger)}. "
                "Build the engines again: pulse-edge build BUNDLE"
            )

    def _load(self) -> CudaEngine:
        try:
            with (
                self.path.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan,
            ):
                engine = self.runtime.deserialize_cuda_engine(plan)
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.path} cannot be read: {error}. {_AGAIN}") from error
        if engine is None:
            raise BundleError(f"TensorRT does not load {self.path.name}: {why(self._logger)}. {_AGAIN}")
        return engine

    def _check(self, graph: Mapping[str, Any]) -> None:
        """Compare names, directions and types with the manifest's."""
        engine, mode = self.engine, self._trt.TensorIOMode
        found = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            found[name] = (engine.get_tensor_mode(name), engine.get_tensor_dtype(name))
        wanted = {
            name: (way, getattr(self._trt.DataType, TYPES[entry["dtype"]][0]))
            for way, part in ((mode.INPUT, "inputs"), (mode.OUTPUT, "outputs"))
            for name, entry in graph[part].items()
        }
        if found != wanted:
            odd = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise BundleError(
                f"The engine {self.path.name} has other inputs or outputs than its graph: {odd[0]}. {_AGAIN}"
            )

    def _refit(self, weights: Path) -> None:
        refitter = self._trt.Refitter(self.engine, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(weights)):
            reason = parser.get_error(0).desc() if parser.num_errors else why(self._logger)
            raise BundleError(f"The weights of {weights.name} do not fit its engine: {reason}. {_AGAIN}")
        if not refitter.refit_cuda_engine():
            raise BundleError(f"The engine {self.path.name} was not refit: {why(self._logger)}. {_AGAIN}")


_AGAIN: Final = "Build the engines again from the portable half: pulse-edge build BUNDLE"
