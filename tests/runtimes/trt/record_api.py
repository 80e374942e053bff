"""Write down what NVIDIA's own Python bindings offer, version by version: ``python record_api.py``.

The wheels ``tensorrt-cu1x-bindings`` on PyPI hold the compiled bindings but not the libraries behind them, so
they do not import. The few C functions that they need from there are made here as empty ones, with which
the module imports and shows its signatures; nothing of it can be called. Only names and types of what
pulse-edge uses are kept, in ``api.json`` beside this file; our logger and progress monitor, which derive from
classes of theirs, are made and called. Needs pip, a C compiler, binutils and a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = (
    "tensorrt-cu12-bindings==10.3.0",  # JetPack 6.1 and 6.2
    "tensorrt-cu12-bindings==10.13.3.9",  # JetPack 7.1
    "tensorrt-cu13-bindings==10.15.1.29",
    "tensorrt-cu13-bindings==11.4.0.106",
)
CUDA = ("cuda-bindings==12.9.10", "cuda-bindings==13.5.0")
CLASSES = {
    "Builder": "__init__ create_network create_builder_config create_optimization_profile "
    "build_serialized_network",
    "INetworkDefinition": "num_inputs get_input",
    "ITensor": "name shape dtype",
    "IOptimizationProfile": "set_shape",
    "IBuilderConfig": "set_memory_pool_limit set_flag create_timing_cache set_timing_cache get_timing_cache "
    "add_optimization_profile progress_monitor",
    "ITimingCache": "serialize",
    "IHostMemory": "nbytes",
    "ILogger": "__init__ log",
    "IProgressMonitor": "__init__ phase_start phase_finish step_complete",
    "OnnxParser": "__init__ parse_from_file num_errors get_error",
    "ParserError": "desc node_name node_operator",
    "Refitter": "__init__ refit_cuda_engine",
    "OnnxParserRefitter": "__init__ refit_from_file num_errors get_error",
    "Runtime": "__init__ deserialize_cuda_engine",
    "ICudaEngine": "num_io_tensors num_optimization_profiles device_memory_size_v2 get_tensor_name "
    "get_tensor_mode get_tensor_shape get_tensor_dtype get_tensor_profile_shape create_execution_context",
    "IExecutionContext": "set_optimization_profile_async set_device_memory set_input_shape "
    "set_tensor_address execute_async_v3",
}
ENUMS = (
    "NetworkDefinitionCreationFlag BuilderFlag MemoryPoolType TensorIOMode DataType "
    "ExecutionContextAllocationStrategy ILogger.Severity"
)
FUNCTIONS = (
    "cudaMalloc cudaFree cudaMemcpyAsync cudaMemcpy2DAsync cudaStreamCreate cudaStreamSynchronize "
    "cudaStreamDestroy cudaGetErrorString cudaStreamBeginCapture cudaStreamEndCapture cudaGraphInstantiate "
    "cudaGraphDestroy cudaGraphLaunch"
)

READ_TENSORRT = """
import json, re, sys, warnings
warnings.simplefilter("ignore")
import tensorrt_bindings as trt
classes, enums = json.loads(sys.argv[1]), sys.argv[2].split()
def plain(text):
    return re.sub(r"tensorrt_bindings\\.tensorrt\\.|nvinfer1::|nvonnxparser::", "", text).strip()
out = {}
for name, members in classes.items():
    for member in members.split():
        entry = vars(getattr(trt, name)).get(member)
        if isinstance(entry, property):
            kind = (entry.fget.__doc__ or "").partition("->")[2].strip().split("\\n")[0]
            out[f"{name}.{member}"] = {"property": plain(kind), "settable": entry.fset is not None}
        elif entry is not None:
            lines = [line.strip() for line in (entry.__doc__ or "").splitlines()]
            found = [m[1] for line in lines if (m := re.match(r"(?:\\d+\\. )?%s(\\(.*)" % member, line))]
            out[f"{name}.{member}"] = {"overloads": [plain(f) for f in found if "(*args" not in f]}
def members(path):
    value = trt
    for part in path.split("."):
        value = getattr(value, part)
    return {key: int(entry) for key, entry in value.__members__.items()}
print(json.dumps({"members": out, "enums": {name: members(name) for name in enums}}))
"""
# The classes that we derive from theirs, made and called with the real ones.
EXERCISE = """
import json, warnings
warnings.simplefilter("ignore")
import tensorrt_bindings as trt
from pulse_edge.runtimes.trt.api import make_logger
from pulse_edge.runtimes.trt.build import _monitor
logger, seen = make_logger(trt), []
for level in trt.ILogger.Severity.__members__.values():
    logger.log(level, f"{level.name}  text")
assert isinstance(logger, trt.ILogger) and logger.warnings == ["WARNING text"]
assert logger.errors == ["INTERNAL_ERROR text", "ERROR text"]
monitor = _monitor(trt, lambda *row: seen.append(row), lambda: len(seen) > 1)
monitor.phase_start("build", None, 2)
assert isinstance(monitor, trt.IProgressMonitor) and monitor.step_complete("build", 0) is False
assert seen == [("build", 0, 2), ("build", 1, 2)]
assert str(trt.BuilderFlag.REFIT_IDENTICAL) and trt.ExecutionContextAllocationStrategy.USER_MANAGED
print(json.dumps({"exercised": True}))
"""
READ_CUDA = """
import json, sys
from cuda.bindings import runtime
docs = {name: (getattr(runtime, name).__doc__ or "").splitlines()[0] for name in sys.argv[1].split()}
print(json.dumps(docs))
"""


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, requirement], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
    return folder


def _stub_libraries(module: Path, folder: Path) -> Path:
    """Make shared libraries with the names that the module asks for, and its functions, empty."""
    read = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in read.splitlines() if "[libnv" in line]
    symbols = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True)
    names = [line.split()[-1] for line in symbols.stdout.splitlines()]
    plain = [n for n in names if "@" not in n and not n.startswith(("Py", "_", "dl"))]
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in plain))
    for name in needed:
        words = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        subprocess.run([*words, "-o", folder / name, folder / "stub.c"], check=True)
    return folder


def _read(script: str, folder: Path, *arguments: str) -> dict[str, object]:
    root = Path(__file__).resolve().parents[3]
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}", "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Download, import, and write ``api.json``."""
    record: dict[str, dict[str, object]] = {"tensorrt": {}, "cuda": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for requirement in WHEELS:
            folder = _download(requirement, Path(scratch) / requirement)
            _stub_libraries(folder / "tensorrt_bindings" / "tensorrt.so", folder)
            version = requirement.partition("==")[2]
            record["tensorrt"][version] = _read(READ_TENSORRT, folder, json.dumps(CLASSES), ENUMS)
            _read(EXERCISE, folder)
        for requirement in CUDA:
            folder = _download(requirement, Path(scratch) / requirement)
            _download("cuda-pathfinder", folder)
            record["cuda"][requirement.partition("==")[2]] = _read(READ_CUDA, folder, FUNCTIONS)
    text = json.dumps(record, indent=1, sort_keys=True)
    (Path(__file__).parent / "api.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
