"""Capture by the graph that stands beside the model, with ONNX Runtime: neither torch nor the numpy search.

The graph answers for every picture. Whether it found a grid is decided here, by the limits of the numpy
path, which also takes the pictures without one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import CAPTURE_FACTS
from pulse_edge.errors import BundleError
from pulse_edge.runtimes.capture.contrast import reduce
from pulse_edge.runtimes.capture.light import even_light
from pulse_edge.runtimes.capture.mesh import STEP_MM, unroll
from pulse_edge.runtimes.capture.quality import judge
from pulse_edge.runtimes.capture.rectify import PX_PER_MM, Rectified, found_grid, pose, rectify
from pulse_edge.runtimes.capture.take import Taken, enlarged


@dataclass(frozen=True)
class GraphResult:
    """What the graph says of a picture.

    Attributes:
        tiles: float32 [n, 3, 336, 336], normalised, as `model.preprocess` would make them of the page.
        page: width and height in pixels of the page that they were cut from, at 6 px/mm.
        mesh: float64 [rows, columns, 4], as in :class:`Rectified`, in pixels of the whole picture.
        strength: float32 [rows, columns].
        facts: everything else, by the names of CAPTURE_FACTS.
        grid_found: whether these are a page at all.
    """

    tiles: NDArray[np.float32]
    page: tuple[int, int]
    mesh: NDArray[np.float64]
    strength: NDArray[np.float32]
    facts: dict[str, float]
    grid_found: bool


class CaptureSession:
    """The graph ``capture.onnx`` of a bundle, loaded.

    Args:
        path: of the graph.
        threads: one by default.

    Raises:
        BundleError: ONNX Runtime cannot load it, or it is not this graph.
    """

    def __init__(self, path: str | PathLike[str], threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
            self.side = int(shapes["image"][-1])
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            reason = " ".join(str(error).split())[:200]
            raise BundleError(
                f"{path} cannot be loaded as a capture graph: {reason}. "
                "Export the bundle again with --capture."
            ) from error

    def run(self, image: NDArray[np.uint8]) -> GraphResult:
        """Find, flatten, turn and cut the page of a picture, uint8 [H, W, 3], RGB."""
        small, factor = reduce(image, self.side)
        height, width = small.shape[:2]
        canvas = np.zeros((1, 3, self.side, self.side), np.float32)
        canvas[0, :, :height, :width] = small.transpose(2, 0, 1)
        size = np.array([height, width], np.float32)
        tiles, nodes, strength, values = self._session.run(None, {"image": canvas, "size": size})
        facts = {name: float(value) for name, value in zip(CAPTURE_FACTS, values, strict=True)}
        rows, columns = max(2, int(facts["rows"])), max(2, int(facts["columns"]))
        pixels = (nodes[:rows, :columns].astype(np.float64) + 0.5) * factor - 0.5
        down, across = np.indices((rows, columns), dtype=np.float64) * STEP_MM
        return GraphResult(
            tiles=tiles[: int(facts["views"])],
            page=(int(facts["width"]), int(facts["height"])),
            mesh=np.concatenate([pixels, across[..., None], down[..., None]], axis=-1),
            strength=strength[:rows, :columns],
            facts=facts,
            grid_found=found_grid(facts["seed"], facts["seen"]) and bool(np.isfinite(pixels).all()),
        )

    def take(self, image: NDArray[np.uint8]) -> tuple[Taken, NDArray[np.float32] | None]:
        """Rectify and grade a picture, as `take.take` does.

        Args:
            image: uint8 [H, W, 3], RGB.

        Returns:
            The graded page, and the graph's tiles; None where there is no grid, whose page is the outline's.
        """
        start = time.perf_counter()
        image, scale = enlarged(image)
        result = self.run(image)
        searched = time.perf_counter()
        found = self._rectified(image, result) if result.grid_found else rectify(image)
        rectified = time.perf_counter()
        verdict = judge(image, found)
        end = time.perf_counter()
        steps = {"graph": searched - start, "page": rectified - searched, "quality": end - rectified}
        timing = {name: round(1000 * seconds, 2) for name, seconds in {**steps, "total": end - start}.items()}
        taken = Taken(replace(found, timing_ms=timing), verdict, scale, timing)
        return taken, result.tiles if result.grid_found else None

    def _rectified(self, image: NDArray[np.uint8], result: GraphResult) -> Rectified:
        """The page in the picture's full resolution, through the graph's mesh."""
        page = np.asarray(unroll(image, result.mesh[..., :2], PX_PER_MM, smooth=True, border=255), np.uint8)
        scale, rotation = pose(result.mesh[..., :2], image.shape)
        return Rectified(
            page=even_light(page, PX_PER_MM),
            page_px_per_mm=PX_PER_MM,
            mesh=result.mesh,
            strength=result.strength,
            px_per_mm=scale,
            rotation=rotation,
            residual_mm=result.facts["residual_mm"],
            grid_found=True,
            orientation_sure=result.facts["orientation_sure"],
            major=result.facts["major"],
            seed=result.facts["seed"],
        )


def open_graph(bundle: Path, threads: int = 1) -> CaptureSession:
    """Open the capture graph of a bundle.

    Raises:
        BundleError: the bundle has none.
    """
    path = bundle / "capture.onnx"
    if not path.is_file():
        raise BundleError(
            f"{bundle} has no capture graph. Export it with `pulse-edge export --target onnx --capture`."
        )
    return CaptureSession(path, threads)
