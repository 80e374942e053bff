"""Open whatever a verb is to run: what `runtimes.load` opens, and Core ML bundles, played on this machine."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pulse_edge.contract import MANIFEST

if TYPE_CHECKING:
    from pulse_edge.runtimes.session import Session


def open_model(path: str | PathLike[str]) -> Session:
    """Open a model; see ``runtimes.load.load``.

    A Core ML bundle is played from its packages' programs by ``export.milrun``: what it computes is what
    a device computes but for the device's own rounding; its speed is not.

    Raises:
        MissingExtraError: a Core ML bundle is to be played without torch or coremltools.
    """
    from pulse_edge.bundle import read_manifest
    from pulse_edge.runtimes.load import load, open_session, sound_manifest

    folder = Path(path).expanduser()
    if not (folder / MANIFEST).is_file() or read_manifest(folder)["target"] != "coreml":
        return load(path)
    manifest = sound_manifest(folder)
    from pulse_edge.export.coreml.player import CoremlBackend

    return open_session(folder, manifest, lambda: CoremlBackend(folder, manifest))
