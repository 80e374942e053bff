"""A nearly right mesh pulled onto the printed lines, as `runtimes/capture/lattice.py` does it.

What the reference does as long as it helps is done here a fixed number of rounds, of which those that would not
have come change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.field import continue_mesh, smooth_field
from pulse_edge.export.capture_graph.lines import (
    best_shift,
    correlate,
    global_shift,
    learn,
    measure,
    repeats,
    vote,
)
from pulse_edge.export.capture_graph.mesh import NODES, continued, moved, repeated, within
from pulse_edge.export.capture_graph.plain import FAR, array, choose, count, true
from pulse_edge.export.capture_graph.region import largest
from pulse_edge.runtimes.capture import lattice as reference
from pulse_edge.runtimes.capture.lattice import FIRST, GROWING, LAST, Pass
from pulse_edge.runtimes.capture.lines import GRID, MINOR

ROUNDS: Final = 12  # of growing; the reference does up to 14 and needs 11 for the worst of 22 pictures
_GUARD: Final = 2  # nodes that interpolation reads beyond a span


@dataclass
class Work:
    """A mesh under way; see the reference's class of this name.

    Attributes:
        signal: float32 [1, 1, S, S].
        size: float32 [2], height and width of the picture.
        mesh: float32 [2, N, N].
        span: float32 [2, 2].
        template: float32 [2, K], what a grid looks like, by family.
        shape: float32 [2, K], 0 for harmonics that this grid lacks.
        tight: float32 [2], 1 where no line can be told from the next.
        strength: float32 [N, N].
        residual: float32 [2, N, N].
    """

    signal: Tensor
    size: Tensor
    mesh: Tensor
    span: Tensor
    template: Tensor
    shape: Tensor
    tight: Tensor
    strength: Tensor
    residual: Tensor

    def run(self, turn: Pass) -> None:
        """Measure and move once."""
        seen = measure(self.signal, self.mesh, self.span, turn.window)
        shift, sure = self._shifts(seen, turn)
        field, self.residual = smooth_field(shift, sure, turn.stiffness, self.span)
        self.template = learn(seen, field, sure) * self.shape
        self.mesh = moved(self.mesh, field, self.span)
        self.strength = torch.sqrt(sure[0] * sure[1])

    def grow(self) -> None:
        """Go on from the nodes that are right to their neighbours."""
        self.widen()
        inside = self.inside()
        good = true(self.strength > reference._STRONG) * true(torch.abs(self.residual).amax(0) < 0.4)
        held = largest(good * within(self.span)) * inside
        tries, active = torch.zeros(NODES, NODES), torch.ones(())
        for turn in range(ROUNDS):
            held, tries, active = self._round(held, tries, active, turn == 0)

    def _round(
        self, held: Tensor, tries: Tensor, active: Tensor, first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One round of growing; ``active`` is 0 once the reference would have stopped."""
        inside = self.inside()
        near = functional.max_pool2d(held[None, None], 5, 1, 2)[0, 0]
        front = near * inside * (1 - held) * true(tries < reference._TRIES - 0.5)
        active = active * true(held.sum() > 11.5) * true(front.sum() >= 0.005 * inside.sum())
        mesh = choose(held[None].expand_as(self.mesh), self.mesh, continue_mesh(self.mesh, held))
        mesh = continued(mesh, self.span)
        shift, sure = self._shifts(measure(self.signal, mesh, self.span, GROWING.window), GROWING)
        calm = _calm(shift, self.span)
        good = true(sure.amin(0) > reference._COMING) * true(torch.abs(shift - calm).amax(0) < 0.3)
        good = good * torch.maximum(held, front)
        mesh = choose(good[None].expand_as(mesh), moved(mesh, shift, self.span), mesh)
        mesh = continued(mesh, self.span)
        self.mesh = active * mesh + (1 - active) * self.mesh
        self.strength = active * torch.sqrt(sure[0] * sure[1]) + (1 - active) * self.strength
        self.residual = active * (shift - calm) + (1 - active) * self.residual
        more = largest(good)
        if not first:
            active = active * true(more.sum() >= held.sum() + 1.5)
        return active * more + (1 - active) * held, tries + front, active

    def _shifts(self, seen: Tensor, turn: Pass) -> tuple[Tensor, Tensor]:
        voted = vote(correlate(seen, self.template, self.span), turn.vote, self.span)
        shift, sure = best_shift(voted, turn.reach, self.tight)
        real = within(self.span)
        return shift * real, sure * real

    def widen(self) -> None:
        """Let the span reach around the mesh, where the picture goes on beyond it."""
        wide = torch.stack(
            [
                torch.clamp(self.span[:, 0] - reference._WIDER, min=float(_GUARD)),
                torch.clamp(self.span[:, 1] + reference._WIDER, max=float(NODES - _GUARD)),
            ],
            1,
        )
        half = self.size.flip(0)[:, None, None] / 2
        inside = true(torch.abs(self.mesh - half) < half).amin(0) * within(wide)
        spans = []
        for axis in range(2):
            lines = inside.amax(1 - axis)
            first = (count(NODES) + FAR * (1 - lines)).amin()
            last = (count(NODES) - FAR * (1 - lines)).amax()
            spans.append(
                torch.stack(
                    [torch.minimum(first, self.span[axis, 0]), torch.maximum(last + 1, self.span[axis, 1])]
                )
            )
        self.span = torch.stack(spans)

    def inside(self) -> Tensor:
        """Mask [N, N] of the nodes that the picture shows."""
        last = self.size.flip(0)[:, None, None] - 1
        return (true(self.mesh > 0) * true(self.mesh < last)).amin(0) * within(self.span)


