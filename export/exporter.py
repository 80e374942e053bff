"""From a checkpoint to a complete bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pulse_edge.bundle import atomic_folder, write_manifest
from pulse_edge.device import Device
from pulse_edge.export.decoder import write_decoder, write_embedding
from pulse_edge.export.fields import bundle_fields, weights_of, write_companions
from pulse_edge.export.graphs import write_vision
from pulse_edge.export.jetson import check, write_build_files
from pulse_edge.export.onnx_writer import check_graph
from pulse_edge.export.shape import decoder_shape
from pulse_edge.export.weights import Precision
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.tokenizer import Tokenizer


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
        weights = weights_of(model)
        write_embedding(folder / "embed.onnx", weights("embed_tokens.weight"), how)
        kept = write_decoder(folder / "decoder.onnx", shape, weights, how)
        if kept:
            report(f"int4 does not fit {len(kept)} layer(s), which stay in fp16")
        if model.config.merge == "spatial_unpad":
            np.save(folder / "image_newline.npy", model.model.image_newline.detach().float().numpy())
        write_companions(folder, checkpoint, card)
        report("checking the graphs")
        graphs = sorted(folder.glob("*.onnx"))
        for path in graphs:
            check_graph(path)
        if target == "jetson":
            check(folder, device)
            write_build_files(folder, shape, tokens, device)
        fields = bundle_fields(
            checkpoint, card, model, tokenizer, shape, target, device, how, tokens, ("onnx", "onnxscript")
        )
        fields["precision"]["decoder_kept_fp16"] = kept
        fields["graphs"] = {path.stem: _graph(path) for path in graphs}
        manifest = write_manifest(folder, fields)
        if gate is not None:
            report("measuring parity")
            fields["parity"] = gate(folder, how.name)
            fields["accuracy"].append({"stage": "bundle", "parity": fields["parity"]})
            manifest = write_manifest(folder, fields)
    return manifest


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
