"""A nearly right mesh pulled onto the printed lines, as `runtimes/capture/lattice.py` does it.

What the reference does as long as it helps is done here a fixed number of rounds, of which those that would
not have come change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph import reference
from pulse_edge.export.capture_graph.field import continue_mesh, smooth_field
from pulse_edge.export.capture_graph.lines import (
    Ruler,
    best_shift,
    correlate,
    global_shift,
    learn,
    repeats,
    voters,
)
from pulse_edge.export.capture_graph.mesh import NODES, Span, moved
from pulse_edge.export.capture_graph.plain import FAR, array, choose, count, true
from pulse_edge.export.capture_graph.reference import FIRST, GRID, GROWING, LAST, MINOR, SHIFTS, Pass
from pulse_edge.export.capture_graph.region import linked

ROUNDS: Final = 12  # of growing; the reference does up to 14 and needs 11 for the worst of 22 pictures
_GUARD: Final = 2  # nodes that interpolation reads beyond a span


@dataclass
class Work:
    """A mesh under way; see the reference's class of this name.

    Attributes:
        ruler: of the picture.
        size: float32 [2], height and width of the picture.
        mesh: float32 [2, N, N].
        span: of the mesh.
        template: float32 [2, K], what a grid looks like, by family.
        shape: float32 [2, K], 0 for harmonics that this grid lacks.
        tight: float32 [2], 1 where no line can be told from the next.
        strength: float32 [N, N].
        residual: float32 [2, N, N].
        votes: matrices by which neighbours vote, as they were needed.
    """

    ruler: Ruler
    size: Tensor
    mesh: Tensor
    span: Span
    template: Tensor
    shape: Tensor
    tight: Tensor
    strength: Tensor
    residual: Tensor
    votes: dict[tuple[Span, float], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def run(self, turn: Pass) -> None:
        """Measure and move once."""
        seen = self.ruler.measure(self.mesh, self.span, turn.window)
        shift, sure = self._shifts(seen, turn)
        smooth, self.residual = smooth_field(shift, sure, turn.stiffness, self.span)
        self.template = learn(seen, smooth, sure) * self.shape
        self.mesh = moved(self.mesh, smooth, self.span)
        self.strength = torch.sqrt(sure[0] * sure[1])

    def grow(self) -> None:
        """Go on from the nodes that are right to their neighbours."""
        self.widen()
        inside = self.inside()
        good = true(self.strength > reference.STRONG) * true(torch.abs(self.residual).amax(0) < 0.4)
        held = linked(self.mesh, good * self.span.real, self.span) * inside
        tries, active = torch.zeros(NODES, NODES), array(1.0)
        for turn in range(ROUNDS):
            held, tries, active = self._round(held, tries, active, turn == 0)

    def _round(
        self, held: Tensor, tries: Tensor, active: Tensor, first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One round of growing; ``active`` is 0 once the reference would have stopped."""
        inside = self.inside()
        near = functional.max_pool2d(held[None, None], 5, 1, 2)[0, 0]
        front = near * inside * (1 - held) * true(tries < reference.TRIES - 0.5)
        active = active * true(held.sum() > 11.5) * true(front.sum() >= 0.005 * inside.sum())
        mesh = choose(held[None], self.mesh, continue_mesh(self.mesh, held))
        mesh = self.span.continued(mesh)
        shift, sure = self._shifts(
            self.ruler.measure(mesh, self.span, GROWING.window), GROWING, reference.DOUBT
        )
        calm = _calm(shift, self.span)
        good = true(sure.amin(0) > reference.COMING) * true(torch.abs(shift - calm).amax(0) < 0.3)
        good = good * torch.maximum(held, front)
        mesh = choose(good[None], moved(mesh, shift, self.span), mesh)
        mesh = self.span.continued(mesh)
        self.mesh = active * mesh + (1 - active) * self.mesh
        self.strength = active * torch.sqrt(sure[0] * sure[1]) + (1 - active) * self.strength
        self.residual = active * (shift - calm) + (1 - active) * self.residual
        more = linked(mesh, good, self.span)
        if not first:
            active = active * true(more.sum() >= held.sum() + 1.5)
        return active * more + (1 - active) * held, tries + front, active

    def _shifts(self, seen: Tensor, turn: Pass, doubt: float = 0.0) -> tuple[Tensor, Tensor]:
        """How far each node is off, in millimetres, and how sure that is: float32 [2, N, N] each."""
        score = correlate(seen, self.template, self.span)
        rows, columns = self._voters(turn.vote)
        voted = rows @ score @ columns.T - array(doubt * SHIFTS**2)[:, None, None]
        shift, sure = best_shift(voted, turn.reach, self.tight)
        sure = sure + true(sure > 0) * doubt * shift**2
        return shift * self.span.real, sure * self.span.real

    def _voters(self, sigma: float) -> tuple[Tensor, Tensor]:
        if (self.span, sigma) not in self.votes:
            self.votes[self.span, sigma] = voters(sigma, self.span)
        return self.votes[self.span, sigma]

    def widen(self) -> None:
        """Let the span reach around the mesh, where the picture goes on beyond it."""
        wide = Span(
            torch.clamp(self.span.first - reference.WIDER, min=float(_GUARD)),
            torch.clamp(self.span.end + reference.WIDER, max=float(NODES - _GUARD)),
        )
        half = self.size.flip(0)[:, None, None] / 2
        inside = true(torch.abs(self.mesh - half) < half).amin(0) * wide.real
        first, last = _ends(inside.amax(1)), _ends(inside.amax(0))
        self.span = Span(
            torch.minimum(torch.stack([first[0], last[0]]), self.span.first),
            torch.maximum(torch.stack([first[1], last[1]]), self.span.end),
        )

    def inside(self) -> Tensor:
        """Mask [N, N] of the nodes that the picture shows."""
        last = self.size.flip(0)[:, None, None] - 1
        return (true(self.mesh > 0) * true(self.mesh < last)).amin(0) * self.span.real


