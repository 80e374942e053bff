"""The work folder of a long step: finished parts survive a kill, and nothing in it looks finished."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pulse_edge import interrupt
from pulse_edge.bundle import write_atomic
from pulse_edge.errors import UserError

_HIDDEN = "hidden-{}.safetensors"
_PART = "part-{:05d}.safetensors"


class Journal:
    """Parts of a checkpoint that is being made.

    Args:
        folder: made if it is missing.
        job: everything that the result depends on; a folder of another job is refused.

    Raises:
        UserError: the folder belongs to another job.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(dict(job), indent=1, sort_keys=True)
        note = folder / "job.json"
        if note.is_file() and note.read_text("utf-8") != text:
            raise UserError(
                f"{folder} holds an unfinished step with other settings. Run that one to its end, or delete "
                "the folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(note, text.encode())

    def done(self, number: int) -> bool:
        """Say whether a part was finished."""
        return self.part(number).is_file()

    def part(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / _PART.format(number)

    def finish(self, number: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a part with some facts about it; it is there in full or not at all."""
        target = self.part(number)
        work = target.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in tensors.items()}, work, {"format": "pt"})
        write_atomic(target.with_suffix(".json"), json.dumps(dict(facts)).encode())
        interrupt.check()
        _settle(work, target)

    def facts(self, number: int) -> dict[str, Any]:
        """Return what was written down about a finished part."""
        found: dict[str, Any] = json.loads(self.part(number).with_suffix(".json").read_text("utf-8"))
        return found

    def keep_hidden(self, number: int, hidden: Sequence[Tensor]) -> None:
        """Keep what enters a layer."""
        target = self.folder / _HIDDEN.format(number)
        work = target.with_suffix(".partial")
        save_file({f"{k:05d}": x.to(torch.float32).contiguous() for k, x in enumerate(hidden)}, work)
        _settle(work, target)

    def drop_hidden(self, number: int) -> None:
        """Delete what enters a layer, once that layer is finished: until then a resumed run needs it."""
        (self.folder / _HIDDEN.format(number)).unlink(missing_ok=True)

    def hidden(self, number: int) -> list[Tensor] | None:
        """Return what enters a layer, if it was kept."""
        path = self.folder / _HIDDEN.format(number)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as opened:
            return [opened.get_tensor(name) for name in sorted(opened.keys())]


def _settle(work: Path, target: Path) -> None:
    """Give a written file its name once it is on the disk, so that a cut of the power takes none."""
    with work.open("rb") as stream:
        os.fsync(stream.fileno())
    work.replace(target)