def _calm(shift: Tensor, span: Tensor) -> Tensor:
    """Median of each node's nine neighbours."""
    rim = functional.pad(repeated(shift, span), (1, 1, 1, 1))
    near = torch.stack([rim[:, r : r + NODES, c : c + NODES] for r in range(3) for c in range(3)])
    return torch.topk(near, 5, dim=0).values[4]


@dataclass(frozen=True)
class Lattice:
    """A refined mesh; see the reference's class of this name. ``major`` and ``residual_mm`` are float32 []."""

    mesh: Tensor
    span: Tensor
    strength: Tensor
    residual_mm: Tensor
    major: Tensor


def refine(signal: Tensor, size: Tensor, mesh: Tensor, span: Tensor) -> Lattice:
    """Refine a mesh, right within a span, against a line signal, float32 [S, S]."""
    signal, mesh = signal[None, None], continued(mesh, span)
    seen = measure(signal, mesh, span, 25.0)
    template = array(GRID)[None].expand(2, -1)
    tight = true(repeats(correlate(seen, template, span), span) > reference._NO_MAJOR)
    shape = 1 - tight[:, None] * array(~MINOR)
    template = template * shape
    shift = global_shift(correlate(seen, template, span), span)
    mesh = moved(mesh, shift[:, None, None].expand(2, NODES, NODES), span)
    none = torch.zeros(NODES, NODES)
    work = Work(signal, size, mesh, span, template, shape, tight, none, none[None].expand(2, -1, -1))
    for turn in FIRST:
        work.run(turn)
    work.grow()
    for turn in LAST:
        work.run(turn)
    weight = (work.strength**2 + 1e-9) * within(work.span)
    spread = torch.sqrt((weight * (work.residual**2).sum(0)).sum() / weight.sum())
    others = torch.cat([work.template[:, :4], work.template[:, 5:9]], 1)
    return trim(Lattice(work.mesh, work.span, work.strength, spread, others.mean()), size)


def trim(lattice: Lattice, size: Tensor) -> Lattice:
    """Cut off outer rows and columns at which no grid is seen inside the picture."""
    last = size.flip(0)[:, None, None] - 0.5
    inside = (true(lattice.mesh > -0.5) * true(lattice.mesh < last)).amin(0) * within(lattice.span)
    strength = lattice.strength * inside
    seen = true(strength > 0.5)
    spans = []
    for axis in range(2):
        number = seen.sum(1 - axis)
        lines = true(number >= 0.1 * number.amax()) * true(number.amax() > 0.5)
        first = (count(NODES) + FAR * (1 - lines)).amin() - 1
        end = (count(NODES) - FAR * (1 - lines)).amax() + 2
        low = torch.maximum(lattice.span[axis, 0], first)
        high = torch.minimum(lattice.span[axis, 1], end)
        empty = true(number.amax() < 0.5)
        spans.append(empty * lattice.span[axis] + (1 - empty) * torch.stack([low, high]))
    span = torch.stack(spans)
    return Lattice(lattice.mesh, span, strength * within(span), lattice.residual_mm, lattice.major)
