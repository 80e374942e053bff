"""The bundle that is served, and what its session is asked for; only the model's thread calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.bundle import read_manifest
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.serve.health import Bundle
from pulse_edge.runtimes.session import Session

Page = NDArray[np.uint8]
Turns = Sequence[tuple[str, str | None]]


class Model:
    """An opened bundle, warmed up: its first answer takes no longer than any other.

    Args:
        named: folder of the bundle, or a link to it.
        threads: for ONNX Runtime; all cores by default.
        require_key: public key that must have signed it.
        runtime: ``onnx`` or ``tensorrt``; by default what fits.

    Attributes:
        bundle: knows whether the files are still those that were loaded.
        about: ``{"name", "bundle_sha256", "calibrated"}``, which every study keeps.
        labels: ``{NAME: {"phrase"}}``.
        intended_use: as the manifest says.
        finish: why the last answer ended: stop, length or cancelled.
        read: tokens of its prompt, those of the picture included.
        written: tokens of the answer, the end token not counted.

    Raises:
        BundleError: the bundle is damaged, incomplete, not signed as required or newer.
    """

    def __init__(
        self,
        named: Path,
        threads: int | None = None,
        require_key: Path | None = None,
        runtime: str | None = None,
    ) -> None:
        folder = Path(os.path.realpath(named))
        manifest = read_manifest(folder)
        self.bundle = Bundle(named, folder, sorted(manifest["files"]))  # a change from here on shows
        self._session: Session = load(folder, threads=threads, require_key=require_key, runtime=runtime)
        self._session.warm_up()
        self.labels = {name: {"phrase": entry["phrase"]} for name, entry in self._session.labels.items()}
        self.intended_use = str(manifest.get("intended_use") or "Research use; not a medical device.")
        name = manifest["model"].get("name") if isinstance(manifest["model"], dict) else None
        self.about = {
            "name": str(name or folder.name),
            "bundle_sha256": self.bundle.sha256,
            "calibrated": self._session.calibration is not None,
        }
        self.finish = ""
        self.read = self.written = 0

    def findings(self, page: Page, halted: Callable[[], bool]) -> dict[str, dict[str, Any]]:
        """Return ``{NAME: {"phrase", "probability", "answer": yes | no | uncertain}}`` for a page.

        Args:
            page: uint8 [H, W, 3], RGB.
            halted: asked before every label; once it is True, the rest of them is missing.
        """
        return self._session.findings(page, cancel=halted)

    def answer(
        self,
        page: Page,
        turns: Turns,
        halted: Callable[[], bool],
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield an answer piece by piece; ``finish``, ``read`` and ``written`` are of it then.

        Args:
            page: uint8 [H, W, 3], RGB.
            turns: (question, answer) pairs; the last answer is None.
            halted: asked before every token; True ends the answer.
            max_new_tokens: the model's bound by default.
            stop: texts before which the answer ends.

        Raises:
            UserError: picture and conversation do not fit the model's context.
        """
        session = self._session
        yield from session.chat(page, turns, max_new_tokens, tuple(stop), None, halted)
        self.finish = str(session.finish_reason)
        self.read, self.written = session.usage["prompt_tokens"], session.usage["completion_tokens"]

    @property
    def timing_ms(self) -> dict[str, float]:
        """Milliseconds of the last call's steps."""
        return {name: round(ms, 2) for name, ms in self._session.timing_ms.items() if ms is not None}
