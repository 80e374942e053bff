"""What a package says of itself: author, licences, intended use, features, preprocessing, accuracy.

An app developer meets a package in Xcode, without the bundle around it, and must find there what it is
for, what it may not be used for, and how its inputs come about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from coremltools.models.utils import load_spec

from pulse_edge.doctor import installed_version

AUTHOR: Final = "pulse-edge contributors"
PREFIX: Final = "pulse-edge."
_FIELDS: Final = (
    "model", "precision", "preprocessing", "prompt", "labels", "scoring", "accuracy", "licences",
    "intended_use",
)  # fmt: skip
_ROLES: Final = {
    "preprocess": "Cuts a picture of an ECG page into PULSE's five tiles.",
    "capture": "Makes the tiles of a photo of a paper ECG: finds its grid, flattens, turns and cuts it.",
    "vision": "PULSE's vision tower and projector: five tiles to visual tokens.",
    "embed": "PULSE's token embedding: token ids to rows.",
    "decoder": "PULSE's language model with its key-value cache as state.",
}
_FEATURES: Final = {
    "image": "The page, RGB, upright, of any size from 16 to 8192 pixels a side.",
    "size": "Height and width of the picture in the upper left of the canvas.",
    "pixel_values": "Five normalised tiles; those that the facts count as views are real.",
    "nodes": "Pixel (x, y) of each node of the upright mesh, 5 mm apart, rows and columns as the facts say.",
    "strength": "How well the grid is seen around each node, 0 to 1.",
    "facts": "Numbers by the names in the manifest's coreml.capture.facts.",
    "tiles": "Five tiles of 336 x 336 pixels under each other: the whole page first, then row by row.",
    "shown": "1 for a tile of the page, 0 for a black one that fills up: long or tall pages have fewer.",
    "image_features": "Visual tokens of each tile, [5, tokens, width]; those of tiles that are shown count.",
    "input_ids": "Token ids.",
    "inputs_embeds": "Rows of text and visual tokens in the prompt's order, filled up behind with zeros.",
    "hidden": "Rows from the package before this one.",
    "hidden_out": "Rows for the next package.",
    "position": "Tokens read before this call.",
    "mask": "0 where a row may look (columns up to its own position), -10000 elsewhere.",
    "last": "Index of the last row that is not filling.",
    "logits": "Logits behind the last row, one for each token of the vocabulary.",
    "k_cache": "Keys of the tokens read; one slice for each layer.",
    "v_cache": "Values of the tokens read; one slice for each layer.",
    "k_rest": "What float16 takes from the keys of this float32 package.",
    "v_rest": "What float16 takes from the values of this float32 package.",
}  # fmt: skip


_CANVAS: Final = (
    "The photo, RGB, 0 to 255, channels first, its long side at most that of the canvas, upper left."
)


def describe(spec: Any, role: str, fields: Mapping[str, Any]) -> None:
    """Write the manifest's fields into a package's description.

    Args:
        spec: protobuf of the model; changed.
        role: ``preprocess``, ``vision``, ``embed``, ``decoder`` or ``decoder-<n>``.
        fields: of the manifest.
    """
    metadata = spec.description.metadata
    metadata.author = AUTHOR
    metadata.license = (
        "; ".join(f"{row['what']}: {row['licence']}" for row in fields["licences"]) or "not stated"
    )
    metadata.versionString = f"{fields['model']['name']}, pulse-edge {installed_version('pulse-edge')}"
    kind, _, number = role.partition("-")
    part = f" Part {int(number) + 1} of several, to be called in order." if number else ""
    metadata.shortDescription = f"{_ROLES[kind]}{part} {fields['intended_use']}"
    for field in _FIELDS:
        metadata.userDefined[PREFIX + field] = _text(fields[field])
    metadata.userDefined[PREFIX + "role"] = role
    for feature in _features(spec.description):
        canvas = role == "capture" and feature.name == "image"
        feature.shortDescription = _CANVAS if canvas else _FEATURES[feature.name]


def add(path: Path, field: str, value: Any) -> None:
    """Add one field to a finished package: what is known only once it has run."""
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = load_spec(str(path))
    spec.description.metadata.userDefined[PREFIX + field] = _text(value)
    file.write_bytes(spec.SerializeToString(deterministic=True))


def features(path: Path) -> dict[str, Any]:
    """Return what a package takes and gives, as a manifest's entry.

    Returns:
        ``{"inputs", "outputs"}`` or, with several functions, ``{"functions": {name: {"inputs", "outputs",
        "states"}}}``; of every feature ``{"dtype", "shape"}``, a flexible side as ``[least, most]``.
    """
    description = load_spec(str(path)).description
    if not description.functions:
        return {"inputs": _entries(description.input), "outputs": _entries(description.output)}
    return {
        "functions": {
            function.name: {
                "inputs": _entries(function.input),
                "outputs": _entries(function.output),
                "states": _entries(function.state),
            }
            for function in sorted(description.functions, key=lambda function: function.name)
        }
    }


def _features(description: Any) -> Iterator[Any]:
    for holder in (description, *description.functions):
        yield from (*holder.input, *holder.output, *holder.state)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


_DTYPES: Final = {65552: "float16", 65568: "float32", 131104: "int32"}


def _entries(features: Any) -> dict[str, Any]:
    return {feature.name: _entry(feature.type) for feature in features}


def _entry(kind: Any) -> dict[str, Any]:
    which = kind.WhichOneof("Type")
    if which == "imageType":
        image = kind.imageType
        if image.WhichOneof("SizeFlexibility") == "imageSizeRange":
            sides = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
            shape: list[Any] = [[side.lowerBound, side.upperBound] for side in sides]
        else:
            shape = [image.height, image.width]
        return {"dtype": "rgb8", "shape": [*shape, 3]}
    array = kind.stateType.arrayType if which == "stateType" else kind.multiArrayType
    ranges = [[side.lowerBound, side.upperBound] for side in array.shapeRange.sizeRanges]
    shape = [low if low == high else [low, high] for low, high in ranges] or list(array.shape)
    return {"dtype": _DTYPES[array.dataType], "shape": shape}
