"""The bundle that is served, and what its session is asked for; only the model's thread calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pulse_edge.bundle import read_manifest
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.runtimes.load import load
from pulse_edge.runtimes.serve.health import Bundle
from pulse_edge.runtimes.session import Session

Page = NDArray[np.uint8]
Turns = Sequence[tuple[str, str | None]]


class Model:
    """An opened bundle.

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
        self.labels = {name: {"phrase": entry["phrase"]} for name, entry in self._session.labels.items()}
        self.intended_use = str(manifest.get("intended_use") or "Research use; not a medical device.")
        name = manifest["model"].get("name") if isinstance(manifest["model"], dict) else None
        self.about = {
            "name": str(name or folder.name),
            "bundle_sha256": self.bundle.sha256,
            "calibrated": getattr(self._session, "calibration", None) is not None,
        }
        self.finish = "stop"
        self.tokens = 0

    def findings(self, page: Page) -> dict[str, dict[str, Any]]:
        """Return ``{NAME: {"phrase", "probability", "answer": yes | no | uncertain}}`` for a page."""
        if hasattr(self._session, "findings"):
            found: dict[str, dict[str, Any]] = self._session.findings(page)
            return found
        return {
            name: {**self.labels[name], "probability": p, "answer": "yes" if p >= 0.5 else "no"}
            for name, p in self._session.label(page).items()
        }

    def answer(
        self,
        page: Page,
        turns: Turns,
        halted: Callable[[], bool],
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield an answer piece by piece; ``finish`` and ``tokens`` then say why it ended and how long it is.

        Args:
            page: uint8 [H, W, 3], RGB.
            turns: (question, answer) pairs; the last answer is None.
            halted: asked before every token; True ends the answer.
            max_new_tokens: the model's bound by default.
            stop: texts before which the answer ends.

        Raises:
            UserError: picture and conversation do not fit the model's context.
        """
        text = ""
        self.finish, self.tokens = "stop", 0
        if hasattr(self._session, "chat"):
            pieces = self._session.chat(page, turns, max_new_tokens, tuple(stop), None, halted)
        else:
            pieces = self._session.stream(page, turns[-1][0], max_new_tokens)
        for piece in pieces:
            text += piece
            yield piece
            if halted():
                break
        self.finish = getattr(self._session, "finish_reason", None) or "stop"
        self.tokens = len(self._session.tokenizer.encode(text, bos=False))

    def prompt_tokens(self, turns: Turns) -> int:
        """Return how many tokens the last conversation's prompt had, those of the picture included."""
        text = len(encode_prompt(build_prompt(turns), self._session.tokenizer))
        return text - 1 + self._visual

    @property
    def _visual(self) -> int:
        before = encode_prompt(build_prompt([("", None)]), self._session.tokenizer).index(-200)
        return int(getattr(self._session, "_kept", before)) - before

    @property
    def timing_ms(self) -> dict[str, float]:
        """Milliseconds of the last call's steps."""
        return {name: round(ms, 2) for name, ms in self._session.timing_ms.items() if ms is not None}
