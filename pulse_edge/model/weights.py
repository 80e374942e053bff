"""Read the files of a checkpoint folder: JSON, and safetensors by memory mapping."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import CheckpointError
from pulse_edge.model.layouts import canonical, computed
from pulse_edge.model.quantized import (
    INTEGERS,
    SCALE,
    ZERO,
    QuantizedWeight,
    quantized_names,
    quantized_weight,
)

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def open_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Memory-map all weights of a folder.

    Returns:
        The tensors by canonical name, in the checkpoint's dtypes; nothing is read until it is used.

    Raises:
        CheckpointError: if a file or a weight is missing, damaged or there twice.
    """
    from safetensors import SafetensorError, safe_open

    files, promised = weight_files(folder)
    weights: dict[str, torch.Tensor] = {}
    seen: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    seen.add(name)
                    if computed(name):
                        continue
                    if canonical(name) in weights:
                        raise CheckpointError(f"{folder} holds {name} twice. Download it again.")
                    weights[canonical(name)] = opened.get_tensor(name)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file} is missing, though {_INDEX} lists it. Download the checkpoint again, completely."
            ) from error
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{file} is damaged or cut short ({brief(error)}). Download this file again."
            ) from error
    refuse(folder, "lacks", seen, promised, "Download it again, completely.")
    return weights


def take_quantized(weights: dict[str, torch.Tensor]) -> dict[str, QuantizedWeight]:
    """Take the weights that stand as integers out of those of :func:`open_weights`.

    Returns:
        Them, by canonical name; their parts are no longer in ``weights``.

    Raises:
        CheckpointError: if one is incomplete or of an unknown form.
    """
    found = {}
    for name in quantized_names(weights):
        parts = {
            name + part: weights.pop(name + part).numpy()
            for part in (INTEGERS, SCALE, ZERO)
            if name + part in weights
        }
        found[name] = quantized_weight(name, parts)
    return found


def weight_files(folder: Path) -> tuple[list[Path], Iterable[str]]:
    """Return the safetensors files of a folder, and the weights that its index promises."""
    index = folder / _INDEX
    if index.is_file():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise CheckpointError(f"{index} has no weight_map. Download this file again.")
        names = sorted({str(file) for file in where.values()})
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{index} points outside its folder. Use a checkpoint from its origin.")
        return [folder / name for name in names], where
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE], ()
    pickled = any(folder.glob("*.bin"))
    remedy = "Convert its .bin files to safetensors." if pickled else "Download it again, completely."
    raise CheckpointError(f"{folder} holds no weights: neither {_SINGLE} nor {_INDEX} is there. {remedy}")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: if the file is absent, not JSON or not an object.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read: {error.strerror}. Give a checkpoint folder; it holds config.json, "
            "the weights and tokenizer.model."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}). Download this file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object. Download this file again.")
    return content


def refuse(folder: Path, fault: str, known: Collection[str], asked: Iterable[str], remedy: str) -> None:
    """Raise CheckpointError with the names that are asked for but not known, if there are any."""
    names = [name for name in asked if name not in known]
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise CheckpointError(f"{folder} {fault} {len(names)} weight(s): {shown}. {remedy}")


def brief(error: Exception) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
