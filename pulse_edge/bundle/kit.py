"""A kit: one archive with everything that a machine without a network needs to run a bundle.

It holds the bundle, the wheels of pulse-edge and of all it needs there, ``install.sh``, ``SHA256SUMS`` for
the script, and ``index.json`` with the hash of every other file; for a cart also the service's wheels, its
systemd unit and Dockerfiles. The same contents give the same bytes.
Downloading the wheels is the one place where pulse-edge uses a network, and only when a kit is made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

from pulse_edge.bundle.files import atomic_file, need_space, sha256_file
from pulse_edge.bundle.manifest import ENGINES, list_files, manifest_digest, read_manifest, verify_bundle
from pulse_edge.bundle.signature import KIT, sign_document
from pulse_edge.contract import BUNDLE_SCHEMA
from pulse_edge.errors import BundleError, PulseEdgeError, UnknownNameError, UserError

INDEX: Final = "index.json"
SUMS: Final = "SHA256SUMS"
SCRIPT: Final = "install.sh"
MACHINES: Final = ("aarch64", "x86_64")
# Wheels may ask for glibc up to this. JetPack 6 is Ubuntu 22.04 with glibc 2.35; JetPack 7, 24.04 with 2.39.
GLIBC: Final = 35
OLDEST_GLIBC: Final = 5  # manylinux1
# What `--service` adds: files of the service's stage, which the core reads but does not import.
DEPLOY: Final = Path(__file__).resolve().parents[1] / "runtimes" / "serve" / "deploy"


def make_kit(
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
    """Pack a bundle with all that an air-gapped device needs. The engines of this machine stay here.

    Args:
        bundle: a sound bundle.
        output: the archive, a .tar.
        wheels: folder that all wheels are taken from; without it pip downloads them.
        machine: of the device, one of :data:`MACHINES`; its wheels are for Linux with glibc.
        python: version of the device's Python, e.g. ``"3.10"`` on JetPack 6.
        also: further requirements in pip's form, e.g. ``"cuda-python<13"``.
        key: private key to sign the kit's index with.
        service: also pack what `pulse-edge serve` needs, its systemd unit and Dockerfiles.
        report: called with the name of each step.

    Returns:
        ``{"kit": path, "bytes": int, "files": int, "wheels": [names], "sha256": hex}``.

    Raises:
        BundleError: the bundle is not sound.
        UserError: an option is wrong, or a wheel is missing.
        PulseEdgeError: pip failed, or the disk is full.
    """
    bundle, output = Path(bundle), Path(output)
    if machine not in MACHINES:
        raise UnknownNameError("machine", machine, MACHINES)
    parts = python.split(".")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{python!r} is not a version of Python. Write --python 3.10, for one.")
    if output.is_dir():
        raise UserError(f"{output} is a folder; name the archive, e.g. --output {output / 'kit.tar'}")
    if problems := verify_bundle(bundle, engines=False):
        raise BundleError(f"The bundle {bundle} is not sound and was not packed: {problems[0]}")
    manifest = read_manifest(bundle)
    with tempfile.TemporaryDirectory(prefix="pulse-edge-kit-") as scratch:
        report("collecting wheels")
        collected = Path(scratch) / "wheels"
        requirement = _requirement(manifest, service)
        _collect(requirement, collected, wheels, machine, parts, also)
        contents = {
            f"bundle/{name}": path for name, path in list_files(bundle) if not name.startswith(f"{ENGINES}/")
        } | {f"wheels/{path.name}": path for path in sorted(collected.iterdir())}
        if service:
            contents |= {f"deploy/{path.name}": path for path in sorted(DEPLOY.iterdir())}
        report("hashing")
        made_for = {"machine": machine, "glibc": f"2.{GLIBC}", "python": python}
        texts = _texts(manifest, requirement, contents, made_for, key)
        size = sum(path.stat().st_size for path in contents.values())
        need_space(output, size + 1024 * (len(contents) + 8), "The kit")
        report("packing")
        with atomic_file(output) as stream:
            _pack(stream, texts, contents)
    names = [path.name for name, path in contents.items() if name.startswith("wheels/")]
    return {
        "kit": str(output),
        "bytes": output.stat().st_size,
        "files": len(contents) + len(texts),
        "wheels": names,
        "sha256": sha256_file(output),
    }


def _requirement(manifest: dict[str, Any], service: bool) -> str:
    from pulse_edge import __version__

    extras = [*(["jetson"] if manifest["target"] == "jetson" else []), *(["serve"] if service else [])]
    return f"pulse-edge{'[' + ','.join(extras) + ']' if extras else ''}=={__version__}"


def _collect(
    requirement: str,
    folder: Path,
    wheels: Path | None,
    machine: str,
    python: Sequence[str],
    also: Sequence[str],
) -> None:
    """Let pip find the wheels for the device: in ``wheels`` only, or by downloading them."""
    folder.mkdir()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, OLDEST_GLIBC - 1, -1)]
    tags += [f"manylinux2014_{machine}", f"linux_{machine}"]
    words = ["download", "--dest", str(folder), "--only-binary", ":all:", "--implementation", "cp"]
    words += ["--python-version", ".".join(python)]
    words += [word for tag in tags for word in ("--platform", tag)]
    if wheels is not None:
        if not Path(wheels).is_dir():
            raise UserError(f"There is no folder {wheels}. Name the folder with the wheels after --wheels.")
        words += ["--no-index", "--find-links", str(wheels)]
    elif (own := _own_wheel(folder.parent)) is not None:
        words += ["--find-links", str(own)]
    _pip([*words, requirement, "pip", *also], wheels)  # pip: see the script


def _own_wheel(scratch: Path) -> Path | None:
    """Build pulse-edge's wheel if this is a checkout of it; an installed release is on the index."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "pyproject.toml").is_file():
        return None
    _pip(["wheel", "--no-deps", "--wheel-dir", str(scratch / "own"), str(checkout)], None)
    return scratch / "own"


