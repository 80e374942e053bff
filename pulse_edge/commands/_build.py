"""`build`: on the device, the portable half of a bundle becomes engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.errors import BundleError, GateError, PulseEdgeError, UserError

if TYPE_CHECKING:
    from pulse_edge.runtimes.trt.build import Options

ANY: Final = "any"  # --device any: take the machine as it is
_RAM: Final = 3  # a build needs this many times the weights; NVIDIA/TensorRT-Edge-LLM issue 30 says 3 to 4


def build(
    bundle: Path,
    device: str | None = None,
    timing_cache: Path | None = None,
    workspace: int = 1024,
    strip_weights: bool = False,
    key: Path | None = None,
    parity: bool = True,
    dry_run: bool = False,
    report: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Build the TensorRT engines of a bundle on the device that it runs on; all or nothing.

    Args:
        bundle: exported with ``--target jetson``; its portable half stays as it is.
        device: profile that this machine is to be; the bundle's by default, ``any`` for no check.
        timing_cache: file with measured timings, read and written; the last build's by default.
        workspace: MB that TensorRT may use for one layer.
        strip_weights: engines without weights, which come from the graphs each time they are loaded.
        key: private key to sign the engines with, where devices require signatures.
        parity: compare the engines with ONNX Runtime on the shipped ECGs and refuse them if they differ.
        dry_run: only say what would be done.
        report: called with the present step.

    Returns:
        ``{"bundle", "built": bool, "constraints": what was detected, "warnings", "commands"}``, and if built
        ``"engines": {role: {"file", "bytes", "seconds", …}}`` and ``"parity"``. Without TensorRT's Python
        package, but with trtexec, ``built`` is False and ``commands`` are the lines for a shell.

    Raises:
        BundleError: the bundle is damaged or has no profiles, or TensorRT does not read it.
        UserError: another device than named, or an option is wrong.
        GateError: the engines do not answer as the bundle does; they were not kept.
        PulseEdgeError: there is no TensorRT, no device, not enough memory or disk, or the build fails.
    """
    from pulse_edge.bundle import read_manifest, verify_bundle
    from pulse_edge.runtimes.trt.api import import_tensorrt
    from pulse_edge.runtimes.trt.build import Options
    from pulse_edge.runtimes.trt.lines import FALLBACK, find_trtexec, trtexec_lines

    folder = Path(bundle)
    if workspace < 1:
        raise UserError("--workspace must be at least 1 (MB).")
    manifest = read_manifest(folder)
    report("verifying the bundle")
    if problems := verify_bundle(folder, engines=False):
        raise BundleError(f"The bundle {folder} is not sound and was not built: {problems[0]}")
    options = Options(workspace, strip_weights, timing_cache)
    here = _detect()
    _check_device(manifest, device, here)
    beside = folder.resolve().with_name(f"{folder.resolve().name}-engines")
    lines = trtexec_lines(find_trtexec() or FALLBACK, folder, manifest, beside, options)
    result = {"bundle": str(folder), "built": False, "constraints": here, "warnings": [], "commands": lines}
    result["warnings"] = _warnings(folder, manifest)
    if dry_run:
        return result
    try:
        trt = import_tensorrt()
    except PulseEdgeError as error:
        if find_trtexec() is None:
            raise PulseEdgeError(
                f"{error}. Nor is trtexec here, with which it would go too: sudo apt install libnvinfer-bin"
            ) from error
        return {**result, "reason": str(error)}
    if here["sm"] is None:
        raise PulseEdgeError(
            "No CUDA device answers, and engines are built on the device they run on. On a Jetson add the "
            "user to the groups video and render; `pulse-edge doctor --device` says more."
        )
    made = _build(trt, folder, manifest, options, {**here, "tensorrt": trt.__version__}, key, parity, report)
    return {**result, "built": True, "commands": [], **made}


def _detect() -> dict[str, Any]:
    """What the engines will be tied to, as this machine says it."""
    from pulse_edge import board
    from pulse_edge.doctor import installed_version

    found, gpu = board.read_board(), board.cuda_device() or {}
    return {
        **{name: gpu.get(name) for name in ("sm", "name", "driver")},
        **{name: found[name] for name in ("l4t", "jetpack", "cuda", "modules")},
        "tensorrt": installed_version("tensorrt"),
    }


