"""The interface that we type, and the one that the tests run, against NVIDIA's own bindings."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pulse_edge.runtimes.trt import api

RECORD = json.loads((Path(__file__).parent / "api.json").read_text())
VERSIONS = sorted(RECORD["tensorrt"])
# Our protocols -> TensorRT's classes.
CLASSES = {
    "Tensor": "ITensor", "INetwork": "INetworkDefinition", "Profile": "IOptimizationProfile",
    "TimingCache": "ITimingCache", "Config": "IBuilderConfig", "IBuilder": "Builder",
    "ParserError": "ParserError", "IParser": "OnnxParser", "IRefitter": "Refitter",
    "IParserRefitter": "OnnxParserRefitter", "Context": "IExecutionContext", "CudaEngine": "ICudaEngine",
    "IRuntime": "Runtime",
}  # fmt: skip
# Our annotation -> the types that pybind11 writes for it.
TYPES = {
    "int": {"int", "typing.SupportsInt"},
    "str": {"str"},
    "bool": {"bool"},
    "None": {"None"},
    "Shape": {"Dims"},
    "Sequence[Shape]": {"List[Dims]", "list[Dims]"},
    "Buffer": {"buffer", "typing_extensions.Buffer", "IHostMemory"},
}


def protocols() -> dict[str, type]:
    return {name: getattr(api, name) for name in CLASSES}


def parse(overload: str) -> tuple[dict[str, str], str]:
    """``(self: A, b: int = 0) -> C`` -> its parameters without self, and the result."""
    inside, _, result = overload.rpartition(" -> ")
    inside = re.sub(r"=\s*<[^>]*>", "= 0", inside[1:-1])
    inside = re.sub(r"\[[^\]]*\]", lambda m: m[0].replace(",", ";"), inside)
    parts = [part.strip() for part in inside.split(",") if part.strip()]
    named = dict(part.split("=")[0].split(":", 1) for part in parts)
    return {k.strip(): v.strip() for k, v in list(named.items())[1:]}, result.strip()


def matches(ours: str, theirs: str) -> bool:
    ours = ours.removesuffix(" | None")
    if ours == "Any":
        return True
    return theirs in TYPES.get(ours, {CLASSES.get(ours, ours)}) or (
        theirs == "nvonnxparser::IParserError" or (theirs == "IParserError" and ours == "ParserError")
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_method_that_we_call_is_there_with_these_parameters(version) -> None:
    record = RECORD["tensorrt"][version]["members"]
    seen = 0
    for name, protocol in protocols().items():
        for member, value in vars(protocol).items():
            if member.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
                continue
            entry = record[f"{CLASSES[name]}.{member}"]
            seen += 1
            if isinstance(value, property):
                ours = inspect.signature(value.fget).return_annotation
                assert matches(ours, entry["property"]), (name, member, ours, entry)
                continue
            signature = inspect.signature(value)
            given = {p.name: p.annotation for p in list(signature.parameters.values())[1:]}
            fitting = [
                overload
                for overload in entry["overloads"]
                if (parsed := parse(overload))[0].keys() == given.keys()
                and all(matches(given[key], parsed[0][key]) for key in given)
                and matches(signature.return_annotation, parsed[1])
            ]
            assert fitting, (name, member, given, entry)
    assert seen > 30


@pytest.mark.parametrize("version", VERSIONS)
def test_the_constructors_and_the_classes_to_derive_from(version) -> None:
    record = RECORD["tensorrt"][version]["members"]
    for name in ("Builder", "OnnxParser", "Runtime", "Refitter", "OnnxParserRefitter"):
        ours = list(inspect.signature(getattr(api.TensorRT, name)).parameters)[1:]
        (theirs,) = (parse(o)[0] for o in record[f"{name}.__init__"]["overloads"])
        assert list(theirs) == ours
    assert parse(record["ILogger.log"]["overloads"][0])[0].keys() == {"severity", "msg"}
    for member, parameters in {
        "phase_start": {"phase_name", "parent_phase", "num_steps"},
        "step_complete": {"phase_name", "step"},
        "phase_finish": {"phase_name"},
    }.items():
        assert parse(record[f"IProgressMonitor.{member}"]["overloads"][0])[0].keys() == parameters
    assert record["IBuilderConfig.progress_monitor"]["settable"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_has_the_same_methods_parameters_and_numbers(version, plug) -> None:
    machine = plug(version)
    fake = __import__("trt_fake")
    for path, entry in RECORD["tensorrt"][version]["members"].items():
        name, member = path.split(".")
        there = inspect.getattr_static(getattr(fake, name), member)
        if "property" in entry:
            if not isinstance(there, property):
                pytest.fail(f"{path} is a property")
            continue
        ours = list(inspect.signature(there).parameters)[1:]
        assert any(list(parse(overload)[0])[: len(ours)] == ours for overload in entry["overloads"]), path
    for path, members in RECORD["tensorrt"][version]["enums"].items():
        owner: Any = machine.module
        for part in path.split("."):
            owner = getattr(owner, part)
        assert {key: int(value) for key, value in owner.__members__.items()} == members


def test_the_flags_changed_their_numbers_in_11(plug) -> None:
    """Why no number of a flag is written down anywhere."""
    old, new = (RECORD["tensorrt"][v]["enums"] for v in ("10.15.1.29", "11.4.0.106"))
    flag = "NetworkDefinitionCreationFlag"
    assert old[flag]["STRONGLY_TYPED"] != new[flag]["STRONGLY_TYPED"]
    assert old["BuilderFlag"]["STRIP_PLAN"] != new["BuilderFlag"]["STRIP_PLAN"]
    assert "FP16" not in new["BuilderFlag"]


@pytest.mark.parametrize("version", sorted(RECORD["cuda"]))
def test_the_functions_of_cuda_python(version, plug) -> None:
    cuda = plug().cuda
    for name, text in RECORD["cuda"][version].items():
        parts = [part for part in text.partition("(")[2].rstrip(")").split(", ") if part]
        theirs = [part.split(":")[0].split()[-1] for part in parts]  # "size_t count", "kind: cudaMemcpyKind"
        assert list(inspect.signature(getattr(cuda, name)).parameters) == theirs, text
