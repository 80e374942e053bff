"""A stand-in for the module ``tensorrt`` that keeps TensorRT's rules and computes with ONNX Runtime.

What it enforces, each from the developer guide or the headers' comments: types of arguments; objects that
must outlive others (logger, parser, runtime, monitor); strongly typed networks only; profiles for every
dynamic input; plans of another version or device are refused; shapes outside of the active profile;
addresses set, aligned to 256 bytes and of the device; memory for activations; one context for a profile;
an execution before a capture, and none of its context's state changed behind a captured graph; weights
that were stripped are not there before a refit. Names, parameters and numbers are those of ``api.json``.
What C++ answers with False or None and a message to the logger, this answers so.
"""

from __future__ import annotations

import enum
import json
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from trt_fake_cuda import FakeCuda

from pulse_edge.export.trt_support import highest_opset

API = json.loads((Path(__file__).parent / "api.json").read_text())
MAGIC = b"FAKEPLAN"
TYPES = {1: ("FLOAT", np.float32), 10: ("HALF", np.float16), 7: ("INT64", np.int64)}
SCRATCH = 1 << 16


class UseAfterFree(AssertionError):
    """Where C++ would follow a dangling pointer."""


def alive(reference: Any, what: str) -> Any:
    found = reference()
    if found is None:
        raise UseAfterFree(f"{what} is gone")
    return found


def want(value: Any, kind: type | tuple[type, ...], where: str) -> None:
    """pybind11 refuses arguments of another type with a TypeError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{where}(): incompatible function arguments: {value!r}")


def dims(value: Any, where: str) -> tuple[int, ...]:
    want(value, (tuple, list), where)
    for n in value:
        want(n, int, where)
    return tuple(value)


class Machine:
    """What a process has: one TensorRT version on one device. ``module`` is ``import tensorrt``'s."""

    def __init__(self, version: str, sm: str, cuda: FakeCuda) -> None:
        self.version, self.sm, self.cuda = version, sm, cuda
        self.record = API["tensorrt"][version]
        self.cache_hits = self.builds = 0
        self.fail_build: str | None = None  # what the builder is to complain of
        self.step_seconds = 0.0
        self.starts = True  # whether CUDA does
        self.module = self._module()

    def _module(self) -> ModuleType:
        module = ModuleType("tensorrt")
        module.__version__ = self.version
        for name, members in self.record["enums"].items():
            made = enum.IntEnum(name.split(".")[-1], members)
            if "." not in name:
                setattr(module, name, made)
            else:
                ILogger.Severity = made
        for one in (
            ILogger, IProgressMonitor, Builder, OnnxParser, Runtime, Refitter, OnnxParserRefitter,
        ):  # fmt: skip
            setattr(module, one.__name__, type(one.__name__, (one,), {"machine": self}))
        return module


class ILogger:
    machine: Machine
    Severity: Any

    def __init__(self) -> None:
        self.started = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError

    def error(self, text: str) -> None:
        if not getattr(self, "started", False):
            raise UseAfterFree("ILogger.__init__ was not called")
        self.log(self.Severity.ERROR, text)


class IProgressMonitor:
    machine: Machine

    def __init__(self) -> None:
        self.started = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError


class IHostMemory(bytes):
    """Bytes here; there, an object with the buffer protocol and ``nbytes``."""

    @property
    def nbytes(self) -> int:
        return len(self)


# --- building -----------------------------------------------------------------------------------


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value, self._kind = value, value.type.tensor_type

    @property
    def name(self) -> str:
        return self._value.name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in self._kind.shape.dim)

    @property
    def dtype(self) -> str:
        return TYPES[self._kind.elem_type][0]


class INetworkDefinition:
    def __init__(self, strongly_typed: bool) -> None:
        self.strongly_typed, self.model, self.parser = strongly_typed, None, None

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input) if self.model else 0

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.model.graph.input[index])


