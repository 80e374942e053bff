"""Fit the orientation network of capture and write runtimes/capture/orientation.npz.

    python benchmarks/make_orientation.py ../shared/ecg/labels.csv

Learns from rendered pages of real ECGs (benchmarks/orientation_pages.py) of patients on the training side of
the split, and prints how often cuts of pages of other patients are put upright. It never sees a photo. Needs
PyTorch (the train extra); about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from orientation_pages import SCALE, draw_page, spoil
from torch import nn

from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.runtimes.capture.orientation import PX_PER_MM, WEIGHTS, ink

WIDTHS = ((1, 8, 5, 2), (8, 16, 3, 2), (16, 24, 3, 2), (24, 32, 3, 2), (32, 48, 3, 1), (48, 1, 1, 1))
SIDE_MM = 96.0
BATCH = 16


class Uprightness(nn.Module):
    """One number for a thumbnail: float32 [n, 1, h, w] to [n]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (inputs, outputs, side, stride) in enumerate(WIDTHS):
            layers.append(nn.Conv2d(inputs, outputs, side, stride, side // 2))
            if i < len(WIDTHS) - 1:
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, thumbnail: torch.Tensor) -> torch.Tensor:
        """Average the map of scores."""
        return torch.as_tensor(self.layers(thumbnail).mean((1, 2, 3)))


def draw_pages(labels: Path, count: int, side: str, seed: int) -> list[NDArray[np.uint8]]:
    """Draw pages of the records of one side of the split."""
    with labels.open(newline="", encoding="utf-8") as stream:
        rows = [r for r in csv.DictReader(stream) if split(r["patient_id"] or r["record"]) == side]
    rng = random.Random(seed)
    pages: list[NDArray[np.uint8]] = []
    while len(pages) < count:
        record = read_record(labels.parent / rng.choice(rows)["record"])
        if record.duration >= 10:
            pages.append(draw_page(record, rng))
    return pages


def batch(pages: list[NDArray[np.uint8]], count: int, rng: np.random.Generator) -> torch.Tensor:
    """Cut, spoil and reduce pages: float32 [count, 4, 1, h, w], the four turns of each, the first upright."""
    cuts = []
    while len(cuts) < count:
        cut = ink(spoil(pages[rng.integers(len(pages))], rng, SIDE_MM), SCALE)
        if cut.mean() > 0.01:  # there is something to see
            cuts.append(np.stack([np.rot90(cut, k) for k in range(4)])[:, None])
    return torch.from_numpy(np.stack(cuts))


def logits(model: nn.Module, turns: torch.Tensor) -> torch.Tensor:
    """Scores of the four turns: [count, 4]."""
    return torch.as_tensor(model(turns.flatten(0, 1)).view(-1, 4))


def write(model: Uprightness) -> None:
    """Fold the normalisation into the convolutions and write them as float16, [k, k, in, out]."""
    stored: dict[str, NDArray[np.float16]] = {}
    modules = list(model.layers)
    convolutions = [(i, m) for i, m in enumerate(modules) if isinstance(m, nn.Conv2d)]
    for k, (i, layer) in enumerate(convolutions):
        weight, bias = layer.weight.detach(), layer.bias.detach() if layer.bias is not None else None
        norm = modules[i + 1] if i + 1 < len(modules) else None
        if (
            isinstance(norm, nn.BatchNorm2d)
            and norm.running_var is not None
            and norm.running_mean is not None
        ):
            gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            weight = weight * gain[:, None, None, None]
            bias = (bias - norm.running_mean) * gain + norm.bias.detach()
        stored[f"weight{k}"] = weight.permute(2, 3, 1, 0).numpy().astype(np.float16)
        stored[f"bias{k}"] = bias.numpy().astype(np.float16)
    np.savez(WEIGHTS, **stored)


def main() -> None:
    """Draw, fit, test, write."""
    parser = argparse.ArgumentParser(description="Fit the orientation network of capture.")
    parser.add_argument("labels", type=Path)
    parser.add_argument("--pages", type=int, default=800)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pages, held_out = draw_pages(args.labels, args.pages, "train", 0), draw_pages(args.labels, 200, "test", 1)
    print(
        f"{len(pages)} pages at {SCALE} px/mm, thumbnails of {SIDE_MM:g} mm at {PX_PER_MM} px/mm", flush=True
    )
    model, rng = Uprightness(), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, args.steps)
    begin, loss_mean, right_mean = time.monotonic(), 1.4, 0.25
    for step in range(args.steps):
        scores = logits(model.train(), batch(pages, BATCH, rng))
        loss = nn.functional.cross_entropy(scores, torch.zeros(BATCH, dtype=torch.long), label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        loss_mean += 0.03 * (loss.item() - loss_mean)
        right_mean += 0.03 * (float((scores.argmax(1) == 0).float().mean()) - right_mean)
        if step % 50 == 49:
            print(
                f"{step + 1} loss {loss_mean:.3f} right {right_mean:.3f} {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    write(model.eval())
    with torch.no_grad():
        tested = [
            logits(model, batch(held_out, BATCH, np.random.default_rng(9 + k))).argmax(1) for k in range(20)
        ]
    print(f"held out: {float((torch.cat(tested) == 0).float().mean()):.4f} of cuts upright")


if __name__ == "__main__":
    main()
