"""The house's bounds, read from the syntax trees: sizes, annotations, docstrings, direction of imports."""

from __future__ import annotations

import ast
import os
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MAX_FILE_LINES, MEDIAN_FILE_LINES = 500, 200
MAX_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 80, 12
# The only core modules that may name a stage, and only inside a function: the verbs and the front door.
VERBS = "pulse_edge.commands"


def _joins_the_stages(name: str) -> bool:
    return name in ("pulse_edge", VERBS) or name.startswith(f"{VERBS}.")


# Weights and graphs live in these; the core and the runtimes must start without them.
HEAVY = {"torch", "transformers", "safetensors", "onnx", "onnxscript", "accelerate", "coremltools"}
HEAVY_ROOMS = tuple(f"pulse_edge.{room}." for room in ("train", "compress", "export", "model"))
# What must answer without the heavy packages, beside all of the core outside model/ and the runtimes.
LIGHT_MODEL_MODULES = {"preprocess", "prompt", "merge", "tokenizer"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, (Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    item for item in node.body if isinstance(item, Function) and not item.name.startswith("_")
                )


def _length(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _body_length(node: Function) -> int:
    """Lines of a function without its signature and docstring, which good documentation makes long."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0


def _imports(node: ast.AST) -> Iterator[str]:
    """Every module named by import statements below ``node``, ``from a import b`` also as ``a.b``."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"line {item.lineno}: imports name the package in full"
            base = item.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in item.names)


def _at_import(tree: ast.Module) -> Iterator[str]:
    """Modules imported when the file itself is imported: outside functions and ``if TYPE_CHECKING``."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            if isinstance(node, Function):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from statements(node.orelse)
                continue
            inner = [getattr(node, field, []) for field in ("body", "orelse", "finalbody")]
            inner += [handler.body for handler in getattr(node, "handlers", [])]
            if any(inner):
                yield from (item for part in inner for item in statements(part))
            else:
                yield node

    for statement in statements(tree.body):
        yield from _imports(statement)


def _stage_of(name: str) -> str | None:
    """The stage that a module name lies in, or None for the core and other distributions."""
    found = re.match(r"pulse_edge\.(train|compress|export|runtimes)\b", name)
    return found[1] if found else None


def test_the_rooms_are_relative_symlinks(root: Path) -> None:
    for room in ("train", "export", "runtimes", "devices"):
        link = root / "pulse_edge" / room
        assert link.is_symlink(), f"{link} is not a symlink"
        assert os.readlink(link) == f"../{room}"


def test_files_are_within_bounds(modules: list[Any]) -> None:
    long = {module.name: module.lines for module in modules if module.lines > MAX_FILE_LINES}
    assert not long
    assert statistics.median(module.lines for module in modules) <= MEDIAN_FILE_LINES


def test_functions_are_within_bounds(modules: list[Any]) -> None:
    long = {
        f"{module.name}.{node.name}": _length(node)
        for module in modules
        for node in _functions(module.tree)
        if _length(node) > MAX_FUNCTION_LINES
    }
    assert not long
    lengths = [_body_length(node) for module in modules for node in _functions(module.tree)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


def test_every_function_is_annotated(modules: list[Any]) -> None:
    bare = []
    for module in modules:
        for node in _functions(module.tree):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if node.returns is None or untyped:
                bare.append(f"{module.name}:{node.lineno} {node.name} {untyped}")
    assert not bare


def test_everything_public_has_a_docstring(modules: list[Any]) -> None:
    bare = [
        f"{module.name}:{node.lineno} {node.name}"
        for module in modules
        for node in _public(module.tree)
        if not ast.get_docstring(node)
    ]
    bare += [module.name for module in modules if module.tree.body and not ast.get_docstring(module.tree)]
    assert not bare


def test_no_module_uses_assert(modules: list[Any]) -> None:
    """`python -O` removes asserts, so nothing that a user typed may rest on one."""
    used = [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
    ]
    assert not used


def test_rooms_are_imported_by_their_package_name(modules: list[Any]) -> None:
    rooms = {"train", "compress", "export", "runtimes", "devices"}
    wrong = [
        f"{module.name}: {name}"
        for module in modules
        for name in _imports(module.tree)
        if name.split(".")[0] in rooms
    ]
    assert not wrong


def test_stages_never_import_each_other(modules: list[Any]) -> None:
    wrong = [
        f"{module.name}: {name}"
        for module in modules
        if module.stage
        for name in _imports(module.tree)
        if _stage_of(name) not in (None, module.stage)
    ]
    assert not wrong


def test_no_import_runs_back_from_the_core(modules: list[Any]) -> None:
    wrong = []
    for module in modules:
        if module.stage:
            wrong += [
                f"{module.name}: {name}"
                for name in _imports(module.tree)
                if name.startswith((VERBS, "pulse_edge.cli"))
            ]
            continue
        names = _at_import(module.tree) if _joins_the_stages(module.name) else _imports(module.tree)
        wrong += [f"{module.name}: {name}" for name in names if _stage_of(name)]
    assert not wrong


def test_core_and_runtimes_start_without_heavy_packages(modules: list[Any]) -> None:
    top = {module.name: set(_at_import(module.tree)) for module in modules}
    heavy = {name for name, names in top.items() if any(other.split(".")[0] in HEAVY for other in names)}
    while more := {name for name, names in top.items() if names & heavy} - heavy:
        heavy |= more
    wrong = [
        name
        for name in heavy
        if not name.startswith(
            tuple(f"pulse_edge.{room}." for room in ("train", "compress", "export", "model"))
        )
        or name.removeprefix("pulse_edge.model.") in LIGHT_MODEL_MODULES
    ]
    assert not wrong


def test_runtimes_never_import_a_heavy_package(modules: list[Any]) -> None:
    runtimes = [module for module in modules if module.stage == "runtimes"]
    assert runtimes
    wrong = [
        f"{module.name}: {name}"
        for module in runtimes
        for name in _imports(module.tree)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", {"torch"}),
        ("try:\n    import torch\nexcept ImportError:\n    import onnx", {"torch", "onnx"}),
        ("class A:\n    import torch", {"torch"}),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import onnx", {"onnx"}),
        ("def f() -> None:\n    import torch", set()),
        ("from pulse_edge.export import onnx", {"pulse_edge.export", "pulse_edge.export.onnx"}),
    ],
)
def test_the_import_reader_sees_what_runs(source: str, expected: set[str]) -> None:
    assert set(_at_import(ast.parse(source))) == expected
