"""The whole path as one module: a photo's pixels to the tiles that the model reads, and the mesh between."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from pulse_edge.contract import CAPTURE_FACTS
from pulse_edge.export.capture_graph.lattice import refine
from pulse_edge.export.capture_graph.mesh import NODES, Span
from pulse_edge.export.capture_graph.page import even_light, page_size, unroll
from pulse_edge.export.capture_graph.phase import first_mesh, fit_phase
from pulse_edge.export.capture_graph.plain import count, true
from pulse_edge.export.capture_graph.reference import LONG_SIDE
from pulse_edge.export.capture_graph.seed import find_seeds
from pulse_edge.export.capture_graph.signal import line_signal
from pulse_edge.export.capture_graph.spectra import spectra
from pulse_edge.export.capture_graph.tiles import cut
from pulse_edge.export.capture_graph.upright import turns

OUTPUTS: Final = ("pixel_values", "nodes", "strength", "facts")


class CaptureGraph(nn.Module):
    """Capture with fixed shapes and no control flow.

    A picture without a grid comes out as nonsense with a low ``seed`` or few nodes ``seen``; whoever runs
    the graph looks at these first, as `runtimes/capture/rectify.py` does.

    Args:
        side: of the canvas in pixels.
    """

    def __init__(self, side: int = LONG_SIDE) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find, flatten, turn and cut a page.

        Args:
            image: float32 [1, 3, side, side], RGB, 0 to 255, the picture in the upper left corner.
            size: float32 [2], its height and width.

        Returns:
            ``pixel_values`` float32 [5, 3, 336, 336]; ``nodes`` float32 [N, N, 2], the pixel (x, y) of each
            node of the upright mesh, which fills ``rows`` and ``columns`` of it; ``strength`` float32 [N,
            N]; and ``facts`` float32, one for each name in CAPTURE_FACTS.
        """
        signal = line_signal(image, size)
        found = spectra(signal, size)
        seed = find_seeds(found, 1)[0]
        mesh, span = first_mesh(fit_phase(found, seed), found, size)
        lattice = refine(signal, size, mesh, span)
        span = lattice.span
        extent = page_size(span)
        page = even_light(unroll(image, size, lattice.mesh, span), extent)
        quarters, sure = turns(page, extent)
        pixels, views = cut(page, extent, quarters)
        nodes = torch.stack([_upright(part, span, quarters) for part in lattice.mesh], -1)
        strength = _upright(lattice.strength, span, quarters)
        lying = true(torch.abs(quarters - 1) < 0.5) + true(torch.abs(quarters - 3) < 0.5)
        counts = span.end - span.first
        rows, height = (lying * part[1] + (1 - lying) * part[0] for part in (counts, extent))
        columns, width = (lying * part[0] + (1 - lying) * part[1] for part in (counts, extent))
        seen = true(strength > 0.5).sum()
        facts = {
            "rows": rows,
            "columns": columns,
            "seed": seed.score,
            "seen": seen,
            "quarter_turns": quarters,
            "orientation_sure": sure,
            "residual_mm": lattice.residual_mm,
            "major": lattice.major,
            "views": views,
            "width": width,
            "height": height,
        }
        return pixels, nodes, strength, torch.stack([facts[name] for name in CAPTURE_FACTS])


def _upright(values: Tensor, span: Span, quarters: Tensor) -> Tensor:
    """Values at the nodes of a span, turned and moved to the upper left: [N, N]; 0 beyond."""
    lying = true(torch.abs(quarters - 1) < 0.5) + true(torch.abs(quarters - 3) < 0.5)
    upside = true(quarters > 0.5) * true(quarters < 2.5)
    mirrored = true(quarters > 1.5)
    values = torch.where(lying > 0.5, values.T, values)
    first = lying * span.first.flip(0) + (1 - lying) * span.first
    end = lying * span.end.flip(0) + (1 - lying) * span.end
    matrices = []
    for axis, reverse in enumerate((upside, mirrored)):
        at = count(NODES)[:, None]
        source = reverse * (end[axis] - 1 - at) + (1 - reverse) * (first[axis] + at)
        real = true(at < end[axis] - first[axis] - 0.5)
        matrices.append(true(torch.abs(count(NODES)[None] - source) < 0.5) * real)
    return matrices[0] @ values @ matrices[1].T
