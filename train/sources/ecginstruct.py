"""PULSE's own training file: ECGInstruct, a JSON list of conversations with a folder of pictures.

The form is LLaVA's (Liu et al., NeurIPS 2023), as the samples of ECGInstruct show it (Liu et al.,
arXiv 2410.19008)::

    [{"id": "mimic-44111511", "image": "mimic/p1127/…/44111511-0.png",
      "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": "…"}]}, …]

The file has over a million entries. It is passed over once, each entry is checked, and only the
places of the good ones are kept (16 bytes each): an entry is parsed again when it is asked for, so
worker processes share nothing large. Pictures are not opened here, which would take hours.

There are no patients in the file: all of it is training data, as PULSE uses it.
"""

from __future__ import annotations

import collections
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN
from pulse_edge.ecg.instruct import Turn
from pulse_edge.errors import UserError

KIND: Final = "instruct"  # of every turn
# Strings first, so that a bracket inside one is never taken for structure.
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_OPEN: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*")
_COMMA: Final = re.compile(rb"\s*,\s*")
_CLOSE: Final = re.compile(rb"\s*\]\s*\Z")
_SPEAKERS: Final = ("human", "gpt")


@dataclass(frozen=True)
class InstructExample:
    """One picture with a conversation about it.

    Attributes:
        id: of the entry.
        image: path of the picture; it was there when the file was read.
        turns: questions, without ``<image>``, and answers. The picture belongs before the first
            question, where ``pulse_edge.model.prompt.build_prompt`` puts it.
    """

    id: str
    image: Path
    turns: tuple[Turn, ...]

    @property
    def conversations(self) -> list[dict[str, str]]:
        """The turns in LLaVA's form, ``<image>`` and a line feed first, for ``encode_training``."""
        said = [text for turn in self.turns for text in (turn.question, turn.answer)]
        said[0] = f"{IMAGE_TOKEN}\n{said[0]}"
        return [{"from": _SPEAKERS[k % 2], "value": text} for k, text in enumerate(said)]


class EcgInstruct(Sequence[InstructExample]):
    """The usable entries of an ECGInstruct file, in its order.

    Attributes:
        left_out: how many entries were left out, by reason.

    Args:
        path: the JSON file, or the folder that holds it and no other.
        images: the folder that the entries' image paths start from; by default ``images`` beside the
            file if it is there, or the file's own folder.
        tick: called once an entry, for a progress bar.

    Raises:
        UserError: the file is missing, is no JSON list of objects, is cut short, or holds no usable entry.
    """

    def __init__(
        self, path: Path, images: Path | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        if path.is_dir() and len(files := list(path.glob("*.json"))) == 1:
            path = files[0]
        if not os.path.isfile(path):
            raise UserError(f"There is no file {path}. Name the JSON file of ECGInstruct.")
        beside = path.parent / "images"
        self.path = path
        self.images = images or (beside if beside.is_dir() else path.parent)
        if not self.images.is_dir():
            raise UserError(f"There is no folder {self.images}. Name the folder of the pictures.")
        left_out: collections.Counter[str] = collections.Counter()
        places: list[tuple[int, int]] = []
        for start, end, text in _entries(path):
            tick()
            found = parse(text, self.images)
            if isinstance(found, str):
                left_out[found] += 1
            elif not os.path.isfile(found.image) or not os.path.getsize(found.image):
                left_out["picture missing or empty"] += 1
            else:
                places.append((start, end))
        self.left_out = dict(left_out)
        if not places:
            raise UserError(
                f"No usable conversation in {path} with pictures in {self.images}: {self.left_out}. "
                'Each needs an "image" below that folder and "conversations".'
            )
        self._places: NDArray[np.int64] = np.array(places, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, k: int) -> InstructExample: ...
    @overload
    def __getitem__(self, k: slice) -> list[InstructExample]: ...
    def __getitem__(self, k: int | slice) -> InstructExample | list[InstructExample]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        start, end = map(int, self._places[k])
        with self.path.open("rb") as stream:
            stream.seek(start)
            found = parse(stream.read(end - start), self.images)
        if isinstance(found, str):
            raise UserError(f"{self.path} has changed since it was read ({found}). Start again.")
        return found


def parse(text: bytes, images: Path) -> InstructExample | str:
    """Check one entry; whether the picture exists is not looked at.

    Args:
        text: the JSON of one entry, UTF-8.
        images: folder of the pictures.

    Returns:
        The example, or the reason why it cannot be learned from.
    """
    try:
        entry: Any = json.loads(text)
    except (ValueError, RecursionError):
        return "entry that is not JSON"
    image = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        return "no picture named"
    if Path(image).is_absolute() or ".." in Path(image).parts:
        return "picture outside the folder of pictures"
    turns = _turns(entry.get("conversations"))
    if isinstance(turns, str):
        return turns
    return InstructExample(str(entry.get("id", "")), images / image, turns)


def _turns(messages: Any) -> tuple[Turn, ...] | str:
    if not isinstance(messages, list) or not messages:
        return "no conversation"
    if not all(isinstance(m, dict) and isinstance(m.get("value"), str) for m in messages):
        return "message without text"
    if any(m.get("from") != _SPEAKERS[k % 2] for k, m in enumerate(messages)):
        return "speakers not in turn, human first"
    if len(messages) % 2:
        return "last question without an answer"
    said = [m["value"] for m in messages]
    # PULSE moves the mark to the start of its message, so within the first question its place is free.
    if said[0].count(IMAGE_TOKEN) != 1 or any(IMAGE_TOKEN in text for text in said[1:]):
        return f"{IMAGE_TOKEN} not exactly once, in the first question"
    said = [text.replace(IMAGE_TOKEN, "").strip() for text in said]
    if not all(said):
        return "empty question or answer"
    return tuple(Turn(KIND, *pair) for pair in zip(said[::2], said[1::2], strict=True))


def _entries(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield start, end and text of every object of a JSON list without holding the whole file."""

    def damaged(at: int) -> UserError:
        return UserError(
            f"{path} is not a whole JSON list of objects: damaged or cut short at byte {at}. "
            "Download it again."
        )

    if not os.path.getsize(path):
        raise damaged(0)  # and an empty file cannot be mapped
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        before, end = _OPEN.match(data), 0
        if before and _CLOSE.match(data, before.end()):
            return
        while before:
            start = before.end()
            end = _object_end(data, start)
            if not end:
                raise damaged(start)
            yield start, end, data[start:end]
            if _CLOSE.match(data, end):
                return
            before = _COMMA.match(data, end)
        raise damaged(end)


def _object_end(data: mmap.mmap, start: int) -> int:
    """Where the object that starts here ends, or 0."""
    if data[start : start + 1] != b"{":
        return 0
    depth = 0
    for token in _TOKEN.finditer(data, start):
        depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1}.get(token[0], 0)
        if not depth:
            return token.end()
    return 0
