"""From a checkpoint to a complete Core ML bundle."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from pulse_edge.bundle import atomic_folder, write_manifest
from pulse_edge.contract import CAPTURE_FACTS, MAX_TILES
from pulse_edge.device import Device
from pulse_edge.export.capture_graph.reference import LONG_SIDE
from pulse_edge.export.coreml import metadata
from pulse_edge.export.coreml.compress import check_compressed
from pulse_edge.export.coreml.decoder import MASKED, build_chunk
from pulse_edge.export.coreml.embedding import convert_embedding
from pulse_edge.export.coreml.layout import Chunk, Layout, Source, plan_chunks, plan_layout
from pulse_edge.export.coreml.package import FLOOR_NAMES, convert, finish, program
from pulse_edge.export.coreml.preprocess import convert_preprocess
from pulse_edge.export.coreml.vision import convert_vision
from pulse_edge.export.fields import bundle_fields, hash_weights, weights_of, write_companions
from pulse_edge.export.shape import DecoderShape, decoder_shape
from pulse_edge.export.weights import Precision
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.layouts import HEAD, TABLE
from pulse_edge.model.merge import KEPT
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import QuantizedWeight
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.model.weights import open_weights, take_quantized

TEXT: Final = 512  # tokens beside the image: questions and answers of a conversation about one page
# What a device may safely be asked for; the reasons stand in docs/coreml.md.
UNITS: Final = {"preprocess": "cpuAndGPU", "vision": "all", "embed": "cpuOnly", "decoder": "cpuAndGPU"}
CAPTURE_UNITS: Final = "cpuAndGPU"  # float32: what it indexes and where it samples is beyond float16


def export_to_folder(
    checkpoint: Path,
    output: Path,
    target: str,
    device: Device,
    how: Precision,
    gate: Callable[[Path, str], dict[str, Any]] | None,
    report: Callable[[str], None],
    capture: bool = False,
) -> dict[str, Any]:
    """Do what ``pulse_edge.export.export_bundle`` promises, once its arguments are checked."""
    tokenizer = Tokenizer.from_folder(checkpoint)
    card = read_card(checkpoint)
    report("reading the checkpoint")
    model = load_model(checkpoint, packed=how.name in ("int8", "int4"))  # its integers are taken below
    shape, source = decoder_shape(model.config.text_config), _source(checkpoint, model, how)
    with atomic_folder(output) as folder:
        report("vision package")
        vision, tokens = convert_vision(folder / "vision.mlpackage", model, how)
        fields = bundle_fields(
            hash_weights(checkpoint),
            card,
            model.config.merge if model.config.keep_tokens is None else KEPT,
            tokenizer,
            shape,
            target,
            device,
            how,
            tokens,
            ("coremltools",),
        )
        layout = plan_layout(shape, _context(model, shape, tokens), how)
        fields["generation"]["context"] = layout.context
        _finish(vision, folder / "vision.mlpackage", fields)
        report("preprocessing and embedding packages")
        path = folder / "preprocess.mlpackage"
        _finish(convert_preprocess(path, how.compute is np.float16), path, fields)
        path = folder / "embed.mlpackage"
        name = "embed_tokens.weight"
        table = source.integers[name] if name in source.integers else source.weights(name)
        _finish(convert_embedding(path, table, how, layout.context), path, fields)
        chunks = plan_chunks(shape, model.config.text_config.intermediate_size)
        _write_decoder(folder, layout, chunks, source, how, fields, report)
        if model.config.merge == "spatial_unpad":
            np.save(folder / "image_newline.npy", model.model.image_newline.detach().float().numpy())
        if capture:
            from pulse_edge.export.capture_graph.coreml import convert_capture

            report("capture package")
            path = folder / "capture.mlpackage"
            _finish(convert_capture(path), path, fields)
        write_companions(folder, checkpoint, card)
        packages = sorted(folder.glob("*.mlpackage"))
        fields["graphs"] = {path.stem: {"file": path.name, **metadata.features(path)} for path in packages}
        fields["coreml"] = _coreml(layout, chunks, capture)
        manifest = write_manifest(folder, fields)
        if gate is not None:
            report("measuring parity")
            fields["parity"] = gate(folder, how.name)
            fields["accuracy"].append({"stage": "bundle", "parity": fields["parity"]})
            for path in packages:
                metadata.add(path, "accuracy", fields["accuracy"])
            manifest = write_manifest(folder, fields)
    return manifest


def _write_decoder(
    folder: Path,
    layout: Layout,
    chunks: list[Chunk],
    source: Source,
    how: Precision,
    fields: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    """Write the decoder's packages one after the other."""
    for number, chunk in enumerate(chunks, 1):
        report("decoder package" if len(chunks) == 1 else f"decoder package {number} of {len(chunks)}")
        path = folder / f"{chunk.name}.mlpackage"
        functions, compressed = build_chunk(layout, chunk, source, how)
        _finish(convert(program(functions), path), path, fields)
        check_compressed(path, compressed)


def _finish(model: Any, path: Path, fields: dict[str, Any]) -> None:
    finish(model, path, lambda spec: metadata.describe(spec, path.stem, fields))


def _context(model: PulseForConditionalGeneration, shape: DecoderShape, tokens: int) -> int:
    """Tokens that the cache shall hold: a state has one size, so not more than a conversation needs.

    Merging ``spatial_unpad`` adds one newline for each row of tokens; a page is at most two tiles high
    where it has four, and three where it has three.
    """
    visual = MAX_TILES * tokens
    if model.config.merge != "flat":
        visual += 3 * math.isqrt(tokens)
    return min(shape.context, visual + TEXT)


def _source(checkpoint: Path, model: PulseForConditionalGeneration, how: Precision) -> Source:
    """Give the decoder's weights and, for the integer precisions, the checkpoint's own integers."""
    integers: dict[str, QuantizedWeight] = {}
    if how.name in ("int8", "int4"):
        found = take_quantized(open_weights(checkpoint))
        integers = {
            ("lm_head.weight" if name == HEAD else name.removeprefix("text.")): weight
            for name, weight in found.items()
        }
        if model.config.tie_word_embeddings and TABLE in found:
            integers["lm_head.weight"] = found[TABLE]
    return Source(weights_of(model), integers)


def _coreml(layout: Layout, chunks: list[Chunk], capture: bool) -> dict[str, Any]:
    """Return what an app must know beside the packages' own features."""
    known: dict[str, Any] = {
        "floor": FLOOR_NAMES,
        "compute_units": dict(UNITS),
        "decoder": {
            "graphs": [chunk.name for chunk in chunks],
            "cache": layout.cache,
            "prefill": layout.prefill,
            "masked": MASKED,
        },
    }
    if capture:
        known["compute_units"]["capture"] = CAPTURE_UNITS
        known["capture"] = {"side": LONG_SIDE, "facts": list(CAPTURE_FACTS)}
    return known