def _pip(words: Sequence[str], wheels: Path | None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    # Where the network is used, the user's own index and proxy hold; a folder of wheels stands alone.
    own = {} if wheels is None else {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    if done.returncode == 0:
        return
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = " ".join((lines or done.stderr.splitlines()[-1:] or ["no reason given"])[-1].split()).rstrip(".")
    if wheels is not None:
        raise UserError(
            f"The folder {wheels} does not hold all wheels for the device: {reason}. "
            "Put the missing wheel there, or leave --wheels out to download them."
        )
    raise PulseEdgeError(
        f"pip could not get the wheels: {reason}. Check the network, or give all wheels with --wheels DIR."
    )


def _texts(
    manifest: dict[str, Any],
    requirement: str,
    contents: dict[str, Path],
    made_for: dict[str, str],
    key: Path | None,
) -> dict[str, bytes]:
    """The small files that a kit adds: index, sums and script."""
    from pulse_edge import __version__

    script = _SCRIPT.format(requirement=requirement, **made_for).encode()
    files = {
        name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in contents.items()
    }
    files[SCRIPT] = _describe(script)
    sums = "".join(f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items())).encode()
    files[SUMS] = _describe(sums)
    index: dict[str, Any] = {
        "schema": BUNDLE_SCHEMA,
        "kind": KIT,
        "bundle": {"name": manifest["model"].get("name"), "digest": manifest["digest"]},
        "made_for": made_for,
        "made_with": __version__,
        "files": dict(sorted(files.items())),
        "signature": None,
    }
    index["digest"] = manifest_digest(index)
    if key is not None:
        index["signature"] = sign_document(index, KIT, key)
    return {INDEX: (json.dumps(index, indent=2) + "\n").encode(), SUMS: sums, SCRIPT: script}


def _describe(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _pack(stream: IO[bytes], texts: dict[str, bytes], contents: dict[str, Path]) -> None:
    """Write a plain tar: names sorted, no times, no owners, so that the same files give the same bytes."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in texts.items():
            tar.addfile(_member(name, len(content), name == SCRIPT), io.BytesIO(content))
        for name, path in sorted(contents.items()):
            with path.open("rb") as source:
                tar.addfile(_member(name, path.stat().st_size, name.endswith(".sh")), source)


def _member(name: str, size: int, executable: bool) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, 0
    member.mode = 0o755 if executable else 0o644
    return member


_SCRIPT: Final = """#!/bin/sh
# Install pulse-edge and its bundle on a machine without a network: sh install.sh DIR [--service]
# Made for Linux on {machine}, glibc {glibc} or newer, Python {python}; PYTHON may name the interpreter.
# --service (as root, from a kit made with --service) also puts the systemd unit in place and (re)starts it.
set -eu
into="${{1:?usage: sh install.sh DIR [--service]}}"
service="${{2:-}}"
cd "$(dirname "$0")"
case "$service" in
"") ;;
--service)
    if [ ! -f deploy/pulse-edge.service ]; then
        echo "install.sh: this kit was made without --service." >&2
        exit 2
    fi
    ;;
*) echo "install.sh: $service is not known; usage: sh install.sh DIR [--service]" >&2; exit 2 ;;
esac
kit="$PWD"
mkdir -p "$into"
into="$(cd "$into" && pwd)"
sha256sum --check --quiet SHA256SUMS
python="${{PYTHON:-python{python}}}"
if ! "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{python}")'; then
    echo "install.sh: $python is not Python {python}, which the wheels are for. Set PYTHON." >&2
    exit 1
fi
# Every software has an environment of its own; the link $into/venv is moved to it when it is whole, so that a
# program that runs keeps its files, and an earlier kit's install.sh goes back in a moment.
# JetPack's own TensorRT is a system package: the environment sees those. pip is the kit's own, run from its
# wheel: Ubuntu's Python comes without the one that venv would put there.
new="$into/software/$(grep '  wheels/' SHA256SUMS | sha256sum | cut -c1-12)"
if [ ! -f "$new/complete" ]; then
    rm -rf "$new"
    "$python" -m venv --without-pip --system-site-packages "$new"
    PYTHONPATH="$(echo wheels/pip-*.whl)" "$new/bin/python" -m pip --isolated install --quiet \
        --disable-pip-version-check --no-index --find-links wheels "{requirement}"
    : >"$new/complete"
fi
"$new/bin/pulse-edge" bundle install "$kit" --into "$into"
[ -L "$into/venv" ] || rm -rf "$into/venv"
ln -sfn "software/$(basename "$new")" "$into/.venv.partial"
mv -T "$into/.venv.partial" "$into/venv"
if [ -z "$service" ]; then
    echo "Run it with: $into/venv/bin/pulse-edge run $into/current --image PAGE.png"
    exit
fi
# Others than root read the program and the bundle, and write neither.
chmod -R a+rX,go-w "$into"
sed "s|/opt/pulse|$into|g" deploy/pulse-edge.service >/etc/systemd/system/pulse-edge.service
systemctl daemon-reload
systemctl enable --quiet pulse-edge
systemctl restart pulse-edge
echo "The cart's page: http://127.0.0.1:8337"
"""
