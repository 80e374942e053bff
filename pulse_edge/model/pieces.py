"""A checkpoint in PyTorch, a piece at a time, for models that are larger than the memory.

The model is built without weights. A decoder layer, or the part that reads pictures, is filled from the
checkpoint while it is used. Weights are read with plain reads (:mod:`.shards`): mapped pages would count as
this process's memory for as long as they stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pulse_edge.errors import CheckpointError
from pulse_edge.model.checkpoint import compute_buffers
from pulse_edge.model.layouts import HEAD, NEWLINE, TABLE, canonical, pulse_config
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.shards import Shards
from pulse_edge.model.weights import brief, read_json, refuse

_PICTURES = ("vision.", "projector.", NEWLINE, TABLE)


class Pieces:
    """An opened checkpoint.

    Args:
        folder: in any layout that :mod:`.layouts` reads; weights may stand as integers.

    Attributes:
        shards: its weights, by canonical name.
        model: without weights, but with its constants.
        names: canonical name of every weight that the checkpoint holds, by the model's own.

    Raises:
        CheckpointError: anything is missing, left over, damaged or of another shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.shards = folder, Shards(folder)
        settings = folder / "config.json"
        raw = read_json(settings)
        try:
            config = PulseConfig.from_dict(pulse_config(raw, self.shards.shapes))
            with torch.device("meta"):
                self.model = PulseForConditionalGeneration(config).eval()
        except CheckpointError:
            raise
        except Exception as error:  # whatever a wrong value in the file leads to
            raise CheckpointError(
                f"{settings} does not describe a model ({brief(error)}). Restore the original file."
            ) from error
        compute_buffers(self.model.model.language_model)
        places = {canonical(own): (own, tuple(place.shape)) for own, place in self.model.state_dict().items()}
        if config.tie_word_embeddings:
            places.pop(HEAD, None)
        if config.merge == "flat" and NEWLINE not in self.shards.shapes:
            places.pop(NEWLINE, None)  # has a place, but is never read
        shapes = self.shards.shapes
        refuse(folder, "lacks", shapes, places, "Download it again, completely.")
        refuse(folder, "has no use for", places, shapes, "Restore its config.json.")
        for name, (_, shape) in places.items():
            if shapes[name] != shape:
                raise CheckpointError(
                    f"{folder} holds {name} of shape {list(shapes[name])}, but its config.json asks for "
                    f"{list(shape)}. Restore its config.json."
                )
        self.names = {own: name for name, (own, _) in places.items()}

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return len(self.model.model.language_model.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type in which what is not rounded is written: that of the decoder's last norm."""
        return self.tensor("text.norm.weight").dtype

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a weight by its canonical name, or its entries ``start`` to ``stop`` along the first axis.

        It comes in the checkpoint's type; integers come as the values that they stand for, float32.
        """
        shape = self.shards.shape(name)
        if not shape:
            return torch.from_numpy(self.shards.rows(name, 0, 1).reshape(-1)[:1].copy())[0]
        rows = self.shards.rows(name, start, shape[0] if stop is None else stop)
        if self.shards.kind(name) == "BF16":
            return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(rows)

    def layer(self, number: int) -> nn.Module:
        """Return a decoder layer with its weights, float32.

        Raises:
            CheckpointError: a weight holds values that are no numbers.
        """
        layer: nn.Module = copy.deepcopy(self.model.model.language_model.layers[number])
        state = {own: self.tensor(name).float() for own, name in self.inside(number).items()}
        broken = [own for own, weight in state.items() if not weight.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"Layer {number} of the checkpoint holds {broken[0]} with values that are no numbers. "
                "Download or train the checkpoint again."
            )
        layer.load_state_dict(state, assign=True)
        return layer

    def inside(self, number: int) -> dict[str, str]:
        """Return the canonical names of a decoder layer's weights, by their names inside the layer."""
        keys = self.model.model.language_model.layers[number].state_dict()
        return {own: f"text.layers.{number}.{own}" for own in keys}

    @contextmanager
    def pictures(self) -> Iterator[PulseForConditionalGeneration]:
        """Fill tower, projector and embedding table, float32, for as long as the context lasts."""
        state = {
            own: _float(self.tensor(name)) for own, name in self.names.items() if name.startswith(_PICTURES)
        }
        if self.model.config.merge == "flat":
            state.setdefault("model.image_newline", torch.zeros(self.shards.shape(TABLE)[1]))
        try:
            self.model.load_state_dict(state, assign=True, strict=False)
            compute_buffers(self.model)
            yield self.model
        finally:
            for part in ("vision_tower", "multi_modal_projector"):
                getattr(self.model.model, part).to("meta")
            self.model.get_input_embeddings().to("meta")


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
