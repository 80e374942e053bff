"""How fast a model would run: the roofline (Williams et al., 2009) with efficiencies measured elsewhere.

Every figure is an estimate. A token costs one pass over the weights and the cache at a share of the memory
bandwidth, and a launch for every layer; a prompt costs its operations at a share of the peak, or that pass
where it takes longer. The shares are fitted to published speeds by ``benchmarks/plan.py``, whose result
says how far estimates lie from rows that the fit did not see; where nothing was published they are assumed,
and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pulse_edge.device import Device
from pulse_edge.fit import ANSWER, Setup, weight_bytes
from pulse_edge.shape import ModelShape


@dataclass(frozen=True)
class Rate:
    """A share of a peak that was reached, and how far an estimate from it may be off.

    Attributes:
        share: of bandwidth or operations.
        band: an estimate times and divided by it is the range that is shown.
        source: where both come from.
    """

    share: float
    band: float
    source: str


# Four of five predictions of rows outside the fit lie nearer (decode 1.13, prefill 1.12 on Orin); no band is
# narrower, because pulse-edge's engines are not the ones that were measured.
_LEAST: Final = 1.25
_FIT: Final = "fitted to TensorRT-Edge-LLM 0.10's published rows, benchmarks/plan.py"
_ONE: Final = "one published row, not validated"
_NONE: Final = "assumed, nothing published"
# Fixed time of a decoder layer, microseconds.
LAUNCH_US: Final = {"jetson": 29.3, "coreml": 0.0, "onnx": 0.0}
_APPLE: Final = f"Apple's Llama-3.1-8B on M1 Max: {_ONE}"
# A decoder of 374 M in ONNX Runtime on 2 cores: 17 tokens/s in fp32, 40 in int8, 62 in int4; one of 7 B in
# int4: 2.1. Integers reach 0.6 (int8) and 0.3 to 0.5 (int4) of fp32's bytes a second; what fp32 reaches of
# the bandwidth is assumed.
_CPU: Final = "measured once on 2 cores relative to fp32, which is assumed to reach 0.8 of the bandwidth"
DECODE: Final = {
    ("jetson", None): Rate(0.856, _LEAST, _FIT),
    ("coreml", "fp16"): Rate(0.621, 1.6, _APPLE),
    ("coreml", "int4"): Rate(0.378, 1.6, _APPLE),
    ("coreml", None): Rate(0.378, 2.0, f"as int4. {_APPLE}"),
    ("onnx", "int8"): Rate(0.45, 2.0, _CPU),
    ("onnx", "int4"): Rate(0.3, 2.0, _CPU),
    ("onnx", None): Rate(0.8, 2.0, _NONE),
}
# By target, SM and precision. On Thor, int4 pays for its dequantisation.
PREFILL: Final = {
    ("jetson", "8.7", "int4"): Rate(0.492, 1.3, _FIT),
    ("jetson", "8.7", None): Rate(0.492, 1.5, f"as int4, {_FIT}"),
    ("jetson", "11.0", "int4"): Rate(0.167, 1.3, _FIT),
    ("jetson", "11.0", "nvfp4"): Rate(0.265, 1.5, _FIT),
    ("jetson", "11.0", None): Rate(0.183, 1.5, f"Qwen2.5-VL-3B in fp16, TensorRT-Edge-LLM issue 24: {_ONE}"),
}
VISION: Final = {
    ("jetson", "8.7"): Rate(0.48, _LEAST, _FIT),
    ("jetson", "11.0"): Rate(0.247, _LEAST, _FIT),
}
SMALLEST: Final = 400_000_000  # matrix weights of the smallest model among the published rows
_UNKNOWN: Final = Rate(0.2, 3.0, _NONE)
_MAC: Final = Rate(0.68, 3.0, "llama.cpp, Llama-3.1-8B on M1 Max (normiebench issue 40): another runtime")
# Of its first seconds' speed that an iPhone 17 Pro's Neural Engine kept for ten minutes (33 to 22 tokens/s).
SUSTAINED: Final = Rate(0.67, 1.0, "john-rocky/apple-silicon-llm-bench, iPhone 17 Pro")


def token_bytes(
    shape: ModelShape, linear_bits: float, head_bits: float, context: int, kv_bytes: int = 2
) -> float:
    """Bytes that are read for one token: matrices, head, norms, and the cache of ``context`` tokens."""
    weights = shape.linear_parameters * linear_bits / 8 + shape.table * head_bits / 8 + 2 * shape.small
    return weights + context * shape.kv_per_token * kv_bytes


def prompt_flops(shape: ModelShape, tokens: int) -> float:
    """Operations of reading a prompt: matrices, causal attention, and the head for the last token."""
    attention = 2 * tokens**2 * shape.heads * shape.head_dim * shape.layers
    return 2.0 * shape.linear_parameters * tokens + attention + 2 * shape.table


def token_ms(moved: float, layers: int, gb_s: float, share: float, launch_us: float) -> float:
    """Milliseconds of a token that moves ``moved`` bytes."""
    return moved / (gb_s * 1e6 * share) + layers * launch_us / 1e3


def prompt_ms(
    flops: float, tflops: float, share: float, weights_ms: float, layers: int, launch_us: float
) -> float:
    """Milliseconds of a prompt: operations or one pass over the weights, whichever is longer."""
    return max(flops / (tflops * 1e9 * share), weights_ms) + layers * launch_us / 1e3


def speed(shape: ModelShape, device: Device, setup: Setup) -> dict[str, Any]:
    """Estimate the speed of a model on a device.

    Returns:
        ``{"label": "estimate", "extrapolated": bool, "vision_ms", "prefill_ms", "ttft_ms", "decode_tokens_s",
        "sustained_tokens_s", "report_s", "bound": {"prefill", "decode"}, "sources": {what: text}}``. A
        figure is ``{"value", "low", "high"}``, or None where the profile lacks the bandwidth or the peak;
        ttft is vision and prefill; sustained is None except on phones; report is the time of a report of
        :data:`~pulse_edge.fit.ANSWER` tokens. Extrapolated are models far smaller than any that was fitted,
        where the host's own time, which is not counted, rules.
    """
    decode, prefill, vision = rates(device, setup)
    layers, launch = shape.layers, LAUNCH_US[setup.target]
    gb_s, peak = device.values["bandwidth_gb_s"].value, _peak(device, setup)
    peak_vision = device.values["fp16_tflops"].value
    prompt, weights = setup.prompt(shape), _read_bytes(shape, setup)
    figures: dict[str, Any] = dict.fromkeys(("vision_ms", "prefill_ms", "ttft_ms", "decode_tokens_s"))
    bound: dict[str, str | None] = {"prefill": None, "decode": None}
    if shape.tower is not None and peak_vision is not None:
        work = setup.tiles * shape.tower.flops
        figures["vision_ms"] = _figure(work / (peak_vision * 1e9 * vision.share), vision.band)
    if gb_s is not None:
        # Core ML's graph attends to its whole cache, the others to what is in it half-way through a report.
        filled = min(prompt + ANSWER // 2, setup.length(shape))
        cached = setup.cached(shape) if setup.target == "coreml" else filled
        moved = weights + setup.cached_bytes(shape, cached)
        per_token = token_ms(moved, layers, gb_s, decode.share, launch)
        figures["decode_tokens_s"] = _figure(1e3 / per_token, decode.band)
        launched = layers * launch / 1e3
        bound["decode"] = "launches" if launched > per_token / 2 else "bandwidth"
    if gb_s is not None and peak is not None:
        flops, read = prompt_flops(shape, prompt), weights / (gb_s * 1e6 * decode.share)
        bound["prefill"] = "compute" if flops / (peak * 1e9 * prefill.share) > read else "bandwidth"
        time = prompt_ms(flops, peak, prefill.share, read, layers, launch)
        figures["prefill_ms"] = _figure(time, prefill.band)
        figures["ttft_ms"] = _sum(figures["vision_ms"], figures["prefill_ms"])
    sustained = None
    if device.kind == "iphone" and figures["decode_tokens_s"] is not None:
        sustained = {name: value * SUSTAINED.share for name, value in figures["decode_tokens_s"].items()}
    sources = {"decode": decode.source, "prefill": prefill.source, "vision": vision.source}
    if sustained is not None:
        sources["sustained"] = SUSTAINED.source
    return {
        "label": "estimate",
        "extrapolated": shape.linear_parameters < SMALLEST,
        **figures,
        "sustained_tokens_s": sustained,
        "report_s": _report(figures["ttft_ms"], figures["decode_tokens_s"]),
        "bound": bound,
        "sources": sources,
    }


def rates(device: Device, setup: Setup) -> tuple[Rate, Rate, Rate]:
    """Return the rates of decode, prefill and vision on a device."""
    target, sm, precision = setup.target, device.values["sm"].value, setup.precision
    rest = _MAC if device.kind == "mac" else _UNKNOWN
    decode = DECODE.get((target, precision)) or DECODE[(target, None)]
    prefill = PREFILL.get((target, sm, precision)) or PREFILL.get((target, sm, None)) or rest
    return decode, prefill, VISION.get((target, sm)) or rest


def _peak(device: Device, setup: Setup) -> float | None:
    """The peak that a prompt computes with: weights alone in int8 or int4 are multiplied in fp16."""
    name = {"fp8": "fp8_tflops", "nvfp4": "fp4_tflops"}.get(setup.precision, "fp16_tflops")
    value: float | None = device.values[name].value
    return value


def _read_bytes(shape: ModelShape, setup: Setup) -> int:
    """Weights that one token reads: all but the embedding table, of which it reads a row."""
    return weight_bytes(shape, setup) - (4 if setup.precision == "fp32" else 2) * shape.table


def _figure(value: float, band: float) -> dict[str, float]:
    return {"value": value, "low": value / band, "high": value * band}


def _sum(first: dict[str, float] | None, second: dict[str, float]) -> dict[str, float]:
    return second if first is None else {name: first[name] + second[name] for name in second}


def _report(ttft: dict[str, float] | None, decode: dict[str, float] | None) -> dict[str, float] | None:
    """Seconds of a report; its slow end is that of both."""
    if ttft is None or decode is None:
        return None
    opposite = {"value": "value", "low": "high", "high": "low"}
    return {name: ttft[name] / 1e3 + ANSWER / decode[opposite[name]] for name in ttft}
