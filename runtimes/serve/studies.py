"""The history: studies with their pictures and answers. What was acknowledged survives a crash.

A study enters in one transaction, behind its pictures: SQLite with a write-ahead log that is flushed at every
commit (``synchronous=FULL``). It is acknowledged to the client only after that.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulse_edge.runtimes.serve import database
from pulse_edge.runtimes.serve.audit import Audit
from pulse_edge.runtimes.serve.clock import Clock
from pulse_edge.runtimes.serve.errors import Refusal, not_found
from pulse_edge.runtimes.serve.shelf import PAGE, PHOTO, Shelf, digest, is_id


@dataclass(frozen=True)
class NewStudy:
    """A study that is about to be stored; its photo lies in the shelf's hidden folder already.

    Attributes:
        id: the shelf's.
        reference: the cart's own identifier; may be empty.
        quality: as ``Taken.result`` gives it.
        findings: of the model.
        model: name, hash of the bundle, calibrated.
        timing_ms: of each step.
        photo_type: MIME type.
        photo_sha256: of the file.
        page: the flat page as PNG.
        question: that the first answer is for.
        text: the first answer.
        finish: why it ended.
    """

    id: str
    reference: str
    quality: dict[str, Any]
    findings: dict[str, Any]
    model: dict[str, Any]
    timing_ms: dict[str, Any]
    photo_type: str
    photo_sha256: str
    page: bytes
    question: str
    text: str
    finish: str


class Studies:
    """The database and the shelf as one.

    Args:
        data: folder of the service.
        clock: for the times.
        new: see :func:`database.connect`.
        on_trouble: called with ``disk_full`` or ``database_damaged`` when that stopped something.

    Attributes:
        shelf: the pictures.
        audit: what every change is noted in; set once both are open.
        undone: studies that a crash had left half written, and that were never acknowledged.
    """

    def __init__(
        self,
        data: Path,
        clock: Clock,
        new: bool = False,
        on_trouble: Callable[[str], None] = lambda state: None,
    ) -> None:
        self._data, self._clock, self._on_trouble = data, clock, on_trouble
        self._lock = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self.shelf, self.undone = Shelf(data), 0
        self.audit: Audit | None = None
        try:
            self._database = database.connect(data, new)
        except database.Damaged:
            on_trouble("database_damaged")
            return
        self.shelf.make()
        with self._open() as db:
            self.undone = self.shelf.recover(lambda study: _number(db, study) is not None)
            for (latest,) in db.execute("SELECT max(created) FROM studies"):
                if latest:
                    clock.seen(latest)

    def store(self, new: NewStudy) -> dict[str, Any]:
        """Store a study with its pictures and first answer; return it as clients see it.

        Raises:
            Refusal: the disk is full or the database damaged; nothing of it was kept.
        """
        created = self._clock.now()
        try:
            with self._open() as db:
                self.shelf.seal(new.id, new.page)
                with _transaction(db):
                    number = db.execute(
                        "INSERT INTO studies (id, created, reference, quality, findings, model, timing, "
                        "photo_type, photo_sha256, page_sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            *(new.id, created, new.reference),
                            *map(json.dumps, (new.quality, new.findings, new.model, new.timing_ms)),
                            *(new.photo_type, new.photo_sha256, digest(new.page)),
                        ),
                    ).lastrowid
                    _add_answer(db, number, new.question, new.text, created, new.finish)
                self.shelf.show(new.id)
                study = _study(db, new.id)
        except Refusal:
            self.shelf.drop(new.id)
            raise
        self._note("study_stored", study=new.id, record=record_digest(study, self._digests(new.id)))
        return study

    def answer(self, study: str, question: str, text: str, finish: str) -> dict[str, Any]:
        """Add an answer to a study; return it as clients see it.

        Raises:
            Refusal: the study is gone, the disk full or the database damaged.
        """
        created = self._clock.now()
        with self._open() as db:
            number = _number(db, study)
            if number is None:
                raise not_found()
            with _transaction(db):
                _add_answer(db, number, question, text, created, finish)
        self._note("answer_stored", study=study)
        return {"question": question, "text": text, "created": created, "finish": finish}

    def get(self, study: str) -> dict[str, Any]:
        """Return a study as clients see it.

        Raises:
            Refusal: there is none, or the database is damaged.
        """
        with self._open() as db:
            return _study(db, study)

    def list(self, limit: int, before: str | None = None) -> list[dict[str, Any]]:
        """Return studies, the latest first.

        Args:
            limit: at most so many.
            before: a study that all of them precede, or a time in ISO 8601.
        """
        with self._open() as db:
            where = "created < ?"
            if before is None:
                before = "~"  # behind every time
            elif is_id(before):
                where = "number < (SELECT number FROM studies WHERE id = ?)"
            rows = db.execute(
                f"SELECT id FROM studies WHERE {where} ORDER BY number DESC LIMIT {int(limit)}", (before,)
            )
            return [_study(db, study) for (study,) in rows.fetchall()]

    def picture(self, study: str, name: str) -> tuple[bytes, str]:
        """Return a picture of a study and its MIME type.

        Raises:
            Refusal: there is none, or it is not the one that was stored.
        """
        with self._open() as db:
            row = _row(db, study)
            known, kind = (
                (row["photo_sha256"], row["photo_type"])
                if name == PHOTO
                else (row["page_sha256"], "image/png")
            )
            try:
                content = self.shelf.path(study, name).read_bytes()
            except FileNotFoundError:
                content = b""
        if digest(content) != known:
            raise Refusal(
                410, "picture_damaged", "This picture is missing or was changed on the disk. It is not shown."
            )
        return content, kind

    def delete(self, study: str) -> None:
        """Delete a study with its pictures; SQLite and the log are overwritten, not only unlinked.

        Raises:
            Refusal: there is none.
        """
        with self._open() as db:
            number = _number(db, study)
            if number is None:
                raise not_found()
            self.shelf.hide(study)
            with _transaction(db):
                db.execute("DELETE FROM studies WHERE number = ?", (number,))
            self.shelf.drop(study)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._note("study_deleted", study=study)

    def purge(self, before: str) -> int:
        """Delete all studies from before a time in ISO 8601; return how many."""
        with self._open() as db:
            found = db.execute(
                "SELECT id FROM studies WHERE created < ? ORDER BY number", (before,)
            ).fetchall()
        for (study,) in found:
            with contextlib.suppress(Refusal):  # deleted meanwhile
                self.delete(study)
        if found:
            self._note("purged", count=len(found), older_than=before)
        return len(found)

    def count(self) -> int:
        """Return the number of studies."""
        with self._open() as db:
            return int(db.execute("SELECT count(*) FROM studies").fetchone()[0])

    def remember_log(self, number: int, head: str) -> None:
        """Remember the last line of the audit log; see ``audit``."""
        with contextlib.suppress(Refusal), self._open() as db:
            db.execute(
                "INSERT OR REPLACE INTO facts VALUES ('audit', ?)",
                (json.dumps([number, head]),),
            )

    def remembered_log(self) -> tuple[int, str] | None:
        """Return number and hash of the last line of the audit log that was remembered."""
        with self._open() as db:
            return database.log_head(db)

    def close(self) -> None:
        """Bring everything into the one file and close it."""
        with self._lock:
            if self._database is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._database.close()
                self._database = None

    def _digests(self, study: str) -> tuple[str, str]:
        with self._open() as db:
            row = _row(db, study)
            return row["photo_sha256"], row["page_sha256"]

    def _note(self, event: str, **fields: Any) -> None:
        """Write to the audit log; the study itself is safe already, so a full disk is only noted."""
        if self.audit is None:
            return
        try:
            self.audit.add(event, **fields)
        except OSError:
            self._on_trouble("disk_full")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Give the database to one thread at a time, and turn its errors into states."""
        with self._lock:
            if self._database is None:
                raise _damaged()
            try:
                yield self._database
            except (sqlite3.Error, OSError) as error:
                if database.is_full(error):
                    self._on_trouble("disk_full")
                    raise _full() from error
                if isinstance(error, sqlite3.Error) and database.is_damage(error):
                    self._give_up()
                    raise _damaged() from error
                raise Refusal(
                    503,
                    "database_failed",
                    "The studies cannot be reached. Tell whoever looks after this cart.",
                    10,
                ) from error

    def _give_up(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
            database.move_aside(self._data)
        self._on_trouble("database_damaged")


def record_digest(study: dict[str, Any], pictures: tuple[str, str]) -> str:
    """Return the SHA-256 of a study as it was stored, for the audit log to vouch for."""
    return digest(json.dumps([study, pictures], sort_keys=True).encode())


def _full() -> Refusal:
    return Refusal(
        507, "disk_full", "The disk is full, so nothing was stored. Delete old studies or free some space."
    )


def _damaged() -> Refusal:
    return Refusal(
        503,
        "database_damaged",
        "The history is damaged and nothing can be stored. Tell whoever looks after this cart.",
    )


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def _add_answer(
    db: sqlite3.Connection, study: int | None, question: str, text: str, created: str, finish: str
) -> None:
    db.execute(
        "INSERT INTO answers (study, question, text, created, finish) VALUES (?, ?, ?, ?, ?)",
        (study, question, text, created, finish),
    )


def _number(db: sqlite3.Connection, study: str) -> int | None:
    row = db.execute("SELECT number FROM studies WHERE id = ?", (study,)).fetchone()
    return int(row[0]) if row else None


def _row(db: sqlite3.Connection, study: str) -> dict[str, Any]:
    cursor = db.execute("SELECT * FROM studies WHERE id = ?", (study,))
    row = cursor.fetchone()
    if row is None:
        raise not_found()
    return dict(zip((column[0] for column in cursor.description), row, strict=True))


def _study(db: sqlite3.Connection, study: str) -> dict[str, Any]:
    row = _row(db, study)
    answers = db.execute(
        "SELECT question, text, created, finish FROM answers WHERE study = ? ORDER BY number",
        (row["number"],),
    )
    names = ("question", "text", "created", "finish")
    return {
        "id": row["id"],
        "number": row["number"],
        "created": row["created"],
        "reference": row["reference"],
        "quality": json.loads(row["quality"]),
        "photo": f"/v1/studies/{row['id']}/photo",
        "page": f"/v1/studies/{row['id']}/{PAGE}",
        "findings": json.loads(row["findings"]),
        "answers": [dict(zip(names, answer, strict=True)) for answer in answers],
        "model": json.loads(row["model"]),
        "timing_ms": json.loads(row["timing"]),
    }
