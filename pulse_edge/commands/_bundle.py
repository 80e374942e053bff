"""`bundle …`: keys and signatures, comparing, kits, and installing them on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def bundle_keygen(key: Path) -> dict[str, Any]:
    """Make a key pair to sign bundles with; see ``pulse_edge.bundle.signature.make_keys``."""
    from pulse_edge.bundle.signature import make_keys

    return make_keys(Path(key))


def bundle_sign(bundle: Path, key: Path) -> dict[str, Any]:
    """Sign a sound bundle; see ``pulse_edge.bundle.signature.sign_bundle``."""
    from pulse_edge.bundle.signature import sign_bundle

    return sign_bundle(Path(bundle), Path(key))


def bundle_diff(a: Path, b: Path) -> dict[str, Any]:
    """Say what changed between two bundles; see ``pulse_edge.bundle.diff.diff_bundles``."""
    from pulse_edge.bundle.diff import diff_bundles

    return diff_bundles(Path(a), Path(b))


def bundle_kit(
    bundle: Path,
    output: Path,
    wheels: Path | None = None,
    machine: str = "aarch64",
    python: str = "3.10",
    also: Sequence[str] = (),
    key: Path | None = None,
    service: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Pack what a device without a network needs; see ``pulse_edge.bundle.kit.make_kit``."""
    from pulse_edge.bundle.kit import make_kit

    return make_kit(Path(bundle), Path(output), wheels, machine, python, also, key, service, report)


def bundle_install(source: Path, into: Path, require_key: Path | None = None) -> dict[str, Any]:
    """Install a bundle or kit and make it the current version; see ``pulse_edge.bundle.install.install``.

    The keys that the environment names in ``PULSE_EDGE_REQUIRE_KEY`` are required, too.
    """
    from pulse_edge.bundle.install import install
    from pulse_edge.bundle.signature import required_keys

    return install(Path(source), Path(into), required_keys(require_key))


def bundle_rollback(into: Path, require_key: Path | None = None) -> dict[str, Any]:
    """Go back to the version before the current one; see ``pulse_edge.bundle.install.rollback``."""
    from pulse_edge.bundle.install import rollback
    from pulse_edge.bundle.signature import required_keys

    return rollback(Path(into), required_keys(require_key))
