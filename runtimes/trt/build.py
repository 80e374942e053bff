"""From the portable half of a bundle to engines, with TensorRT's Python interface.

The networks are strongly typed: TensorRT keeps the types that the graphs have, in 10.x and in 11, which
knows nothing else. Source: TensorRT's developer guide ("Strongly Typed Networks", "Timing Cache",
"Weight-Stripping"). Not run on hardware; see ``runtimes.tensorrt``.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from pulse_edge.bundle.files import atomic_file, write_atomic
from pulse_edge.bundle.manifest import ENGINES
from pulse_edge.errors import BundleError, PulseEdgeError
from pulse_edge.runtimes.trt.api import Config, IBuilder, INetwork, IParser, TensorRT, make_logger, start, why

ROLES: Final = ("vision", "embed", "decoder")
KINDS: Final = ("min", "opt", "max")
PROFILES: Final = "build/profiles.json"
TIMING_CACHE: Final = "timing.cache"
Profiles = dict[str, dict[str, dict[str, list[int]]]]  # use -> input -> min, opt, max -> shape
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How engines are built.

    Attributes:
        workspace_mb: most memory that TensorRT may use for one layer's work.
        strip_weights: store engines without weights; they are refit from the graphs when loaded.
        timing_cache: file to read measured timings from and write them to after every engine, so that a
            build that was stopped is soon where it was; by default those of the engines there are read.
    """

    workspace_mb: int = 1024
    strip_weights: bool = False
    timing_cache: Path | None = None


def read_profiles(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Profiles]:
    """Return the optimisation profiles of every graph, in the engine's order; none for a static graph.

    Raises:
        BundleError: the bundle was not exported for a Jetson, or its profiles do not fit its graphs.
    """
    path = folder / PROFILES
    if not path.is_file():
        raise BundleError(
            f"{folder} was exported for {manifest['target']!r}, without profiles for engines. "
            "Export it with: pulse-edge export --target jetson"
        )
    try:
        plan = {role: json.loads(path.read_text(encoding="utf-8")).get(role, {}) for role in ROLES}
        for role, uses in plan.items():
            dynamic = {
                name: entry["shape"]
                for name, entry in manifest["graphs"][role]["inputs"].items()
                if any(isinstance(n, str) for n in entry["shape"])
            }
            sound = bool(uses) == bool(dynamic) and all(_fits(use, dynamic) for use in uses.values())
            if not sound:
                raise ValueError(f"the profiles of {role} do not fit its inputs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be used: {error}. Export the bundle again.") from error
    return plan


def _fits(use: Mapping[str, Mapping[str, list[int]]], dynamic: Mapping[str, list[Any]]) -> bool:
    return set(use) == set(dynamic) and all(
        len(shapes[kind]) == len(dynamic[name])
        and all(isinstance(d, str) or d == n for d, n in zip(dynamic[name], shapes[kind], strict=True))
        for name, shapes in use.items()
        for kind in KINDS
    )


def build_engines(
    trt: TensorRT,
    folder: Path,
    manifest: Mapping[str, Any],
    output: Path,
    options: Options,
    tick: Tick = lambda what, done, total: None,
) -> dict[str, dict[str, Any]]:
    """Build the engine of every graph into a folder.

    Args:
        trt: the module.
        folder: of the bundle, already verified.
        manifest: of the bundle.
        output: a folder for ``<role>.engine`` and the timing cache.
        options: of the build.
        tick: called with the phase of the build, the steps done and all steps.

    Returns:
        By role: ``file``, ``bytes``, ``seconds``, ``profiles`` (names, in order), ``stripped``.

    Raises:
        BundleError: TensorRT's parser refuses a graph; the node is named.
        PulseEdgeError: the build fails.
        KeyboardInterrupt: by Ctrl-C; TensorRT was stopped first.
    """
    plan = read_profiles(folder, manifest)
    cache = _read_cache(options.timing_cache or folder / ENGINES / TIMING_CACHE)
    made = {}
    with _interruptible() as stopped:
        for role in ROLES:
            build = _Build(trt, role, options, cache, stopped, tick)
            begun = time.perf_counter()
            graph = folder / manifest["graphs"][role]["file"]
            cache = build.run(graph, plan[role], output / f"{role}.engine")
            made[role] = {
                "file": f"{role}.engine",
                "bytes": (output / f"{role}.engine").stat().st_size,
                "seconds": round(time.perf_counter() - begun, 1),
                "profiles": list(plan[role]),
                "stripped": options.strip_weights,
            }
            if cache and options.timing_cache is not None:  # a build that is stopped later has these
                write_atomic(options.timing_cache, cache)
    if cache:
        write_atomic(output / TIMING_CACHE, cache)
    return made


