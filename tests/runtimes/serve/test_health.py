"""The states in which an answer cannot be trusted or kept."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pulse_edge.bundle import read_manifest
from pulse_edge.runtimes.serve import health as module
from pulse_edge.runtimes.serve.clock import Clock
from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.health import Bundle, Health
from pulse_edge.runtimes.serve.settings import Settings

Disk = namedtuple("Disk", "total used free")


def watched(folder: Path) -> Bundle:
    real = Path(os.path.realpath(folder))
    return Bundle(folder, real, sorted(read_manifest(real)["files"]))


def change_size(folder: Path) -> None:
    with next(folder.glob("*.onnx")).open("ab") as stream:
        stream.write(b"\0")


def change_in_place(folder: Path) -> None:
    path = next(folder.glob("*.onnx"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as stream:
        stream.write(content)


def swap_the_folder(folder: Path) -> None:
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    folder.rename(folder.with_name("old"))
    copy.rename(folder)


def change_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    about = path.stat()
    path.write_bytes(path.read_bytes().replace(b"{", b"{ ", 1)[:-1])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def take_a_file(folder: Path) -> None:
    next(folder.glob("*.onnx")).unlink()


def take_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)


CHANGES = [change_size, change_in_place, swap_the_folder, change_the_manifest, take_a_file, take_the_folder]


@pytest.mark.parametrize("change", CHANGES)
def test_a_bundle_that_is_changed_under_the_service_is_noticed(own_bundle: Path, change: Any) -> None:
    bundle = watched(own_bundle)
    assert not bundle.changed()
    change(own_bundle)
    assert bundle.changed()


def test_a_change_that_is_taken_back_stays_a_change(own_bundle: Path) -> None:
    bundle = watched(own_bundle)
    path = own_bundle / "manifest.json"
    path.rename(own_bundle / "away")
    assert bundle.changed()
    (own_bundle / "away").rename(path)
    assert bundle.changed()


def test_a_link_that_leads_to_another_version_is_noticed(own_bundle: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "current"
    shutil.copytree(own_bundle, other)
    link.symlink_to(own_bundle)
    bundle = watched(link)
    assert not bundle.changed()
    assert not bundle.successor()
    link.unlink()
    link.symlink_to(other)
    assert bundle.changed()
    assert bundle.successor()
    change_in_place(other)
    assert not bundle.successor()  # nobody changes over to a damaged one


@pytest.fixture
def health(own_bundle: Path, tmp_path: Path) -> Health:
    made = Health(Settings(tmp_path, min_free=1000), Clock())
    made.bundle = watched(own_bundle)
    return made


def test_a_full_disk_stops_storing_and_answers_come_back_with_the_space(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FRESH_S", -1.0)
    free = [999]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Disk(0, 0, free[0]))
    changes: list[tuple[str, str]] = []
    health.on_change = lambda old, new: changes.append((old, new))
    assert health.report()["state"] == "disk_full"
    health.require(stores=False)  # what is not kept can be answered
    with pytest.raises(Refusal) as refused:
        health.require(stores=True)
    assert refused.value.status == 507
    free[0] = 1000
    health.require(stores=True)
    assert changes == [("loading", "disk_full"), ("disk_full", "ok")]


def test_a_write_that_failed_counts_as_full_for_a_while(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HOLDS_S", 0.05)
    health.trouble("disk_full")
    assert health.state() == "disk_full"
    import time

    time.sleep(0.06)
    assert health.state() == "ok"


@pytest.mark.parametrize("state", ["loading", "bundle_changed", "database_damaged", "stopping"])
def test_what_cannot_be_trusted_or_kept_is_refused_with_its_state(
    health: Health, own_bundle: Path, state: str
) -> None:
    if state == "loading":
        health.bundle = None
    elif state == "bundle_changed":
        change_size(own_bundle)
    elif state == "database_damaged":
        health.trouble(state)
    else:
        health.stopping = True
    with pytest.raises(Refusal) as refused:
        health.require(stores=True)
    assert (refused.value.status, refused.value.code) == (503, state)
    report = health.report()
    assert report["state"] == state
    assert report["ready"] == (state == "database_damaged")
    assert not report["stores"]


def test_a_clock_that_went_back_is_told_and_stops_nothing(own_bundle: Path, tmp_path: Path) -> None:
    now = [1e9]
    clock = Clock(lambda: now[0])
    health = Health(Settings(tmp_path, min_free=0), clock)
    health.bundle = watched(own_bundle)
    assert health.state() == "ok"
    clock.now()
    now[0] -= 1.0  # network time does that
    assert health.state() == "ok"
    now[0] -= 3600
    assert health.report() == {**health.report(), "state": "clock_went_back", "ready": True, "stores": True}
    health.require(stores=True)
    now[0] += 3601
    assert health.state() == "ok"


def test_a_time_in_the_records_counts_as_seen(tmp_path: Path) -> None:
    clock = Clock(lambda: 0.0)
    clock.seen("2026-01-01T00:00:00.000Z")
    assert clock.behind() > 1.7e9
