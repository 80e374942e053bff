"""What pruning visual tokens, layers and widths costs pulse-nano, beside the usual ways to choose tokens.

    python benchmarks/prune.py ../shared/ecg/labels.csv

Tokens are left out before the language model: those without ink (:mod:`pulse_edge.model.ink`), all but
every so manieth, by lot, pooled from neighbours, or by the attention that the last token pays them in the
second layer (the criterion of FastV, Chen et al., ECCV 2024; written anew here). ``stretches`` takes the
token with most ink from each of as many stretches of the page, and ``... , merged`` lets every dropped token
count for the one kept nearest to it (after ToMe, Bolya et al., ICLR 2023). Each in three positions: counted
anew; spread evenly over all places, the same for every page, so that rotary tables can hold them; and where
the tokens stood, which for a choice by ink differs from page to page. Then the two ways that ship, and layers
and widths, healed for a while and exported. Chosen on validation patients with ``--split validation``;
reported on test patients. Prints tables and writes benchmarks/results/prune.json. On one quiet core an hour
for tokens, most of it intervals (a quarter with ``--no-intervals``), and 40 minutes for cuts, most of it
healing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from torch import Tensor, nn

from pulse_edge.compress import prune_checkpoint
from pulse_edge.compress.lessons import margins, packed, read, yes_no_ids
from pulse_edge.contract import MAX_TILES
from pulse_edge.ecg.instruct import Turn
from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.record import read_record
from pulse_edge.evaluate.gate import compare
from pulse_edge.evaluate.labels import label_set, read_labels
from pulse_edge.evaluate.score import Scored, _choose, _superclasses, auroc, score_records
from pulse_edge.fit import Setup
from pulse_edge.model.checkpoint import load_model, read_card, resolve_model
from pulse_edge.model.ink import ink, kept_tokens
from pulse_edge.model.packed import normalize, segment_mask, segment_positions
from pulse_edge.model.places import uniform
from pulse_edge.model.preprocess import geometry, tiles
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.roofline import prompt_flops
from pulse_edge.runtimes.load import load
from pulse_edge.shape import ModelShape, read_shape

RESULT = Path(__file__).parent / "results" / "prune.json"
KEEP = (150, 120, 90, 60)
PLACES = ("anew", "spread", "kept")  # positions of what is kept
FASTV_LAYER = 2
CUTS: tuple[dict[str, Any], ...] = (
    {"tokens": 90, "keep_by": "ink"},
    {"tokens": 90, "keep_by": "uniform"},
    {"layers": 3},
    {"mlp": 256},
    {"kv_heads": 1},
    {"tower": 0.5},
    {"layers": 3, "mlp": 256},
    {"layers": 3, "mlp": 256, "kv_heads": 1},
    {"tokens": 150, "keep_by": "uniform", "layers": 3, "mlp": 320},
    {"tokens": 90, "keep_by": "uniform", "layers": 3, "mlp": 384, "tower": 0.75},
)


def main() -> None:
    """Measure everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="checkpoint folder or shipped name")
    parser.add_argument("--split", default="test", help="patients to measure on")
    parser.add_argument("--limit", type=int, help="at most so many records, for a trial")
    parser.add_argument("--pages", type=int, default=768, help="to heal on")
    parser.add_argument("--steps", type=int, default=240, help="of healing")
    parser.add_argument("--ways", nargs="*", help="some of the ways to choose tokens, by name")
    parser.add_argument("--keep", nargs="*", type=int, default=KEEP, help="numbers of tokens")
    parser.add_argument(
        "--no-intervals", action="store_true", help="of the loss, which take most of the time"
    )
    parser.add_argument("--only", choices=("tokens", "cuts"), help="one half of it")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "command": "python benchmarks/prune.py",
        **{name: str(value) for name, value in vars(options).items() if name not in ("output", "labels")},
        **describe_machine(),
        "geometry": layouts(),
    }
    show_layouts(report["geometry"])
    source = resolve_model(options.model)
    if options.only != "cuts":
        report["tokens"] = choices(source, options)
        write(report, options.output)
    if options.only != "tokens":
        report["cuts"] = []
        before = score_records(load(source), options.labels, options.split, options.limit)
        for cut in CUTS:
            report["cuts"].append(pruned(source, cut, before, options))
            write(report, options.output)


