"""Where half precision goes astray: a function run twice, op by op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulse_edge.export.milrun.package import Package
from pulse_edge.export.milrun.registry import Tensor


@dataclass(frozen=True)
class Difference:
    """One op's first result in both precisions.

    Attributes:
        op: its type.
        output: the name of the result.
        error: greatest absolute difference between fp16 and fp32; infinite or NaN where fp16 overflowed.
        scale: greatest absolute value in fp32, infinities left out.
        overflow: whether fp16 has an infinity or NaN where fp32 has a number.
    """

    op: str
    output: str
    error: float
    scale: float
    overflow: bool


def compare_precisions(
    path: str | Path,
    function: str | None,
    inputs: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Run a function in fp32 and in fp16 on the same inputs and states; compare after every op.

    All results of the first run are kept until the second has passed them.

    Args:
        path: of the ``.mlpackage``.
        function: its name; None for the default.
        inputs: by name, as for ``Package.run``.
        state: by name; empty states by default. It is not changed.

    Returns:
        A row for every op with real numbers, in the order of the program. Where control flow takes another
        turn in fp16, the rows end.

    Raises:
        PulseEdgeError: as ``Package.run``.
    """
    kept: list[tuple[str, Tensor]] = []
    rows: list[Difference] = []

    def keep(op: str, family: str, output: str, results: list[Tensor], seconds: float) -> None:
        kept.append((output, results[0]))

    def compare(op: str, family: str, output: str, results: list[Tensor], seconds: float) -> None:
        name, exact = kept[len(seen)] if len(seen) < len(kept) else ("", results[0])
        seen.append(output)
        if name == output and exact.is_floating_point() and exact.shape == results[0].shape and exact.numel():
            rows.append(_difference(op, output, exact, results[0]))

    seen: list[str] = []
    for precision, observe in (("fp32", keep), ("fp16", compare)):
        package = Package(Path(path), precision)
        own = package.new_state(function)
        for name, array in (state or {}).items():
            if name in own:
                own[name][...] = array
        package.run(function, inputs, own, observe)
    return rows


def _difference(op: str, output: str, exact: Tensor, half: Tensor) -> Difference:
    finite = exact.isfinite()
    overflow = bool((finite & ~half.isfinite()).any())
    apart = (exact - half)[finite].abs()
    scale = exact[finite].abs()
    return Difference(
        op,
        output,
        float(apart.max()) if apart.numel() else 0.0,
        float(scale.max()) if scale.numel() else 0.0,
        overflow,
    )
