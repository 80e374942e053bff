"""Open whatever answers questions: a bundle, a checkpoint, or a shipped model by name."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.contract import MANIFEST
from pulse_edge.errors import BundleError
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.session import Backend, Session


def load(path: str | PathLike[str], verify: bool = True, threads: int | None = None) -> Session:
    """Open a model. A Core ML bundle needs an Apple device; `pulse-edge run` plays it through `export`.

    Args:
        path: folder of a bundle (needs neither torch nor transformers), folder of a checkpoint, or a
            shipped name such as ``pulse-nano`` (these two run in PyTorch, as reference).
        verify: compare every file of a bundle with its manifest first.
        threads: for ONNX Runtime; all cores by default.

    Raises:
        BundleError: the bundle is damaged, incomplete or newer than this pulse-edge.
        CheckpointError: the checkpoint cannot be used.
        UnknownNameError: no such shipped model.
        MissingExtraError: a checkpoint is to be run without torch.
    """
    folder = Path(path).expanduser()
    if (folder / MANIFEST).is_file() or any(folder.glob("*.onnx")):
        return _open_bundle(folder, verify, threads)
    return _open_checkpoint(path)


def _open_bundle(folder: Path, verify: bool, threads: int | None) -> Session:
    manifest = sound_manifest(folder) if verify else read_manifest(folder)
    if manifest["target"] == "coreml":
        raise BundleError(
            f"{folder} is a Core ML bundle, which runs on an iPhone, an iPad or a Mac. Put it into an app; "
            'or play it here with `pulse-edge run`, which needs: pip install "pulse-edge[coreml]"'
        )
    from pulse_edge.runtimes.onnx import OnnxBackend

    return open_session(folder, manifest, lambda: OnnxBackend(folder, manifest, threads))


def sound_manifest(folder: Path) -> dict[str, Any]:
    """Return a bundle's manifest once every file was compared with it.

    Raises:
        BundleError: the bundle is damaged, incomplete or newer than this pulse-edge.
    """
    manifest = read_manifest(folder)
    problems = verify_bundle(folder)
    if problems:
        count = f" ({len(problems)} problems)" if len(problems) > 1 else ""
        raise BundleError(f"The bundle {folder} is not sound{count}: {problems[0]}")
    return manifest


def open_session(folder: Path, manifest: dict[str, Any], backend: Callable[[], Backend]) -> Session:
    """Open a session over the backend of a bundle.

    Raises:
        BundleError: the manifest lacks a field.
    """
    try:
        return Session(
            backend(),
            Tokenizer.from_folder(folder),
            manifest["labels"],
            manifest["scoring"],
            manifest["generation"]["max_new_tokens"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST} lacks a field ({error}). Export the bundle again.") from error


def _open_checkpoint(path: str | PathLike[str]) -> Session:
    from pulse_edge.evaluate.labels import label_set
    from pulse_edge.model.checkpoint import load_model, read_card, resolve_model

    folder = resolve_model(str(path))
    labels, scoring = label_set(read_card(folder))
    model = load_model(folder, "float32")
    from pulse_edge.model.reference import TorchBackend

    return Session(TorchBackend(model), Tokenizer.from_folder(folder), labels, scoring)
