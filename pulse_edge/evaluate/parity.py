"""Does a bundle say what the checkpoint says? Measured on real pages, and refused if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.errors import GateError

# Bounds by precision of the decoder: largest logit difference, and largest difference of a
# probability. fp32 must be the same computation. The others bound what rounding may do; accuracy
# on held-out records is what finally counts, and is measured beside it.
LIMITS: Final = {
    "fp32": {"logits": 1e-3, "probability": 1e-4},
    "fp16": {"logits": 0.1, "probability": 0.005},
    "int8": {"logits": 0.4, "probability": 0.02},
    "int4": {"logits": 3.0, "probability": 0.15},
}
TOKENS: Final = 24


class Answering(Protocol):
    """What is needed of a session."""

    backend: Any

    def logits(self, image: Any, question: str) -> NDArray[np.float32]:
        """Logits behind picture and question."""

    def label(self, image: Any) -> dict[str, float]:
        """Probabilities by label."""


def compare(
    reference: Answering, candidate: Answering, pages: Sequence[NDArray[np.uint8]], precision: str
) -> dict[str, Any]:
    """Compare two sessions page by page.

    Args:
        reference: the checkpoint in PyTorch.
        candidate: the bundle in ONNX Runtime.
        pages: uint8 [H, W, 3] RGB.
        precision: key of :data:`LIMITS`.

    Returns:
        ``kind`` (``"sessions"``: whole models answered), ``pages``, ``logits_max_abs`` and
        ``logits_mean_abs`` behind the report question,
        ``decode_logits_max_abs`` over 24 steps on the reference's own tokens, ``greedy_agreement``
        (share of those steps with the same best token), ``probability_max_abs``, ``label_flips`` (of
        how many, at 0.5), and the ``limits``.

    Raises:
        GateError: a limit is exceeded.
    """
    first, steps, same, gaps, flips, labels = [], [], [], [], 0, 0
    for page in pages:
        a, b = reference.logits(page, REPORT_QUESTION), candidate.logits(page, REPORT_QUESTION)
        first.append(np.abs(a - b))
        for _ in range(TOKENS):
            token = int(a.argmax())
            same.append(token == int(b.argmax()))
            a, b = reference.backend.step(token), candidate.backend.step(token)
            steps.append(float(np.abs(a - b).max()))
        p, q = reference.label(page), candidate.label(page)
        gaps += [abs(p[name] - q[name]) for name in p]
        flips += sum((p[name] >= 0.5) != (q[name] >= 0.5) for name in p)
        labels += len(p)
    result: dict[str, Any] = {
        "kind": "sessions",
        "precision": precision,
        "pages": len(pages),
        "logits_max_abs": float(np.max(first)),
        "logits_mean_abs": float(np.mean(first)),
        "decode_logits_max_abs": float(np.max(steps)),
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
