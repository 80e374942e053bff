"""Packages: what they declare, states, several functions, flexible shapes, pictures, control flow, damage."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pulse_edge.errors import BundleError, PulseEdgeError, UnknownNameError, UserError
from pulse_edge.export.milrun import load_package

ct = pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')

RNG = np.random.default_rng(5)
WEIGHT = RNG.standard_normal((4, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def counter(save: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """Two functions on one state: ``add`` writes x into a row of it, ``total`` sums it up."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    folder = tmp_path_factory.mktemp("functions")
    state = mb.StateTensorSpec((4, 8), dtype=types.fp16)

    @mb.program(
        input_specs=[mb.TensorSpec((1, 8), dtype=types.fp16), mb.TensorSpec((1,), dtype=types.int32), state],
        opset_version=ct.target.iOS18,
    )
    def add(x: Any, row: Any, kept: Any) -> Any:
        old = mb.read_state(input=kept)
        end = mb.add(x=row, y=np.int32(1))
        begin, end = (mb.concat(values=(part, np.array([0], np.int32)), axis=0) for part in (row, end))
        mask = [False, True]
        new = mb.slice_update(x=old, update=x, begin=begin, end=end, begin_mask=mask, end_mask=mask)
        written = mb.coreml_update_state(state=kept, value=new)
        return mb.mul(x=written, y=WEIGHT.astype(np.float16), name="weighted")

    @mb.program(input_specs=[state], opset_version=ct.target.iOS18)
    def total(kept: Any) -> Any:
        weighted = mb.mul(x=mb.read_state(input=kept), y=WEIGHT.astype(np.float16))
        return mb.reduce_sum(x=weighted, axes=[0, 1], keep_dims=True, name="sum")

    options = {"compute_precision": ct.precision.FLOAT16}
    describe = ct.utils.MultiFunctionDescriptor()
    for name, program in (("add", add), ("total", total)):
        save(program, folder / f"{name}.mlpackage", **options)
        describe.add_function(str(folder / f"{name}.mlpackage"), "main", name)
    describe.default_function_name = "add"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.utils.save_multifunction(describe, str(folder / "both.mlpackage"))
    return folder / "both.mlpackage"


@pytest.fixture
def own(counter: Path, tmp_path: Path) -> Path:
    """A copy of the package that the test may damage."""
    return Path(shutil.copytree(counter, tmp_path / "own.mlpackage"))


def _place(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML"


def test_states_are_carried_across_functions(counter: Path) -> None:
    package = load_package(counter, "fp16")
    assert package.functions == ["add", "total"]
    assert package.default == "add"
    assert package.states("add")["kept"].shape == package.states("total")["kept"].shape == (4, 8)
    state = package.new_state("add")
    array = state["kept"]
    assert array.dtype == np.float16
    expected = np.zeros((4, 8), np.float16)
    for row in (2, 0):
        x = RNG.standard_normal((1, 8)).astype(np.float16)
        expected[row] = x
        (weighted,) = package.run("add", {"x": x, "row": np.array([row], np.int32)}, state).values()
        np.testing.assert_array_equal(weighted, (expected * WEIGHT.astype(np.float16)))
    assert state["kept"] is array  # in place
    np.testing.assert_array_equal(array, expected)
    (total,) = package.run("total", {}, state).values()
    np.testing.assert_allclose(
        total.item(), (expected * WEIGHT.astype(np.float16)).astype(np.float64).sum(), rtol=1e-3
    )
    np.testing.assert_array_equal(array, expected)


def test_weights_of_two_functions_are_decoded_once(counter: Path) -> None:
    from pulse_edge.export.milrun.steps import ComputeStep

    package = load_package(counter)
    held = [
        step.fixed["y"]
        for name in package.functions
        for step, _ in package.plan(name).steps
        if isinstance(step, ComputeStep) and step.op.name == "mul"
    ]
    assert len(held) == 2
    assert held[0] is held[1]


def test_a_failed_run_leaves_the_state_alone(counter: Path) -> None:
    package = load_package(counter)
    state = package.new_state("add")
    x = np.ones((1, 8), np.float32)
    with pytest.raises(BundleError, match=r"op slice_update .* of the function add"):
        package.run("add", {"x": x, "row": np.array([9], np.int32)}, state)
    assert not state["kept"].any()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros((1, 8))}, "The input row is missing"),
        (
            {"x": np.zeros((1, 7)), "row": np.array([0])},
            r"has the shape \[1, 7\]; the package takes \[1, 8\]",
        ),
        ({"x": np.zeros((1, 8)), "row": np.array([0.5])}, "takes int32, not float64"),
        ({"x": np.zeros((1, 8)), "row": np.array([2**40])}, "beyond int32"),
        (
            {"x": np.full((1, 8), -1e9), "row": np.array([0])},
            "ends at 65504; a value of 1e[+]09 does not fit",
        ),
        ({"x": np.array([["a"] * 8]), "row": np.array([0])}, "takes real numbers"),
        ({"y": np.zeros(1)}, "Unknown input 'y'. .*Known: row, x"),
    ],
)
def test_inputs_are_held_against_what_is_declared(inputs: Any, message: str, counter: Path) -> None:
    package = load_package(counter)
    with pytest.raises(UserError, match=message):
        package.run("add", inputs, package.new_state("add"))


