"""`verify`: a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pulse_edge.errors import BundleError


def verify(bundle: Path) -> dict[str, Any]:
    """Compare every file of a bundle with its manifest: ``{"ok": bool, "problems": [...]}``.

    Raises:
        BundleError: there is no such folder.
    """
    from pulse_edge.bundle import verify_bundle

    if not Path(bundle).is_dir():
        raise BundleError(f"There is no bundle {bundle}. Make one with: pulse-edge export")
    problems = verify_bundle(Path(bundle))
    return {"ok": not problems, "problems": problems}
