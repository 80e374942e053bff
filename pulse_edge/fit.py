"""Whether a model fits a device: every byte that it will hold at one time, against what the device lends it.

A sum of shapes, not a measurement. The planning constants below are ours and are named as such wherever a
result is shown; docs/plan.md compares the sums with published peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pulse_edge.contract import MAX_TILES
from pulse_edge.device import Device, load_device
from pulse_edge.errors import FitError, UnknownNameError, UserError
from pulse_edge.shape import ModelShape, read_shape

BITS: Final = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "fp8": 8, "nvfp4": 4}
TARGETS: Final = ("jetson", "onnx", "coreml")
TARGET_OF: Final = {"jetson": "jetson", "iphone": "coreml", "ipad": "coreml", "mac": "coreml", "cpu": "onnx"}
TILES: Final = (5, 4, 3, 1)  # views that a page may become: the contract's grids, or the base view alone
TEXT: Final = 64  # tokens beside the image in a usual prompt: system, roles and question
ANSWER: Final = 128  # tokens that a report may have
ROOM: Final = 512  # tokens beside the image that the cache has room for: a conversation about one page
# Weights that share a scale: what export writes for a target.
_BLOCKS: Final = {"jetson": (128, 64), "onnx": (128, 64), "coreml": (128, 64, 32, 16)}
_NVFP4_BLOCK: Final = 16  # with an fp8 scale
# Caches alive at one time: TensorRT's runtime and portable graphs in ONNX Runtime read one and write another
# beside it; ONNX Runtime's own operators append in place.
_CACHES: Final = {"jetson": 2, "onnx": 2, "coreml": 1}
_HEADS: Final = 16  # widths of heads that those operators take are multiples of it (export/ort_decoder.py)
_ALIGNMENT: Final = 32  # of Core ML's cache, which also has room for a padded step
# What ONNX Runtime holds for every byte of weights (benchmarks/ort_memory.py, once 20 MB of the session are
# taken off): integers as they lie in the file, and fp16 as fp32 too. Of portable graphs it keeps repacked
# integers as well: as was measured of those, int4 at 7 B too.
HELD: Final = {"fp32": 1.0, "fp16": 2.3, "int8": 1.0, "int4": 1.1}
_REPACKED: Final = {"int8": 2.0, "int4": 1.5}
# What the runtime itself holds (libraries, context, workspace), bytes. Jetson: NVIDIA's published peaks leave
# 0.8 GB in language models and 1.5 GB in vision-language models, whose tiles' activations are counted
# apart here (benchmarks/plan.py). ONNX Runtime: the peak of `pulse-edge run` on pulse-nano. Core ML: our
# planning assumption.
RUNTIME: Final = {"jetson": 1_200_000_000, "onnx": 180_000_000, "coreml": 250_000_000}
LINES: Final = ("weights", "vision", "kv", "activations", "runtime")
_TITLES: Final = {
    "weights": "language-model weights",
    "vision": "vision tower",
    "kv": "key-value cache",
    "activations": "activations",
    "runtime": "runtime",
}


@dataclass(frozen=True)
class Setup:
    """How a model would run.

    Attributes:
        precision: of the decoder's matrices, one of :data:`BITS`.
        target: one of :data:`TARGETS`.
        tiles: views of a page, the base view included.
        keep: share of the visual tokens that pruning leaves.
        context: tokens that the cache has room for; None for the image and :data:`ROOM` more.
        kv: precision of the cache, ``fp16`` or ``int8``; ONNX Runtime on a CPU has fp32 in place of fp16.
        entitled: the app has both memory entitlements (Apple only).
    """

    precision: str = "int4"
    target: str = "jetson"
    tiles: int = MAX_TILES
    keep: float = 1.0
    context: int | None = None
    kv: str = "fp16"
    entitled: bool = False

    def visual(self, shape: ModelShape) -> int:
        """Visual tokens of a page."""
        if shape.tower is None:
            return 0
        return round((shape.keep or self.tiles * shape.tower.tokens) * self.keep)

    def prompt(self, shape: ModelShape) -> int:
        """Tokens that are read before the first one is written."""
        return min(self.visual(shape) + TEXT, self.length(shape))

    def length(self, shape: ModelShape) -> int:
        """Tokens that the cache has room for."""
        return self.context or min(self.visual(shape) + ROOM, shape.context)

    def step(self, shape: ModelShape) -> int:
        """Tokens at once that memory is kept for: TensorRT reserves the whole length, Core ML's is fixed."""
        if self.target == "coreml":
            return min(128 if self.precision == "int4" else 32, self.length(shape))
        return self.length(shape) if self.target == "jetson" else self.prompt(shape)

    def cached(self, shape: ModelShape) -> int:
        """Tokens that one cache holds memory for."""
        if self.target != "coreml":
            return self.length(shape)
        return -(-(self.length(shape) + self.step(shape) - 1) // _ALIGNMENT) * _ALIGNMENT

    def cached_bytes(self, shape: ModelShape, tokens: int) -> int:
        """Bytes of one cache of so many tokens."""
        return tokens * shape.kv_per_token * (1 if self.kv == "int8" else self.compute)

    @property
    def compute(self) -> int:
        """Bytes of an activation: ONNX Runtime on a CPU computes in fp32 except for fp16 graphs."""
        single = self.precision == "fp32" or (self.target == "onnx" and self.precision != "fp16")
        return 4 if single else 2


def check_setup(shape: ModelShape, device: Device, setup: Setup) -> None:
    """Refuse what no device and no model can do.

    Raises:
        UnknownNameError: precision or target does not exist.
        UserError: the device cannot use the precision, or a number is out of range.
    """
    for what, value, known in (
        ("precision", setup.precision, BITS),
        ("target", setup.target, TARGETS),
        ("precision of the cache", setup.kv, ("fp16", "int8")),
    ):
        if value not in known:
            raise UnknownNameError(what, value, known)
    able = device.values["precisions"].value
    if able is not None and setup.precision not in able:
        raise UserError(
            f"The {device.title} has no {setup.precision} (source: {device.values['precisions'].source}). "
            f"Use one of {', '.join(able)}."
        )
    if setup.tiles not in TILES:
        raise UserError(f"A page has {', '.join(map(str, sorted(TILES)))} tiles, not {setup.tiles}.")
    if not 0 < setup.keep <= 1:
        raise UserError(f"The share of kept tokens must be above 0 and at most 1, not {setup.keep}.")
    least = setup.visual(shape) + TEXT
    if setup.context is not None and not least < setup.context <= max(shape.context, least + 1):
        raise UserError(
            f"A context of {setup.context} tokens is of no use to {shape.name}: image and prompt alone have "
            f"{least:,}, and the model reads {shape.context:,}. Choose one between them."
        )


def weight_bytes(shape: ModelShape, setup: Setup) -> int:
    """Bytes of the decoder's weights as export writes them.

    Matrices in the precision, with their scales in the computing type (int8 one a column, int4 one a block
    of a column); a matrix whose sides int4 does not fit stays fp16. Table and head are fp16, or fp32 in
    fp32, and two even where they are tied: they stand in two graphs. Norms and biases are fp32.
    """
    table = 4 if setup.precision == "fp32" else 2
    matrices = shape.layers * sum(_matrix_bytes(k, n, setup) for k, n in shape.linears)
    return matrices + 2 * table * shape.table + 4 * shape.small


def in_place(shape: ModelShape, setup: Setup) -> bool:
    """Whether the model runs in ONNX Runtime's own operators, and not in a portable graph."""
    return setup.target == "onnx" and shape.head_dim % _HEADS == 0


def prompt_bytes(shape: ModelShape, setup: Setup) -> int:
    """Bytes of the second graph that int4 has in ONNX Runtime, as export writes it; 0 where there is none.

    It reads prompts: the same decoder with matrices of 8 bits and an fp32 scale a column. Embedding table and
    head are those of the first.
    """
    if not in_place(shape, setup) or setup.precision != "int4":
        return 0
    return shape.layers * sum(k * n + 4 * n for k, n in shape.linears) + 4 * shape.small


def _matrix_bytes(k: int, n: int, setup: Setup) -> int:
    precision = setup.precision
    if precision in ("fp32", "fp16"):
        return k * n * BITS[precision] // 8
    if precision in ("int8", "fp8"):
        return k * n + setup.compute * n
    if precision == "nvfp4":
        return k * n // 2 + k * n // _NVFP4_BLOCK
    block = next((b for b in _BLOCKS[setup.target] if k % b == 0 and n % 2 == 0), None)
    return k * n // 2 + setup.compute * (k // block) * n if block else 2 * k * n


def memory(shape: ModelShape, setup: Setup) -> dict[str, int]:
    """Bytes that each line of :data:`LINES` needs at the worst moment, and their ``total``.

    * weights and vision (tower, only layers that run, and projector, in the computing precision): as stored,
      times :data:`HELD` in ONNX Runtime, where int4's second graph comes on top.
    * kv: 2 · layers · key-value heads · width · length, times the caches alive at a time.
    * activations: the larger of reading the tiles and reading as much as the runtime reserves for one step. A
      decoder layer holds residual, normed input, queries, keys, values, result and attention's scores, or
      residual, normed input, gate, up and their product. The scores are counted whole, once: whether a
      runtime fuses them away is its own affair, and a plan must not count on it.
    """
    size, tower, step = setup.compute, shape.tower, setup.step(shape)
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = step * (2 * shape.hidden + 2 * wide + 2 * narrow) + shape.heads * step * setup.cached(shape)
    mlp = step * (2 * shape.hidden + 3 * shape.ffn)
    seen = setup.tiles * tower.live if tower else 0
    own, held = in_place(shape, setup), 1.0
    if setup.target == "onnx":
        held = HELD.get(setup.precision, 1.0)
        held = held if own else _REPACKED.get(setup.precision, held)
    vision = (tower.run_parameters + tower.projector) * size if tower else 0
    lines = {
        "weights": round((weight_bytes(shape, setup) + prompt_bytes(shape, setup)) * held),
        "vision": round(vision * (held if setup.precision == "fp16" else 1.0)),
        "kv": setup.cached_bytes(shape, setup.cached(shape)) * (1 if own else _CACHES[setup.target]),
        "activations": (max(seen, attention, mlp) + shape.vocab) * size,
        "runtime": RUNTIME[setup.target],
    }
    return {**lines, "total": sum(lines.values())}


def usable_bytes(device: Device, entitled: bool = False) -> int | None:
    """Memory that a model may plan with on a device, bytes; None where the profile knows no RAM."""
    ram, share = device.values["ram_gb"].value, device.values["usable_fraction"].value
    if entitled and device.values["entitled_fraction"].value is not None:
        share = device.values["entitled_fraction"].value
    return None if ram is None or share is None else round(ram * 1e9 * share)


def fit(shape: ModelShape, device: Device, setup: Setup) -> dict[str, Any]:
    """Compare what a model needs with what a device lends.

    Returns:
        ``{"lines": {line: bytes}, "total", "usable", "spare", "fits", "binding", "tokens": {"visual",
        "prompt", "context"}}``; ``binding`` is the line at which the running sum of :data:`LINES` passes
        the usable memory, or the largest line where all fits. Usable, spare and fits are None where the
        device's memory is not known.

    Raises:
        UserError: see :func:`check_setup`.
    """
    check_setup(shape, device, setup)
    lines = memory(shape, setup)
    total, usable = lines.pop("total"), usable_bytes(device, setup.entitled)
    return {
        "lines": lines,
        "total": total,
        "usable": usable,
        "spare": None if usable is None else usable - total,
        "fits": None if usable is None else total <= usable,
        "binding": _binding(lines, usable),
        "tokens": {
            "visual": setup.visual(shape),
            "prompt": setup.prompt(shape),
            "context": setup.length(shape),
        },
    }


def _binding(lines: dict[str, int], usable: int | None) -> str:
    running = 0
    for name in LINES:
        running += lines[name]
        if usable is not None and running > usable:
            return name
    return max(lines, key=lambda name: lines[name])


def refusal(shape: ModelShape, device: Device, setup: Setup, remedies: Sequence[dict[str, Any]]) -> str:
    """Say in a few sentences why a model does not fit, and what makes it fit."""
    result = fit(shape, device, setup)
    lines, binding, usable = result["lines"], result["binding"], result["usable"] or 0
    before = LINES[: LINES.index(binding)]
    taken = sum(lines[name] for name in before)
    size = f"{lines[binding] / 1e9:.2f} GB"
    tokens = f" for {result['tokens']['context']:,} tokens" if binding == "kv" else ""
    if before:
        why = (
            f"{' and '.join(_TITLES[name] for name in before)} take {taken / 1e9:.2f} GB of them, and the "
            f"{_TITLES[binding]}{tokens} ({size}) passes the limit."
        )
    else:
        why = f"the {_TITLES[binding]} alone ({size}) pass the limit."
    said = "; ".join(f"({n}) {r['what']}, {r['needs']}" for n, r in enumerate(remedies, 1))
    return (
        f"{shape.name} in {setup.precision} does not fit the {device.title}: it needs "
        f"{result['total'] / 1e9:.2f} GB, and {usable / 1e9:.2f} GB are planned as usable; {why} "
        + (f"What makes it fit, cheapest first: {said}." if said else "Nothing that is planned makes it fit.")
    )


def require_fit(
    checkpoint: Path, device: str, precision: str, target: str, entitled: bool = False
) -> dict[str, Any]:
    """Refuse a model that a device has no memory for, before anything is converted.

    Args:
        checkpoint: folder; only its config.json and its weights' headers are read.
        device: name of a profile.
        precision: fp32, fp16, int8 or int4.
        target: jetson, onnx or coreml.
        entitled: plan with both of Apple's memory entitlements.

    Returns:
        The fit, as :func:`fit` describes it; ``fits`` is None where the device's memory is not known.

    Raises:
        FitError: it does not fit; the sentence names the binding line and the three cheapest remedies.
        UnknownNameError: unknown device, precision or target.
        UserError: the device cannot use the precision, or the checkpoint cannot be read.
    """
    from pulse_edge.remedies import find_remedies

    shape, profile = read_shape(Path(checkpoint)), load_device(device)
    setup = Setup(precision=precision, target=target, entitled=entitled)
    result = fit(shape, profile, setup)
    if result["fits"] is False:
        raise FitError(refusal(shape, profile, setup, find_remedies(shape, profile, setup)))
    return result
