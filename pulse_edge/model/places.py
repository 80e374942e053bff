"""What the choice of visual tokens (:mod:`.ink`) is made by, and where those that are kept stand: for torch
and for graphs written without it.

A language model has learnt on so many visual tokens; fewer, counted anew, would stand closer together than
any that it ever saw, and the question behind them too. So the kept ones stand evenly over the places of all
of them. That is the same for every page, and every runtime's rotary tables hold it: none has to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pulse_edge.contract import IMAGE_MEAN, IMAGE_STD

NEAR: Final = 7  # pixels around one, wider than a trace
DARKER: Final = 40.5 / 255 / IMAGE_STD[0]  # grey levels, in CLIP's units
BLACK: Final = (10.5 / 255 - IMAGE_MEAN[0]) / IMAGE_STD[0]
CLOSING: Final = 5  # pixels; no trace is as wide, padding is


def uniform(count: int, keep: int) -> list[int]:
    """Return ``keep`` of ``count`` places at even distances, the first and the last among them."""
    if keep == 1:
        return [0]
    return [(2 * k * (count - 1) + keep - 1) // (2 * (keep - 1)) for k in range(keep)]


def positions(length: int, spread: Sequence[int] | None) -> list[int]:
    """Return where the first ``length`` tokens of a sequence stand, for their rotary embedding.

    Args:
        length: of the sequence.
        spread: (first, keep, count): from token ``first`` on, ``keep`` visual tokens stand evenly over the
            places of the ``count`` that they are left of, and what follows behind those. None: as counted.
    """
    if spread is None:
        return list(range(length))
    first, keep, count = spread
    visual = [first + place for place in uniform(count, keep)]
    return [*range(first), *visual, *range(first + count, length + count - keep)][:length]
