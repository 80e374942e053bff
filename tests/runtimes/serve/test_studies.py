"""The history: whole or not at all, in order, and gone when it is deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pulse_edge.errors import UserError
from pulse_edge.runtimes.serve import database, shelf
from pulse_edge.runtimes.serve.clock import Clock, iso, seconds_of
from pulse_edge.runtimes.serve.errors import Refusal
from pulse_edge.runtimes.serve.shelf import PAGE, PHOTO, digest
from pulse_edge.runtimes.serve.studies import NewStudy, Studies

SECRET = "BED-12-SECRET-REFERENCE"


def new_study(studies: Studies, photo: bytes = b"a photo", **fields: Any) -> NewStudy:
    study = studies.shelf.begin()
    (studies.shelf.hidden(study) / PHOTO).write_bytes(photo)
    known: dict[str, Any] = {
        "id": study, "reference": "", "quality": {"grade": "good"}, "findings": {}, "model": {"name": "m"},
        "timing_ms": {}, "photo_type": "image/jpeg", "photo_sha256": digest(photo), "page": b"a page",
        "question": "What?", "text": "That.", "finish": "stop",
    }  # fmt: skip
    return NewStudy(**{**known, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def studies(folder: Path) -> Iterator[Studies]:
    opened = Studies(folder, Clock())
    yield opened
    opened.close()


def test_a_study_comes_back_as_it_was_stored(studies: Studies, folder: Path) -> None:
    stored = studies.store(new_study(studies, reference="R", text="Rhythm: sinus."))
    studies.answer(stored["id"], "And?", "No.", "length")
    studies.close()
    again = Studies(folder, Clock())
    found = again.get(stored["id"])
    assert found["reference"] == "R"
    assert [(a["question"], a["text"], a["finish"]) for a in found["answers"]] == [
        ("What?", "Rhythm: sinus.", "stop"),
        ("And?", "No.", "length"),
    ]
    assert again.picture(stored["id"], PHOTO) == (b"a photo", "image/jpeg")
    assert again.picture(stored["id"], PAGE) == (b"a page", "image/png")
    again.close()


def test_the_order_is_that_of_storing_even_if_the_clock_goes_back(folder: Path) -> None:
    times = iter([1000.0, 1000.0, 900.0, 900.0, 950.0, 950.0, 960.0, 970.0])
    studies = Studies(folder, Clock(lambda: next(times)))
    ids = [studies.store(new_study(studies))["id"] for _ in range(3)]
    assert [study["id"] for study in studies.list(9)] == ids[::-1]
    assert [study["id"] for study in studies.list(9, ids[1])] == ids[:1]
    assert [study["id"] for study in studies.list(1)] == ids[2:]
    studies.close()


def test_a_number_is_never_given_out_twice(studies: Studies) -> None:
    first = studies.store(new_study(studies))
    studies.delete(first["id"])
    assert studies.store(new_study(studies))["number"] == first["number"] + 1


def test_what_is_deleted_is_in_no_file_any_more(studies: Studies, folder: Path) -> None:
    kept = studies.store(new_study(studies))
    gone = studies.store(new_study(studies, b"SECRET-PHOTO", reference=SECRET, text="SECRET-TEXT"))
    studies.answer(gone["id"], "SECRET-QUESTION", "SECRET-ANSWER", "stop")
    assert any(SECRET.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    studies.delete(gone["id"])
    for path in folder.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path
    with pytest.raises(Refusal) as refused:
        studies.get(gone["id"])
    assert refused.value.status == 404
    assert studies.get(kept["id"]) == kept


def test_purging_takes_what_is_older_and_no_more(folder: Path) -> None:
    now = [seconds_of("2026-01-01T00:00:00Z")]
    studies = Studies(folder, Clock(lambda: now[0]))
    old = studies.store(new_study(studies))
    now[0] += 86400
    new = studies.store(new_study(studies))
    assert studies.purge(iso(now[0])) == 1
    assert [study["id"] for study in studies.list(9)] == [new["id"]]
    assert not (folder / "pictures" / old["id"]).exists()
    studies.close()


@pytest.mark.parametrize("name", ["..", "../../etc", "a" * 31, "A" * 32, "", "a" * 32 + "\n", "%2e%2e"])
def test_only_an_id_becomes_a_path(studies: Studies, name: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        studies.shelf.path(name, PHOTO)
    with pytest.raises(Refusal):
        studies.get(name)
    with pytest.raises(Refusal):
        studies.delete(name)


def test_a_picture_that_changed_on_the_disk_is_not_shown(studies: Studies) -> None:
    stored = studies.store(new_study(studies))
    studies.shelf.path(stored["id"], PAGE).write_bytes(b"another page")
    with pytest.raises(Refusal) as refused:
        studies.picture(stored["id"], PAGE)
    assert refused.value.code == "picture_damaged"


def test_a_full_disk_while_pictures_are_written_leaves_no_study(
    studies: Studies, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shelf, "fsync", full)
        with pytest.raises(Refusal) as refused:
            studies.store(new_study(studies))
    assert (refused.value.status, refused.value.code) == (507, "disk_full")
    assert studies.list(9) == []
    assert list((folder / "pictures").iterdir()) == []
    studies.store(new_study(studies))
    assert studies.count() == 1


def test_a_full_database_leaves_no_study(studies: Studies, folder: Path) -> None:
    """SQLite itself says that it is full here, not a stand-in."""
    troubles: list[str] = []
    studies._on_trouble = troubles.append
    assert studies._database is not None
    (pages,) = studies._database.execute("PRAGMA page_count").fetchone()
    studies._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Refusal) as refused:
        studies.store(new_study(studies, text="x" * 100_000))
    assert refused.value.code == "disk_full"
    assert troubles == ["disk_full"]
    assert studies.list(9) == []
    assert list((folder / "pictures").iterdir()) == []
    studies._database.execute("PRAGMA max_page_count = 100000")
    assert studies.store(new_study(studies, text="x" * 100_000))["number"] == 1


@pytest.mark.parametrize("moment", ["before the row", "behind the row", "while deleting", "behind deleting"])
def test_a_crash_leaves_a_whole_study_or_none(
    folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between two steps; the next start finishes or undoes what it left."""

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    studies = Studies(folder, Clock())
    stored = studies.store(new_study(studies))
    with monkeypatch.context() as patch:
        if moment == "before the row":
            patch.setattr("pulse_edge.runtimes.serve.studies._add_answer", crash)
            act, expected = (lambda: studies.store(new_study(studies))), 1
        elif moment == "behind the row":
            patch.setattr(studies.shelf, "show", crash)
            act, expected = (lambda: studies.store(new_study(studies))), 2
        elif moment == "while deleting":
            patch.setattr("pulse_edge.runtimes.serve.studies._transaction", crash)
            act, expected = (lambda: studies.delete(stored["id"])), 1
        else:
            patch.setattr(studies.shelf, "drop", crash)
            act, expected = (lambda: studies.delete(stored["id"])), 0
        with pytest.raises(Crash):
            act()
    studies._database.close()  # type: ignore[union-attr]
    again = Studies(folder, Clock())
    found = again.list(9)
    assert len(found) == expected
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == sorted(s["id"] for s in found)
    for study in found:
        assert again.picture(study["id"], PHOTO)[0] == b"a photo"
    again.close()


