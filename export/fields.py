"""What every bundle's manifest says, whatever its target, and the access to a checkpoint's weights."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge import contract
from pulse_edge.bundle import sha256_file, write_atomic
from pulse_edge.device import Device
from pulse_edge.doctor import installed_version
from pulse_edge.evaluate.labels import label_set
from pulse_edge.export.shape import DecoderShape
from pulse_edge.export.weights import Precision
from pulse_edge.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pulse_edge.model.pulse import PulseForConditionalGeneration

INTENDED_USE = "Research and software testing. Not a medical device; not for diagnosis or treatment."
MAX_NEW_TOKENS = 128


def weights_of(model: PulseForConditionalGeneration) -> Callable[[str], NDArray[np.float32]]:
    """Return what gives a weight of the language model, float32, by its name there, e.g. ``norm.weight``."""
    state = model.state_dict()
    prefix = next(name for name in state if name.endswith("embed_tokens.weight")).removesuffix(
        "embed_tokens.weight"
    )

    def weight(name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = state[name if name in state else prefix + name].float().numpy()
        return array

    return weight


def bundle_fields(
    weights: Mapping[str, str],
    card: dict[str, Any],
    merge: str,
    tokenizer: Tokenizer,
    shape: DecoderShape,
    target: str,
    device: Device,
    how: Precision,
    tokens: int,
    tools: Iterable[str],
) -> dict[str, Any]:
    """Return the manifest's fields but ``graphs`` and what `bundle.write_manifest` adds.

    Args:
        weights: SHA-256 of the checkpoint's files, by name; see :func:`hash_weights`.
        card: its ``pulse.json``.
        merge: how tiles are merged.
        tokenizer: of the checkpoint.
        shape: of its decoder.
        target: of the export.
        device: that the bundle is for.
        how: precision of the decoder.
        tokens: visual tokens of one tile.
        tools: packages whose versions belong to the record.
    """
    labels, scoring = label_set(card)
    vision, table = (f"fp{8 * np.dtype(kind).itemsize}" for kind in (how.compute, how.table))
    held = (card.get("quantization") or {}) if how.given or target == "coreml" else {}
    whole = target == "jetson"  # whose engines take no table of integers
    embed = table if whole or held.get("embedding", 16) == 16 else "int8"
    head = table if held.get("head", 16) == 16 or (whole and held.get("tied")) else "int8"
    if how.profile == "ort" and how.bits < 16:
        head = "int8"
    return {
        "model": {
            "name": card["name"],
            "weights": dict(weights),
            "parent": card["parent"],
            "recipe": card["recipe"],
            "data": card["data"],
        },
        "target": target,
        "device": {"profile": device.name, "constraints": device.constraints},
        "precision": {"vision": vision, "embed": embed, "decoder": how.name, "lm_head": head},
        "preprocessing": {
            "tile_size": contract.TILE_SIZE,
            "max_tiles": contract.MAX_TILES,
            "tokens_per_tile": tokens,
            "grid_pinpoints": [list(size) for size in contract.GRID_PINPOINTS],
            "mean": list(contract.IMAGE_MEAN),
            "std": list(contract.IMAGE_STD),
            "pad_colour": list(contract.PAD_COLOUR),
            "merge": merge,
        },
        "prompt": {
            "template": "llava_v1",
            "system": contract.SYSTEM,
            "roles": list(contract.ROLES),
            "separators": [contract.SEP, contract.SEP2],
        },
        "generation": {
            "context": shape.context,
            "max_new_tokens": MAX_NEW_TOKENS,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        "labels": labels,
        "scoring": scoring,
        "calibration": card["calibration"],
        "answers": card["answers"],
        "accuracy": list(card["metrics"]),
        "parity": None,
        "toolchain": toolchain(tools),
        "licences": card["licences"],
        "intended_use": card["intended_use"] or INTENDED_USE,
    }


def hash_weights(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of a checkpoint's weight files by name."""
    return {path.name: sha256_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}


def toolchain(tools: Iterable[str]) -> dict[str, str]:
    """Return the versions of what an export is made with: Python, pulse-edge, torch, numpy and ``tools``."""
    names = ("pulse-edge", "torch", "transformers", *tools, "numpy")
    versions = {name: installed_version(name) or "not installed as a distribution" for name in names}
    return {"python": platform.python_version(), **versions}


def write_companions(folder: Path, checkpoint: Path, card: dict[str, Any]) -> None:
    """Write what a bundle holds beside its graphs: tokenizer, certificate, if any, and ``LICENCES.txt``."""
    for name in ("tokenizer.model", "tokenizer_config.json", contract.REPORT):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    write_atomic(folder / "LICENCES.txt", _licences(card).encode())


def _licences(card: dict[str, Any]) -> str:
    rows = [f"{row['what']}: {row['licence']}" for row in card["licences"]]
    return "\n".join(["Licences of this bundle", *rows, "", card["intended_use"] or INTENDED_USE, ""])
