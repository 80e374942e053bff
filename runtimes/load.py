"""Open whatever answers questions: a bundle, a checkpoint, or a shipped model by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.bundle.manifest import ENGINES
from pulse_edge.bundle.signature import required_keys
from pulse_edge.contract import MANIFEST
from pulse_edge.errors import BundleError, UnknownNameError, UserError
from pulse_edge.evaluate.answers import Answers, read_answers
from pulse_edge.evaluate.calibration import Calibration, read_calibration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.session import Backend, Session

RUNTIMES: Final = ("onnx", "tensorrt")


def load(
    path: str | PathLike[str],
    verify: bool = True,
    threads: int | None = None,
    require_key: Path | None = None,
    runtime: str | None = None,
    own: bool = False,
) -> Session:
    """Open a model. A Core ML bundle needs an Apple device; `pulse-edge run` plays it through `export`.

    Args:
        path: folder of a bundle (needs neither torch nor transformers), folder of a checkpoint, or a
            shipped name such as ``pulse-nano`` (these two run in PyTorch, as reference).
        verify: compare every file of a bundle with its manifest first.
        threads: for ONNX Runtime; all cores by default.
        require_key: public key that must have signed the bundle, beside those that the environment names
            in ``PULSE_EDGE_REQUIRE_KEY``; a model without a signature is then refused.
        runtime: ``onnx`` or ``tensorrt``; by default TensorRT where the bundle has engines for this
            machine, ONNX Runtime otherwise. The session's ``runtime`` says which, and why.
        own: the caller has just made it, or is making another of it: no signature is asked for.

    Raises:
        BundleError: the bundle is damaged, incomplete, not signed as required or newer than this
            pulse-edge, or ``tensorrt`` is asked for and its engines do not fit this machine.
        CheckpointError: the checkpoint cannot be used.
        UserError: a signature is required of a checkpoint, or a runtime that runs bundles only.
        UnknownNameError: no such shipped model or runtime.
        MissingExtraError: a checkpoint is to be run without torch.
    """
    folder, keys = Path(path).expanduser(), [] if own else required_keys(require_key)
    if runtime is not None and runtime not in RUNTIMES:
        raise UnknownNameError("runtime", runtime, RUNTIMES)
    if (folder / MANIFEST).is_file() or any(folder.glob("*.onnx")):
        return _open_bundle(folder, verify, threads, keys, runtime)
    if keys:
        raise UserError(
            f"{path} is not a bundle, and only bundles are signed, which {keys[0]} is required for. "
            "Make one with: pulse-edge export"
        )
    if runtime is not None:
        raise UserError(f"{path} is not a bundle; a checkpoint runs in PyTorch. Leave the runtime out.")
    return _open_checkpoint(path)


def _open_bundle(
    folder: Path, verify: bool, threads: int | None, keys: list[Path], runtime: str | None
) -> Session:
    manifest = sound_manifest(folder, keys) if verify or keys else read_manifest(folder)
    if manifest["target"] == "coreml":
        raise BundleError(
            f"{folder} is a Core ML bundle, which runs on an iPhone, an iPad or a Mac. Put it into an app; "
            'or play it here with `pulse-edge run`, which needs: pip install "pulse-edge[coreml]"'
        )
    backend, how = _choose(folder, manifest, threads, runtime)
    return open_session(folder, manifest, backend, how)


def sound_manifest(folder: Path, keys: Sequence[Path] = ()) -> dict[str, Any]:
    """Return a bundle's manifest once every file was compared with it.

    Raises:
        BundleError: the bundle is damaged, incomplete, newer than this pulse-edge, or not signed with one
            of the ``keys``.
    """
    manifest = read_manifest(folder)
    problems = verify_bundle(folder, keys)
    if problems:
        count = f" ({len(problems)} problems)" if len(problems) > 1 else ""
        raise BundleError(f"The bundle {folder} is not sound{count}: {problems[0]}")
    return manifest


def open_session(
    folder: Path, manifest: dict[str, Any], backend: Callable[[], Backend], how: str = ""
) -> Session:
    """Open a session over the backend of a bundle; ``how``, or the backend's ``runtime``, says what runs it.

    Raises:
        BundleError: the manifest lacks a field.
    """
    try:
        made = backend()
        return Session(
            made,
            Tokenizer.from_folder(folder),
            manifest["labels"],
            manifest["scoring"],
            manifest["generation"]["max_new_tokens"],
            how or str(getattr(made, "runtime", "")),
            *_asking(folder, manifest),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST} lacks a field ({error}). Export the bundle again.") from error


def _asking(folder: Path, manifest: dict[str, Any]) -> tuple[Calibration | None, Answers]:
    try:
        calibration = read_calibration(manifest.get("calibration"), manifest["labels"])
        return calibration, read_answers(manifest.get("answers"))
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST} cannot be used: {error}. Export the bundle again.") from error


def _choose(
    folder: Path, manifest: dict[str, Any], threads: int | None, runtime: str | None
) -> tuple[Callable[[], Backend], str]:
    """Choose what runs a bundle here; return what opens it and a sentence about it."""
    how = "ONNX Runtime"
    if runtime == "tensorrt" or (runtime is None and (folder / ENGINES).is_dir()):
        from pulse_edge.runtimes.tensorrt import TensorRTBackend, unusable

        reason = unusable(folder) if runtime is None else None
        if reason is None:
            return lambda: TensorRTBackend(folder, manifest), ""
        how = f"ONNX Runtime, not TensorRT: {reason}. Build engines for it: pulse-edge build {folder}"
    from pulse_edge.runtimes.onnx import OnnxBackend

    return lambda: OnnxBackend(folder, manifest, threads), how


def _open_checkpoint(path: str | PathLike[str]) -> Session:
    from pulse_edge.evaluate.labels import card_asking, label_set
    from pulse_edge.model.checkpoint import load_model, read_card, resolve_model

    folder = resolve_model(str(path))
    card = read_card(folder)
    labels, scoring = label_set(card)
    calibration, answers = card_asking(card, folder)
    model = load_model(folder, "float32")
    from pulse_edge.model.reference import TorchBackend

    return Session(
        TorchBackend(model),
        Tokenizer.from_folder(folder),
        labels,
        scoring,
        runtime="PyTorch",
        calibration=calibration,
        answers=answers,
    )
