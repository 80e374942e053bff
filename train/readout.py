"""A small head that teaches the tower to see, and is then thrown away.

A few thousand labelled pages teach a network little about waveforms; their measured shapes, dense
and free, teach it much. The head reads from the visual tokens, each lead with a query of its own,
the median beat of that lead, the rhythm, and the diagnoses.
"""

from __future__ import annotations

import torch
from torch import nn

from pulse_edge.contract import IGNORE_ID
from pulse_edge.ecg.instruct import ASKED, SUPERCLASS_PHRASES
from pulse_edge.ecg.record import LEADS

RHYTHM_TARGETS = 2  # log rate, log irregularity
FINDING_WEIGHT = 0.5
LEAD_WEIGHT = 0.5
TRACE_SCALE = 4.0  # a quarter of a cell, 12 pixels, is where the loss turns from square to straight


class Readout(nn.Module):
    """Queries that attend to the visual tokens [B, N, C] and then to each other.

    Args:
        width: C.
        beat_components: targets per lead.
        cell: pixel columns of a token's cell.
        heads: of the attention.
        dropout: on everything but the waveforms.
    """

    def __init__(
        self, width: int, beat_components: int, cell: int, heads: int = 6, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.trace, self.lead = nn.Linear(width, cell), nn.Linear(width, len(LEADS))
        self.queries = nn.Parameter(torch.randn(len(LEADS) + 2, width) * 0.5)
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mix = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.beats = nn.Linear(width, beat_components)
        self.rhythm = nn.Linear(width, RHYTHM_TARGETS)
        self.diagnoses = nn.Sequential(
            nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, len(SUPERCLASS_PHRASES) + len(ASKED))
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return beats [B, 12, k], rhythm [B, 2] and logits of the diagnoses [B, 5 + findings]."""
        tokens = self.norm(tokens)
        queries = self.queries.expand(len(tokens), -1, -1)
        read = queries + self.attend(queries, tokens, tokens, need_weights=False)[0]
        mixed = self.mix(read)
        # Waveforms are read before the mixing too: what one lead shows needs no other lead.
        return (
            self.beats(read[:, :-2] + mixed[:, :-2]),
            self.rhythm(mixed[:, -2]),
            self.diagnoses(mixed[:, -1]),
        )

    def cell_loss(self, tokens: torch.Tensor, traces: torch.Tensor, leads: torch.Tensor) -> torch.Tensor:
        """Return the loss of what every token tells of its own cell: its trace and its lead.

        Args:
            tokens: [B, (1 + tiles) T, C]; those of the base view are not asked.
            traces: [B, tiles, T, cell], in cells, NaN where there is none.
            leads: [B, tiles, T], -100 where there is none.
        """
        asked = self.norm(tokens[:, traces.shape[2] :])
        traced = _huber(self.trace(asked) * TRACE_SCALE, traces.flatten(1, 2) * TRACE_SCALE)
        named = nn.functional.cross_entropy(
            self.lead(asked).float().flatten(0, 1), leads.flatten(), ignore_index=IGNORE_ID, reduction="sum"
        )
        return traced + LEAD_WEIGHT * named / (leads != IGNORE_ID).sum().clamp(min=1)

    def loss(
        self, tokens: torch.Tensor, beats: torch.Tensor, rhythm: torch.Tensor, diagnoses: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the measurement loss (Huber) and the diagnosis loss (cross-entropy); NaN is skipped."""
        seen_beats, seen_rhythm, logits = self(tokens)
        measured = _huber(seen_beats, beats) + 0.5 * _huber(seen_rhythm, rhythm)
        known = torch.isfinite(diagnoses)
        each = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), diagnoses.nan_to_num(), reduction="none"
        )
        weight = known.float()
        weight[:, len(SUPERCLASS_PHRASES) :] *= FINDING_WEIGHT
        return measured, (each * weight).sum() / weight.sum().clamp(min=1e-6)


def _huber(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    known = torch.isfinite(target)
    if not known.any():
        return predicted.sum() * 0
    return nn.functional.smooth_l1_loss(predicted.float()[known], target[known])
