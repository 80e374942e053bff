"""Device profiles: one YAML file each in devices/, data only, every value with its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from pulse_edge.errors import PulseEdgeError, UnknownNameError

FOLDER: Final = Path(__file__).parent / "devices"
KINDS: Final = ("jetson", "iphone", "ipad", "mac", "cpu")
CONFIDENCE: Final = ("A", "B", "C")  # vendor's own document; third party; unverified
# Memory, speed, hardware, software. Shares of RAM are planning assumptions; tflops and tops are dense peaks
# of the unit that runs the model, ai_tops the vendor's headline (of Jetsons sparse, DLA included).
VALUES: Final = (
    "ram_gb", "usable_fraction", "entitled_fraction", "memory_probe",
    "bandwidth_gb_s", "fp16_tflops", "int8_tops", "fp8_tflops", "fp4_tflops", "ai_tops",
    "chip", "sm", "module_ids", "model_ids", "power_modes_w",
    "jetpack", "tensorrt", "os_floor", "precisions",
)  # fmt: skip
_NUMBERS: Final = VALUES[:3] + VALUES[4:10]
_LISTS: Final = ("module_ids", "model_ids", "power_modes_w", "precisions")
_KEYS: Final = ("name", "kind", "title", *VALUES)
_VALUE_KEYS: Final = ("value", "source", "confidence")


@dataclass(frozen=True)
class Value:
    """One value of a profile.

    Attributes:
        value: number, text or list; None when it is not known.
        source: where it was read.
        confidence: one of :data:`CONFIDENCE`; None when there is no value.
    """

    value: Any
    source: str | None
    confidence: str | None


@dataclass(frozen=True)
class Device:
    """A device; ``values`` has an entry for every name in :data:`VALUES`."""

    name: str
    kind: str
    title: str
    values: dict[str, Value]

    @property
    def constraints(self) -> dict[str, Any]:
        """What a bundle for this device is tied to, as far as the profile knows."""
        tied = {name: self.values[name].value for name in ("sm", "jetpack", "tensorrt")}
        floor = self.values["os_floor"].value
        return tied if floor is None else {**tied, "os_floor": floor}


def list_devices() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_device(name: str) -> Device:
    """Load a profile by its name.

    Raises:
        UnknownNameError: no such device; the nearest name is suggested.
        PulseEdgeError: the profile breaks the schema.
    """
    if name not in list_devices():
        raise UnknownNameError("device", name, list_devices())
    return _shipped(name)


@cache
def _shipped(name: str) -> Device:
    return read_device(FOLDER / f"{name}.yaml")


def read_device(path: Path) -> Device:
    """Read and check one profile.

    Raises:
        UnknownNameError: a key that no profile has.
        PulseEdgeError: a key is missing, or a value has no source or confidence.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_OneOfEach)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise PulseEdgeError(
            f"The device profile {path} cannot be read: {error}. Reinstall pulse-edge."
        ) from error
    raw = _mapping(raw, _KEYS, path)
    if raw["name"] != path.stem or raw["kind"] not in KINDS:
        raise PulseEdgeError(f"{path} must have its file's name and a kind of {', '.join(KINDS)}.")
    values = {}
    for key in VALUES:
        entry = _mapping(raw[key], _VALUE_KEYS, path)
        if entry["value"] is not None:
            if not isinstance(entry["source"], str) or not entry["source"].strip():
                raise PulseEdgeError(f"{path}: {key} needs a source and a confidence of A, B or C.")
            if entry["confidence"] not in CONFIDENCE:
                raise PulseEdgeError(f"{path}: {key} needs a source and a confidence of A, B or C.")
            _check_value(key, entry["value"], path)
        values[key] = Value(**entry)
    return Device(raw["name"], raw["kind"], raw["title"], values)


class _OneOfEach(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; a profile must not say two things."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, or refuse one that has a key twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} stands there twice")
        return super().construct_mapping(node, deep)


def _check_value(key: str, value: Any, path: Path) -> None:
    """A version is text (8.70 is not 8.7), a share lies in 0 to 1, a list holds something."""
    if key in _NUMBERS:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right = number and 0 < value <= (1 if key.endswith("fraction") else 1e6)
        kind = "a share above 0 and at most 1" if key.endswith("fraction") else "a positive number"
    elif key in _LISTS:
        right, kind = isinstance(value, list) and bool(value), "a list"
    else:
        right, kind = isinstance(value, str) and bool(value.strip()), "text"
    if not right:
        raise PulseEdgeError(
            f"{path}: {key} must be {kind}, not {value!r}; write null where it is not known."
        )


def _mapping(raw: Any, keys: tuple[str, ...], path: Path) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise PulseEdgeError(f"{path}: expected the keys {', '.join(keys)}, found {raw!r}.")
    for key in raw:
        if key not in keys:
            raise UnknownNameError(f"key in {path.name}", str(key), keys)
    missing = [key for key in keys if key not in raw]
    if missing:
        raise PulseEdgeError(f"{path} lacks {', '.join(missing)}; write null where a value is not known.")
    return raw