class _Build:
    """One engine."""

    def __init__(
        self,
        trt: TensorRT,
        role: str,
        options: Options,
        cache: bytes,
        stopped: Callable[[], bool],
        tick: Tick,
    ) -> None:
        self.trt, self.role, self.options, self.cache = trt, role, options, cache
        self.stopped = stopped
        self.logger = make_logger(trt)
        self.monitor = _monitor(trt, lambda name, done, total: tick(f"{role}: {name}", done, total), stopped)

    def run(self, graph: Path, uses: Profiles, output: Path) -> bytes:
        """Build, write the engine, and return the timing cache."""
        builder = start(self.trt.Builder, self.logger)
        network, parser = self._parse(builder, graph)
        config = self._configure(builder)
        for name, use in uses.items():
            self._profile(builder, config, name, use)
        plan = builder.build_serialized_network(network, config)
        del parser  # it owns the weights that the network refers to: not before this point
        if self.stopped():
            raise KeyboardInterrupt
        if plan is None:
            raise PulseEdgeError(
                f"TensorRT {self.trt.__version__} did not build the engine {self.role}: {why(self.logger)}. "
                "Nothing was changed. Free memory (close the desktop, add swap), give more with --workspace, "
                "or export with another --precision."
            )
        with atomic_file(output) as stream:
            stream.write(plan)
        cache = config.get_timing_cache()
        return bytes(cache.serialize()) if cache is not None else b""

    def _parse(self, builder: IBuilder, graph: Path) -> tuple[INetwork, IParser]:
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(flag))
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(graph)):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            where = f" at {errors[0].node_name()!r} ({errors[0].node_operator()})" if errors else ""
            reason = errors[0].desc() if errors else why(self.logger)
            raise BundleError(
                f"TensorRT {self.trt.__version__} does not read {graph.name}{where}: "
                f"{' '.join(reason.split())[:300].rstrip('.')}. Export with another --precision, "
                "or update JetPack."
            )
        return network, parser

    def _configure(self, builder: IBuilder) -> Config:
        trt, config = self.trt, builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.options.workspace_mb << 20)
        if self.options.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # the weights of the same graph come back
        cache = config.create_timing_cache(self.cache)
        if cache is None or not config.set_timing_cache(cache, False):  # another version's or device's
            config.set_timing_cache(config.create_timing_cache(b""), False)
        config.progress_monitor = self.monitor
        return config

    def _profile(
        self, builder: IBuilder, config: Config, name: str, use: Mapping[str, Mapping[str, list[int]]]
    ) -> None:
        profile = builder.create_optimization_profile()
        for tensor, shapes in use.items():
            profile.set_shape(tensor, *(tuple(shapes[kind]) for kind in KINDS))
        if config.add_optimization_profile(profile) < 0:
            raise BundleError(
                f"TensorRT does not take the profile {name} of {self.role}: {why(self.logger)}. "
                "Export the bundle again."
            )


def _read_cache(path: Path) -> bytes:
    """Read a timing cache; a file that is not there yet is an empty one."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise PulseEdgeError(
            f"The timing cache {path} cannot be read ({error.strerror}). Name another --timing-cache."
        ) from error


def _monitor(trt: TensorRT, tick: Tick, stopped: Callable[[], bool]) -> Any:
    """Return a progress monitor. TensorRT calls it from threads of its own, phases within phases."""
    lock = threading.Lock()

    def begin(self: Any) -> None:
        trt.IProgressMonitor.__init__(self)
        self.steps, self.outer = {}, set()

    def phase_start(self: Any, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with lock:
            self.steps[phase_name] = num_steps
            if not parent_phase:
                self.outer.add(phase_name)
                tick(phase_name, 0, num_steps)

    def step_complete(self: Any, phase_name: str, step: int) -> bool:
        with lock:
            if phase_name in self.outer:
                tick(phase_name, step + 1, self.steps[phase_name])
            return not stopped()

    def phase_finish(self: Any, phase_name: str) -> None:
        with lock:
            if phase_name in self.outer:
                tick(phase_name, self.steps[phase_name], self.steps[phase_name])
            self.outer.discard(phase_name)

    members = {
        "__init__": begin,
        "phase_start": phase_start,
        "step_complete": step_complete,
        "phase_finish": phase_finish,
    }
    return type("Monitor", (trt.IProgressMonitor,), members)()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM be asked for, instead of raising an exception within TensorRT.

    Python runs a handler between two of its own instructions on the main thread, and there are none while
    TensorRT builds; the byte that the C handler writes into a pipe is there at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen = False
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)

    def stopped() -> bool:
        nonlocal seen
        try:
            caught = os.read(reader, 64)
        except BlockingIOError:
            caught = b""
        seen = seen or bool({signal.SIGINT, signal.SIGTERM} & set(caught))
        return seen

    def ignore(number: int, frame: FrameType | None) -> None:
        """The pipe has it."""

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ignore) for number in heard}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield stopped
        if stopped():
            raise KeyboardInterrupt
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
