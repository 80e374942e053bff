"""What a key-value cache of 8-bit integers would cost a model, before any graph is written.

    python benchmarks/kv_int8.py ../shared/ecg/labels.csv [--model pulse-nano]

Simulated in PyTorch: what enters the cache is rounded to 8 bits and read back, the rest stays float32. Once
keys and values have a scale for every head and channel, fixed beforehand from training patients' pages (a
cache that grows cannot change the scale of what it holds): what ONNX Runtime's GroupQueryAttention takes.
Once both have one for every head and token, which needs no calibration. Scored beside the model itself on
test patients, label by label, and on the first 24 tokens of a report for some of them. Rows are written as
they come; 6 minutes on a quiet core. What it does to speed: kv_operator.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from transformers import DynamicCache

from pulse_edge.compress.calibrate import build, read_recipe
from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.evaluate.gate import Budget, compare, judge
from pulse_edge.evaluate.labels import label_set
from pulse_edge.evaluate.score import score_records
from pulse_edge.model.checkpoint import load_model, read_card, resolve_model
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.session import Session

RESULT = Path(__file__).parent / "results" / "kv_int8.json"
PAGES = 32  # to calibrate on
REPORTS, TOKENS = 40, 24
BUDGET = Budget(0.002, 0.005)  # that of 8 bits
Ranges = dict[int, list[torch.Tensor]]  # of keys and values, [1, heads, 1, D] each, by layer


def rounded(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Round to 8 bits symmetrically; what is beyond the range is cut."""
    scale = largest.clamp(min=1e-8) / 127
    return (x / scale).round().clamp(-127, 127) * scale


class IntegerCache(DynamicCache):
    """A cache of which every entry was rounded to 8 bits when it came in."""

    ranges: Ranges | None = None  # None for a scale a token

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *rest: Any, **more: Any) -> Any:
        fixed = None if self.ranges is None else self.ranges[layer]
        largest = fixed or [x.abs().amax(-1, keepdim=True) for x in (key, value)]
        key, value = (rounded(x, most) for x, most in zip((key, value), largest, strict=True))
        return super().update(key, value, layer, *rest, **more)


class Observed(DynamicCache):
    """A cache that notes the largest magnitude of every channel."""

    largest: Ranges

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *rest: Any, **more: Any) -> Any:
        seen = [x.abs().amax((0, 2), keepdim=True) for x in (key, value)]
        before = self.largest.get(layer, seen)
        self.largest[layer] = [torch.maximum(old, new) for old, new in zip(before, seen, strict=True)]
        return super().update(key, value, layer, *rest, **more)


class Backend(TorchBackend):
    """The reference with another cache."""

    def __init__(self, model: Any, make: Any) -> None:
        self._make = make
        super().__init__(model)

    def reset(self) -> None:
        """Forget everything."""
        self._cache = self._make()


def session(folder: Path, model: Any, make: Any) -> Session:
    """A session over the model with such a cache."""
    return Session(Backend(model, make), Tokenizer.from_folder(folder), *label_set(read_card(folder)))


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write what was measured so far."""
    settings = {"model": options.model, "split": options.split, "limit": options.limit}
    report = {"command": "python benchmarks/kv_int8.py", **settings, **describe_machine(), "rows": rows}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="checkpoint folder or shipped name")
    parser.add_argument("--split", default="test", help="patients to measure on")
    parser.add_argument("--limit", type=int, help="at most so many records, for a trial")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    folder = resolve_model(options.model)
    model = load_model(folder, "float32")
    largest: Ranges = {}

    def watch() -> Observed:
        cache = Observed()
        cache.largest = largest
        return cache

    def fixed() -> IntegerCache:
        cache = IntegerCache()
        cache.ranges = largest
        return cache

    looking = session(folder, model, watch)
    prompts, _ = build(read_recipe(options.labels, PAGES, 0))
    for prompt in prompts:
        looking.ask(prompt.page, prompt.question, TOKENS)
    plain = session(folder, model, DynamicCache)
    before = score_records(plain, options.labels, options.split, options.limit)
    pages = [render(read_record(options.labels.parent / name)).image for name in before.records[:REPORTS]]
    said = [plain.ask(page, REPORT_QUESTION, TOKENS) for page in pages]
    rows = []
    for name, make in (("a channel, fixed", fixed), ("a token", IntegerCache)):
        one = session(folder, model, make)
        found = judge(
            compare(before, score_records(one, options.labels, options.split, options.limit)),
            BUDGET,
            accept_loss=True,
        )
        answers = [one.ask(page, REPORT_QUESTION, TOKENS) for page in pages]
        same = np.mean([answer == text for answer, text in zip(answers, said, strict=True)])
        rows.append({"name": name, **found, "reports": len(pages), "reports_unchanged": float(same)})
        write(rows, options)
        print(
            f"{name:24s} loss {found['loss']:+.4f} {found['loss_interval']} flips {found['flip_share']:.2%} "
            f"largest change {found['probability_max_abs']:.4f} reports unchanged {same:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
