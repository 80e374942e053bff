"""Parity of a bundle whose checkpoint is too large for PyTorch on this machine: both, layer by layer.

Every layer is loaded once in PyTorch, in float32, and once as a part of the bundle's graph in ONNX Runtime;
each side hands its own hidden states to its own next layer. What is compared in the end is the whole
computation. It is reduced in one way, which the result says: of the picture's tokens, only some are read.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModel, DynamicCache

from pulse_edge.export.ort_decoder import TOTAL
from pulse_edge.export.prompts import Questions, text_tokens, tiles_of, visual_tokens
from pulse_edge.export.slices import Graph, open_model, run
from pulse_edge.model.checkpoint import compute_buffers
from pulse_edge.model.layouts import HEAD, NEWLINE, TABLE, canonical, pulse_config
from pulse_edge.model.merge import KEPT
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.quantized import INTEGERS, SCALE, ZERO, quantized_weight
from pulse_edge.model.reference import cache_argument
from pulse_edge.model.spread import spread_positions
from pulse_edge.model.weights import open_weights, read_json

Array = NDArray[np.float32]
# Reads hidden states behind a cache: (states [1, S, H], cache) -> (states, cache).
Layer = Callable[[Array, Any], tuple[Array, Any]]
PROMPT: Final = 32  # as runtimes/cache.py
VISUAL: Final = 64  # of the picture's tokens; all of them would take minutes a layer


class _Checkpoint:
    """The checkpoint in PyTorch, a piece at a time; weights are memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.weights = open_weights(folder)
        shapes = {name.removesuffix(INTEGERS): tuple(w.shape) for name, w in self.weights.items()}
        fields = pulse_config(read_json(folder / "config.json"), shapes)
        self.config = PulseConfig.from_dict(fields)
        text = {**self.config.text_config.to_dict(), "num_hidden_layers": 1}
        text.pop("layer_types", None)
        self.text = type(self.config.text_config).from_dict(text)
        self.layers = int(self.config.text_config.num_hidden_layers)

    def get(self, name: str) -> torch.Tensor:
        if name in self.weights:
            tensor = self.weights[name]
            return tensor.float() if tensor.is_floating_point() else tensor
        parts = {
            name + part: self.weights[name + part].numpy()
            for part in (INTEGERS, SCALE, ZERO)
            if name + part in self.weights
        }
        return torch.from_numpy(quantized_weight(name, parts).dequantize())

    def rows(self, ids: list[int]) -> Array:
        if TABLE not in self.weights:
            return self.get(TABLE)[ids].numpy()
        return self.weights[TABLE][ids].float().numpy()

    @torch.inference_mode()
    def features(self, tiles: Array, count: int) -> Array:
        with torch.device("meta"):
            model = PulseForConditionalGeneration(self.config)
        names = {name: canonical(name) for name in model.state_dict()}
        state = {
            own: self.get(name) for own, name in names.items() if name.startswith(("vision.", "projector."))
        }
        model.load_state_dict(state, assign=True, strict=False)
        compute_buffers(model)
        return model.eval().encode_images(torch.from_numpy(tiles[:count])).numpy()

    def layer(self, i: int) -> Layer:
        with torch.device("meta"):
            model = AutoModel.from_config(self.text)
        model.norm = nn.Identity()
        model.rotary_emb = type(model.rotary_emb)(self.text)
        spread_positions(model)
        one = model.layers[0]
        one.load_state_dict({k: self.get(f"text.layers.{i}.{k}") for k in one.state_dict()}, assign=True)
        model.eval()

        @torch.inference_mode()
        def read(states: Array, cache: Any) -> tuple[Array, Any]:
            cache = DynamicCache() if cache is None else copy.deepcopy(cache)
            start = int(cache.get_seq_length())
            out = model(
                inputs_embeds=torch.from_numpy(states),
                position_ids=torch.arange(start, start + states.shape[1])[None],
                use_cache=True,
                **cache_argument(model, cache),
            ).last_hidden_state
            return out.numpy(), cache

        return read

    @torch.inference_mode()
    def logits(self, last: list[Array]) -> list[Array]:
        with torch.device("meta"):
            norm = AutoModel.from_config(self.text).norm
        norm.load_state_dict({"weight": self.get("text.norm.weight")}, assign=True)
        tied = self.config.tie_word_embeddings
        head = self.get(TABLE if tied else HEAD)
        return [(norm(torch.from_numpy(x[0, -1:])) @ head.T)[0].numpy() for x in last]


