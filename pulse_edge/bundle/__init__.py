"""Bundles: the folder that a device runs, and everything that is done with one as a whole.

``files`` writes whole or not at all, ``manifest`` names and compares every file, ``signature`` signs and
checks, ``engines`` describes what a device adds, ``diff`` compares two bundles, ``kit`` packs and
``install`` unpacks them.
"""

from __future__ import annotations

from pulse_edge.bundle.files import (
    atomic_file,
    atomic_folder,
    disk_errors,
    need_space,
    sha256_file,
    write_atomic,
)
from pulse_edge.bundle.manifest import (
    REQUIRED,
    manifest_digest,
    read_manifest,
    verify_bundle,
    write_manifest,
)

__all__ = [
    "REQUIRED",
    "atomic_file",
    "atomic_folder",
    "disk_errors",
    "manifest_digest",
    "need_space",
    "read_manifest",
    "sha256_file",
    "verify_bundle",
    "write_atomic",
    "write_manifest",
]
