"""`plan`: whether a model fits a device, how fast it would be, and what to change where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from pulse_edge.device import Device
    from pulse_edge.fit import Setup
    from pulse_edge.shape import ModelShape

PRECISION: Final = "int4"


def plan(
    model: str,
    device: str | None = None,
    precision: str | None = None,
    tiles: int = 5,
    context: int | None = None,
    keep: float = 1.0,
    kv: str = "fp16",
    entitled: bool = False,
    every: bool = False,
    ram_gb: float | None = None,
    bandwidth_gb_s: float | None = None,
) -> dict[str, Any]:
    """Plan a model on a device, or on every device; nothing is loaded, converted or run.

    Args:
        model: checkpoint folder, shipped name, or recipe (pulse-7b, pulse-2b, pulse-0.5b, or a YAML file).
        device: profile in devices/.
        precision: of the decoder's matrices; by default that of the checkpoint's own integers, or int4.
        tiles: views of a page, 1, 3, 4 or 5.
        context: tokens that the cache has room for; by default the image and 512 more.
        keep: share of the visual tokens that pruning leaves.
        kv: precision of the cache, fp16 or int8.
        entitled: the app has both of Apple's memory entitlements.
        every: rank all devices instead: those that fit by the time of a report, the others by what they lack.
        ram_gb: memory of this very device, in place of the profile's.
        bandwidth_gb_s: its memory bandwidth, likewise.

    Returns:
        Of one device ``{"model", "parameters", "device", "title", "target", "setup", "memory", "speed",
        "remedies", "refusal"}``, see :func:`pulse_edge.fit.fit`, :func:`pulse_edge.roofline.speed` and
        :func:`pulse_edge.remedies.find_remedies`; ``refusal`` is a sentence or None. Of all devices
        ``{"model", "parameters", "setup", "devices": [{"device", "title", "target", "memory", "speed"}],
        "left_out": {device: reason}}``.

    Raises:
        UserError: not exactly one of device and every, an unknown name, or a setup that cannot be.
    """
    from pulse_edge.device import list_devices, load_device
    from pulse_edge.fit import BITS, Setup, check_setup

    if (device is None) != every:
        raise UserError("Name the device with --device NAME, or rank all of them with --all, but not both.")
    if precision is not None and precision not in BITS:
        raise UnknownNameError("precision", precision, BITS)
    shape = read_model(model)
    precision = precision or shape.integers or PRECISION
    setup = Setup(precision=precision, tiles=tiles, keep=keep, context=context, kv=kv, entitled=entitled)
    common = {"model": shape.name, "parameters": shape.parameters}
    given = {"ram_gb": ram_gb, "bandwidth_gb_s": bandwidth_gb_s}
    if device is not None:
        return {**common, **_one(shape, _own(load_device(device), given), setup)}
    if any(value is not None for value in given.values()):
        raise UserError("--ram-gb and --bandwidth-gb-s describe one device. Name it with --device NAME.")
    profiles = [load_device(name) for name in list_devices()]
    left_out = {}
    ranked = []
    for profile in profiles:
        able = profile.values["precisions"].value
        if able is not None and precision not in able:
            left_out[profile.name] = f"has no {precision}"
            continue
        check_setup(shape, profile, setup)
        entry = _one(shape, profile, setup, remedies=False)
        ranked.append({k: entry[k] for k in ("device", "title", "target", "memory", "speed")})
    if not ranked:
        raise UserError(f"No device has {precision}. Choose another --precision.")
    return {**common, "setup": _described(setup), "devices": sorted(ranked, key=_rank), "left_out": left_out}


def read_model(name: str) -> ModelShape:
    """Return the shape of a checkpoint folder, a shipped model or a recipe.

    Raises:
        UnknownNameError: none of them has this name.
        UserError: it cannot be read.
    """
    from pulse_edge.model.checkpoint import resolve_model
    from pulse_edge.shape import read_shape, shape_of
    from pulse_edge.train.recipe import KINDS, RECIPES, open_recipe

    recipes = [path.stem for path in RECIPES.glob("*.yaml")]
    is_recipe = Path(name).suffix in (".yaml", ".yml")
    if not is_recipe:
        try:
            return read_shape(resolve_model(name))
        except UnknownNameError as error:
            if name not in recipes:
                raise UnknownNameError("model", name, {*recipes, *error.known}) from error
    path, raw = open_recipe(name)
    shape = raw.get("model")
    if raw["kind"] != KINDS[1] or not isinstance(shape, dict):
        raise UserError(
            f"{path} does not describe PULSE's architecture. Plan the checkpoint it trains instead."
        )
    config = {**shape, "text_config": shape.get("text"), "vision_config": shape.get("vision")}
    return shape_of(config, str(raw.get("name", path.stem)))


def _own(device: Device, given: dict[str, float | None]) -> Device:
    """Return a profile with the values that were given on the command line."""
    from dataclasses import replace

    from pulse_edge.device import Value

    values = dict(device.values)
    for name, value in given.items():
        if value is not None:
            if not 0 < value <= 1e6:
                raise UserError(f"--{name.replace('_', '-')} must be a positive number, not {value}.")
            values[name] = Value(value, "given on the command line", "C")
    return replace(device, values=values)


def _one(shape: ModelShape, device: Device, setup: Setup, remedies: bool = True) -> dict[str, Any]:
    from dataclasses import replace

    from pulse_edge.fit import TARGET_OF, fit, refusal
    from pulse_edge.remedies import find_remedies
    from pulse_edge.roofline import speed

    setup = replace(setup, target=TARGET_OF[device.kind])
    memory = fit(shape, device, setup)
    found = find_remedies(shape, device, setup) if remedies else []
    refused = remedies and memory["fits"] is False
    return {
        "device": device.name,
        "title": device.title,
        "target": setup.target,
        "setup": _described(setup),
        "memory": memory,
        "speed": speed(shape, device, setup),
        "remedies": found,
        "refusal": refusal(shape, device, setup, found) if refused else None,
    }


def _described(setup: Setup) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value for name, value in asdict(setup).items() if name != "target"}


def _rank(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Devices that fit, then those of unknown memory, then the others; within them fast or nearly fitting."""
    memory, speed = entry["memory"], entry["speed"]
    order = {True: 0, None: 1, False: 2}[memory["fits"]]
    if order == 2:
        return (order, -memory["spare"], entry["device"])
    report, decode = speed["report_s"], speed["decode_tokens_s"]
    seconds = report["value"] if report else float("inf")
    return (order, seconds, -decode["value"] if decode else 0.0, entry["device"])
