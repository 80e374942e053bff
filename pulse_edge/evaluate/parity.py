"""Does a bundle say what the checkpoint says? Measured on real pages, and refused if not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.errors import GateError
from pulse_edge.model.preprocess import tiles

# Bounds by precision of the decoder: largest logit difference, and largest difference of a
# probability. fp32 must be the same computation. The others bound what rounding may do; accuracy
# on held-out records is what finally counts, and is measured beside it.
LIMITS: Final = {
    "fp32": {"logits": 1e-3, "probability": 1e-4},
    "fp16": {"logits": 0.1, "probability": 0.005},
    "int8": {"logits": 0.4, "probability": 0.02},
    "int4": {"logits": 3.0, "probability": 0.15},
    "palette4": {"logits": 3.0, "probability": 0.15},
}
# Bounds for a bundle's own preprocessing: a rounding in each of two passes may fall on the other side.
TILE_LIMITS: Final = {"levels": 2, "changed": 1e-3}
TOKENS: Final = 24
_PROBE, _PROBE_LIMIT = 8, 0.01  # tokens; difference of a probability that another machine may make


class Answering(Protocol):
    """What is needed of a session."""

    backend: Any

    def logits(self, image: Any, question: str) -> NDArray[np.float32]:
        """Logits behind picture and question."""

    def label(self, image: Any) -> dict[str, float]:
        """Probabilities by label."""


def compare(
    reference: Answering,
    candidate: Answering,
    pages: Sequence[NDArray[np.uint8]],
    precision: str,
    steps: int = TOKENS,
) -> dict[str, Any]:
    """Compare two sessions page by page.

    Args:
        reference: the checkpoint in PyTorch.
        candidate: the bundle in ONNX Runtime, or a Core ML bundle as it is played.
        pages: uint8 [H, W, 3] RGB.
        precision: key of :data:`LIMITS`.
        steps: of decoding, on each page.

    Returns:
        ``kind`` (``"sessions"``: whole models answered), ``pages``, ``logits_max_abs`` and
        ``logits_mean_abs`` behind the report question,
        ``decode_logits_max_abs`` over the steps, on the reference's own tokens, ``greedy_agreement``
        (share of those steps with the same best token), ``probability_max_abs``, ``label_flips`` (of
        how many, at 0.5), and the ``limits``.

    Raises:
        GateError: a limit is exceeded.
    """
    first, later, same, gaps, flips, labels = [], [], [], [], 0, 0
    for page in pages:
        a, b = reference.logits(page, REPORT_QUESTION), candidate.logits(page, REPORT_QUESTION)
        first.append(np.abs(a - b))
        for _ in range(steps):
            token = int(a.argmax())
            same.append(token == int(b.argmax()))
            a, b = reference.backend.step(token), candidate.backend.step(token)
            later.append(float(np.abs(a - b).max()))
        p, q = reference.label(page), candidate.label(page)
        gaps += [abs(p[name] - q[name]) for name in p]
        flips += sum((p[name] >= 0.5) != (q[name] >= 0.5) for name in p)
        labels += len(p)
    result: dict[str, Any] = {
        "kind": "sessions",
        "precision": precision,
        "pages": len(pages),
        "steps": steps,
        "logits_max_abs": float(np.max(first)),
        "logits_mean_abs": float(np.mean(first)),
        "decode_logits_max_abs": float(np.max(later)),
        "greedy_agreement": float(np.mean(same)),
        "probability_max_abs": float(np.max(gaps)),
        "label_flips": flips,
        "labels": labels,
        "limits": LIMITS[precision],
    }
    refuse_disparity(result)
    return result


def refuse_disparity(result: Mapping[str, Any]) -> None:
    """Compare what was measured with its limits.

    Args:
        result: as :func:`compare` returns it.

    Raises:
        GateError: a limit is exceeded, or a difference is not a number.
    """
    limits = result["limits"]
    # An overflow comes as NaN, which compares false with everything: numpy's maximum keeps it where
    # Python's max would drop it, and the comparison is written so that it fails.
    worst = float(np.max([result["logits_max_abs"], result["decode_logits_max_abs"]]))
    if not (worst <= limits["logits"] and result["probability_max_abs"] <= limits["probability"]):
        raise GateError(
            f"The {result['precision']} bundle does not answer as the checkpoint does: "
            "logits differ by up to "
            f"{worst:.3g} (limit {limits['logits']:g}), probabilities by {result['probability_max_abs']:.3g} "
            f"(limit {limits['probability']:g}). It was not kept. Export with a higher --precision."
        )


def compare_tiles(
    cut: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], pages: Sequence[NDArray[np.uint8]]
) -> dict[str, Any]:
    """Compare a bundle's own preprocessing with PULSE's.

    Args:
        cut: a picture, uint8 [H, W, 3], to tiles uint8 [n, 336, 336, 3].
        pages: pictures.

    Returns:
        ``max_levels``, the largest difference in grey levels, and ``changed``, the share of differing values.

    Raises:
        GateError: more than two grey levels, or more than one value in a thousand, or other tiles.
    """
    worst, changed, values = 0, 0, 0
    for page in pages:
        expected, made = tiles(page).astype(np.int16), cut(page)
        if made.shape != expected.shape:
            raise GateError(
                f"The bundle cuts a page into {len(made)} tiles and PULSE into {len(expected)}. It was not "
                "kept. Please report this page's size."
            )
        gap = np.abs(made - expected)
        worst, changed, values = max(worst, int(gap.max())), changed + int((gap > 0).sum()), values + gap.size
    if worst > TILE_LIMITS["levels"] or changed > TILE_LIMITS["changed"] * values:
        raise GateError(
            f"The bundle's own tiles are off by up to {worst} grey levels (limit {TILE_LIMITS['levels']}) "
            f"and in {changed / values:.2%} of the values (limit {TILE_LIMITS['changed']:.2%}). "
            "It was not kept. "
            'Install the tested versions: pip install "pulse-edge[coreml]"'
        )
    return {"max_levels": worst, "changed": changed / values}


def probe(session: Answering, page: NDArray[np.uint8]) -> dict[str, Any]:
    """Record what a session says about a page: the best tokens of 8 steps, and the labels' probabilities."""
    logits, tokens = session.logits(page, REPORT_QUESTION), []
    for _ in range(_PROBE):
        tokens.append(int(logits.argmax()))
        logits = session.backend.step(tokens[-1])
    return {"tokens": tokens, "labels": session.label(page)}


def probe_problems(recorded: Mapping[str, Any], session: Answering, page: NDArray[np.uint8]) -> list[str]:
    """Run a bundle again on the page of its record; return one sentence for each difference."""
    again = probe(session, page)
    problems = []
    if again["tokens"] != recorded["tokens"]:
        problems.append("The bundle's first tokens differ from those it gave when exported; export it again.")
    for name, value in recorded["labels"].items():
        if not abs(again["labels"].get(name, np.nan) - value) <= _PROBE_LIMIT:
            problems.append(f"The label {name} differs from its value at export; export the bundle again.")
    return problems
