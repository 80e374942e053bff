"""What is learnt, in stages, the first two as LLaVA's own recipe has them: first to see, then to speak.

* ``see``: the tower, through the readout head (`readout.py`): measurements and diagnoses.
* ``speak``: projector and language model on the frozen tower: next-token cross-entropy on the
  answers, as PULSE was trained (image and instruction masked), and, on the superclass questions,
  the head's probability as a soft target (Hinton et al., 2015).
* ``tune``: all of a model that sees and speaks already, through its answers alone. The closed
  questions have the signal teacher's soft target and no hard one, which would be learnt by heart.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from pulse_edge.contract import IGNORE_ID, IMAGE_TOKEN_ID
from pulse_edge.ecg.instruct import SUPERCLASS_PHRASES
from pulse_edge.model.packed import normalize, segment_mask, segment_positions
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.train.readout import Readout
from pulse_edge.train.recipe import STAGES

SOFT_WEIGHT: Final = 1.0
FOUND_WEIGHT: Final = 0.6  # three findings, five superclasses
MEASURE_WEIGHT: Final = 1.0
CELL_WEIGHT: Final = 0.3


class TrainingObjective(nn.Module):
    """PULSE and its readout head; ``forward`` takes a batch of ``dataset.collate``.

    Args:
        model: the model to train.
        beat_components: targets per lead.
        answers: token ids of "Yes" and "No".
    """

    def __init__(
        self, model: PulseForConditionalGeneration, beat_components: int, answers: list[int]
    ) -> None:
        super().__init__()
        self.model, self.answers = model, answers
        model.model.vision_tower.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        vision = model.config.vision_config
        self.readout = Readout(vision.hidden_size, beat_components, vision.patch_size)
        self.stage = STAGES[0]
        self._tally: dict[str, list[float]] = {}

    def set_stage(self, stage: str) -> None:
        """Choose what is trained: tower and head, projector and language model, or all but the head."""
        self.stage = stage
        for name, parameter in self.named_parameters():
            head = name.startswith("readout")
            sees = head or "vision_tower" in name
            parameter.requires_grad_(not head if stage == "tune" else sees == (stage == "see"))
        self.train(self.training)

    def train(self, mode: bool = True) -> TrainingObjective:
        """Switch between training and evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        if self.stage == "speak":
            self.model.model.vision_tower.eval()
            self.readout.eval()
        return self

    def forward(self, tiles: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``{"loss"}`` of the present stage.

        Args:
            tiles: uint8 [B, 5, 336, 336, 3].
            batch: ids, segment, labels, weights [B, L]; closed [B, 5]; found [B, 3, 2];
                diagnoses [B, 28]; beats [B, 12, k]; rhythm [B, 2]; traces [B, 4, T, cell]; leads [B, 4, T].
        """
        if self.stage == "see":
            tokens = self.look(tiles)
            measured, diagnosed = self.readout.loss(
                tokens, batch["beats"], batch["rhythm"], batch["diagnoses"]
            )
            told = self.readout.cell_loss(tokens, batch["traces"], batch["leads"])
            self._note(cell=told, measure=measured, diagnose=diagnosed)
            return {"loss": CELL_WEIGHT * told + MEASURE_WEIGHT * measured + diagnosed}
        asked, weights = batch["closed"][:, 0] >= 0, batch["weights"]
        if self.stage == "tune":
            tokens, soft = self.look(tiles), batch["diagnoses"][:, : len(SUPERCLASS_PHRASES)]
            weights = weights.clone()
            weights[asked] = weights[asked].scatter(1, batch["closed"][asked] + 1, 0.0)
            # Where no finding is asked the index is -1: it falls on the first position, which has no weight.
            weights = weights.scatter(1, batch["found"][..., 0] + 1, 0.0)
        else:
            with torch.no_grad():
                tokens = self.look(tiles)
                soft = self.readout(tokens)[2][:, : len(SUPERCLASS_PHRASES)].float().sigmoid()
        hidden = self.read(tokens, batch["ids"], batch["segment"])
        answer = self._answer_loss(hidden, batch["labels"], weights)
        margin = self.margins(hidden[asked], batch["closed"][asked])
        taught = nn.functional.binary_cross_entropy_with_logits(margin, soft[asked])
        self._note(answer=answer, taught=taught)
        if self.stage == "tune":
            found = self._found_loss(hidden, batch["found"], batch["diagnoses"])
            self._note(found=found)
            taught = taught + FOUND_WEIGHT * found
        return {"loss": answer + SOFT_WEIGHT * taught}

    def look(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles uint8 [B, 5, 336, 336, 3] -> the tower's tokens [B, 5 T, C]."""
        tower = self.model.model.vision_tower
        tokens: torch.Tensor = tower(normalize(tiles.flatten(0, 1))).last_hidden_state
        return tokens.reshape(len(tiles), -1, tokens.shape[-1])

    def read(self, tokens: torch.Tensor, ids: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
        """Return the language model's last hidden states [B, L, H] over packed questions."""
        features = self.model.model.multi_modal_projector(tokens)
        embeds = self.model.get_input_embeddings()(ids.clamp(min=0))
        at_image = (ids == IMAGE_TOKEN_ID).unsqueeze(-1)
        embeds = embeds.masked_scatter(at_image, features.to(embeds.dtype))
        hidden: torch.Tensor = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=segment_mask(segment, embeds.dtype),
            position_ids=segment_positions(segment),
            use_cache=False,
        ).last_hidden_state
        return hidden

    def margins(self, hidden: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
        """Return logit(Yes) - logit(No) of the superclass questions, float32 [B, 5]."""
        at = hidden.gather(1, closed.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        logits = self.model.lm_head(at).float()
        return logits[..., self.answers[0]] - logits[..., self.answers[1]]

    def _found_loss(self, hidden: torch.Tensor, found: torch.Tensor, diagnoses: torch.Tensor) -> torch.Tensor:
        asked = found[..., 0] >= 0
        margin = self.margins(hidden, found[..., 0].clamp(min=0))[asked]
        soft = diagnoses.gather(1, found[..., 1].clamp(min=0))[asked]
        return nn.functional.binary_cross_entropy_with_logits(margin, soft, reduction="sum") / max(
            len(soft), 1
        )

    def mean_losses(self) -> dict[str, float]:
        """Return the mean of each loss since the last call."""
        means = {f"{name}_loss": sum(v) / len(v) for name, v in self._tally.items()}
        self._tally.clear()
        return means

    def _note(self, **losses: torch.Tensor) -> None:
        for name, value in losses.items():
            self._tally.setdefault(name, []).append(float(value.detach()))

    def _answer_loss(self, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        asked = labels[:, 1:] != IGNORE_ID
        logits = self.model.lm_head(hidden[:, :-1][asked]).float()
        loss = nn.functional.cross_entropy(logits, labels[:, 1:][asked], reduction="none")
        weight = weights[:, 1:][asked]
        return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
