"""The SQLite file of the studies: opened, checked, moved aside when damaged, never silently made anew."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pulse_edge.errors import PulseEdgeError, UserError
from pulse_edge.runtimes.serve.shelf import FOLDER, fsync

NAME: Final = "studies.sqlite3"
DAMAGED: Final = "DATABASE_DAMAGED.json"  # stands in the data folder until somebody has decided
_VERSION: Final = 1
# number orders the history whatever the clock says; AUTOINCREMENT never gives one out twice.
_TABLES: Final = """
CREATE TABLE studies (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created TEXT NOT NULL,
    reference TEXT NOT NULL, quality TEXT NOT NULL, findings TEXT NOT NULL, model TEXT NOT NULL,
    timing TEXT NOT NULL, photo_type TEXT NOT NULL, photo_sha256 TEXT NOT NULL, page_sha256 TEXT NOT NULL
);
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    study INTEGER NOT NULL REFERENCES studies (number) ON DELETE CASCADE,
    question TEXT NOT NULL, text TEXT NOT NULL, created TEXT NOT NULL, finish TEXT NOT NULL
);
CREATE INDEX answers_of ON answers (study);
CREATE INDEX studies_created ON studies (created);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Damaged(PulseEdgeError):
    """The database cannot be used; it was moved aside, or waits to be replaced."""


def connect(data: Path, new: bool = False) -> sqlite3.Connection:
    """Open the database of a data folder; an empty folder gets one.

    Args:
        data: the folder.
        new: begin an empty one after a damaged one was moved aside.

    Raises:
        Damaged: it is damaged, or was found so before and nobody has put one back.
        UserError: it was written by a newer pulse-edge.
    """
    path, note = data / NAME, data / DAMAGED
    if note.is_file() and not path.is_file() and not new:
        raise Damaged(_sentence(data))
    if not path.is_file() and _has_pictures(data):  # taken away, or moved aside by halves
        move_aside(data)
        if not new:
            raise Damaged(_sentence(data))
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    except sqlite3.Error as error:
        raise PulseEdgeError(
            f"{path} cannot be opened ({error}). Check the folder's rights and disk."
        ) from error
    try:
        _prepare(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        if _is_passing(error):
            raise PulseEdgeError(
                f"{path} cannot be used now ({error}). Free its disk and start again."
            ) from error
        move_aside(data)
        raise Damaged(_sentence(data)) from error
    except BaseException:
        connection.close()
        raise
    note.unlink(missing_ok=True)
    return connection


def remembered_log(data: Path) -> tuple[int, str] | None:
    """Return number and hash of the audit log's last line as the database knows it; None if it cannot say."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(data / NAME))}?mode=ro", uri=True)
        ) as connection:
            return log_head(connection)
    except sqlite3.Error:
        return None


def log_head(connection: sqlite3.Connection) -> tuple[int, str] | None:
    """Return what :func:`remembered_log` does, of an open database."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'audit'").fetchone()
    if row is None:
        return None
    number, head = json.loads(row[0])
    return int(number), str(head)


def _has_pictures(data: Path) -> bool:
    """Whether there are studies' pictures: then there must be a database."""
    return any(not path.name.startswith(".") for path in (data / FOLDER).glob("*"))


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Set what SQLite forgets between openings, check the whole file, make the tables."""
    os.chmod(path, 0o600)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        raise UserError(
            f"{path} was written by a newer pulse-edge. Update this one, or choose another --data."
        )
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not version and not _has_pictures(path.parent):
        connection.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={_VERSION};COMMIT;")
        fsync(path.parent)
        return
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"integrity check: {found}")
    if version != _VERSION:
        raise sqlite3.DatabaseError("it has no tables of pulse-edge")
    if connection.execute("PRAGMA foreign_key_check").fetchone():
        raise sqlite3.DatabaseError("answers without a study")


def _is_passing(error: sqlite3.Error) -> bool:
    """Whether an error says something of the disk or of other programs, and nothing of the file."""
    text = str(error)
    return any(part in text for part in ("disk is full", "locked", "unable to open", "disk I/O", "readonly"))


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file's content is not what SQLite wrote."""
    return isinstance(error, sqlite3.DatabaseError) and (
        "malformed" in str(error) or "not a database" in str(error) or "corrupt" in str(error)
    )


def is_full(error: BaseException) -> bool:
    """Whether an error means that there is no space left."""
    if isinstance(error, sqlite3.Error):
        return "disk is full" in str(error)
    return isinstance(error, OSError) and error.errno in (28, 122, 27)  # ENOSPC, EDQUOT, EFBIG


def move_aside(data: Path) -> Path:
    """Move a damaged database and the pictures that belong to it into a folder of their own; return that.

    A note stays behind, so that the next start does not begin an empty history as if there had been none.
    """
    number = 1
    while (aside := data / f"damaged-{number}").exists():
        number += 1
    aside.mkdir(mode=0o700)
    text = json.dumps({"moved_to": aside.name, "remedy": _sentence(data)}, indent=2)
    (data / DAMAGED).write_text(text + "\n", encoding="utf-8")
    fsync(data / DAMAGED)
    for name in (NAME, f"{NAME}-wal", f"{NAME}-shm", FOLDER):
        if (data / name).exists():
            os.rename(data / name, aside / name)
    fsync(data)
    return aside


def _sentence(data: Path) -> str:
    return (
        f"The database of studies was damaged and moved aside, with its pictures, to {data}/damaged-*. "
        f"Stop the service; put a backup of {NAME} and {FOLDER}/ back, or start once with --new-database to "
        "begin an empty history. Nothing is stored until then."
    )
