"""`verify`: a bundle against its manifest, and against what it said when it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pulse_edge.errors import BundleError
from pulse_edge.samples import SAMPLES, samples


def verify(bundle: Path, key: Path | None = None, execute: bool = False) -> dict[str, Any]:
    """Compare every file of a bundle with its manifest: ``{"ok": bool, "problems": [...]}``.

    Args:
        bundle: folder of the bundle.
        key: public key that must have signed it, beside those that the environment requires.
        execute: also run the graphs on a shipped ECG, and compare with what they gave when exported. A
            Core ML bundle is played without a Mac.

    Raises:
        BundleError: there is no such folder.
        MissingExtraError: a Core ML bundle is to be played without torch or coremltools.
        UserError: the key cannot be read.
    """
    from pulse_edge.bundle import verify_bundle
    from pulse_edge.bundle.signature import required_keys

    if not Path(bundle).is_dir():
        raise BundleError(f"There is no bundle {bundle}. Make one with: pulse-edge export")
    problems = verify_bundle(Path(bundle), required_keys(key))
    if execute and not problems:
        problems = _execute(Path(bundle))
    return {"ok": not problems, "problems": problems}


def _execute(bundle: Path) -> list[str]:
    from pulse_edge.bundle import read_manifest
    from pulse_edge.commands._open import open_model
    from pulse_edge.ecg.paper import render
    from pulse_edge.ecg.record import read_record
    from pulse_edge.evaluate.parity import probe_problems

    recorded = (read_manifest(bundle).get("parity") or {}).get("probe")
    if recorded is None:
        return ["The manifest records no answer to compare with; export the bundle again with its gate."]
    page = render(read_record(SAMPLES / samples()[0]["record"])).image
    return probe_problems(recorded, open_model(bundle), page)
