"""What a package declares of its inputs, outputs and states, and the way from a user's arrays to tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.errors import BundleError, UserError
from pulse_edge.export.milrun.registry import Tensor

# ArrayFeatureType.ArrayDataType and ImageFeatureType.ColorSpace
_ARRAYS: Final = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_COLOURS: Final = {10: "grey", 20: "rgb", 30: "bgr", 40: "grey16"}
_HALF_MAX: Final = 65504.0

Ranges = tuple[tuple[int, int | None], ...]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Feature:
    """One declared input, output or state.

    Attributes:
        name: in the program.
        kind: ``"array"``, ``"image"`` or ``"state"``.
        dtype: numpy's name of the declared element type; ``"uint8"`` for pictures.
        shape: the default shape; of pictures [H, W, 3] or [H, W], as they are handed over.
        ranges: for each dimension the least and the greatest length, None for no limit; empty if fixed.
        shapes: the shapes allowed, if they are listed; empty otherwise.
        colour: of pictures: ``"rgb"``, ``"bgr"``, ``"grey"`` or ``"grey16"``.
        optional: whether the input may be left out; then ``default`` stands in.
        default: value of every element of an optional input left out.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    ranges: Ranges = ()
    shapes: Shapes = ()
    colour: str | None = None
    optional: bool = False
    default: float | None = None

    def to_tensor(self, value: Any) -> Tensor:
        """Check a user's value and return what Core ML would feed the program.

        An array keeps its shape, as float32 or int32; a picture becomes float32 [1, C, H, W], 0 to 255.

        Raises:
            UserError: shape, type or range are not those declared.
        """
        if self.kind == "image":
            return self._picture(value)
        array = np.asarray(value)
        self._check_shape(array.shape)
        if self.dtype.startswith("float"):
            if array.dtype.kind not in "fiub":
                raise UserError(f"The input {self.name} takes real numbers, not {array.dtype}. Convert it.")
            real = array.astype(np.float32)
            if self.dtype == "float16" and (np.isfinite(real) & (np.abs(real) > _HALF_MAX)).any():
                raise UserError(
                    f"The input {self.name} is declared float16, which ends at {_HALF_MAX:.0f}; a value of "
                    f"{np.abs(real[np.isfinite(real)]).max():g} does not fit. Use a smaller one, or infinity."
                )
            return torch.from_numpy(real)
        if array.dtype.kind not in "iub":
            raise UserError(f"The input {self.name} takes {self.dtype}, not {array.dtype}. Convert it first.")
        limits = np.iinfo(self.dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise UserError(f"The input {self.name} holds values beyond {self.dtype}. Check what is fed.")
        return torch.from_numpy(array.astype(np.int32))

    def filled(self) -> Tensor:
        """Return the default of an optional input that was left out."""
        kind = torch.float32 if self.dtype.startswith("float") else torch.int32
        return torch.full(self.shape, self.default or 0, dtype=kind)

    def from_tensor(self, value: Tensor, half: bool) -> NDArray[Any]:
        """Return an output as an array of the declared type; halves stay float32 unless ``half``.

        Pictures are rounded and kept within 0 to 255.
        """
        if self.kind == "image":
            planes = value.reshape(value.shape[-3:]).round().clamp(0, 255).to(torch.uint8)
            picture = planes.permute(1, 2, 0).numpy()
            picture = picture[:, :, ::-1] if self.colour == "bgr" else picture
            return np.ascontiguousarray(picture if self.shape[2:] else picture[:, :, 0])
        dtype = "float32" if self.dtype == "float16" and not half else self.dtype
        return value.numpy().astype(dtype)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if self.shapes:
            allowed = shape in self.shapes
        elif self.ranges:
            allowed = len(shape) == len(self.ranges) and all(
                low <= length and (high is None or length <= high)
                for length, (low, high) in zip(shape, self.ranges, strict=True)
            )
        else:
            allowed = shape == self.shape
        if not allowed:
            raise UserError(
                f"The input {self.name} has the shape {list(shape)}; the package takes {self.allowed()}. "
                "Give it one of those."
            )

    def allowed(self) -> str:
        """Return the allowed shapes in words."""
        if self.shapes:
            return " or ".join(str(list(shape)) for shape in self.shapes)
        if self.ranges:
            parts = [
                str(low) if low == high else f"{low}..{'' if high is None else high}"
                for low, high in self.ranges
            ]
            return f"[{', '.join(parts)}]"
        return str(list(self.shape))

    def _picture(self, value: Any) -> Tensor:
        if isinstance(value, Image.Image):
            value = np.asarray(value.convert("RGB" if self.shape[2:] else "L"))
        picture = np.asarray(value)
        wanted = "uint8 [H, W, 3] in RGB" if self.shape[2:] else "uint8 [H, W]"
        if (
            picture.dtype != np.uint8
            or picture.ndim != len(self.shape)
            or picture.shape[2:] != self.shape[2:]
        ):
            raise UserError(
                f"The input {self.name} is a picture: a Pillow image or {wanted}, not {picture.dtype} "
                f"{list(picture.shape)}. Convert it first."
            )
        self._check_shape(picture.shape)
        planes = torch.from_numpy(picture.astype(np.float32))
        planes = planes.permute(2, 0, 1) if planes.ndim == 3 else planes.unsqueeze(0)
        return (planes.flip(0) if self.colour == "bgr" else planes).unsqueeze(0)


def read_feature(description: Any, where: str) -> Feature:
    """Read a ``FeatureDescription`` of the protobuf.

    Raises:
        BundleError: the feature is neither an array, a picture nor a state.
    """
    name, kind = description.name, description.type.WhichOneof("Type")
    if kind == "imageType":
        return _image(name, description.type.imageType, description.type.isOptional)
    if kind == "stateType":
        array = description.type.stateType.arrayType
        return Feature(name, "state", _ARRAYS.get(array.dataType, "float32"), _ints(array.shape))
    if kind != "multiArrayType" or description.type.multiArrayType.dataType not in _ARRAYS:
        raise BundleError(
            f"{name} of {where} is a {kind or 'feature without a type'}; milrun knows arrays, pictures and "
            "states. Convert the model without a class label."
        )
    array = description.type.multiArrayType
    ranges: Ranges = ()
    shapes: Shapes = ()
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "shapeRange":
        ranges = tuple(_limits(size) for size in array.shapeRange.sizeRanges)
    elif flexible == "enumeratedShapes":
        shapes = tuple(_ints(one.shape) for one in array.enumeratedShapes.shapes)
    default = array.WhichOneof("defaultOptionalValue")
    value = float(getattr(array, default)) if default else None
    optional = description.type.isOptional
    dtype = _ARRAYS[array.dataType]
    return Feature(name, "array", dtype, _ints(array.shape), ranges, shapes, None, optional, value)


def _image(name: str, image: Any, optional: bool) -> Feature:
    colour = _COLOURS.get(image.colorSpace)
    if colour is None:
        raise BundleError(f"The picture {name} has no colour space. Copy or export the package again.")
    planes = (3,) if colour in ("rgb", "bgr") else ()
    fixed = tuple((n, n) for n in planes)
    shape = (int(image.height), int(image.width), *planes)
    flexible = image.WhichOneof("SizeFlexibility")
    ranges: Ranges = ()
    shapes: Shapes = ()
    if flexible == "imageSizeRange":
        span = image.imageSizeRange
        ranges = (_limits(span.heightRange), _limits(span.widthRange), *fixed)
    elif flexible == "enumeratedSizes":
        shapes = tuple((int(s.height), int(s.width), *planes) for s in image.enumeratedSizes.sizes)
    return Feature(name, "image", "uint8", shape, ranges, shapes, colour, optional)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _limits(size: Any) -> tuple[int, int | None]:
    return int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)
