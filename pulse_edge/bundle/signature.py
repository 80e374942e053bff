"""Who made this bundle: Ed25519 signatures (RFC 8032) over the digest of a manifest.

The manifest names the hash of every file, so one signature over its digest covers the whole bundle. The
digest is computed anew when a signature is checked. Keys are PEM files as OpenSSL writes them
(``openssl genpkey -algorithm ed25519``). Not covered: expiry and revocation of keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.bundle.files import write_atomic
from pulse_edge.bundle.manifest import content_problems, manifest_digest, read_manifest, write_json
from pulse_edge.contract import MANIFEST
from pulse_edge.errors import BundleError, UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM: Final = "ed25519"
# What is signed, beside the digest: a signature of one kind does not hold for another.
BUNDLE: Final = "bundle"
ENGINES: Final = "engines"
KIT: Final = "kit"
REQUIRE_KEY: Final = "PULSE_EDGE_REQUIRE_KEY"  # paths of public keys, as PATH separates them
PASSPHRASE: Final = "PULSE_EDGE_KEY_PASSPHRASE"  # of the private key, if it is to have one


def required_keys(key: Path | None = None) -> list[Path]:
    """Return the public keys of which one must have signed: ``key`` and those of the environment."""
    named = [Path(part) for part in os.environ.get(REQUIRE_KEY, "").split(os.pathsep) if part]
    return named if key is None else [Path(key), *named]


def make_keys(path: Path) -> dict[str, str]:
    """Make a key pair: the private key at ``path``, readable by its owner only, the public at ``path.pub``.

    With a passphrase in the environment (:data:`PASSPHRASE`) the private key is encrypted.

    Returns:
        ``{"key": path, "public": path, "fingerprint": text}``.

    Raises:
        UserError: one of the files exists.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = Path(path)
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise UserError(f"{file} exists; a key is never overwritten. Choose another name.")
    key = Ed25519PrivateKey.generate()
    secret = os.environ.get(PASSPHRASE)
    how = serialization.BestAvailableEncryption(secret.encode()) if secret else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    write_atomic(path, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how), 0o600)
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_atomic(public, shown)
    return {"key": str(path), "public": str(public), "fingerprint": fingerprint(_raw(key))}


def sign_bundle(folder: Path, key: Path) -> dict[str, Any]:
    """Sign a sound bundle; the signature goes into its manifest and replaces one that is there.

    Returns:
        ``{"bundle": path, "digest": hex, "fingerprint": of the public key}``.

    Raises:
        BundleError: the bundle is not sound.
        UserError: the key cannot be used.
    """
    folder = Path(folder)
    private = _private(Path(key))
    manifest = {**read_manifest(folder), "signature": None}
    if problems := content_problems(folder, manifest):
        raise BundleError(f"The bundle {folder} is not sound and was not signed: {problems[0]}")
    manifest["signature"] = _signature(manifest, BUNDLE, private)
    write_json(folder / MANIFEST, manifest)
    return {"bundle": str(folder), "digest": manifest["digest"], "fingerprint": fingerprint(_raw(private))}


def sign_document(document: Mapping[str, Any], kind: str, key: Path) -> dict[str, str]:
    """Return the ``signature`` of an index, whose ``digest`` is computed here.

    Raises:
        UserError: the key cannot be used.
    """
    return _signature(document, kind, _private(Path(key)))


def signature_problems(document: Mapping[str, Any], kind: str, keys: Sequence[Path] = ()) -> list[str]:
    """Check the signature of a manifest or index; return one sentence if it does not hold.

    Args:
        document: with the fields that were signed, and ``signature``.
        kind: :data:`BUNDLE`, :data:`ENGINES` or :data:`KIT`.
        keys: public keys. Without any, no signature is needed, but one that is there must hold.

    Raises:
        UserError: a public key cannot be read.
    """
    trusted = {_public(Path(key)): Path(key) for key in keys}
    wanted = ", ".join(str(path) for path in trusted.values())
    entry = document.get("signature")
    if entry is None:
        return [_UNSIGNED[kind].format(keys=wanted)] if trusted else []
    damaged = [f"The signature of the {kind} does not hold: it was changed after signing. {_AGAIN[kind]}"]
    if not isinstance(entry, dict) or entry.get("algorithm") != ALGORITHM:
        return damaged
    try:
        key, signature = (
            base64.b64decode(entry[part], validate=True) for part in ("public_key", "signature")
        )
    except (KeyError, TypeError, ValueError, binascii.Error):
        return damaged
    if trusted and key not in trusted:
        return [
            f"The {kind} is signed with another key ({fingerprint(key)}) than the required {wanted}. "
            f"Do not use it, or require the key of its maker. {_AGAIN[kind]}"
        ]
    return [] if _holds(key, signature, _message(document, kind)) else damaged


_AGAIN: Final = {
    BUNDLE: "Get the bundle again from its maker.",
    ENGINES: "Make the engines again with: pulse-edge build BUNDLE --key KEY",
    KIT: "Get the kit again from its maker.",
}
_UNSIGNED: Final = {
    BUNDLE: "The bundle has no signature, and one by {keys} is required. "
    "Its maker signs it with: pulse-edge bundle sign BUNDLE --key KEY",
    ENGINES: "The engines have no signature, and one by {keys} is required. "
    "Make them again with: pulse-edge build BUNDLE --key KEY",
    KIT: "The kit has no signature, and one by {keys} is required. "
    "Its maker signs it with: pulse-edge bundle kit BUNDLE --key KEY",
}


def fingerprint(public: bytes) -> str:
    """Return a short name of a public key: the first 16 digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def _message(document: Mapping[str, Any], kind: str) -> bytes:
    return f"pulse-edge {kind} 1\n{manifest_digest(document)}\n".encode()


def _signature(document: Mapping[str, Any], kind: str, key: Ed25519PrivateKey) -> dict[str, str]:
    return {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(_raw(key)).decode(),
        "signature": base64.b64encode(key.sign(_message(document, kind))).decode(),
    }


def _holds(public: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _raw(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    raw = serialization.PublicFormat.Raw
    return key.public_key().public_bytes(serialization.Encoding.Raw, raw)


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    secret = os.environ.get(PASSPHRASE)
    try:
        key = load_pem_private_key(path.read_bytes(), secret.encode() if secret else None)
    except OSError as error:
        raise UserError(
            f"The key {path} cannot be read ({error.strerror}). "
            f"Make one with: pulse-edge bundle keygen {path}"
        ) from error
    except TypeError as error:  # a passphrase without need, or the other way round
        raise UserError(f"The key {path}: {error}. Set or unset {PASSPHRASE}.") from error
    except ValueError as error:
        raise UserError(
            f"{path} holds no private key that can be read. Name the PEM file that `pulse-edge bundle "
            f"keygen` made, and set {PASSPHRASE} if it has a passphrase."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is not an Ed25519 key. Make one with: pulse-edge bundle keygen KEY")
    return key


def _public(path: Path) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"The required public key {path} cannot be read ({error.strerror}). Name the .pub file of the "
            f"bundle's maker with --require-key or {REQUIRE_KEY}."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} holds no public key. Name the .pub file that `pulse-edge bundle keygen` made."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is not an Ed25519 key. Name the .pub file of the bundle's maker.")
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