def test_states_are_held_against_what_is_declared(counter: Path) -> None:
    package = load_package(counter)
    fed = {"x": np.zeros((1, 8)), "row": np.array([0])}
    with pytest.raises(UserError, match="The state kept is missing"):
        package.run("add", fed)
    with pytest.raises(UserError, match=r"has the shape \[2\], not \[4, 8\]"):
        package.run("add", fed, {"kept": np.zeros(2, np.float32)})


def test_an_infinite_mask_is_no_overflow(counter: Path) -> None:
    package = load_package(counter)
    fed = {"x": np.full((1, 8), -np.inf), "row": np.array([0])}
    assert np.isinf(package.run("add", fed, package.new_state("add"))["weighted"][0]).all()


def test_unknown_names(counter: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown function 'totl'\. Did you mean 'total'"):
        load_package(counter).run("totl", {})
    with pytest.raises(UnknownNameError, match="Unknown precision 'fp8'"):
        load_package(counter, "fp8")


class TestDamage:
    def test_no_package(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"is not an .mlpackage: it has no Manifest.json"):
            load_package(tmp_path)

    def test_the_manifest_is_cut_short(self, own: Path) -> None:
        (own / "Manifest.json").write_text('{"itemInfo')
        with pytest.raises(BundleError, match=r"Manifest.json is damaged"):
            load_package(own)

    def test_the_manifest_leads_outside(self, own: Path) -> None:
        content = json.loads((own / "Manifest.json").read_text())
        content["itemInfoEntries"][content["rootModelIdentifier"]]["path"] = "../../other"
        (own / "Manifest.json").write_text(json.dumps(content))
        with pytest.raises(BundleError, match="lacks its model file"):
            load_package(own)

    @pytest.mark.parametrize("size", [0, 1, 100, 2000])
    def test_the_model_is_cut_short(self, size: int, own: Path) -> None:
        model = _place(own) / "model.mlmodel"
        model.write_bytes(model.read_bytes()[:size])
        with pytest.raises(BundleError, match=r"damaged|not an ML Program|lacks|has no block|Export"):
            load_package(own).plan("add")

    def test_there_are_no_weights(self, own: Path) -> None:
        (_place(own) / "weights" / "weight.bin").unlink()
        with pytest.raises(BundleError, match=r"weight.bin cannot be read .* Copy the package again"):
            load_package(own).plan()

    @pytest.mark.parametrize(
        ("size", "message"),
        [(0, "cannot be read"), (40, "shorter than its header"), (100, "ends before the weight")],
    )
    def test_the_weights_are_cut_short(self, size: int, message: str, own: Path) -> None:
        weights = _place(own) / "weights" / "weight.bin"
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(BundleError, match=message):
            load_package(own).plan()

    def test_the_last_weight_is_cut_short(self, own: Path) -> None:
        weights = _place(own) / "weights" / "weight.bin"
        weights.write_bytes(weights.read_bytes()[: 128 + 10])
        with pytest.raises(BundleError, match="ends inside the weight at byte 64"):
            load_package(own).plan()

    @pytest.mark.parametrize(
        ("at", "message"),
        [(4, "its version is"), (64, "no weight begins at byte 64"), (68, "is of type"), (72, "bytes for")],
    )
    def test_the_weights_are_overwritten(self, at: int, message: str, own: Path) -> None:
        weights = _place(own) / "weights" / "weight.bin"
        content = bytearray(weights.read_bytes())
        content[at] ^= 0x5A
        weights.write_bytes(content)
        with pytest.raises(BundleError, match=message):
            load_package(own).plan()

    def _edit(self, own: Path, change: Callable[[Any], None]) -> None:
        from coremltools.proto import Model_pb2

        model = _place(own) / "model.mlmodel"
        spec = Model_pb2.Model()
        spec.ParseFromString(model.read_bytes())
        change(spec)
        model.write_bytes(spec.SerializeToString())

    def test_a_function_is_missing(self, own: Path) -> None:
        self._edit(own, lambda spec: spec.mlProgram.functions.pop("total"))
        with pytest.raises(BundleError, match="describes a function total that its program lacks"):
            load_package(own)

    def test_another_kind_of_model(self, own: Path) -> None:
        self._edit(own, lambda spec: spec.neuralNetwork.SetInParent())
        with pytest.raises(BundleError, match="holds a neuralNetwork, not an ML Program"):
            load_package(own)

    def test_an_unknown_op_is_named(self, own: Path) -> None:
        def change(spec: Any) -> None:
            for operation in spec.mlProgram.functions["add"].block_specializations["CoreML8"].operations:
                if operation.type == "mul":
                    operation.type = "conjure"

        self._edit(own, change)
        package = load_package(own)
        with pytest.raises(
            PulseEdgeError, match=r"The function add of .* cannot execute: conjure \(weighted"
        ):
            package.run("add", {}, {})
        assert package.run("total", {}, package.new_state("total"))["sum"].item() == 0

    def test_an_unknown_argument_is_named(self, own: Path) -> None:
        def change(spec: Any) -> None:
            for operation in spec.mlProgram.functions["add"].block_specializations["CoreML8"].operations:
                if operation.type == "mul":
                    operation.inputs["z"].CopyFrom(operation.inputs["y"])

        self._edit(own, change)
        with pytest.raises(BundleError, match=r"op mul .* of the function add has the argument z, unknown"):
            load_package(own).plan("add")

    def test_a_wrong_declaration_is_found(self, own: Path) -> None:
        def change(spec: Any) -> None:
            for operation in spec.mlProgram.functions["total"].block_specializations["CoreML8"].operations:
                if operation.type == "reduce_sum":
                    operation.outputs[0].type.tensorType.dimensions[1].constant.size = 3

        self._edit(own, change)
        package = load_package(own)
        with pytest.raises(
            BundleError, match=r"gives sum.* the shape \[1, 1\], but the program declares fp16 \[1, 3\]"
        ):
            package.run("total", {}, package.new_state("total"))

    def test_a_state_beyond_memory(self, own: Path) -> None:
        def change(spec: Any) -> None:
            for function in spec.description.functions:
                function.state[0].type.stateType.arrayType.shape[0] = 2**60

        self._edit(own, change)
        with pytest.raises(BundleError, match="declared larger than the memory here"):
            load_package(own).new_state("add")

    def test_weights_outside_the_package_are_not_read(self, own: Path) -> None:
        def change(spec: Any) -> None:
            for operation in spec.mlProgram.functions["add"].block_specializations["CoreML8"].operations:
                value = operation.attributes["val"] if operation.type == "const" else None
                if value is not None and value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.fileName = "@model_path/../../../secret"

        self._edit(own, change)
        with pytest.raises(BundleError, match="lies outside its package"):
            load_package(own).plan("add")


def test_flexible_shapes(save: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    class Double(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return (x * 2).reshape(-1, 2, 4).sum(1)

    def make(name: str, shape: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(Double(), torch.zeros(2, 4))
        inputs = [ct.TensorType(name="x", shape=shape)]
        return load_package(save(traced, tmp_path / f"{name}.mlpackage", inputs=inputs))

    ranged = make("ranged", (ct.RangeDim(2, 6, default=2), 4))
    listed = make("listed", ct.EnumeratedShapes(shapes=[(2, 4), (6, 4)]))
    x = RNG.standard_normal((6, 4)).astype(np.float32)
    expected = 2 * x.reshape(3, 2, 4).sum(1)
    for package in (ranged, listed):
        (got,) = package.run(None, {"x": x}).values()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"the package takes \[2..6, 4\]"):
        ranged.run(None, {"x": np.zeros((8, 4))})
    with pytest.raises(UserError, match=r"the package takes \[2, 4\] or \[6, 4\]"):
        listed.run(None, {"x": x[:4]})


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_pictures(layout: str, save: Callable[..., Path], tmp_path: Path) -> None:
    """A picture comes in as the program's planes 0 to 255, scaled as the package says, and goes out again."""
    import torch

    class Shift(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.tensor([10.0, 0.0, -300.0]).reshape(1, 3, 1, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Shift(), torch.zeros(1, 3, 5, 6))
    colour = getattr(ct.colorlayout, layout)
    path = save(
        traced,
        tmp_path / "picture.mlpackage",
        inputs=[ct.ImageType(name="page", shape=(1, 3, 5, 6), color_layout=colour)],
        outputs=[ct.ImageType(name="out", color_layout=colour)],
    )
    page = RNG.integers(0, 240, (5, 6, 3)).astype(np.uint8)
    package = load_package(path)
    assert package.inputs()["page"].shape == (5, 6, 3)
    added = np.array([10, 0, -300]) if layout == "RGB" else np.array([-300, 0, 10])
    expected = np.clip(page.astype(int) + added, 0, 255)
    for given in (page, Image.fromarray(page)):
        np.testing.assert_array_equal(package.run(None, {"page": given})["out"], expected)
    with pytest.raises(
        UserError, match=r"is a picture: a Pillow image or uint8 \[H, W, 3\] in RGB, not float64"
    ):
        package.run(None, {"page": page / 255})
    with pytest.raises(UserError, match=r"has the shape \[6, 5, 3\]"):
        package.run(None, {"page": page.transpose(1, 0, 2)})


def test_an_optional_input_may_be_left_out(save: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    class Sum(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x + y

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Sum(), (torch.zeros(3), torch.zeros(3)))
    default = np.full(3, 7, np.float32)
    inputs = [ct.TensorType(name="x", shape=(3,)), ct.TensorType(name="y", shape=(3,), default_value=default)]
    package = load_package(save(traced, tmp_path / "optional.mlpackage", inputs=inputs))
    assert package.inputs()["y"].optional
    x = np.arange(3, dtype=np.float32)
    assert package.run(None, {"x": x})[next(iter(package.outputs()))].tolist() == [7, 8, 9]
    assert package.run(None, {"x": x, "y": x})[next(iter(package.outputs()))].tolist() == [0, 2, 4]


def test_a_grey_picture(save: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    class Invert(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return 255 - x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Invert(), torch.zeros(1, 1, 4, 5))
    grey = ct.colorlayout.GRAYSCALE
    path = save(
        traced,
        tmp_path / "grey.mlpackage",
        inputs=[ct.ImageType(name="page", shape=(1, 1, 4, 5), color_layout=grey, scale=1.0, bias=0.0)],
        outputs=[ct.ImageType(name="out", color_layout=grey)],
    )
    page = RNG.integers(0, 256, (4, 5)).astype(np.uint8)
    for given in (page, Image.fromarray(page)):
        np.testing.assert_array_equal(load_package(path).run(None, {"page": given})["out"], 255 - page)


def test_control_flow(save: Callable[..., Path], tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    @mb.program(
        input_specs=[mb.TensorSpec((3,)), mb.TensorSpec((1,), dtype=types.int32)],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, n: Any) -> Any:
        count = mb.squeeze(x=n)
        scaled = mb.mul(x=x, y=np.float32(2))

        def body(i: Any, y: Any) -> Any:
            return mb.add(x=i, y=np.int32(1)), mb.add(x=y, y=scaled)

        loop = mb.while_loop(
            _cond=lambda i, _: mb.less(x=i, y=count),
            _body=body,
            loop_vars=(np.int32(0), np.zeros(3, np.float32)),
        )
        chosen = mb.cond(
            pred=mb.greater(x=count, y=np.int32(3)),
            _true_fn=lambda: mb.sub(x=loop[1], y=scaled),
            _false_fn=lambda: mb.identity(x=scaled),
        )
        return loop[1], chosen

    package = load_package(save(program, tmp_path / "flow.mlpackage"))
    assert {"while_loop", "cond", "less"} <= set(package.operations())
    x = np.array([1, -2, 3], np.float32)
    for n in (0, 1, 5):
        total, chosen = package.run(None, {"x": x, "n": np.array([n])}).values()
        np.testing.assert_array_equal(total, 2 * n * x)
        np.testing.assert_array_equal(chosen, 2 * (n - 1) * x if n > 3 else 2 * x)


def test_every_op_is_reported_to_the_observer(counter: Path) -> None:
    seen: list[tuple[str, str, Any]] = []
    package = load_package(counter)
    package.run(
        "total", {}, package.new_state("total"),
        lambda name, family, output, results, seconds: seen.append((name, family, results[0].shape)),
    )  # fmt: skip
    assert seen == [("mul", "elementwise", (4, 8)), ("reduce_sum", "reduction", (1, 1))]


def test_the_document_lists_every_op_and_a_test_names_it(root: Path) -> None:
    from pulse_edge.export.milrun import ops  # noqa: F401
    from pulse_edge.export.milrun.plan import SPECIAL
    from pulse_edge.export.milrun.registry import OPS

    table = (
        (root / "docs" / "milrun.md").read_text(encoding="utf-8").split("<!-- ops -->")[1].split("\n\n")[0]
    )
    rows = dict(line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:])
    listed = {name for names in rows.values() for name in names.split(", ")}
    assert listed == OPS.keys() | SPECIAL.keys() | {"const"}
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert not {name for name in OPS if not re.search(rf"\b{name}\b", tests)}
