"""Building: what TensorRT is asked for, what a failure leaves, and who may have signed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time

import pytest

from pulse_edge import cli, commands
from pulse_edge.bundle import read_manifest, verify_bundle, write_manifest
from pulse_edge.bundle.engines import read_engines
from pulse_edge.bundle.signature import REQUIRE_KEY, make_keys, sign_bundle
from pulse_edge.errors import BundleError, GateError, PulseEdgeError, UnknownNameError, UserError
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.trt.build import read_profiles
from pulse_edge.runtimes.trt.lines import trtexec_lines
from pulse_edge.samples import SAMPLES, samples


def plan_of(folder, role):
    """What the stand-in was asked for, out of the engine that it wrote."""
    raw = (folder / "engines" / f"{role}.engine").read_bytes()
    length = int.from_bytes(raw[8:16], "little")
    return json.loads(raw[16 : 16 + length])


def left(folder):
    return sorted(path.name for path in folder.parent.iterdir())


@pytest.fixture
def two_pages(monkeypatch):
    """Two of the six pages that parity is measured on: enough to see that it is."""
    rows = samples()[:2]
    monkeypatch.setattr("pulse_edge.samples.samples", lambda: rows)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_a_build_adds_engines_with_what_they_are_tied_to(own, plug, version, two_pages) -> None:
    plug(version)
    folder, said = own(), []
    parity = version == "10.3.0"  # test_backend compares the others, in less time
    result = commands.build(folder, workspace=512, parity=parity, report=said.append)
    assert result["built"]
    assert set(result["engines"]) == {"vision", "embed", "decoder"}
    assert result["engines"]["decoder"]["profiles"] == ["prompt", "question", "token"]
    assert result["constraints"]["sm"] == "8.7"
    assert result["constraints"]["tensorrt"] == version
    assert result["constraints"]["driver"] == "12.6"
    assert bool(result["parity"]) is parity
    if parity:
        assert result["parity"]["logits_max_abs"] <= 1e-3
        assert result["parity"]["greedy_agreement"] == 1.0
    assert verify_bundle(folder) == []
    index = read_engines(folder / "engines")
    assert index["portable"] == read_manifest(folder)["digest"]
    assert index["parity"] == result["parity"]
    assert set(index["files"]) == {"vision.engine", "embed.engine", "decoder.engine", "timing.cache"}
    assert left(folder) == ["bundle"]
    profiles = json.loads((folder / "build" / "profiles.json").read_text())
    for role in ("vision", "embed", "decoder"):
        plan = plan_of(folder, role)
        assert plan["workspace"] == 512 << 20
        expected = [
            {name: [shapes[kind] for kind in ("min", "opt", "max")] for name, shapes in use.items()}
            for use in profiles.get(role, {}).values()
        ]
        assert plan["profiles"] == expected
    assert any(re.fullmatch(r"decoder: Building Engine \(\d+ of \d+\)", line) for line in said)


def test_timings_are_kept_and_used_again(own, plug, tmp_path, monkeypatch) -> None:
    machine, folder = plug(), own()
    cache = tmp_path / "timing.cache"
    commands.build(folder, timing_cache=cache, parity=False)
    assert machine.cache_hits == 0
    assert cache.read_bytes() == (folder / "engines" / "timing.cache").read_bytes()
    commands.build(folder, timing_cache=cache, parity=False)
    assert machine.cache_hits == 3
    commands.build(folder, parity=False)  # by default those of the last build
    assert machine.cache_hits == 6
    other = plug("10.13.3.9")
    commands.build(folder, timing_cache=cache, parity=False)  # another version's: measured anew
    assert other.cache_hits == 0
    assert other.builds == 3
    cache.unlink()
    other.fail_build, real = None, other.module.Builder.build_serialized_network

    def failing(self, network, config):
        other.fail_build = "out of memory" if other.builds == 5 else None
        return real(self, network, config)

    with monkeypatch.context() as patch:
        patch.setattr(other.module.Builder, "build_serialized_network", failing)
        with pytest.raises(PulseEdgeError, match="did not build the engine decoder"):
            commands.build(folder, timing_cache=cache, parity=False)
    other.fail_build = None
    hits = other.cache_hits
    commands.build(folder, timing_cache=cache, parity=False)
    assert other.cache_hits == hits + 2  # of the two engines that were done
    cache.write_bytes(b"no cache")
    commands.build(folder, timing_cache=cache, parity=False)
    assert cache.read_bytes() != b"no cache"
    with pytest.raises(PulseEdgeError, match=r"timing cache .* cannot be read"):
        commands.build(folder, timing_cache=tmp_path, parity=False)


def test_engines_without_weights_are_smaller_and_say_so(own, plug) -> None:
    import zlib

    plug()
    folder = own()
    result = commands.build(folder, strip_weights=True, parity=False)
    assert all(entry["stripped"] for entry in result["engines"].values())
    stripped = len(zlib.compress((folder / "engines" / "decoder.engine").read_bytes()))
    commands.build(folder, parity=False)
    assert stripped < len(zlib.compress((folder / "engines" / "decoder.engine").read_bytes())) / 2


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_build_changes_nothing(own, plug, before) -> None:
    machine, folder = plug(), own()
    if before:
        commands.build(folder, parity=False)
    old = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    machine.fail_build = "could not find any implementation for node MatMul_7"
    with pytest.raises(
        PulseEdgeError, match=r"did not build the engine vision: .*MatMul_7.*Free memory"
    ) as e:
        commands.build(folder)
    assert e.value.exit_code == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == old
    assert left(folder) == ["bundle"]


def test_engines_that_answer_otherwise_are_not_kept(own, plug, monkeypatch, two_pages) -> None:
    plug()
    folder = own()
    from pulse_edge.runtimes.tensorrt import TensorRTBackend

    real = TensorRTBackend.extend
    monkeypatch.setattr(TensorRTBackend, "extend", lambda self, tokens: real(self, tokens) * 1.5)
    with pytest.raises(GateError, match=r"engines were not kept\. Against ONNX Runtime"):
        commands.build(folder)
    assert not (folder / "engines").exists()
    assert left(folder) == ["bundle"]


def test_a_parser_that_refuses_names_the_node(own, plug, monkeypatch) -> None:
    plug()
    folder = own("int4")
    monkeypatch.setattr("trt_fake.highest_opset", lambda version: 20)
    with pytest.raises(BundleError, match=r"does not read decoder\.onnx.*opset 21.*--precision"):
        commands.build(folder, parity=False)
    assert not (folder / "engines").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_tensorrt_first(own, plug, number) -> None:
    machine, folder = plug(), own()
    machine.step_seconds = 0.05
    before = signal.getsignal(number)
    threading.Timer(0.6, lambda: os.kill(os.getpid(), number)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        commands.build(folder, parity=False)
    assert machine.builds <= 1  # it ended within the engine that it was at
    assert time.monotonic() - start < 20
    assert not (folder / "engines").exists()
    assert left(folder) == ["bundle"]
    assert signal.getsignal(number) is before


def test_a_full_disk_is_seen_before_the_build(own, plug, monkeypatch) -> None:
    machine, folder = plug(), own()
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=100))
    with pytest.raises(PulseEdgeError, match="Building the engines needs"):
        commands.build(folder)
    assert machine.builds == 0


def test_a_tensorrt_that_does_not_start_says_why(own, plug) -> None:
    machine, folder = plug(), own()
    commands.build(folder, parity=False)
    machine.starts = False
    for call in (lambda: commands.build(folder, parity=False), lambda: load(folder)):
        with pytest.raises(PulseEdgeError, match=r"does not start: CUDA initialization failure.*doctor"):
            call()


def test_bundles_that_cannot_be_built(own, plug, tmp_path) -> None:
    plug()
    onnx = own(name="onnx")  # as --target onnx leaves it
    shutil.rmtree(onnx / "build")
    write_manifest(onnx, {**read_manifest(onnx), "target": "onnx"})
    with pytest.raises(BundleError, match=r"for 'onnx', without profiles.*--target jetson"):
        commands.build(onnx)
    with pytest.raises(BundleError, match="is not a bundle"):
        commands.build(tmp_path)
    folder = own()
    (folder / "decoder.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="not sound and was not built"):
        commands.build(folder)
    with pytest.raises(UserError, match="--workspace"):
        commands.build(own(name="second"), workspace=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.pop("decoder"),
        lambda plan: plan["decoder"]["token"].pop("inputs_embeds"),
        lambda plan: plan["decoder"]["token"]["inputs_embeds"].pop("opt"),
        lambda plan: plan["decoder"]["token"]["inputs_embeds"].update(max=[1, 1, 7]),
        lambda plan: plan["decoder"]["token"]["inputs_embeds"].update(max=[1, 1]),
        lambda plan: plan.update(decoder=[]),
        lambda plan: plan.update(vision={"use": {}}),
    ],
)
def test_profiles_that_do_not_fit_the_graphs(own, change) -> None:
    folder = own()
    path = folder / "build" / "profiles.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    with pytest.raises(BundleError, match="Export the bundle again"):
        read_profiles(folder, read_manifest(folder))


# --- devices ------------------------------------------------------------------------------------


def test_another_device_than_the_bundles_is_refused(own, plug) -> None:
    machine = plug(sm="11.0")
    folder = own()
    with pytest.raises(UserError, match=r"SM 11\.0\) is not a Jetson Orin Nano 8 GB.*--device any"):
        commands.build(folder)
    with pytest.raises(UnknownNameError, match="Did you mean 'thor-t5000'"):
        commands.build(folder, device="thor-t500")
    assert machine.builds == 0
    commands.build(folder, device="thor-t5000", parity=False)
    assert read_engines(folder / "engines")["constraints"]["sm"] == "11.0"


def test_without_a_device_nothing_is_built(own, plug, monkeypatch) -> None:
    plug()
    monkeypatch.setattr("pulse_edge.board.cuda_device", lambda: None)
    with pytest.raises(PulseEdgeError, match="No CUDA device answers"):
        commands.build(own())


def test_without_tensorrt_trtexec_gets_the_same_engines(own, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delenv("TRTEXEC", raising=False)
    folder = own()
    with pytest.raises(PulseEdgeError, match=r"python3-libnvinfer.*Nor is trtexec.*libnvinfer-bin"):
        commands.build(folder)
    program = tmp_path / "trt exec"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("TRTEXEC", str(program))
    result = commands.build(folder, strip_weights=True, workspace=99)
    assert not result["built"]
    assert "python3-libnvinfer" in result["reason"]
    lines = [shlex.split(line) for line in result["commands"]]
    assert lines[0][:2] == ["mkdir", "-p"]
    assert verify_bundle(folder) == []  # the lines write beside the bundle, not into it
    assert lines[0][2] == str(folder) + "-engines"
    for words in lines[1:]:
        assert words[0] == str(program)
        assert {"--stripWeights", "--memPoolSize=workspace:99M", "--stronglyTyped"} <= set(words)


def test_the_lines_are_those_of_the_exported_script(own, tmp_path) -> None:
    """Two writers of the same commands: they must ask for the same shapes in the same order."""
    from pulse_edge.runtimes.trt.build import Options

    folder = own()
    lines = trtexec_lines("trtexec", folder, read_manifest(folder), tmp_path, Options())
    script = (folder / "build" / "build.sh").read_text().replace("\\\n", " ")
    theirs = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith('"$TRTEXEC"')]
    own_words = ("--onnx=", "--saveEngine=", "--timingCacheFile=")

    def plain(words):
        return [word for word in words if not word.startswith(own_words)]

    assert [plain(shlex.split(line)[1:]) for line in lines[1:]] == [plain(words) for words in theirs]


def test_a_dry_run_builds_nothing_anywhere(own, plug, monkeypatch) -> None:
    machine, folder = plug(), own()
    result = commands.build(folder, dry_run=True)
    assert not result["built"]
    assert machine.builds == 0
    assert len(result["commands"]) == 4
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert commands.build(folder, dry_run=True)["commands"] == result["commands"]
    assert left(folder) == ["bundle"]


def test_little_memory_is_a_warning(own, plug, monkeypatch) -> None:
    plug()
    board = {
        "memory": {"available": 0},
        "swap": [],
        "l4t": None,
        "jetpack": None,
        "cuda": None,
        "modules": [],
    }
    monkeypatch.setattr("pulse_edge.board.read_board", lambda: board)
    folder = own()
    assert commands.build(folder, dry_run=True)["warnings"] == []  # of a model this small, no megabyte
    monkeypatch.setattr("pulse_edge.commands._build._weights", lambda *a: {"decoder.onnx": 4 << 30})
    (warning,) = commands.build(folder, dry_run=True)["warnings"]
    assert "4096 MB of weights" in warning
    assert "add swap" in warning


# --- signatures ---------------------------------------------------------------------------------


def test_the_makers_signature_survives_and_the_device_signs_its_engines(
    own, plug, tmp_path, monkeypatch
) -> None:
    plug()
    folder = own()
    maker, device = (make_keys(tmp_path / name) for name in ("maker", "device"))
    sign_bundle(folder, maker["key"])
    monkeypatch.setenv(REQUIRE_KEY, maker["public"])
    commands.build(folder, parity=False)
    with pytest.raises(BundleError, match=r"engines have no signature.*pulse-edge build BUNDLE --key"):
        load(folder)
    commands.build(folder, parity=False, key=device["key"])
    with pytest.raises(BundleError, match="engines is signed with another key"):
        load(folder)
    monkeypatch.setenv(REQUIRE_KEY, f"{maker['public']}{os.pathsep}{device['public']}")
    assert load(folder).runtime.startswith("TensorRT ")
    index = folder / "engines" / "engines.json"
    index.write_text(index.read_text().replace('"sm": "8.7"', '"sm": "8.8"'))
    assert any("signature of the engines does not hold" in text for text in verify_bundle(folder))


def test_engines_of_another_bundle_are_found(own, plug) -> None:
    plug()
    one, two = own("fp16", "one"), own("int8", "two")
    commands.build(one, parity=False)
    shutil.copytree(one / "engines", two / "engines")
    assert "The engines were made from another bundle" in verify_bundle(two)[0]


def test_files_among_the_engines_that_nobody_listed(own, plug) -> None:
    plug()
    folder = own()
    (folder / "engines").mkdir()
    (folder / "engines" / "x.engine").write_bytes(b"x")
    assert "has no engines.json" in verify_bundle(folder)[0]
    commands.build(folder, parity=False)  # replaces what is not its own
    assert verify_bundle(folder) == []
    (folder / "engines" / "more").write_bytes(b"x")
    assert verify_bundle(folder) == ["engines/more is not part of the engines; delete it."]


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run the command in this process; exit code, standard output and standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["pulse-edge", *map(str, words)])
        with pytest.raises(SystemExit) as left_with:
            cli.main()
        return int(left_with.value.code or 0), *capsys.readouterr()

    return run


def test_the_command_builds_runs_and_explains(own, plug, typed, two_pages) -> None:
    plug()
    folder = own()
    code, out, err = typed("build", folder)
    assert (code, err) == (0, "")
    assert re.search(r"^tied to +SM 8\.7, TensorRT 10\.3\.0; L4T not known$", out, flags=re.MULTILINE)
    assert re.search(r"^parity +logits within \S+ of ONNX Runtime on 2 real ECGs, 0 of 10", out, re.MULTILINE)
    code, out, _ = typed("build", folder, "--no-parity", "--json")
    assert (code, json.loads(out)["built"], json.loads(out)["parity"]) == (0, True, None)
    page = SAMPLES / "normal.png"
    code, out, err = typed("run", folder, "--image", page, "--ask", "Rate?", "--max-new-tokens", 2, "--json")
    assert (code, err) == (0, "")
    plug("10.13.3.9")
    code, out, err = typed("run", folder, "--image", page, "--ask", "Rate?", "--max-new-tokens", 2)
    assert code == 0
    assert "pulse-edge: runs in ONNX Runtime, not TensorRT: The engines were built for TensorRT 10.3.0" in err
    assert "runs in" not in out


def test_the_command_prints_lines_for_trtexec(own, typed, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("TRTEXEC", str(program))
    code, out, err = typed("build", own())
    assert code == 1
    assert "Nothing was built" in err
    assert [line.split()[0] for line in out.splitlines()] == ["mkdir", *[str(program)] * 3]
    code, out, err = typed("build", own(name="again"), "--dry-run")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 4
