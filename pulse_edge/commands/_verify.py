"""`verify`: a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pulse_edge.errors import BundleError


def verify(bundle: Path, key: Path | None = None) -> dict[str, Any]:
    """Compare every file of a bundle with its manifest: ``{"ok": bool, "problems": [...]}``.

    Args:
        bundle: folder of the bundle.
        key: public key that must have signed it, beside those that the environment requires.

    Raises:
        BundleError: there is no such folder.
        UserError: the key cannot be read.
    """
    from pulse_edge.bundle import verify_bundle
    from pulse_edge.bundle.signature import required_keys

    if not Path(bundle).is_dir():
        raise BundleError(f"There is no bundle {bundle}. Make one with: pulse-edge export")
    problems = verify_bundle(Path(bundle), required_keys(key))
    return {"ok": not problems, "problems": problems}
