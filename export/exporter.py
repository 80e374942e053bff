"""From a checkpoint to a complete bundle."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pulse_edge.bundle import write_manifest
from pulse_edge.evaluate.labels import label_set
from pulse_edge.export.checks import Pages, execute_profiles, keep_in_range
from pulse_edge.export.fields import bundle_fields, hash_weights, toolchain, write_companions
from pulse_edge.export.jetson import add_capture_engine, bounded, check, write_build_files
from pulse_edge.export.journal import Journal, files_of, fingerprint, partial_folder
from pulse_edge.export.onnx_writer import check_graph
from pulse_edge.export.prompts import Questions
from pulse_edge.export.source import Source
from pulse_edge.export.stream import Options, Plan, plan_bundle, refuse_full_disk
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.layouts import NEWLINE
from pulse_edge.model.tokenizer import Tokenizer

TOOLS = ("onnx", "onnxscript")


def export_to_folder(
    source: Source, output: Path, options: Options, gate: Callable[[Path, str], dict[str, Any]] | None
) -> dict[str, Any]:
    """Do what ``pulse_edge.export.export_bundle`` promises, once its arguments are checked."""
    how, report, checkpoint = options.how, options.report, source.folder
    tokenizer, card = Tokenizer.from_folder(checkpoint), read_card(checkpoint)
    report("reading the checkpoint")
    if len(source.kinds) > 1:
        report("weights of several types: " + ", ".join(f"{n} {kind}" for kind, n in source.kinds.items()))
    with partial_folder(output, _key(checkpoint, options), options.resume) as (folder, journal):
        plan = plan_bundle(folder, source, how)
        refuse_full_disk(folder, plan.bytes)
        with ThreadPoolExecutor(1) as thread:
            hashes = thread.submit(hash_weights, checkpoint)
            known = _write_graphs(folder, plan, source, journal, options)
            weights = hashes.result()
        rounded = None
        if options.vision_tiles:
            from pulse_edge.export.vision_int8 import round_vision

            report("rounding the vision graph")
            rounded = round_vision(folder / "vision.onnx", options.vision_tiles)
            known.pop("vision.onnx.data", None)
        if plan.kept:
            report(f"int4 does not fit {len(plan.kept)} layer(s), which stay in fp16")
        tokens = _copy_rest(folder, checkpoint, source, card)
        if options.target == "jetson":
            source.shape = bounded(source.shape, tokens)
            write_build_files(folder, source.shape, tokens, options.device)
        fields = bundle_fields(
            weights,
            card,
            source.merge,
            tokenizer,
            source.shape,
            options.target,
            options.device,
            how,
            tokens,
            TOOLS,
        )
        fields["model"]["weight_types"] = source.kinds
        if source.clip and how.profile == "ort" and how.bits < 16:
            fields["precision"]["vision"] = "int8"
        fields["precision"] |= {"decoder_kept_fp16": plan.kept, "decoder_profile": how.profile}
        fields["checks"] = {}
        if options.pages:
            fields["checks"] = _try_out(
                folder, source, Questions.read(tokenizer, *label_set(card)), options, tokens
            )
        if rounded is not None:
            fields["precision"]["vision"] = "int8"
            fields["checks"]["vision_int8"] = rounded
        if options.capture:
            _write_capture(folder, options)
        fields["graphs"] = {path.stem: _graph(path) for path in sorted(folder.glob("*.onnx"))}
        report("hashing")
        manifest = write_manifest(folder, fields, known)
        if gate is not None:
            report("measuring parity")
            fields["parity"] = gate(folder, _limits(options))
            fields["accuracy"].append({"stage": "bundle", "parity": fields["parity"]})
            known = {name: entry["sha256"] for name, entry in manifest["files"].items()}
            manifest = write_manifest(folder, fields, known)
    return manifest


def _limits(options: Options) -> str:
    """The precision whose limits of parity hold for a bundle; rounded activations move the most."""
    if options.vision_tiles:
        return "int4"
    return "fp16" if options.how.given else options.how.name


def _write_graphs(
    folder: Path, plan: Plan, source: Source, journal: Journal, options: Options
) -> dict[str, str]:
    """Check the graphs before a weight is read, then write the weights; return the hashes that are known."""
    done = 0

    def tick(size: int) -> None:
        nonlocal done
        done += size
        options.tick(done, plan.weights)

    for writer in plan.writers:
        writer.reserve()
    if not source.clip:
        options.report("vision graph")
        _trace_vision(folder, source, journal, options.how.compute is np.float16)
    options.report("checking the graphs")
    _check_graphs(folder, options)
    known = {}
    for writer in plan.writers:
        options.report(f"{writer.name} weights")
        known[writer.data.name] = journal.fill(writer, tick)
    return {name: digest for name, digest in known.items() if digest is not None}


def _trace_vision(folder: Path, source: Source, journal: Journal, half: bool) -> None:
    """Write the graph and weights of a tower that is not CLIP's, or take them as they were written before."""
    graph, kept = folder / "vision.onnx", folder.parent / "vision.onnx"
    if graph.name in journal.done:
        shutil.copyfile(kept, graph)  # which may have been widened since
        return
    write_vision(graph, source.folder, half)
    shutil.copyfile(graph, kept)
    for path in (graph, kept, folder / "vision.onnx.data"):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    journal.finish([graph.name])