def damage_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content), 512):
        content[place : place + 64] = b"\x5a" * 64
    path.write_bytes(bytes(content))


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 400)


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [damage_middle, damage_header, damage_by_cutting, damage_by_emptying]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_moved_aside_and_never_silently_made_anew(folder: Path, damage: Any) -> None:
    studies = Studies(folder, Clock())
    for _ in range(20):
        studies.store(new_study(studies))
    studies.close()
    backup = (folder / database.NAME).read_bytes()
    damage(folder / database.NAME)
    damaged = (folder / database.NAME).read_bytes()
    for _ in range(2):  # the next start knows it too
        troubles: list[str] = []
        studies = Studies(folder, Clock(), on_trouble=troubles.append)
        assert troubles == ["database_damaged"]
        with pytest.raises(Refusal) as refused:
            studies.list(9)
        assert refused.value.code == "database_damaged"
        studies.close()
    aside = folder / "damaged-1"
    if damaged:  # of an empty file SQLite makes a header
        assert (aside / database.NAME).read_bytes() == damaged
    assert len(list((aside / "pictures").iterdir())) == 20
    assert not (folder / database.NAME).exists()

    (folder / database.NAME).write_bytes(backup)  # a backup is taken up again
    (aside / "pictures").rename(folder / "pictures")
    studies = Studies(folder, Clock())
    found = studies.list(99)
    assert len(found) == 20
    assert studies.picture(found[0]["id"], PHOTO)[0] == b"a photo"
    studies.close()
    assert not (folder / database.DAMAGED).exists()


def test_a_database_that_was_taken_away_is_missed(folder: Path) -> None:
    studies = Studies(folder, Clock())
    studies.store(new_study(studies))
    studies.close()
    (folder / database.NAME).unlink()
    troubles: list[str] = []
    Studies(folder, Clock(), on_trouble=troubles.append).close()
    assert troubles == ["database_damaged"]
    assert len(list((folder / "damaged-1" / "pictures").iterdir())) == 1


def test_an_empty_history_is_begun_only_when_that_is_asked_for(folder: Path) -> None:
    Studies(folder, Clock()).close()
    damage_header(folder / database.NAME)
    Studies(folder, Clock()).close()
    assert not (folder / database.NAME).exists()
    studies = Studies(folder, Clock(), new=True)
    assert studies.list(9) == []
    studies.store(new_study(studies))
    studies.close()
    assert (folder / "damaged-1" / database.NAME).is_file()


def test_damage_that_shows_while_it_runs_stops_the_history(folder: Path) -> None:
    troubles: list[str] = []
    studies = Studies(folder, Clock(), on_trouble=troubles.append)
    for _ in range(40):
        studies.store(new_study(studies, text="y" * 3000))
    assert studies._database is not None
    studies._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    studies._database.execute("PRAGMA cache_size = 1")
    damage_middle(folder / database.NAME)
    another = new_study(studies)
    with pytest.raises(Refusal) as refused:
        studies.list(99)
    assert refused.value.code == "database_damaged"
    assert troubles == ["database_damaged"]
    with pytest.raises(Refusal):
        studies.store(another)
    assert (folder / "damaged-1" / database.NAME).is_file()
    assert (folder / database.DAMAGED).is_file()


def test_a_newer_database_is_left_alone(folder: Path) -> None:
    Studies(folder, Clock()).close()
    with sqlite3.connect(folder / database.NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (folder / database.NAME).read_bytes()
    with pytest.raises(UserError, match="newer pulse-edge"):
        Studies(folder, Clock())
    assert (folder / database.NAME).read_bytes() == before
