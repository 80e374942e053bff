"""From a checkpoint to a complete bundle."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pulse_edge import contract
from pulse_edge.bundle import atomic_folder, sha256_file, write_atomic, write_manifest
from pulse_edge.device import Device
from pulse_edge.doctor import installed_version
from pulse_edge.evaluate.labels import label_set
from pulse_edge.export.decoder import DecoderShape, decoder_shape, write_decoder, write_embedding
from pulse_edge.export.graphs import write_vision
from pulse_edge.export.jetson import check, write_build_files
from pulse_edge.export.onnx_writer import check_graph
from pulse_edge.export.weights import Precision
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer

INTENDED_USE = "Research and software testing. Not a medical device; not for diagnosis or treatment."
MAX_NEW_TOKENS = 128


def export_to_folder(
    checkpoint: Path,
    output: Path,
    target: str,
    device: Device,
    how: Precision,
    gate: Callable[[Path, str], dict[str, Any]] | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Do what ``pulse_edge.export.export_bundle`` promises, once its arguments are checked."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that nobody misses
    tokenizer = Tokenizer.from_folder(checkpoint)
    card = read_card(checkpoint)
    report("reading the checkpoint")
    model = load_model(checkpoint)
    shape = decoder_shape(model.config.text_config)
    with atomic_folder(output) as folder:
        report("vision graph")
        tokens = write_vision(folder / "vision.onnx", model, half=how.compute is np.float16)
        report("decoder graph")
        weights = _weights(model)
        write_embedding(folder / "embed.onnx", weights("embed_tokens.weight"), how)
        kept = write_decoder(folder / "decoder.onnx", shape, weights, how)
        if kept:
            report(f"int4 does not fit {len(kept)} layer(s), which stay in fp16")
        if model.config.merge == "spatial_unpad":
            np.save(folder / "image_newline.npy", model.model.image_newline.detach().float().numpy())
        for name in ("tokenizer.model", "tokenizer_config.json"):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, folder / name)
        write_atomic(folder / "LICENCES.txt", _licences(card).encode())
        report("checking the graphs")
        graphs = sorted(folder.glob("*.onnx"))
        for path in graphs:
            check_graph(path)
        if target == "jetson":
            check(folder, device)
            write_build_files(folder, shape, tokens, device)
        fields = _fields(checkpoint, card, model, tokenizer, shape, target, device, how, tokens)
        fields["precision"]["decoder_kept_fp16"] = kept
        fields["graphs"] = {path.stem: _graph(path) for path in graphs}
        manifest = write_manifest(folder, fields)
        if gate is not None:
            report("measuring parity")
            fields["parity"] = gate(folder, how.name)
            fields["accuracy"].append({"stage": "bundle", "parity": fields["parity"]})
            manifest = write_manifest(folder, fields)
    return manifest


def _weights(model: PulseForConditionalGeneration) -> Callable[[str], NDArray[np.float32]]:
    state = model.state_dict()
    prefix = next(name for name in state if name.endswith("embed_tokens.weight")).removesuffix(
        "embed_tokens.weight"
    )

    def weight(name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = state[name if name in state else prefix + name].float().numpy()
        return array

    return weight


def _fields(
    checkpoint: Path,
    card: dict[str, Any],
    model: PulseForConditionalGeneration,
    tokenizer: Tokenizer,
    shape: DecoderShape,
    target: str,
    device: Device,
    how: Precision,
    tokens: int,
) -> dict[str, Any]:
    labels, scoring = label_set(card)
    sources = sorted(checkpoint.glob("*.safetensors"))
    vision, table = (f"fp{8 * np.dtype(kind).itemsize}" for kind in (how.compute, how.table))
    return {
        "model": {
            "name": card["name"],
            "weights": {path.name: sha256_file(path) for path in sources},
            "parent": card["parent"],
            "recipe": card["recipe"],
            "data": card["data"],
        },
        "target": target,
        "device": {"profile": device.name, "constraints": device.constraints},
        "precision": {"vision": vision, "embed": table, "decoder": how.name, "lm_head": table},
        "preprocessing": {
            "tile_size": contract.TILE_SIZE,
            "max_tiles": contract.MAX_TILES,
            "tokens_per_tile": tokens,
            "grid_pinpoints": [list(size) for size in contract.GRID_PINPOINTS],
            "mean": list(contract.IMAGE_MEAN),
            "std": list(contract.IMAGE_STD),
            "pad_colour": list(contract.PAD_COLOUR),
            "merge": model.config.merge,
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
        "accuracy": list(card["metrics"]),
        "parity": None,
        "toolchain": _toolchain(),
        "licences": card["licences"],
        "intended_use": card["intended_use"] or INTENDED_USE,
    }


def _graph(path: Path) -> dict[str, Any]:
    graph = onnx.load(str(path), load_external_data=False).graph

    def describe(values: Any) -> dict[str, Any]:
        return {
            v.name: {
                "dtype": onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type).lower(),
                "shape": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            }
            for v in values
        }

    return {"file": path.name, "inputs": describe(graph.input), "outputs": describe(graph.output)}


def _toolchain() -> dict[str, str]:
    names = ("pulse-edge", "torch", "transformers", "onnx", "onnxscript", "numpy")
    versions = {name: installed_version(name) or "not installed as a distribution" for name in names}
    return {"python": platform.python_version(), **versions}


def _licences(card: dict[str, Any]) -> str:
    rows = [f"{row['what']}: {row['licence']}" for row in card["licences"]]
    return "\n".join(["Licences of this bundle", *rows, "", card["intended_use"] or INTENDED_USE, ""])
