"""How a matrix becomes integers: bits, groups, symmetry, and the rounding that every method shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.errors import UserError
from pulse_edge.model.quantized import LEVELS, QuantizedWeight

GROUPS: Final = (32, 64, 128)
_SMALLEST: Final = float(np.finfo(np.float16).tiny)  # never 0, which would divide by 0


@dataclass(frozen=True)
class Form:
    """A form of integers.

    Attributes:
        bits: 8 or 4.
        group: neighbours of a row that share a scale; None for one scale per row.
        symmetric: without zero points. TensorRT takes no others.
    """

    bits: int = 4
    group: int | None = 128
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits not in LEVELS:
            raise UserError(f"Weights are rounded to 8 or 4 bits, not {self.bits}. Use --bits 8 or --bits 4.")
        if self.group is not None and self.group not in GROUPS:
            raise UserError(
                f"A group of {self.group} is not one of {', '.join(map(str, GROUPS))}. Use one of these."
            )

    @property
    def name(self) -> str:
        """E.g. ``int4 group 128 symmetric``."""
        across = "per row" if self.group is None else f"group {self.group}"
        return f"int{self.bits} {across} {'symmetric' if self.symmetric else 'asymmetric'}"

    @classmethod
    def parse(cls, name: str) -> Form:
        """Undo :attr:`name`.

        Raises:
            ValueError: no form has this name.
        """
        for bits in LEVELS:
            for group in (None, *GROUPS):
                for symmetric in (True, False):
                    form = cls(bits, group, symmetric)
                    if form.name == name:
                        return form
        raise ValueError(f"no form is called {name!r}")

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a matrix [N, K] in this form, scales and zero points included."""
        rows, columns = shape
        groups = columns // (self.group or columns)
        return rows * columns * self.bits // 8 + rows * groups * (2 if self.symmetric else 3)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Say whether a matrix [N, K] can take this form."""
        columns = shape[1]
        return columns % (self.group or 1) == 0 and (self.bits == 8 or columns % 2 == 0)


def scales(blocks: Tensor, form: Form, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point of every group from its extremes.

    Args:
        blocks: float32 [..., g].
        form: of the integers.
        shrink: the range taken is so much of the extremes; below 1 it clips, for finer steps.

    Returns:
        Scale, float32 with values that float16 holds exactly, and zero point (a whole number, 0 if
        symmetric), both [...].
    """
    if form.symmetric:
        largest = blocks.abs().amax(-1) * shrink
        scale = _half(largest / LEVELS[form.bits])
        return scale, torch.zeros_like(scale)
    low, high = (blocks.amin(-1) * shrink).clamp(max=0), (blocks.amax(-1) * shrink).clamp(min=0)
    half = 2.0 ** (form.bits - 1)
    scale = _half((high - low) / (2 * half - 1))
    return scale, torch.round(-half - low / scale).clamp(-half, half - 1)


def integers(blocks: Tensor, scale: Tensor, zero: Tensor, form: Form) -> Tensor:
    """Round ``blocks`` [..., g] with the scales [...] of :func:`scales` to whole numbers, floats [..., g]."""
    low = -LEVELS[form.bits] if form.symmetric else -(2 ** (form.bits - 1))
    high = 2 ** (form.bits - 1) - 1
    return (torch.round(blocks / scale[..., None]) + zero[..., None]).clamp(low, high)


def values(whole: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return what whole numbers [..., g] stand for."""
    return (whole - zero[..., None]) * scale[..., None]


def grouped(weight: Tensor, form: Form) -> Tensor:
    """View a matrix [N, K] as [N, G, g]."""
    return weight.reshape(len(weight), -1, form.group or weight.shape[1])


def packed(whole: Tensor, scale: Tensor, zero: Tensor, form: Form) -> QuantizedWeight:
    """Make the stored form of whole numbers [N, G, g] with scales and zero points [N, G]."""
    return QuantizedWeight(
        form.bits,
        whole.reshape(len(whole), -1).to(torch.int8).numpy(),
        scale.to(torch.float16).numpy(),
        None if form.symmetric else zero.to(torch.int8).numpy(),
    )


def _half(scale: Tensor) -> Tensor:
    return scale.clamp(min=_SMALLEST).to(torch.float16).float()