def _check_device(manifest: Mapping[str, Any], device: str | None, here: Mapping[str, Any]) -> None:
    from pulse_edge.device import load_device

    name = device or (manifest.get("device") or {}).get("profile")
    if name is None or name == ANY:
        return
    profile = load_device(name)
    wanted = profile.values["sm"].value
    if wanted is not None and here["sm"] not in (None, str(wanted)):
        raise UserError(
            f"This machine ({here['name']}, SM {here['sm']}) is not a {profile.title} (SM {wanted}), "
            f"which the bundle is for. Export it for this device, or build it as it is with --device {ANY}."
        )


def _weights(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of every graph with the data beside it."""
    files = [graph["file"] for graph in manifest["graphs"].values()]
    return {
        file: sum(entry["bytes"] for name, entry in manifest["files"].items() if name.startswith(file))
        for file in files
    }


def _warnings(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    from pulse_edge.board import read_board

    board = read_board()
    memory = board["memory"] or {}
    swap = sum(entry["total_mb"] - entry["used_mb"] for entry in board["swap"])
    largest = max(_weights(folder, manifest).values()) >> 20
    room = memory.get("available", 0) + swap
    if not memory or room >= _RAM * largest:
        return []
    return [
        f"The largest graph has {largest} MB of weights; building may need {_RAM} times that, and {room} MB "
        "of memory and swap are free. Close the desktop and add swap if the build is killed."
    ]


def _build(
    trt: Any,
    folder: Path,
    manifest: dict[str, Any],
    options: Options,
    here: dict[str, Any],
    key: Path | None,
    parity: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    from pulse_edge.bundle import atomic_folder, disk_errors, need_space
    from pulse_edge.bundle.engines import write_engines
    from pulse_edge.bundle.manifest import ENGINES
    from pulse_edge.doctor import installed_version
    from pulse_edge.runtimes.trt.build import build_engines

    def tick(what: str, done: int, total: int) -> None:
        report(f"{what} ({done} of {total})")

    size = sum(_weights(folder, manifest).values())
    need_space(folder, size // 5 if options.strip_weights else size * 6 // 5, "Building the engines")
    fields: dict[str, Any] = {
        "portable": manifest["digest"],
        "constraints": here,
        "options": {"workspace_mb": options.workspace_mb, "strip_weights": options.strip_weights},
        "toolchain": {name: installed_version(name) for name in ("pulse-edge", "cuda-python")},
        "parity": None,
    }
    # Beside the bundle, in which every file is accounted for, a build that is killed leaves no trace.
    place = folder.resolve()
    with disk_errors(place.parent):
        scratch = tempfile.mkdtemp(prefix=f".{place.name}.engines.", suffix=".partial", dir=place.parent)
    with atomic_folder(place / ENGINES, Path(scratch)) as work:
        fields["engines"] = build_engines(trt, folder, manifest, work, options, tick)
        index = write_engines(work, fields, key)
        if parity:
            report("comparing the engines with ONNX Runtime")
            fields["parity"] = _parity(folder, manifest, work)
            index = write_engines(work, fields, key)
    return {name: index[name] for name in ("engines", "constraints", "parity")}


def _parity(folder: Path, manifest: dict[str, Any], engines: Path) -> dict[str, Any]:
    from pulse_edge.ecg.paper import render
    from pulse_edge.ecg.record import read_record
    from pulse_edge.evaluate.parity import compare
    from pulse_edge.runtimes.load import open_session
    from pulse_edge.runtimes.onnx import OnnxBackend
    from pulse_edge.runtimes.tensorrt import TensorRTBackend
    from pulse_edge.samples import SAMPLES, samples

    pages = [render(read_record(SAMPLES / row["record"])).image for row in samples()]
    reference = open_session(folder, manifest, lambda: OnnxBackend(folder, manifest))
    candidate = open_session(folder, manifest, lambda: TensorRTBackend(folder, manifest, engines))
    try:
        return compare(reference, candidate, pages, manifest["precision"]["decoder"])
    except GateError as error:
        raise GateError(f"The engines were not kept. Against ONNX Runtime on this device: {error}") from error
