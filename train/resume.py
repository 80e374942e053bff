"""Which checkpoint an interrupted training goes on from.

A process that is killed while it writes leaves a checkpoint that looks newest and is not whole. So each
one is marked when all processes have written their part, and only marked ones count.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainerCallback

_MARK: Final = "complete"


class Marker(TrainerCallback):
    """Marks every checkpoint that the Trainer has written completely; it must be the last callback."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait until every process has written, then mark."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def mark(checkpoint: Path) -> None:
    """Say that a checkpoint is whole."""
    (checkpoint / _MARK).touch()


def last_complete(folder: Path, tidy: bool = True) -> Path | None:
    """Return the newest whole checkpoint of a training.

    Args:
        folder: of the training.
        tidy: delete those that are not whole; of several processes only one may.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _MARK).is_file():
            whole.append(path)
        elif tidy:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
