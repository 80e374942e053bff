"""Open whatever a verb is to run: what `runtimes.load` opens, and Core ML bundles, played on this machine."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_edge.contract import MANIFEST
from pulse_edge.errors import UserError

if TYPE_CHECKING:
    from pulse_edge.runtimes.session import Session


def open_model(
    path: str | PathLike[str],
    require_key: Path | None = None,
    runtime: str | None = None,
    own: bool = False,
) -> Session:
    """Open a model; see ``runtimes.load.load``.

    A Core ML bundle is played from its packages' programs by ``export.milrun``: what it computes is what
    a device computes but for the device's own rounding; its speed is not.

    Raises:
        MissingExtraError: a Core ML bundle is to be played without torch or coremltools.
        UserError: a runtime is asked for, which Core ML bundles do not have here.
    """
    from pulse_edge.bundle import read_manifest
    from pulse_edge.bundle.signature import required_keys
    from pulse_edge.runtimes.load import load, open_session, sound_manifest

    folder = Path(path).expanduser()
    if not (folder / MANIFEST).is_file() or read_manifest(folder)["target"] != "coreml":
        return load(path, require_key=require_key, runtime=runtime, own=own)
    manifest = sound_manifest(folder, [] if own else required_keys(require_key))
    if runtime is not None:
        raise UserError(f"{folder} is a Core ML bundle, which {runtime} does not run. Leave the runtime out.")
    from pulse_edge.export.coreml.player import CoremlBackend

    return open_session(
        folder, manifest, lambda: CoremlBackend(folder, manifest), "milrun, in place of an Apple device"
    )
