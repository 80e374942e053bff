"""How many cores a process computes on."""

from __future__ import annotations

import os

import pytest

from pulse_edge import machine


@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """Four processors that are two cores, and a container's limit."""
    for cpu in range(4):
        place = tmp_path / f"cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    return tmp_path


def test_hyperthreads_of_a_core_count_once(cpus, monkeypatch):
    assert machine.usable_cores() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
    assert machine.usable_cores() == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("", 2)]
)
def test_a_containers_share_of_time_is_the_limit(cpus, quota, cores):
    (cpus / "cpu.max").write_text(quota)
    assert machine.usable_cores() == cores


def test_processors_without_a_topology_count_each(cpus, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 9, 10})
    assert machine.usable_cores() == 3
