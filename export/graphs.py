"""The vision tower and projector as an exportable module, and its ONNX graph."""

from __future__ import annotations

import copy
import errno
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pulse_edge.contract import MAX_TILES, TILE_SIZE
from pulse_edge.errors import PulseEdgeError
from pulse_edge.model.ink import kept_tokens
from pulse_edge.model.pulse import PulseForConditionalGeneration

VISION_OPSET = 18  # below the Gelu operator, which older TensorRT lacks: it becomes Erf


class VisionGraph(nn.Module):
    """Tower, feature selection and projector: float32 [5, 3, 336, 336] -> float32 [5, T, H].

    With ``keep_tokens``, T is a fifth of them, chosen of the whole page.

    Args:
        model: the whole PULSE; it is copied, not changed.
        half: compute in float16, layer norms excepted.
        rank: type in which visual tokens are ranked, see ``model.ink.kept_tokens``.
    """

    def __init__(
        self, model: PulseForConditionalGeneration, half: bool, rank: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.rank = rank
        config = model.config
        self.layer = config.vision_feature_layer
        self.skip = 1 if config.vision_feature_select_strategy == "default" else 0
        self.keep, self.keep_by = config.keep_tokens, config.keep_by
        self.tower = fold_norms(copy.deepcopy(model.model.vision_tower).float().eval())
        self.projector = copy.deepcopy(model.model.multi_modal_projector).float().eval()
        self.dtype = torch.float16 if half else torch.float32
        if half:
            self.half()
            _widen_layer_norms(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the features of five tiles, before merging."""
        hidden = self.tower(pixel_values.to(self.dtype), output_hidden_states=True).hidden_states
        features = hidden[self.layer][:, self.skip :]
        if self.keep is not None:
            index = kept_tokens(pixel_values, features.shape[1], self.keep, self.keep_by, self.rank)
            rows = features.reshape(-1, features.shape[-1]).index_select(0, index)
            features = rows.reshape(MAX_TILES, self.keep // MAX_TILES, features.shape[-1])
        projected: Tensor = self.projector(features).float()
        return projected


class _WideLayerNorm(nn.LayerNorm):
    """Layer norm whose mean and variance are float32: in float16 the squares of large channels overflow."""

    def forward(self, x: Tensor) -> Tensor:
        wide = nn.functional.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return wide.to(x.dtype)


def _widen_layer_norms(module: nn.Module) -> None:
    for child in module.modules():
        if type(child) is nn.LayerNorm:
            child.__class__ = _WideLayerNorm


def fold_norms(tower: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place; return the tower.

    The convolution and its norm are recognised by name: ``conv1``/``norm1``, ``down``/``norm``.
    """
    for module in list(tower.modules()):
        for conv, norm in (("conv1", "norm1"), ("conv2", "norm2"), ("down", "norm")):
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    return tower


def write_vision(path: Path, model: PulseForConditionalGeneration, half: bool) -> int:
    """Write ``vision.onnx`` with its weights beside it.

    Returns:
        T of the output [5, T, H].
    """
    module = VisionGraph(model, half).eval()
    example = torch.zeros(MAX_TILES, 3, TILE_SIZE, TILE_SIZE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        tokens = int(module(example).shape[1])
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=VISION_OPSET,
            input_names=["pixel_values"],
            output_names=["image_features"],
            verbose=False,
        )
        if program is None:  # the dynamo exporter always returns one
            raise PulseEdgeError("torch.onnx returned no graph. Install torch >=2.9,<2.14.")
        _strip(program.model)
        _save(program, path)
    return tokens


def _save(program: torch.onnx.ONNXProgram, path: Path) -> None:
    try:
        program.save(str(path), external_data=True)
    except OSError as error:
        if error.errno is not None:
            raise
        # numpy's tofile, which torch uses, says how much it wrote, but not that the disk was full.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _strip(model: object) -> None:
    """Remove what names this machine and differs between runs: stack traces and source paths."""
    for node in model.graph.all_nodes():  # type: ignore[attr-defined]
        node.metadata_props.clear()
        node.doc_string = None
    for value in [*model.graph.inputs, *model.graph.outputs]:  # type: ignore[attr-defined]
        value.metadata_props.clear()
