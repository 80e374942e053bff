"""The training objective: answers in words, and measurements beside them.

Two losses on one forward pass:

* next-token cross-entropy on the answers, as PULSE was trained (instruction and image masked);
* a regression of the median beat of each lead and of the rhythm, read from hidden states right
  after "<lead>:". A few thousand labelled pages teach a network little about waveforms; their
  measured shapes, dense and free, teach it much. The heads are dropped from the saved model.
"""

from __future__ import annotations

import torch
from torch import nn

from pulse_edge.contract import IGNORE_ID, IMAGE_MEAN, IMAGE_STD, IMAGE_TOKEN_ID
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.train.dataset import PAD_SEGMENT

RHYTHM_TARGETS = 2  # log rate, log irregularity


class TrainingObjective(nn.Module):
    """PULSE with its measurement heads; ``forward`` returns ``{"loss", "answer", "measure"}``.

    Args:
        model: the model to train.
        beat_components: targets per lead.
        measure_weight: weight of the regression beside the answers.
    """

    def __init__(
        self, model: PulseForConditionalGeneration, beat_components: int, measure_weight: float
    ) -> None:
        super().__init__()
        self.model = model
        model.model.vision_tower.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.measure_weight = measure_weight
        width = model.config.text_config.hidden_size
        self.beat_head = nn.Linear(width, beat_components)
        self.rhythm_head = nn.Linear(width, RHYTHM_TARGETS)

    def forward(
        self,
        ids: torch.Tensor,
        segment: torch.Tensor,
        tiles: torch.Tensor,
        probes: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        beats: torch.Tensor | None = None,
        rhythm: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of a batch as ``dataset.collate`` makes it.

        Args:
            ids: int64 [B, L], image sentinels in place.
            segment: int64 [B, L]; 0 is the prefix that all segments see, -1 is padding.
            tiles: uint8 [B, 5, 336, 336, 3].
            probes: int64 [B, 13].
            labels: int64 [B, L], -100 where nothing is asked.
            weights: float32 [B, L].
            beats: float32 [B, 12, k], NaN where not measured.
            rhythm: float32 [B, 2], NaN where not measured.
        """
        hidden = self.hidden_states(ids, segment, tiles)
        answer = self._answer_loss(hidden, labels, weights)
        losses = {"loss": answer, "answer": answer.detach()}
        if beats is not None and rhythm is not None:
            measure = self._measure_loss(hidden, probes, beats, rhythm)
            losses["loss"] = answer + self.measure_weight * measure
            losses["measure"] = measure.detach()
        return losses

    def hidden_states(
        self, ids: torch.Tensor, segment: torch.Tensor, tiles: torch.Tensor
    ) -> torch.Tensor:
        """Return the language model's last hidden states, [B, L, H]."""
        b, n = tiles.shape[:2]
        features = self.model.encode_images(normalize(tiles.flatten(0, 1)))
        embeds = self.model.get_input_embeddings()(ids.clamp(min=0))
        at_image = (ids == IMAGE_TOKEN_ID).unsqueeze(-1)
        embeds = embeds.masked_scatter(at_image, features.reshape(b, -1, features.shape[-1]).to(embeds.dtype))
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=segment_mask(segment, embeds.dtype),
            position_ids=segment_positions(segment),
            use_cache=False,
        )
        return out.last_hidden_state

    def _answer_loss(
        self, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        asked = labels[:, 1:] != IGNORE_ID
        logits = self.model.lm_head(hidden[:, :-1][asked]).float()
        loss = nn.functional.cross_entropy(logits, labels[:, 1:][asked], reduction="none")
        weight = weights[:, 1:][asked]
        return (loss * weight).sum() / weight.sum().clamp(min=1e-6)

    def _measure_loss(
        self, hidden: torch.Tensor, probes: torch.Tensor, beats: torch.Tensor, rhythm: torch.Tensor
    ) -> torch.Tensor:
        read = hidden.gather(1, probes.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).float()
        return _masked_huber(self.beat_head(read[:, :-1]), beats) + 0.5 * _masked_huber(
            self.rhythm_head(read[:, -1]), rhythm
        )


def normalize(tiles: torch.Tensor) -> torch.Tensor:
    """CLIP's normalisation on the device: uint8 [n, 336, 336, 3] -> float32 [n, 3, 336, 336]."""
    mean = torch.tensor(IMAGE_MEAN, device=tiles.device) * 255
    std = torch.tensor(IMAGE_STD, device=tiles.device) * 255
    return tiles.float().sub_(mean).div_(std).permute(0, 3, 1, 2)


def segment_mask(segment: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive causal mask [B, 1, L, L]: a token sees the prefix and the earlier part of its own segment."""
    same = segment.unsqueeze(2) == segment.unsqueeze(1)
    seen = (same | (segment == 0).unsqueeze(1)) & (segment != PAD_SEGMENT).unsqueeze(1)
    seen = seen & torch.ones_like(seen[0]).tril()
    seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)  # padding sees itself
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -1e4).unsqueeze(1)


def segment_positions(segment: torch.Tensor) -> torch.Tensor:
    """Position ids [B, L]: every segment continues right behind the prefix."""
    index = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    new = torch.ones_like(segment, dtype=torch.bool)
    new[:, 1:] = segment[:, 1:] != segment[:, :-1]
    start = torch.cummax(torch.where(new, index, torch.zeros_like(index)), dim=1).values
    prefix = (segment == 0).sum(1, keepdim=True)
    return torch.where(segment == 0, index, index - start + prefix)


def _masked_huber(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    known = torch.isfinite(target)
    if not known.any():
        return predicted.sum() * 0
    return nn.functional.smooth_l1_loss(predicted[known], target[known], beta=1.0)
