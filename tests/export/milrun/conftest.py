"""Small programs, written with coremltools' own builder and executed by milrun."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ct = pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')

# name of the op, its inputs that are fed, its inputs that are constants, and what is expected: an array, a
# tuple of them, or None for what coremltools itself computes of constants
Case = tuple[str, dict[str, Any], dict[str, Any], Any]


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    """Convert a MIL program or a traced module, and write the package."""

    def convert(model: Any, path: Path, **options: Any) -> Path:
        options = {
            "compute_precision": ct.precision.FLOAT32,
            "minimum_deployment_target": ct.target.iOS18,
            "skip_model_load": True,
            **options,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coremltools leaves its temporary folder to the collector
            ct.convert(model, **options).save(str(path))
        return path

    return convert


@pytest.fixture(scope="session")
def run_cases(save: Callable[..., Path], tmp_path_factory: Any) -> Callable[..., list[tuple[Any, Any]]]:
    """Run cases as one program; return what milrun gave and what was expected, for each."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    from pulse_edge.export.milrun import load_package

    kinds = {"f": types.fp32, "i": types.int32, "u": types.int32, "b": types.int32}

    def build(name: str, arguments: dict[str, Any]) -> list[Any]:
        made = getattr(mb, name)(**arguments)
        return list(made) if isinstance(made, (tuple, list)) else [made]

    def reference(name: str, given: dict[str, Any], constants: dict[str, Any], target: Any) -> list[Any]:
        values: list[Any] = []

        @mb.program(input_specs=[], opset_version=target)
        def program() -> Any:
            outputs = build(name, {**given, **constants})
            values.extend(output.val for output in outputs)
            return outputs

        assert all(value is not None for value in values), (
            f"coremltools computes no {name}; say what to expect"
        )
        return values

    def run(cases: Sequence[Case], target: Any = ct.target.iOS18, precision: str = "fp32") -> Any:
        fed: dict[str, np.ndarray] = {}
        for i, (_, given, _, _) in enumerate(cases):
            for parameter, value in given.items():
                for j, array in enumerate(value if isinstance(value, tuple) else [value]):
                    fed[f"c{i}_{parameter}_{j}"] = np.asarray(array)
        specs = [mb.TensorSpec(array.shape, dtype=kinds[array.dtype.kind]) for array in fed.values()]
        counts: list[int] = []

        def body(*inputs: Any) -> Any:
            by_name = dict(zip(fed, inputs, strict=True))
            outputs = []
            for i, (name, given, constants, _) in enumerate(cases):
                arguments: dict[str, Any] = dict(constants)
                for parameter, value in given.items():
                    parts = []
                    for j, array in enumerate(value if isinstance(value, tuple) else [value]):
                        part = by_name[f"c{i}_{parameter}_{j}"]
                        kind = np.asarray(array).dtype
                        if kind not in (np.float32, np.int32):
                            part = mb.cast(x=part, dtype={"bool": "bool"}.get(kind.name, kind.name))
                        parts.append(part)
                    arguments[parameter] = tuple(parts) if isinstance(value, tuple) else parts[0]
                results = build(name, arguments)
                counts.append(len(results))
                outputs += [
                    r if r.dtype in (types.fp32, types.int32) else mb.cast(x=r, dtype="int32")
                    for r in results
                ]
            return [mb.identity(x=out, name=f"out{k}") for k, out in enumerate(outputs)]

        # the builder reads the names of its inputs from the signature
        names = [f"a{i}" for i in range(len(fed))]
        scope: dict[str, Any] = {"body": body}
        exec(f"def program({', '.join(names)}):\n    return body({', '.join(names)})", scope)
        program = mb.program(input_specs=specs, opset_version=target)(scope["program"])
        path = save(
            program,
            tmp_path_factory.mktemp("ops") / "ops.mlpackage",
            pass_pipeline=ct.PassPipeline.EMPTY,
            minimum_deployment_target=target,
        )
        package = load_package(path, precision)
        missing = {name for name, *_ in cases} - set(package.operations())
        assert not missing, f"not in the program: {missing}"
        feed = {
            name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
            for name, array in zip(names, fed.values(), strict=True)
        }
        results = package.run(None, feed)
        flat = [results[f"out{k}"] for k in range(len(results))]
        pairs, at = [], 0
        for (name, given, constants, expected), count in zip(cases, counts, strict=True):
            if expected is None:
                expected = reference(name, given, constants, target)
            elif not isinstance(expected, (tuple, list)):
                expected = [expected]
            pairs.append((flat[at : at + count], [np.asarray(e) for e in expected]))
            at += count
        return pairs

    return run


@pytest.fixture(scope="session")
def check_cases(run_cases: Callable[..., Any]) -> Callable[..., None]:
    """Run cases and hold shapes and values against what is expected."""

    def check(cases: Sequence[Case], tolerance: float = 2e-6, **options: Any) -> None:
        for (name, _, constants, _), (got, expected) in zip(cases, run_cases(cases, **options), strict=True):
            label = f"{name} {constants}"[:300]
            assert len(got) == len(expected), label
            for one, other in zip(got, expected, strict=True):
                assert one.shape == other.shape, label
                if one.dtype.kind == "f":
                    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=label)
                else:
                    np.testing.assert_array_equal(one, other.astype(one.dtype), err_msg=label)

    return check
