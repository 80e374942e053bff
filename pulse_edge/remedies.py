"""What makes a model fit a device that is too small for it, cheapest first, each computed anew.

Cheap means little lost: the levers have an order, ours, of what they cost in accuracy or money. Combinations
are tried in the order of their summed cost, and one that contains a smaller solution is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pulse_edge.device import Device, list_devices, load_device
from pulse_edge.fit import BITS, TARGET_OF, Setup, fit
from pulse_edge.roofline import speed
from pulse_edge.shape import ModelShape, shape_of

HOW_MANY: Final = 3
KEPT: Final = 0.5  # 98 to 100 % of LLaVA-1.5-7B's score is kept at this share (facts of FastV, SparseVLM)


@dataclass(frozen=True)
class _Lever:
    """One change of a setup, what it is called, and what it costs in our order."""

    group: str
    what: str
    cost: float
    change: dict[str, Any]


_ENTITLED: Final = _Lever("entitled", "both memory entitlements in the app", 0.5, {"entitled": True})
_KV: Final = _Lever("kv", "an int8 key-value cache", 1, {"kv": "int8"})
_PRUNE: Final = _Lever("keep", "half of the visual tokens pruned", 2.5, {"keep": KEPT})
_TILES: Final = {
    3: _Lever("tiles", "3 tiles instead of {}", 4, {"tiles": 3}),
    1: _Lever("tiles", "the base view alone instead of {} tiles", 6, {"tiles": 1}),
}
_PRECISIONS: Final = (("fp16", 0.2), ("int8", 1.5), ("int4", 3.0))
_STUDENT_COST: Final = 8.0
_DEVICE_COST: Final = 10.0


def _text(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
    }  # fmt: skip


def _clip(hidden: int, ffn: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": 28,
    }  # fmt: skip


def students() -> tuple[ModelShape, ...]:
    """PULSE's students, larger first. The core reads no recipe; a test holds these shapes against them."""
    read = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    shapes = {
        "pulse-2b": (_text(2560, 6912, 24, 32, 8), _clip(1024, 4096, 24, 16)),
        "pulse-0.5b": (_text(1536, 4096, 16, 16, 8), _clip(768, 3072, 12, 12)),
    }
    return tuple(
        shape_of({**read, "text_config": text, "vision_config": vision}, name)
        for name, (text, vision) in shapes.items()
    )


def find_remedies(
    shape: ModelShape, device: Device, setup: Setup, how_many: int = HOW_MANY
) -> list[dict[str, Any]]:
    """Return the cheapest changes that make a model fit.

    Returns:
        At most ``how_many`` of ``{"what", "needs", "model", "device", "change": {field of Setup: value},
        "total", "usable", "speed"}``, cheapest first; ``needs`` says "5.01 of 5.20 GB". Empty if it fits
        already or the device's memory is not known.
    """
    if fit(shape, device, setup)["fits"] is not False:
        return []
    ranked = sorted(
        itertools.chain(
            _changes(shape, device, setup), _smaller(shape, device, setup), _larger(shape, device, setup)
        ),
        key=lambda pair: pair[0],
    )
    return [remedy for _, remedy in ranked[:how_many]]


def _changes(shape: ModelShape, device: Device, setup: Setup) -> Iterator[tuple[float, dict[str, Any]]]:
    """Solutions on the same device with the same model."""
    levers = _levers(shape, device, setup)
    found: list[frozenset[str]] = []
    combinations = (
        combination
        for size in range(1, len({lever.group for lever in levers}) + 1)
        for combination in itertools.combinations(levers, size)
        if len({lever.group for lever in combination}) == size
    )
    for combination in sorted(combinations, key=lambda levers: sum(lever.cost for lever in levers)):
        chosen = _Chosen(combination)
        if any(solution <= chosen.names for solution in found):
            continue
        changed = replace(setup, **chosen.change)
        result = fit(shape, device, changed)
        if result["fits"]:
            found.append(chosen.names)
            yield chosen.cost, _remedy(chosen.what, shape, device, setup, chosen.change)


class _Chosen:
    """A combination of levers as one."""

    def __init__(self, levers: Sequence[_Lever]) -> None:
        self.names = frozenset(lever.what for lever in levers)
        self.cost = sum(lever.cost for lever in levers)
        *first, last = (lever.what for lever in levers)
        self.what = f"{', '.join(first)} and {last}" if first else last
        self.change = {k: v for lever in levers for k, v in lever.change.items()}


def _levers(shape: ModelShape, device: Device, setup: Setup) -> list[_Lever]:
    levers = []
    if device.values["entitled_fraction"].value is not None and not setup.entitled:
        levers.append(_ENTITLED)
    if setup.kv != "int8":
        levers.append(_KV)
    for name, cost in _lower(device, setup):
        what = f"{name} instead of {setup.precision}"
        levers.append(_Lever("precision", what, cost, {"precision": name}))
    if shape.tower is not None and setup.context is None:  # a given context is what the cache is for
        levers += [_PRUNE] if setup.keep > KEPT else []
        for tiles, lever in _TILES.items():
            if tiles < setup.tiles:
                levers.append(replace(lever, what=lever.what.format(setup.tiles)))
    return levers


def _lower(device: Device, setup: Setup) -> list[tuple[str, float]]:
    """The precisions below the present one that a device can use, with their costs."""
    able = device.values["precisions"].value
    return [
        (name, cost)
        for name, cost in _PRECISIONS
        if BITS[name] < BITS[setup.precision] and (able is None or name in able)
    ]


def _smaller(shape: ModelShape, device: Device, setup: Setup) -> Iterator[tuple[float, dict[str, Any]]]:
    """The students that fit, larger first, each in the highest precision that does."""
    if shape.tower is None:
        return
    precisions = [setup.precision, *(name for name, _ in _lower(device, setup))]
    for rank, student in enumerate(students()):
        if student.parameters >= shape.parameters:
            continue
        for precision in precisions:
            own: dict[str, Any] = {"context": None, "precision": precision}
            if fit(student, device, replace(setup, **own))["fits"]:
                what = f"the student {student.name} in {precision}"
                yield _STUDENT_COST + rank / 2, _remedy(what, student, device, setup, own)
                break


def _larger(shape: ModelShape, device: Device, setup: Setup) -> Iterator[tuple[float, dict[str, Any]]]:
    """The devices that it fits, smaller first, those of the same kind before the others."""
    able = []
    for other in map(load_device, list_devices()):
        precisions = other.values["precisions"].value
        changed = replace(setup, target=TARGET_OF[other.kind])
        if precisions is not None and setup.precision in precisions:
            result = fit(shape, other, changed)
            if result["fits"]:
                able.append((other.kind != device.kind, result["usable"], other.name, other))
    for rank, (_, _, _, other) in enumerate(sorted(able, key=lambda entry: entry[:3])):
        what, change = f"a larger device, {other.title}", {"target": TARGET_OF[other.kind]}
        yield _DEVICE_COST + rank / 2, _remedy(what, shape, other, setup, change)


def _remedy(
    what: str, shape: ModelShape, device: Device, setup: Setup, change: dict[str, Any]
) -> dict[str, Any]:
    changed = replace(setup, **change)
    result = fit(shape, device, changed)
    return {
        "what": what,
        "needs": f"{result['total'] / 1e9:.2f} of {result['usable'] / 1e9:.2f} GB",
        "model": shape.name,
        "device": device.name,
        "change": {name: value for name, value in change.items() if getattr(setup, name) != value},
        "total": result["total"],
        "usable": result["usable"],
        "speed": speed(shape, device, changed),
    }
