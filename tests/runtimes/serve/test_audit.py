"""The audit log: whatever is changed in it, or cut off from it, is found and named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse_edge.runtimes.serve.audit import NAME, ROOT, Audit, check
from pulse_edge.runtimes.serve.clock import Clock


def write(folder: Path, count: int) -> Path:
    log = Audit(folder, Clock())
    for number in range(count):
        log.add("study_stored", study=f"{number:032x}")
    log.close()
    return folder / NAME


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("log"), 4).read_bytes()


def test_a_log_is_sound_and_is_gone_on_with(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    write(tmp_path, 2)
    found = check(path)
    assert (found.lines, found.problem, found.torn) == (5, None, 0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["previous"] for line in lines] == [ROOT, *(line["hash"] for line in lines[:-1])]
    assert found.head == lines[-1]["hash"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / NAME


@given(data=st.data())
def test_a_changed_byte_is_found_and_its_line_named(
    written: bytes, scratch: Path, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(written) - 2))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != written[place]))
    changed = written[:place] + bytes([value]) + written[place + 1 :]
    scratch.write_bytes(changed)
    found = check(scratch)
    line = written[:place].count(b"\n") + 1
    assert found.lines < 4
    assert found.problem is not None
    assert f"Line {line} " in found.problem


@pytest.mark.parametrize("take", [0, 1, 2])
def test_a_line_that_was_taken_out_is_missed(written: bytes, take: int, tmp_path: Path) -> None:
    lines = written.splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(lines[:take] + lines[take + 1 :]))
    found = check(tmp_path / NAME)
    assert found.problem is not None
    assert f"Line {take + 1} " in found.problem


def test_lines_cut_off_at_the_end_are_missed_by_who_remembers_them(written: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(written)
    head = check(tmp_path / NAME).head
    (tmp_path / NAME).write_bytes(b"".join(written.splitlines(keepends=True)[:-1]))
    assert check(tmp_path / NAME).problem is None
    found = check(tmp_path / NAME, (4, head))
    assert found.problem is not None
    assert found.problem.startswith("Line 4 ")


def test_a_log_that_was_made_anew_is_not_the_one_that_is_remembered(written: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(written)
    head = check(tmp_path / NAME).head
    (tmp_path / NAME).unlink()
    write(tmp_path, 6)
    assert check(tmp_path / NAME, (4, head)).problem is not None


def test_a_line_that_power_loss_cut_short_is_cut_off_and_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 4, "ti')
    assert check(path).torn == 17
    write(tmp_path, 1)
    found = check(path)
    assert (found.lines, found.problem, found.torn) == (5, None, 0)
    assert path.read_bytes().startswith(whole)
    assert json.loads(path.read_text().splitlines()[3])["event"] == "line_torn"


def test_a_broken_log_is_kept_and_the_new_one_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    broken = path.read_bytes().replace(b"study_stored", b"study_viewed", 1)
    path.write_bytes(broken)
    write(tmp_path, 1)
    assert (tmp_path / "audit.broken-1.jsonl").read_bytes() == broken
    first = json.loads(path.read_text().splitlines()[0])
    assert first["event"] == "log_broken"
    assert first["kept_as"] == "audit.broken-1.jsonl"
    assert check(path).problem is None


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Audit(tmp_path, Clock())
    log.add("start")
    before = (tmp_path / NAME).read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.add("stop")
    assert (tmp_path / NAME).read_bytes() == before
    log.add("stop")
    assert check(tmp_path / NAME).lines == 2
    log.close()