def write(report: dict[str, Any], path: Path) -> None:
    """Write what was measured so far: a run that is stopped leaves whole rows."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def layouts() -> list[dict[str, Any]]:
    """Count what a 2200x1700 page costs: padding, and the decoder's work for several numbers of tokens."""
    place = geometry(2200, 1700)
    side = 24
    top = place.paste[1]
    padded = 2 * (top // 14) * place.grid[0] * side
    every = MAX_TILES * side**2
    seven = ModelShape("pulse-7b", 32, 4096, 32, 32, 128, 11008, 32000, False, 4096)
    nano = read_shape(resolve_model("pulse-nano"))
    rows = []
    for shape, all_of_them, counts in (
        (seven, every, (every, every - padded, 1440, 1200, 1080)),
        (nano, Setup().visual(nano), (Setup().visual(nano), *KEEP)),
    ):
        whole = prompt_flops(shape, all_of_them + 64)
        for count in counts:
            flops = prompt_flops(shape, count + 64)
            rows.append({"model": shape.name, "tokens": count, "flops": flops, "less": 1 - flops / whole})
    return [{"padding": padded, "of": every}, *rows]


def show_layouts(rows: list[dict[str, Any]]) -> None:
    """Print the counts."""
    print(f"a 2200x1700 page: {rows[0]['padding']} of {rows[0]['of']} tokens of 14 px show padding only")
    for row in rows[1:]:
        work = f"{row['flops'] / 1e12:10.4f} TFLOP"
        print(f"  {row['model']:12s}{row['tokens']:6d} tokens{work}{-row['less']:+8.0%}")


def choices(source: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score every way to choose tokens, without healing."""
    probe = Probe(source, options)
    whole = probe.scored([torch.arange(probe.count)] * len(probe.pages), "anew")
    full = auroc(whole.truth, whole.score, whole.names)["macro"]
    assert full is not None
    print(f"\nall {probe.count} tokens: macro AUROC {full:.4f} on {len(whole.truth)} ECGs")
    print(f"{'':22s}" + "".join(f"{keep:>22d}" for keep in options.keep) + f"   {' / '.join(PLACES)}")
    rows = []
    for name, choose in probe.ways().items():
        if options.ways and name not in options.ways:
            continue
        line = f"{name:22s}"
        for keep in options.keep:
            row: dict[str, Any] = {"way": name, "tokens": keep}
            chosen = [choose(k, keep) for k in range(len(probe.pages))]
            for kind in PLACES:
                found = compare(whole, probe.scored(chosen, kind), not options.no_intervals)
                share = (found["auroc"]["macro"] - 0.5) / (full - 0.5)
                row[kind] = {
                    "auroc": found["auroc"]["macro"],
                    "loss": found["loss"],
                    "of_above_chance": share,
                }
                row[kind]["loss_interval"] = found["loss_interval"]
                row[kind]["flip_share"] = found["flip_share"]
            line += "  " + "/".join(f"{row[kind]['auroc']:.4f}" for kind in PLACES)
            rows.append(row)
        print(line, flush=True)
    return rows


class Probe:
    """A model's visual tokens of all pages, and its answers to any choice of them.

    Args:
        source: of the checkpoint.
        options: labels, split and limit.
    """

    def __init__(self, source: Path, options: argparse.Namespace) -> None:
        self.model: PulseForConditionalGeneration = load_model(source, "float32")
        self.tokenizer = Tokenizer.from_folder(source)
        labels, scoring = label_set(read_card(source))
        self.names = list(labels)
        self.turns = [Turn("superclass", scoring["question"].format(**one), "No") for one in labels.values()]
        self.pages: list[Tensor] = []
        self.features: list[Tensor] = []
        self.truth, self.patients, self.records = [], [], []
        rows, _ = _choose(read_labels(options.labels), options.split, self.names)
        for row in rows[: options.limit] if options.limit else rows:
            record = read_record(options.labels.parent / row["record"])
            page = torch.from_numpy(tiles(render(record, PaperStyle()).image))
            self.pages.append(page)
            with torch.no_grad():
                self.features.append(
                    self.model.encode_images(normalize(page), every=True).flatten(0, 1).half()
                )
            self.truth.append([name in _superclasses(row) for name in self.names])
            self.patients.append(row["patient_id"])
            self.records.append(row["record"])
        self.count = len(self.features[0])

    def ways(self) -> dict[str, Callable[[int, int], Tensor]]:
        """Ways to choose: number of the page and how many -> places int64 [keep], or weights [keep, all]."""
        each = self.count // MAX_TILES

        def by(way: str) -> Callable[[int, int], Tensor]:
            return lambda k, keep: kept_tokens(normalize(self.pages[k]), each, keep, way)

        def by_lot(k: int, keep: int) -> Tensor:
            lot = torch.Generator().manual_seed(k)
            return torch.randperm(self.count, generator=lot)[:keep].sort().values

        def without_base(k: int, keep: int) -> Tensor:
            found = ink(normalize(self.pages[k]), each)
            found[:each] = -1
            return torch.topk(found - torch.arange(self.count) * 1e-4, keep).indices.sort().values

        return {
            "ink": by("ink"),
            "ink, no base view": without_base,
            "stretches": self.stretches,
            "stretches, merged": lambda k, keep: self.merged(self.stretches(k, keep)),
            "ink, merged": lambda k, keep: self.merged(by("ink")(k, keep)),
            "uniform": by("uniform"),
            "uniform, merged": lambda k, keep: self.merged(by("uniform")(k, keep)),
            "random": by_lot,
            "pooling": self.pooled,
            "FastV": self.attended,
        }

    def stretches(self, k: int, keep: int) -> Tensor:
        """The token with most ink of each of ``keep`` stretches of the page, the first of equal ones."""
        found = ink(normalize(self.pages[k]), self.count // MAX_TILES)
        edges = np.linspace(0, self.count, keep + 1).round().astype(int)
        return torch.tensor([start + int(found[start:end].argmax()) for start, end in pairwise(edges)])

    def merged(self, chosen: Tensor) -> Tensor:
        """Every token counts for the chosen one that stands nearest: weights [keep, all]."""
        nearest = (torch.arange(self.count)[:, None] - chosen[None]).abs().argmin(1)
        weights = nn.functional.one_hot(nearest, len(chosen)).float().T
        return weights / weights.sum(1, keepdim=True)

    def pooled(self, k: int, keep: int) -> Tensor:
        """Means of neighbours along the rows: weights [keep, all]."""
        edges = np.linspace(0, self.count, keep + 1).round().astype(int)
        weights = torch.zeros(keep, self.count)
        for row, (start, end) in enumerate(pairwise(edges)):
            weights[row, start:end] = 1 / (end - start)
        return weights

    @torch.no_grad()
    def attended(self, k: int, keep: int) -> Tensor:
        """FastV's criterion: the attention of the prompt's last token in the second layer, mean of heads.

        FastV itself lets the first two layers see every token; here the chosen ones alone are read, as by the
        other ways, which costs the decoder less and spares no look at all of them.
        """
        batch = packed([self.turns[:1]], self.tokenizer, self.count // MAX_TILES)
        model = self.model.model.language_model
        kept = model.config._attn_implementation
        model.config._attn_implementation = "eager"
        ids = batch["ids"]
        embeds = self.model.get_input_embeddings()(ids.clamp(min=0))
        embeds = embeds.masked_scatter((ids < 0)[..., None], self.features[k].float())
        found = model(
            inputs_embeds=embeds,
            attention_mask=segment_mask(batch["segment"], embeds.dtype),
            position_ids=segment_positions(batch["segment"]),
            output_attentions=True,
            use_cache=False,
        )
        model.config._attn_implementation = kept
        start = int((ids[0] < 0).nonzero()[0])
        asked = int(batch["closed"][0, 0])
        paid = found.attentions[FASTV_LAYER - 1][0, :, asked, start : start + self.count].mean(0)
        return torch.topk(paid, keep).indices.sort().values

    @torch.no_grad()
    def scored(self, choice: list[Tensor], kind: str, size: int = 16) -> Scored:
        """Score all pages with some of their tokens, in positions of :data:`PLACES`."""
        scores = []
        for start in range(0, len(self.pages), size):
            numbers = range(start, min(start + size, len(self.pages)))
            rows, places = [], []
            for k in numbers:
                chosen, features = choice[k], self.features[k].float()
                if chosen.is_floating_point():
                    rows.append(chosen @ features)
                    places.append((chosen @ torch.arange(self.count).float()).round().long())
                else:
                    rows.append(features[chosen])
                    places.append(chosen)
            spread = torch.tensor(uniform(self.count, len(rows[0]))).expand(len(rows), -1)
            where = {"anew": None, "spread": spread, "kept": torch.stack(places)}[kind]
            scores.append(self._answers(torch.stack(rows), where))
        chances = torch.cat(scores).double().sigmoid().numpy()
        truth = np.array(self.truth)
        return Scored(self.names, self.records, self.patients, chances, truth, {}, 0.0)

    def _answers(self, visual: Tensor, places: Tensor | None) -> Tensor:
        batch = packed([self.turns] * len(visual), self.tokenizer, visual.shape[1] // MAX_TILES)
        if places is None:
            hidden = read(self.model, visual, batch)
        else:
            ids = batch["ids"]
            embeds = self.model.get_input_embeddings()(ids.clamp(min=0))
            embeds = embeds.masked_scatter((ids < 0)[..., None], visual)
            position = segment_positions(batch["segment"])
            first = int((ids[0] < 0).nonzero()[0])
            end = first + visual.shape[1]
            position[:, first:end] = places + first
            position[:, end:] += self.count - visual.shape[1]
            hidden = self.model.model.language_model(
                inputs_embeds=embeds,
                attention_mask=segment_mask(batch["segment"], embeds.dtype),
                position_ids=position,
                use_cache=False,
            ).last_hidden_state
        return margins(self.model, hidden, batch["closed"], yes_no_ids(self.tokenizer))


def pruned(source: Path, cut: dict[str, Any], before: Scored, options: argparse.Namespace) -> dict[str, Any]:
    """Prune, score, heal, score again, and export what was healed."""
    from pulse_edge import commands

    blank = dict.fromkeys(("tokens", "layers", "mlp", "kv_heads", "tower"))
    full = {**blank, "keep_by": "ink", "by": "influence", **cut}
    row: dict[str, Any] = {"cut": cut}
    with tempfile.TemporaryDirectory() as scratch:
        for name, lessons in (("as_cut", None), ("healed", options.labels)):
            output = Path(scratch) / name
            healing = {"lessons": lessons, "pages": options.pages, "steps": options.steps}
            made = prune_checkpoint(
                source, output, full, str(options.labels), 64, 0, healing, lambda folder: {}
            )
            found = compare(before, score_records(load(output), options.labels, options.split, options.limit))
            above = (found["auroc"]["macro"] - 0.5) / (found["auroc_before"]["macro"] - 0.5)
            row[name] = {**found, "of_above_chance": above}
        shape, setup = read_shape(output), Setup()
        row["parameters"] = made["parameters"]
        row["prefill_flops"] = [prompt_flops(one, setup.prompt(one)) for one in (read_shape(source), shape)]
        bundle = commands.export("jetson", str(output), output=Path(scratch) / "bundle")
        row["parity"] = bundle["parity"]
    less = 1 - row["prefill_flops"][1] / row["prefill_flops"][0]
    text = ", ".join(f"{name} {value}" for name, value in cut.items())
    low, high = row["healed"]["loss_interval"] or (float("nan"), float("nan"))
    print(
        f"{text:52s}{row['parameters'][1]:>10,}{less:>6.0%}  {row['as_cut']['auroc']['macro']:.4f} -> "
        f"{row['healed']['auroc']['macro']:.4f}  {row['healed']['of_above_chance']:.1%}  "
        f"loss {row['healed']['loss']:+.4f} ({low:+.4f} to {high:+.4f})",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
