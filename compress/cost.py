"""What a matrix costs in a form: bytes, or time on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pulse_edge.compress.form import Form
from pulse_edge.device import load_device
from pulse_edge.errors import UserError
from pulse_edge.fit import TARGET_OF, Setup
from pulse_edge.roofline import rates

_FLOAT: Final = 2  # bytes of a weight that is not rounded


def bytes_of(shape: tuple[int, int], form: Form | None) -> int:
    """Bytes of a matrix [N, K], scales included; 16 bits a weight where there is no form."""
    return form.bytes(shape) if form else _FLOAT * shape[0] * shape[1]


def picoseconds_on(device: str) -> Callable[[tuple[int, int], Form | None], int]:
    """Return what predicts the time that a token spends on reading a matrix, by the roofline model.

    Bytes by the share of the bandwidth that the device's target reaches at this precision
    (:data:`pulse_edge.roofline.DECODE`). Whole numbers, so that equal mixtures have equal sums.

    Raises:
        UnknownNameError: there is no such device.
        UserError: its profile has no bandwidth.
    """
    profile = load_device(device)
    target, bandwidth = TARGET_OF[profile.kind], profile.values["bandwidth_gb_s"].value
    if bandwidth is None:
        raise UserError(f"Nothing is known of the bandwidth of the {profile.title}. Name another --device.")

    def cost(shape: tuple[int, int], form: Form | None) -> int:
        # what is stored as 16 bits, ONNX Runtime on a CPU reads as 32
        single = target == "onnx" and form is None
        setup = Setup(precision=f"int{form.bits}" if form else "fp32" if single else "fp16", target=target)
        moved = bytes_of(shape, form) * (2 if single else 1)
        seconds: float = moved / (bandwidth * 1e9 * rates(profile, setup)[0].share)
        return round(seconds * 1e12)

    return cost
