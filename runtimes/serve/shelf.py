"""The pictures of studies, as files: a folder for each study, written whole or not at all.

Files and not blobs: the database stays small, so that it can be checked whole at every start; a damaged
database takes no picture with it; and megabytes are written once and not twice, as a write-ahead log would.
A folder has a hidden name until its row is in the database, and again before the row is taken out, so after
a crash the row says what a hidden folder is: a study, or what is left of none.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

PHOTO, PAGE = "photo", "page.png"
FOLDER: Final = "pictures"
_ID: Final = re.compile(r"[0-9a-f]{32}")
_HIDDEN: Final = ".partial"


class Shelf:
    """The folder of all pictures.

    Args:
        data: folder of the service.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / FOLDER

    def make(self) -> None:
        """Make the folder, unless it is there."""
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def begin(self) -> str:
        """Make a hidden folder for a new study; return its id, 128 random bits."""
        study = secrets.token_hex(16)
        self.hidden(study).mkdir(mode=0o700)
        return study

    def hidden(self, study: str) -> Path:
        """Return the folder of a study that is not, or no longer, in the database."""
        return self.folder / f".{_sound(study)}{_HIDDEN}"

    def seal(self, study: str, page: bytes) -> None:
        """Write the page beside the photo, and wait until the disk has both.

        Raises:
            OSError: the disk is full or broken.
        """
        folder = self.hidden(study)
        (folder / PAGE).write_bytes(page)
        for path in (folder / PHOTO, folder / PAGE, folder, self.folder):
            fsync(path)

    def show(self, study: str) -> None:
        """Give a folder its name, now that its row is in the database."""
        os.rename(self.hidden(study), self.folder / _sound(study))
        fsync(self.folder)

    def hide(self, study: str) -> None:
        """Take the name away, before the row is taken out of the database."""
        named = self.folder / _sound(study)
        if named.is_dir():
            os.rename(named, self.hidden(study))
            fsync(self.folder)

    def drop(self, study: str) -> None:
        """Delete a hidden folder."""
        shutil.rmtree(self.hidden(study), ignore_errors=True)

    def path(self, study: str, name: str) -> Path:
        """Return where a picture of a study is, ``photo`` or ``page.png``."""
        named = self.folder / _sound(study)
        return (named if named.is_dir() else self.hidden(study)) / name

    def recover(self, exists: Callable[[str], bool]) -> int:
        """Finish or undo what a crash left; return how many folders were undone.

        Args:
            exists: says whether a study is in the database.
        """
        undone = 0
        for folder in self.folder.glob(f".*{_HIDDEN}"):
            study = folder.name[1 : -len(_HIDDEN)]
            if not _ID.fullmatch(study):
                continue
            if exists(study):
                self.show(study)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                undone += 1
        return undone


def is_id(text: str) -> bool:
    """Whether a text has the form of a study's id."""
    return _ID.fullmatch(text) is not None


def digest(content: bytes) -> str:
    """Return the SHA-256 of a picture."""
    return hashlib.sha256(content).hexdigest()


def fsync(path: Path) -> None:
    """Wait until the disk has a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sound(study: str) -> str:
    """Nothing but an id becomes part of a path."""
    if not is_id(study):
        raise ValueError("not the id of a study")
    return study
