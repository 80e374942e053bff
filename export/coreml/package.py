"""Write MIL functions as one `.mlpackage`, quietly, and with the same bytes every time.

coremltools stamps packages with the date and with random identifiers, and draws progress bars and tells
of every package it was not tested with; none of it is for the user of an export.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import coremltools as ct
from coremltools.converters.mil.frontend.torch import ops as torch_frontend
from coremltools.converters.mil.mil import Function, Program
from coremltools.converters.mil.mil.passes import pass_pipeline

FLOOR: Final = ct.target.iOS18  # states, int4 and blockwise weights, several functions
FLOOR_NAMES: Final = {"ios": "18.0", "macos": "15.0"}
# A program that is written here is stored as it is written: none of the ninety passes that tidy traces up.
_PASSES: Final = ("common::dead_code_elimination",)
_MODEL: Final = "com.apple.CoreML/model.mlmodel"
_STAMP: Final = "com.github.apple.coremltools.conversion_date"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence coremltools' progress bars and warnings."""
    bars = pass_pipeline.tqdm, torch_frontend._tqdm
    pass_pipeline.tqdm = torch_frontend._tqdm = lambda items, **_: items
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pass_pipeline.tqdm, torch_frontend._tqdm = bars


def program(functions: Mapping[str, Function]) -> Program:
    """Put MIL functions into one program; constants with the same ``weight_id`` are stored once.

    Args:
        functions: by name; one alone must be called ``main``, and the first of several is the default.
    """
    made = Program()
    for name, function in functions.items():
        made.add_function(name, function)
    if len(functions) > 1:
        made.default_function_name = next(iter(functions))
        made.export_as_multifunction = True
    return made


def convert(
    source: Any,
    path: Path,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    half: bool = False,
    passes: Sequence[str] | None = None,
) -> ct.models.MLModel:
    """Convert a program or a traced module to a package for this target's floor.

    Args:
        source: MIL program, or a module that torch traced.
        path: of the package, ending in ``.mlpackage``.
        inputs: coremltools' input types, where the source does not say them (images, flexible sides).
        outputs: likewise.
        half: turn a float32 program into float16; one that names its types is left as it is.
        passes: of coremltools, instead of the usual ones.

    Returns:
        The model, not loaded; :func:`finish` completes its package.

    Raises:
        OSError: the disk is full.
    """
    names = _PASSES if passes is None and isinstance(source, Program) else passes
    with quiet(), _beside(path):
        return ct.convert(
            source,
            inputs=inputs,
            outputs=outputs,
            convert_to="mlprogram",
            minimum_deployment_target=FLOOR,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=None if names is None else ct.PassPipeline(pass_names=[*names]),
            skip_model_load=True,
            package_dir=str(path),
        )


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Let coremltools write its temporary weights on the output's disk, and tell when that is full."""
    usual, tempfile.tempdir = tempfile.tempdir, str(path.parent)
    try:
        yield
    except BaseException as error:
        # What coremltools wrote is removed with the last of its frames: now, while it is still there.
        traceback.clear_frames(error.__traceback__)
        if not isinstance(error, RuntimeError) or "MIL FileWriter" not in str(error):
            raise
        # Its writer, which is C++, does not say why; of a file just opened it is the disk's end.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    finally:
        tempfile.tempdir = usual


def finish(model: ct.models.MLModel, path: Path, describe: Callable[[Any], None] = lambda spec: None) -> None:
    """Write a package's description and list of contents, without what differs between two runs.

    Args:
        model: as :func:`convert` returned it.
        path: of its package.
        describe: called with the protobuf before it is written, to change its description.
    """
    spec = model.get_spec()
    describe(spec)
    spec.description.metadata.userDefined.pop(_STAMP, None)
    (path / "Data" / _MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    file = path / "Manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    items = {_identifier(path.name, item["path"]): item for item in manifest["itemInfoEntries"].values()}
    manifest["itemInfoEntries"] = items
    manifest["rootModelIdentifier"] = _identifier(path.name, _MODEL)
    file.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", "utf-8")


def _identifier(package: str, item: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"pulse-edge/{package}/{item}"))