def _ends(lines: Tensor) -> tuple[Tensor, Tensor]:
    """The first node of a mask [N], and the one behind the last."""
    far = FAR * (1 - lines)
    return (count(NODES) + far).min(), (count(NODES) - far).max() + 1


def _calm(shift: Tensor, span: Span) -> Tensor:
    """Median of each node's nine neighbours."""
    rim = functional.pad(span.repeated(shift), (1, 1, 1, 1))
    near = torch.stack([rim[:, r : r + NODES, c : c + NODES] for r in range(3) for c in range(3)])
    return torch.topk(near, 5, dim=0).values[4]


@dataclass(frozen=True)
class Lattice:
    """A refined mesh; see the reference's class of this name. Numbers are float32 []."""

    mesh: Tensor
    span: Span
    strength: Tensor
    residual_mm: Tensor
    major: Tensor


def refine(signal: Tensor, size: Tensor, mesh: Tensor, span: Span) -> Lattice:
    """Refine a mesh, right within a span, against a line signal, float32 [S, S]."""
    ruler, mesh = Ruler(signal[None, None]), span.continued(mesh)
    seen = ruler.measure(mesh, span, 25.0)
    template = array(np.stack([GRID, GRID]))
    tight = true(repeats(correlate(seen, template, span), span) > reference.NO_MAJOR)
    shape = 1 - tight[:, None] * array(~MINOR)
    template = template * shape
    shift = global_shift(correlate(seen, template, span), span)
    mesh = moved(mesh, shift[:, None, None] + torch.zeros(2, NODES, NODES), span)
    none = torch.zeros(2, NODES, NODES)
    work = Work(ruler, size, mesh, span, template, shape, tight, none[0], none)
    for turn in FIRST:
        work.run(turn)
    work.grow()
    for turn in LAST:
        work.run(turn)
    weight = (work.strength**2 + 1e-9) * work.span.real
    spread = torch.sqrt((weight * (work.residual**2).sum(0)).sum() / weight.sum())
    others = torch.cat([work.template[:, :4], work.template[:, 5:9]], 1)
    return trim(Lattice(work.mesh, work.span, work.strength, spread, others.mean()), size)


def trim(lattice: Lattice, size: Tensor) -> Lattice:
    """Cut off outer rows and columns at which no grid is seen inside the picture."""
    last = size.flip(0)[:, None, None] - 0.5
    inside = (true(lattice.mesh > -0.5) * true(lattice.mesh < last)).amin(0) * lattice.span.real
    strength = lattice.strength * inside
    seen = true(strength > 0.5)
    ends = []
    for axis in range(2):
        number = seen.sum(1 - axis)
        ends.append(torch.stack(_ends(true(number >= 0.1 * number.max()))))
    first, end = torch.stack(ends, 1)
    # One more on each side, so that what lies between the last node and the picture's rim is kept. Where no
    # node sees the grid, all lines are alike and nothing is cut.
    span = Span(torch.maximum(lattice.span.first, first - 1), torch.minimum(lattice.span.end, end + 1))
    return Lattice(lattice.mesh, span, strength * span.real, lattice.residual_mm, lattice.major)
