"""Choose a form for every layer: a knapsack with several choices, solved exactly.

Every layer offers forms with a cost and a harm; the sum of costs is to be least under a bound on the sum of
harms. Partial choices that another one beats in both are dropped layer by layer (Nemhauser and Ullmann,
1969), so that what is left in the end is the whole Pareto front. Exact rather than greedy, because it costs
nothing here: costs are whole numbers and matrices come in few shapes, so that few sums differ, and because
greedy by gain per cost is wrong just where a front has its steps. Beyond ``LIMIT`` partial choices the best
of each of as many slices of cost is kept, and the front is then within one slice of cost, by layer, of exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LIMIT: Final = 20000


@dataclass(frozen=True)
class Point:
    """One choice for all layers: sums of cost and harm, and which form each layer takes."""

    cost: int
    harm: float
    picks: tuple[int, ...]


def pareto(
    costs: Sequence[Sequence[int]], harms: Sequence[Sequence[float]], limit: int = LIMIT
) -> list[Point]:
    """Return the choices that no other beats, the cheapest first.

    Args:
        costs: of every layer's forms; whole numbers of bytes or picoseconds.
        harms: likewise, not negative.
        limit: of partial choices that are kept.
    """
    cost, harm = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for own_cost, own_harm in zip(costs, harms, strict=True):
        every = (cost[:, None] + np.array(own_cost, np.int64)).ravel()
        hurt = (harm[:, None] + np.array(own_harm)).ravel()
        kept = _undominated(every, hurt, limit)
        steps.append((kept // len(own_cost), kept % len(own_cost)))
        cost, harm = every[kept], hurt[kept]
    points = []
    for k in range(len(cost)):
        at, picks = k, []
        for before, form in reversed(steps):
            picks.append(int(form[at]))
            at = int(before[at])
        points.append(Point(int(cost[k]), float(harm[k]), tuple(reversed(picks))))
    return points


def _undominated(cost: NDArray[np.int64], harm: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Places of those that none beats in both, by rising cost."""
    order = np.lexsort((harm, cost))
    sorted_harm = harm[order]
    least = np.concatenate([[np.inf], np.minimum.accumulate(sorted_harm)[:-1]])
    order = order[sorted_harm < least]
    if len(order) > limit:
        spread = cost[order] - cost[order[0]]
        slices = spread * limit // (int(spread[-1]) + 1)
        last = np.append(slices[1:] != slices[:-1], True)  # the dearest of a slice does the least harm
        order = order[last]
    return np.asarray(order, np.int64)