class ParserError:
    def __init__(self, text: str, node: str = "", operator: str = "") -> None:
        self._text, self._node, self._operator = text, node, operator

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator


class OnnxParser:
    machine: Machine

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        want(network, INetworkDefinition, "OnnxParser.__init__")
        want(logger, ILogger, "OnnxParser.__init__")
        self._network, self._logger, self._errors = network, weakref.ref(logger), []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        want(model, str, "parse_from_file")
        graph = onnx.load(model)  # with the data beside it
        opset = max(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx"))
        if opset > highest_opset(self.machine.version):
            self._errors.append(ParserError(f"opset {opset} is not supported"))
            return False
        for node in graph.graph.node:
            if node.domain not in ("", "ai.onnx"):
                self._errors.append(ParserError("no importer registered for op", node.name, node.op_type))
                return False
        self._network.model, self._network.parser = graph, weakref.ref(self)
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        want(input, str, "set_shape")
        self.shapes[input] = tuple(dims(value, "set_shape") for value in (min, opt, max))


class ITimingCache:
    def __init__(self, head: list[str], entries: list[str]) -> None:
        self.head, self.entries = head, entries

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps([self.head, self.entries]).encode())


class IBuilderConfig:
    def __init__(self, machine: Machine, logger: ILogger) -> None:
        self._machine, self._logger = machine, weakref.ref(logger)
        self._pools: dict[Any, int] = {}
        self._flags: set[Any] = set()
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self._monitor: Any = lambda: None

    @property
    def progress_monitor(self) -> Any:
        return self._monitor()

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        want(monitor, IProgressMonitor, "progress_monitor")
        self._monitor = weakref.ref(monitor)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        want(pool, self._machine.module.MemoryPoolType, "set_memory_pool_limit")
        want(pool_size, int, "set_memory_pool_limit")
        self._pools[pool] = pool_size

    def set_flag(self, flag: Any) -> None:
        want(flag, self._machine.module.BuilderFlag, "set_flag")
        self._flags.add(flag)

    def _head(self) -> list[str]:
        return [self._machine.version, self._machine.sm]

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        content = bytes(memoryview(serialized_timing_cache))
        if not content:
            return ITimingCache(self._head(), [])
        try:
            return ITimingCache(*json.loads(content))
        except (ValueError, TypeError):
            alive(self._logger, "the logger").error("timing cache is corrupt")
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        want(cache, ITimingCache, "set_timing_cache")
        if cache.head != self._head() and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        want(profile, IOptimizationProfile, "add_optimization_profile")
        for name, (low, best, high) in profile.shapes.items():
            if not all(0 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
                alive(self._logger, "the logger").error(f"profile: {name} is not min <= opt <= max")
                return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Builder:
    machine: Machine

    def __init__(self, logger: ILogger) -> None:
        want(logger, ILogger, "Builder.__init__")
        self._logger = weakref.ref(logger)
        if not self.machine.starts:
            logger.error("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        want(flags, int, "create_network")
        known = self.machine.module.NetworkDefinitionCreationFlag
        unknown = flags & ~sum(1 << int(flag) for flag in known)
        if unknown:
            raise ValueError(f"unknown network flags {flags:#b}")
        return INetworkDefinition(bool(flags & 1 << int(known.STRONGLY_TYPED)))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.machine, alive(self._logger, "the logger"))

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        want(network, INetworkDefinition, "build_serialized_network")
        want(config, IBuilderConfig, "build_serialized_network")
        logger = alive(self._logger, "the logger")
        if network.model is None:
            logger.error("the network has no outputs")
            return None
        alive(network.parser, "the parser, which owns the weights,")
        fault = self.machine.fail_build or self._fault(network, config)
        if fault:
            logger.error(fault)
            return None
        if not self._work(network, config):
            logger.error("build was cancelled")
            return None
        return self._plan(network, config)

    def _fault(self, network: INetworkDefinition, config: IBuilderConfig) -> str | None:
        if not network.strongly_typed:
            return "the network is not strongly typed, and would be run in another precision"
        flags = {flag.name for flag in config._flags}
        if flags & {"FP16", "BF16", "INT8", "INT4", "FP8", "FP4"}:
            return "flags of precision do not go with a strongly typed network"
        if "STRIP_PLAN" in flags and not flags & {"REFIT_IDENTICAL", "REFIT"}:
            return "a plan without weights is to be refit: say how"
        if not config._pools:
            return "no limit of the workspace was set: the default takes all memory of a Jetson"
        dynamic = {t.name: t.shape for t in map(ITensor, network.model.graph.input) if -1 in t.shape}
        if dynamic and not config._profiles:
            return "network has dynamic inputs, but no optimization profile has been defined"
        for k, profile in enumerate(config._profiles):
            for name, shape in dynamic.items():
                if name not in profile.shapes:
                    return f"dynamic input {name} is missing in profile {k}"
                for given in profile.shapes[name]:
                    if len(given) != len(shape) or any(
                        d not in (-1, g) for d, g in zip(shape, given, strict=True)
                    ):
                        return f"the shape {given} of {name} does not match the network"
        return None

    def _work(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        """Report progress from a thread of its own, phases within a phase; False when told to stop."""
        monitor, going = alive(config._monitor, "the progress monitor"), []
        steps = len(network.model.graph.node)

        def work() -> None:
            if monitor is not None:
                monitor.phase_start("Building Engine", None, 2)
                monitor.phase_start("Tactic Selection", "Building Engine", steps)
            for i in range(steps):
                time.sleep(self.machine.step_seconds)
                if monitor is not None and not monitor.step_complete("Tactic Selection", i):
                    going.append(False)
                    break
            if monitor is not None:
                monitor.phase_finish("Tactic Selection")
                monitor.step_complete("Building Engine", 1)
                monitor.phase_finish("Building Engine")

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():  # in C++ no Python runs meanwhile; a handler only when it is back
            thread.join(0.05)
        self.machine.builds += 1
        return not going

    def _plan(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        flags, model = self.machine.module.BuilderFlag, onnx.ModelProto()
        model.CopyFrom(network.model)
        stripped = []
        if flags.STRIP_PLAN in config._flags:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) > 64 and tensor.data_type in (1, 10):
                    stripped.append(tensor.name)
                    tensor.raw_data = bytes(len(tensor.raw_data))
        timing = f"{model.graph.name}:{sorted(n.op_type for n in model.graph.node)}"
        if config._cache is not None:
            self.machine.cache_hits += timing in config._cache.entries
            if timing not in config._cache.entries:
                config._cache.entries.append(timing)
        head = json.dumps({
            "version": self.machine.version,
            "sm": self.machine.sm,
            "profiles": [p.shapes for p in config._profiles],
            "stripped": stripped,
            "workspace": max(config._pools.values()),
        }).encode()  # fmt: skip
        return IHostMemory(MAGIC + struct.pack("<q", len(head)) + head + model.SerializeToString())


# --- running ------------------------------------------------------------------------------------


class Runtime:
    machine: Machine

    def __init__(self, logger: ILogger) -> None:
        want(logger, ILogger, "Runtime.__init__")
        self._logger = weakref.ref(logger)
        if not self.machine.starts:
            logger.error("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan = bytes(memoryview(serialized_engine))
        logger = alive(self._logger, "the logger")
        if not plan.startswith(MAGIC):
            logger.error("IRuntime::deserializeCudaEngine: magic tag does not match")
            return None
        (length,) = struct.unpack("<q", plan[8:16])
        head = json.loads(plan[16 : 16 + length])
        if head["version"] != self.machine.version:
            logger.error(f"engine of version {head['version']}, expecting {self.machine.version}")
            return None
        if head["sm"] != self.machine.sm:
            logger.error(f"engine of compute {head['sm']}, expecting {self.machine.sm}")
            return None
        return ICudaEngine(self, head, onnx.ModelProto.FromString(plan[16 + length :]))


class ICudaEngine:
    def __init__(self, runtime: Runtime, head: dict[str, Any], model: onnx.ModelProto) -> None:
        self._runtime, self._machine = weakref.ref(runtime), runtime.machine
        self._logger, self._head, self._model = runtime._logger, head, model
        self._io = [*model.graph.input, *model.graph.output]
        self._missing = set(head["stripped"])
        self._busy: dict[int, Any] = {}
        self._session: Any = None

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._head["profiles"]))

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH

    def _value(self, name: str) -> onnx.ValueInfoProto:
        want(name, str, "get_tensor")
        return next(value for value in self._io if value.name == name)

    def get_tensor_name(self, index: int) -> str:
        return self._io[index].name

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._machine.module.TensorIOMode
        return mode.INPUT if self._value(name) in list(self._model.graph.input) else mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return ITensor(self._value(name)).shape

    def get_tensor_dtype(self, name: str) -> Any:
        return self._machine.module.DataType[ITensor(self._value(name)).dtype]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        want(profile_index, int, "get_tensor_profile_shape")
        shape = ITensor(self._value(name)).shape
        given = self._head["profiles"][profile_index] if self._head["profiles"] else {}
        return [tuple(entry) for entry in given.get(name, (shape,) * 3)]

    def create_execution_context(self, strategy: Any) -> IExecutionContext:
        known = self._machine.module.ExecutionContextAllocationStrategy
        want(strategy, known, "create_execution_context")
        assert strategy is known.USER_MANAGED
        return IExecutionContext(self)

    def _compute(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self._session is None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
            self._session = onnxruntime.InferenceSession(
                self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self._session.run([value.name for value in self._model.graph.output], feed)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        alive(engine._runtime, "the runtime")
        self._engine, self._machine, self._cuda = engine, engine._machine, engine._machine.cuda
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._state = 0  # grows with every change
        self._warm: tuple[Any, ...] = ()  # the shapes of the last execution outside of a capture
        if 0 not in engine._busy:
            self._take(0)

    def _take(self, profile: int) -> None:
        if self._profile is not None:
            del self._engine._busy[self._profile]
        self._engine._busy[profile] = self
        self._profile = profile

    def _no(self, text: str) -> bool:
        alive(self._engine._logger, "the logger").error(f"IExecutionContext: {text}")
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        want(profile_index, int, "set_optimization_profile_async")
        want(stream_handle, int, "set_optimization_profile_async")
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._no(f"there is no profile {profile_index}")
        if self._engine._busy.get(profile_index, self) is not self:
            return self._no(f"profile {profile_index} is in use by another context")
        assert self._cuda.stream(stream_handle).alive
        self._take(profile_index)
        self._shapes, self._state = {}, self._state + 1
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        want(memory, int, "set_device_memory")
        want(size, int, "set_device_memory")
        if size < SCRATCH or memory % 256:
            self._no("the device memory is too small or not aligned")
            return
        self._scratch, self._state = (memory, size), self._state + 1

    def set_input_shape(self, name: str, shape: Any) -> bool:
        want(name, str, "set_input_shape")
        given = dims(shape, "set_input_shape")
        if name not in [value.name for value in self._engine._model.graph.input]:
            return self._no(f"{name} is no input")
        if self._profile is None:
            return self._no("no optimization profile was chosen")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(given) != len(low) or not all(a <= n <= b for a, n, b in zip(low, given, high, strict=True)):
            return self._no(f"{given} of {name} is outside of profile {self._profile}: {low} to {high}")
        if self._shapes.get(name) != given:
            self._shapes[name], self._state = given, self._state + 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        want(name, str, "set_tensor_address")
        want(memory, int, "set_tensor_address")
        if name not in [value.name for value in self._engine._io]:
            return self._no(f"{name} is no input or output")
        if memory % 256 or memory == 0:
            return self._no(f"the address of {name} is not aligned to 256 bytes")
        if self._addresses.get(name) != memory:
            self._addresses[name], self._state = memory, self._state + 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        want(stream_handle, int, "execute_async_v3")
        alive(self._engine._runtime, "the runtime")
        stream, inputs = self._cuda.stream(stream_handle), self._engine._model.graph.input
        if self._profile is None or self._scratch is None:
            return self._no("no profile was chosen or no device memory set")
        for value in inputs:
            if -1 in ITensor(value).shape and value.name not in self._shapes:
                return self._no(f"the shape of {value.name} is not set")
        missing = [value.name for value in self._engine._io if value.name not in self._addresses]
        if missing:
            return self._no(f"the address of {missing[0]} is not set")
        if self._engine._missing:
            return self._no("the weights were stripped and not refitted")
        shapes = {v.name: self._shapes.get(v.name, ITensor(v).shape) for v in inputs}
        if stream.capturing is None:
            self._warm = tuple(sorted(shapes.items()))
        elif self._warm != tuple(sorted(shapes.items())):
            stream.broken = True
            return self._no("an execution outside of the capture must come first after a change of shapes")
        addresses, state, captured = dict(self._addresses), self._state, stream.capturing is not None
        stream.put(lambda: self._run(shapes, addresses, captured and state))
        return True

    def _run(self, shapes: dict[str, Sequence[int]], addresses: dict[str, int], state: Any) -> None:
        engine = self._engine
        scratch, size = self._scratch
        self._cuda.view(scratch, size)[:] = 0xEE  # activations: whatever else lies there is lost
        feed = {}
        for value in engine._model.graph.input:
            kind = np.dtype(TYPES[value.type.tensor_type.elem_type][1])
            size = int(np.prod(shapes[value.name], dtype=np.int64)) * kind.itemsize
            raw = self._cuda.view(addresses[value.name], size).copy()
            feed[value.name] = raw.view(kind).reshape(shapes[value.name])
        results = engine._compute(feed)
        for value, result in zip(engine._model.graph.output, results, strict=True):
            if state is not False and state != self._state:
                result = np.full_like(result, np.nan)  # the context was changed behind a captured graph
            raw = np.ascontiguousarray(result).view(np.uint8).reshape(-1)
            self._cuda.view(addresses[value.name], len(raw))[:] = raw


class Refitter:
    machine: Machine

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        want(engine, ICudaEngine, "Refitter.__init__")
        want(logger, ILogger, "Refitter.__init__")
        self._engine, self._logger, self._weights = engine, weakref.ref(logger), {}
        self._parser: Any = lambda: True

    def refit_cuda_engine(self) -> bool:
        if self._weights:
            alive(self._parser, "the parser, which owns the weights,")
        if self._engine._missing - set(self._weights):
            alive(self._logger, "the logger").error("weights are missing")
            return False
        for tensor in self._engine._model.graph.initializer:
            if tensor.name in self._weights:
                tensor.raw_data = self._weights[tensor.name]
        self._engine._missing, self._engine._session = set(), None
        return True


class OnnxParserRefitter:
    machine: Machine

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        want(refitter, Refitter, "OnnxParserRefitter.__init__")
        want(logger, ILogger, "OnnxParserRefitter.__init__")
        self._refitter, self._errors = refitter, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def refit_from_file(self, model: str) -> bool:
        want(model, str, "refit_from_file")
        there = {t.name: t for t in self._refitter._engine._model.graph.initializer}
        for tensor in onnx.load(model).graph.initializer:
            own = there.get(tensor.name)
            if own is None or own.dims != tensor.dims:
                self._errors.append(ParserError(f"{tensor.name} does not match the engine"))
                return False
            if tensor.name in self._refitter._engine._missing:
                self._refitter._weights[tensor.name] = tensor.raw_data
        self._refitter._parser = weakref.ref(self)
        return True