class _Bundle:
    """The bundle in ONNX Runtime, a part of its decoder at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.graph = Graph.read(folder / "decoder.onnx")
        self.cuts = list(self.graph.parts())
        prompt = folder / "prompt.onnx"  # which has the same parts
        self.prompt = Graph.read(prompt) if prompt.is_file() else self.graph
        self.table = self._open("embed")

    def _open(self, name: str) -> Any:
        return open_model(onnx.load(str(self.folder / f"{name}.onnx"), load_external_data=False), self.folder)

    def rows(self, ids: list[int]) -> Array:
        return text_tokens(ids, self.table)

    def features(self, tiles: Array, count: int) -> Array:
        result: Array = self._open("vision").run(["image_features"], {"pixel_values": tiles})[0]
        return result

    def layer(self, i: int) -> Layer:
        inputs, outputs = self.cuts[i]
        session, many = (open_model(g.part(inputs, outputs), self.folder) for g in (self.graph, self.prompt))
        names = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        shape = [n if isinstance(n, int) else 0 for n in self.graph.shapes[names[0]]]

        def read(states: Array, cache: Any) -> tuple[Array, Any]:
            past = cache or dict.fromkeys(names, np.zeros(shape, np.float32))
            # positions come from the first layer's cache, whose length is that of every layer's
            total = past[names[0]].shape[2] + states.shape[1]  # what only the profile ort asks for
            feed = {"inputs_embeds": states, "past_key_values.0.key": past[names[0]], **past}
            feed[TOTAL] = np.array([total], np.int32)
            feed.update(dict.fromkeys(inputs, states))
            found = run(many if states.shape[1] >= PROMPT else session, feed, outputs)
            present = dict(zip(names, (found[name] for name in outputs[1:]), strict=True))
            return found[outputs[0]].astype(np.float32), present

        return read

    def logits(self, last: list[Array]) -> list[Array]:
        inputs, outputs = self.cuts[-1]
        session = open_model(self.graph.part(inputs, outputs), self.folder)
        return [run(session, {inputs[0]: x}, outputs)["logits"][0] for x in last]


def answers(
    side: Any,
    tiles: Array,
    place: tuple[int, tuple[int, int], str, Any],
    questions: Questions,
    tick: Callable[[], None],
) -> tuple[list[Array], Array]:
    """Everything one side says: logits behind the report's question, behind each token of the answer, and
    behind each label's question; and the picture's features."""
    count, size, merge, newline = place
    features = side.features(tiles, count)
    features = features if merge == KEPT else features[:count]
    gc.collect()
    seen = visual_tokens(features, count, size, merge, newline, VISUAL)
    first = np.concatenate([side.rows(questions.before), seen])[None]
    branches = [[questions.report, *([token] for token in questions.answer)]]
    branches += [[ids] for ids in questions.labels.values()]
    states = [[side.rows(ids)[None] for ids in branch] for branch in branches]
    for i in range(side_layers(side)):
        layer = side.layer(i)
        first, shared = layer(first, None)
        for branch in states:
            cache = shared
            for at, state in enumerate(branch):
                branch[at], cache = layer(state, cache)
        del layer
        gc.collect()
        tick()
    return side.logits([state for branch in states for state in branch]), features


def side_layers(side: Any) -> int:
    """Layers of the decoder."""
    return len(side.cuts) - 1 if isinstance(side, _Bundle) else int(side.layers)


def compare_streamed(
    checkpoint: Path,
    folder: Path,
    page: NDArray[np.uint8],
    questions: Questions,
    limits: dict[str, float],
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Compare a bundle with its checkpoint on one page, layer by layer.

    Args:
        checkpoint: folder.
        folder: of the bundle, which need not have its name yet.
        page: uint8 [H, W, 3] RGB.
        questions: that are asked.
        limits: largest differences of a logit and of a probability.
        tick: called with layers that were run, of both sides, and all.

    Returns:
        The fields of ``evaluate.parity.compare``, with ``kind`` ``"streamed"``, ``visual_tokens`` (read, of
        how many) and ``features_max_abs``, relative to the spread of the features.
    """
    tiles, count, size = tiles_of(page)
    reference, candidate = _Checkpoint(checkpoint), _Bundle(folder)
    merge = reference.config.merge if reference.config.keep_tokens is None else KEPT
    newline = reference.get(NEWLINE).numpy() if merge == "spatial_unpad" else None
    place = (count, size, merge, newline)
    total, done = 2 * reference.layers, 0

    def count_up() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    expected, features = answers(reference, tiles, place, questions, count_up)
    found, ours = answers(candidate, tiles, place, questions, count_up)
    tokens = len(visual_tokens(features, count, size, merge, newline, None))
    gaps = [np.abs(a - b) for a, b in zip(expected, found, strict=True)]
    steps = len(questions.answer)
    chances = [[_chance(logits, questions) for logits in side[steps + 1 :]] for side in (expected, found)]
    pairs = list(zip(*chances, strict=True))
    said = [int(a.argmax()) == int(b.argmax()) for a, b in zip(expected, found, strict=True)][: steps + 1]
    return {
        "kind": "streamed",
        "pages": 1,
        "visual_tokens": [min(VISUAL, tokens), tokens],
        "features_max_abs": float(np.abs(features - ours).max() / np.ptp(features)),
        "logits_max_abs": float(np.max(gaps[0])),
        "logits_mean_abs": float(np.mean(gaps[0])),
        "decode_logits_max_abs": float(np.max(gaps[1 : steps + 1])),
        "greedy_agreement": float(np.mean(said)),
        "probability_max_abs": float(np.max([abs(p - q) for p, q in pairs])),
        "label_flips": sum((p >= 0.5) != (q >= 0.5) for p, q in pairs),
        "labels": len(pairs),
        "limits": limits,
    }


def _chance(logits: Array, questions: Questions) -> float:
    gap = float(logits[questions.negative] - logits[questions.positive])
    return float(1.0 / (1.0 + np.exp(np.clip(gap, -80.0, 80.0))))
