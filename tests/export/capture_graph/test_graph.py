"""The whole graph: against the numpy path on real photos, as ONNX, and through its runner."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from pulse_edge.errors import BundleError
from pulse_edge.export.trt_support import problems
from pulse_edge.runtimes.capture.mesh import STEP_MM
from pulse_edge.runtimes.capture.onnx import CaptureSession, open_graph
from pulse_edge.runtimes.capture.rectify import Rectified, rectify
from pulse_edge.runtimes.capture.take import take

# A photo whose mesh has to grow, one with few windows, and a digital page above 1600 pixels.
PHOTOS = ("eik_28.jpg", "eik_19.jpg", "eik_53.png")
LIMIT_MM = 0.05


@pytest.fixture(scope="module")
def session(graph):
    return CaptureSession(graph)


def apart(found: np.ndarray, wanted: Rectified, shape: tuple[int, ...]) -> np.ndarray:
    """Millimetres between the nodes of two meshes that the picture shows."""
    x, y = wanted.mesh[..., 0], wanted.mesh[..., 1]
    inside = (x > 0) & (y > 0) & (x < shape[1] - 1) & (y < shape[0] - 1)
    pixels = np.hypot(*np.moveaxis(found[..., :2] - wanted.mesh[..., :2], -1, 0))
    return pixels[inside] / np.mean(wanted.px_per_mm)


@pytest.mark.parametrize("name", PHOTOS)
def test_the_mesh_is_the_reference_s(session, photo, name):
    image = photo(name)
    result, wanted = session.run(image), rectify(image)
    assert result.grid_found
    assert result.mesh.shape == wanted.mesh.shape
    off = apart(result.mesh, wanted, image.shape)
    assert np.sqrt((off**2).mean()) <= LIMIT_MM
    assert np.percentile(off, 95) <= LIMIT_MM
    assert result.facts["seed"] == pytest.approx(wanted.seed, rel=0.01)
    assert np.abs(result.strength - wanted.strength).mean() < 0.01
    assert result.page == wanted.page.shape[1::-1]


def test_a_picture_on_its_side_comes_out_upright(session, photo):
    image = photo("eik_28.jpg")
    straight = session.run(image)
    turned = session.run(np.ascontiguousarray(np.rot90(image)))
    assert turned.facts["quarter_turns"] == 3
    assert turned.mesh.shape == straight.mesh.shape
    back = np.stack([image.shape[1] - 1 - turned.mesh[..., 1], turned.mesh[..., 0]], -1)
    off = np.hypot(*np.moveaxis(back - straight.mesh[..., :2], -1, 0))[straight.strength > 0.5]
    assert np.sqrt((off**2).mean()) / 4.4 <= LIMIT_MM
    assert np.abs(turned.tiles - straight.tiles).mean() < 0.05


def test_a_capture_is_graded_like_the_reference_s(session, photo):
    image = photo("eik_28.jpg")
    taken, tiles = session.take(image)
    wanted = take(image)
    assert taken.verdict.grade == wanted.verdict.grade
    assert np.shape(tiles) == (5, 3, 336, 336)
    ours, theirs = taken.result(), wanted.result()
    assert ours["px_per_mm"] == pytest.approx(theirs["px_per_mm"], rel=0.002)
    assert abs(ours["rotation"] - theirs["rotation"]) < 0.1
    assert np.abs(taken.found.page.astype(float) - wanted.found.page).mean() < 1
    assert np.diff(taken.found.mesh[..., 2:], axis=1)[..., 0].max() == STEP_MM


def test_without_a_grid_the_outline_is_taken(session):
    image = np.full((300, 400, 3), 60, np.uint8)
    image[40:260, 50:350] = 230
    taken, tiles = session.take(image)
    assert tiles is None
    assert not taken.found.grid_found
    assert taken.verdict.grade == "refuse"


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (16, 16)])
def test_pictures_of_a_few_pixels_are_refused(session, shape):
    taken, tiles = session.take(np.full((*shape, 3), 128, np.uint8))
    assert tiles is None
    assert taken.verdict.grade == "refuse"


def test_the_graph_is_plain_onnx_that_tensorrt_documents(graph):
    model = onnx.load(str(graph))
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Loop", "If", "Scan", "NonZero", "DFT"})
    assert all(d.dim_value > 0 for value in model.graph.output for d in value.type.tensor_type.shape.dim)
    assert graph.stat().st_size < 40e6
    assert problems(graph, "10.3.0") == []


def test_what_is_no_graph_is_refused(tmp_path):
    with pytest.raises(BundleError, match="--capture"):
        open_graph(tmp_path)
    (tmp_path / "capture.onnx").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="cannot be loaded as a capture graph"):
        open_graph(tmp_path)