def _try_out(
    folder: Path, source: Source, questions: Questions, options: Options, tokens: int
) -> dict[str, Any]:
    """Run the bundle's graphs in ONNX Runtime; widen what overflows."""
    found: dict[str, Any] = {}
    if options.how.compute is np.float16:
        options.report("observing the range of float16")
        newline = source.array(NEWLINE) if source.merge == "spatial_unpad" else None
        pages = Pages(options.pages, questions, source.merge, newline)
        found["fp16_range"] = keep_in_range(folder, source.shape, pages)
        if found["fp16_range"]["kept_fp32"]:
            _check_graphs(folder, options)
    if options.target == "jetson":
        found["profiles"] = execute_profiles(folder, source.shape, tokens, options.report)
    return found


def _write_capture(folder: Path, options: Options) -> None:
    """Write the graph that makes tiles of photos, in float32 whatever the model's precision is."""
    from pulse_edge.export.capture_graph.onnx import write_onnx

    options.report("capture graph")
    write_onnx(folder / "capture.onnx")
    if options.target == "jetson":
        check(folder, options.device)
        add_capture_engine(folder)


def _check_graphs(folder: Path, options: Options) -> None:
    for path in sorted(folder.glob("*.onnx")):
        check_graph(path)
    if options.target == "jetson":
        check(folder, options.device)


def write_vision(path: Path, checkpoint: Path, half: bool) -> None:
    """Write ``vision.onnx`` of a tower that is not CLIP's, by torch.onnx; its weights come with it."""
    from pulse_edge.export.graphs import write_vision as trace

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that nobody misses
    trace(path, load_model(checkpoint), half)


def _copy_rest(folder: Path, checkpoint: Path, source: Source, card: dict[str, Any]) -> int:
    """Put what is neither graph nor manifest into a bundle; return the tokens of a tile."""
    if source.merge == "spatial_unpad":
        np.save(folder / "image_newline.npy", source.array(NEWLINE))
    write_companions(folder, checkpoint, card)
    return int(_graph(folder / "vision.onnx")["outputs"]["image_features"]["shape"][1])


def _key(checkpoint: Path, options: Options) -> str:
    """Fingerprint of all that the bytes of a bundle depend on."""
    how = options.how
    return fingerprint(
        {
            "files": files_of(checkpoint),
            "options": [
                options.target,
                options.device.name,
                how.name,
                how.profile,
                how.given,
                options.capture,
            ],
            "toolchain": toolchain(TOOLS),
        }
    )


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
