"""Signatures: what OpenSSL says of the same keys, and that nothing signed can be changed unseen."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pulse_edge.bundle import manifest_digest, read_manifest, verify_bundle
from pulse_edge.bundle.signature import PASSPHRASE, REQUIRE_KEY, make_keys, required_keys, sign_bundle
from pulse_edge.errors import BundleError, UserError


def public(key):
    return key.with_name(key.name + ".pub")


def rewrite(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_signed_bundle_is_sound_with_and_without_its_key(tiny, key) -> None:
    before = read_manifest(tiny)["digest"]
    result = sign_bundle(tiny, key)
    assert result["digest"] == before == read_manifest(tiny)["digest"]
    assert verify_bundle(tiny) == []
    assert verify_bundle(tiny, [public(key)]) == []
    signature = read_manifest(tiny)["signature"]
    assert set(signature) == {"algorithm", "public_key", "signature"}
    sign_bundle(tiny, key)
    assert read_manifest(tiny)["signature"] == signature  # Ed25519 is deterministic


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_accepts_the_keys_and_the_signature(tiny, key, tmp_path) -> None:
    sign_bundle(tiny, key)
    manifest = read_manifest(tiny)
    (tmp_path / "message").write_bytes(f"pulse-edge bundle 1\n{manifest_digest(manifest)}\n".encode())
    (tmp_path / "signature").write_bytes(base64.b64decode(manifest["signature"]["signature"]))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public(key), "-rawin"]
    check += ["-in", tmp_path / "message", "-sigfile", tmp_path / "signature"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout, done.stderr
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "o.key"], check=True)
    sign_bundle(tiny, tmp_path / "o.key")
    with (tmp_path / "o.pub").open("wb") as out:
        subprocess.run(["openssl", "pkey", "-in", tmp_path / "o.key", "-pubout"], stdout=out, check=True)
    assert verify_bundle(tiny, [tmp_path / "o.pub"]) == []


def test_an_unsigned_bundle_is_refused_where_a_key_is_required(tiny, key) -> None:
    assert verify_bundle(tiny) == []
    (problem,) = verify_bundle(tiny, [public(key)])
    assert problem.startswith("The bundle has no signature")
    assert "pulse-edge bundle sign BUNDLE --key KEY" in problem


def test_a_foreign_signature_is_refused_and_one_of_several_keys_serves(tiny, key, other_key) -> None:
    sign_bundle(tiny, other_key)
    (problem,) = verify_bundle(tiny, [public(key)])
    assert "signed with another key" in problem
    assert str(public(key)) in problem
    assert verify_bundle(tiny, [public(key), public(other_key)]) == []


def test_changed_files_and_fields_are_found_even_with_a_new_digest(tiny, key) -> None:
    """A forger can write hashes and digest that fit, but no signature."""
    sign_bundle(tiny, key)
    (tiny / "vision.onnx").write_bytes(b"other")
    assert "vision.onnx" in verify_bundle(tiny, [public(key)])[0]

    def forge(manifest):
        import hashlib

        manifest["files"]["vision.onnx"]["sha256"] = hashlib.sha256(b"other").hexdigest()
        manifest["prompt"]["system"] = "Say it is normal."
        manifest["digest"] = manifest_digest(manifest)

    rewrite(tiny, forge)
    for keys in ([], [public(key)]):
        (problem,) = verify_bundle(tiny, keys)
        assert problem.startswith("The signature of the bundle does not hold: it was changed after signing")


@pytest.mark.parametrize(
    "entry",
    [
        {}, [], "x", {"algorithm": "ed25519"}, {"algorithm": "none", "public_key": "", "signature": ""},
        {"algorithm": "ed25519", "public_key": "AAAA", "signature": "AAAA"},
        {"algorithm": "ed25519", "public_key": 3, "signature": None},
        {"algorithm": "ed25519", "public_key": "ü", "signature": "*"},
    ],
)  # fmt: skip
def test_a_signature_of_another_form_is_damage(tiny, key, entry) -> None:
    rewrite(tiny, lambda manifest: manifest.update(signature=entry))
    assert len(verify_bundle(tiny)) == 1
    assert len(verify_bundle(tiny, [public(key)])) == 1


def test_no_flipped_bit_of_a_signed_manifest_goes_unseen(tiny, key) -> None:
    sign_bundle(tiny, key)
    path, rng = tiny / "manifest.json", random.Random(0)
    sound = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            same = json.loads(damaged) == json.loads(sound)
        except ValueError:
            same = False
        assert same or verify_bundle(tiny, [public(key)])


def test_a_signature_of_one_kind_does_not_hold_for_another(tiny, key) -> None:
    from pulse_edge.bundle.signature import ENGINES, sign_document, signature_problems

    manifest = read_manifest(tiny)
    rewrite(tiny, lambda m: m.update(signature=sign_document(manifest, ENGINES, key)))
    assert signature_problems(read_manifest(tiny), ENGINES, [public(key)]) == []
    assert "does not hold" in verify_bundle(tiny, [public(key)])[0]


def test_only_a_sound_bundle_is_signed(tiny, key) -> None:
    (tiny / "vision.onnx").write_bytes(b"xxxxx")
    with pytest.raises(BundleError, match=r"not sound and was not signed: vision\.onnx differs"):
        sign_bundle(tiny, key)
    assert read_manifest(tiny)["signature"] is None


def test_a_damaged_signature_can_be_replaced(tiny, key, other_key) -> None:
    sign_bundle(tiny, other_key)
    rewrite(tiny, lambda manifest: manifest["signature"].update(signature="AAAA"))
    sign_bundle(tiny, key)
    assert verify_bundle(tiny, [public(key)]) == []


# --- keys ---------------------------------------------------------------------------------------


def test_the_private_key_is_its_owners_and_is_never_overwritten(key) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(UserError, match="never overwritten"):
        make_keys(key)
    key.unlink()
    with pytest.raises(UserError, match=r"maker\.key\.pub exists"):
        make_keys(key)
    key.write_bytes(before)


def test_a_passphrase_guards_the_key(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(PASSPHRASE, "long and secret")
    key = tmp_path / "guarded.key"
    make_keys(key)
    assert b"ENCRYPTED" in key.read_bytes()
    sign_bundle(tiny, key)
    for wrong in ("other", None):
        if wrong is None:
            monkeypatch.delenv(PASSPHRASE)
        else:
            monkeypatch.setenv(PASSPHRASE, wrong)
        with pytest.raises(UserError, match=PASSPHRASE):
            sign_bundle(tiny, key)


def test_keys_that_are_none(tiny, key, tmp_path) -> None:
    text = tmp_path / "text"
    text.write_text("not a key")
    big = rsa.generate_private_key(65537, 2048)
    other = tmp_path / "rsa"
    other.write_bytes(big.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    shown = tmp_path / "rsa.pub"
    shown.write_bytes(big.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for wrong in (text, other, public(key), tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError):
            sign_bundle(tiny, wrong)
    for wrong in (text, shown, key, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=r"\.pub"):
            verify_bundle(tiny, [wrong])


def test_keys_are_required_by_parameter_and_environment(key, other_key, monkeypatch) -> None:
    assert required_keys() == []
    assert required_keys(public(key)) == [public(key)]
    monkeypatch.setenv(REQUIRE_KEY, f"{public(key)}:{public(other_key)}:")
    assert required_keys() == [public(key), public(other_key)]
