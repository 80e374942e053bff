"""Train a small PULSE from a recipe with the Hugging Face Trainer."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from sklearn.metrics import roc_auc_score
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from pulse_edge.bundle import write_atomic
from pulse_edge.ecg.instruct import SUPERCLASS_PHRASES
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.dataset import DefaultPages, PageDataset, collate
from pulse_edge.train.examples import BeatBasis, Example
from pulse_edge.train.morph import Morphs
from pulse_edge.train.objective import TrainingObjective
from pulse_edge.train.recipe import STAGES, Recipe, TrainSettings
from pulse_edge.train.resume import last_complete, mark


def fit(
    model: PulseForConditionalGeneration,
    recipe: Recipe,
    tokenizer: Tokenizer,
    learn: list[Example],
    choose: list[Example],
    basis: BeatBasis,
    work: Path,
    workers: int = 1,
    beliefs: NDArray[np.float32] | None = None,
    morphs: tuple[Morphs, NDArray[np.float32]] | None = None,
) -> list[dict[str, Any]]:
    """Train ``model`` in place, stage by stage, and leave it with its best averaged weights.

    An interrupted run goes on from the last checkpoint in ``work``.

    Args:
        model: a fresh or earlier model.
        recipe: what to do.
        tokenizer: the model's.
        learn: examples to learn from.
        choose: examples of other patients with superclasses, for choosing the weights that are kept.
        basis: of the median beats.
        work: folder for the Trainer's checkpoints and the history.
        workers: processes that render pages.
        beliefs: float32 [learn, 28], the signal teacher's logits.
        morphs: of ``learn``, and the teacher's logits of as many as any stage needs.

    Returns:
        The history: one row per validation.
    """
    objective = TrainingObjective(model, len(basis.components), answer_ids(tokenizer))
    tokens = model.config.vision_config.tokens_per_tile
    pages = DefaultPages(choose, tokenizer, tokens)
    photos = DefaultPages(choose, tokenizer, tokens, photos=True)
    history: list[dict[str, Any]] = []
    for stage, settings in recipe.train.items():
        number = STAGES.index(stage)
        folder = work / stage
        set_seed(recipe.seed + number)
        objective.set_stage(stage)
        parent = copy.deepcopy(objective.state_dict()) if settings.parent else {}
        keeper = _Keeper(objective, pages, photos if stage == "tune" else None, settings, folder)
        if not keeper.finished:
            seed = recipe.seed + number
            data = PageDataset(
                learn,
                tokenizer,
                basis,
                tokens,
                settings.pages,
                seed,
                beliefs,
                settings.photos,
                dense=stage == "see",
                morphs=morphs,
                morphed=settings.morphs,
            )
            trainer = _Trainer(
                model=objective,
                args=_arguments(settings, seed, folder, workers),
                train_dataset=data,
                data_collator=collate,
                callbacks=[keeper],
            )
            last = last_complete(folder, tidy=False)
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        keeper.restore_best()
        if settings.parent:
            _blend(objective, parent, settings.parent)
        history += keeper.history
    return history


def _blend(objective: TrainingObjective, parent: dict[str, torch.Tensor], share: float) -> None:
    """Put so much of the parent's weights into the tuned ones: what both know is lost least in between
    (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
    """
    blended = set()  # embedding and head may be one tensor
    with torch.no_grad():
        for name, tensor in objective.state_dict().items():
            if tensor.is_floating_point() and tensor.data_ptr() not in blended:
                tensor.lerp_(parent[name], share)
                blended.add(tensor.data_ptr())


def _arguments(settings: TrainSettings, seed: int, folder: Path, workers: int) -> TrainingArguments:
    steps = settings.pages // settings.batch
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="cosine",
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=50,
        save_steps=settings.evaluate_every,
        save_total_limit=2,  # one may be half-written when the process is killed
        seed=seed,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=2 if workers else None,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=False,
    )


class _Trainer(Trainer):
    """The dataset draws its own order, so that item k is the same in every run: it is kept. The
    embedding and the head share one tensor, which safetensors stores only when told so.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(model or self.model, str(Path(resume_from_checkpoint) / "model.safetensors"))


class _Keeper(TrainerCallback):
    """Averages the weights, validates the average and keeps the best: on pages, or on pages and photos."""

    def __init__(
        self,
        objective: TrainingObjective,
        pages: DefaultPages,
        photos: DefaultPages | None,
        settings: TrainSettings,
        folder: Path,
    ) -> None:
        self.objective, self.pages, self.photos = objective, pages, photos
        self.settings, self.folder = settings, folder
        self.average = AveragedModel(
            objective, multi_avg_fn=_moving_average(settings.average_decay), use_buffers=True
        )
        rows = folder / "history.json"
        self.history: list[dict[str, Any]] = json.loads(rows.read_text()) if rows.is_file() else []

    @property
    def finished(self) -> bool:
        """Whether the stage was completed by an earlier run."""
        last = self.settings.pages // self.settings.batch
        return bool(self.history) and self.history[-1]["step"] >= last

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.history = [row for row in self.history if row["step"] <= state.global_step]
        if state.global_step:
            saved = self.folder / f"checkpoint-{state.global_step}" / "average.pt"
            self.average.load_state_dict(torch.load(saved, weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.average.update_parameters(self.objective)
        if state.global_step % self.settings.evaluate_every and state.global_step != state.max_steps:
            return
        row = {"stage": self.objective.stage, "step": state.global_step}
        average = cast(TrainingObjective, self.average.module)
        row |= validate(average, self.pages) | self.objective.mean_losses()
        row["score"] = row["macro"]
        if self.photos is not None:
            row["photo_macro"] = validate(average, self.photos)["macro"]
            row["score"] = (row["macro"] + row["photo_macro"]) / 2
        if not self.history or row["score"] >= max(past["score"] for past in self.history):
            torch.save(self.average.module.state_dict(), self.folder / "best.partial")
            os.replace(self.folder / "best.partial", self.folder / "best.pt")
        self.history.append(row)
        write_atomic(self.folder / "history.json", json.dumps(self.history, indent=1).encode())
        print(json.dumps(row), flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        torch.save(self.average.state_dict(), checkpoint / "average.pt")
        mark(checkpoint)

    def restore_best(self) -> None:
        """Put the best averaged weights into the model."""
        self.objective.load_state_dict(torch.load(self.folder / "best.pt", weights_only=True))


def _moving_average(decay: float) -> Any:
    """Exponential moving average whose horizon grows with the steps, so that it forgets the random start."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)

    return update


def answer_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of "Yes" and "No" where they follow "ASSISTANT:"."""
    return [tokenizer.encode(f": {word}", bos=False)[-1] for word in ("Yes", "No")]


@torch.no_grad()
def validate(objective: TrainingObjective, pages: DefaultPages) -> dict[str, float]:
    """Return the AUROC of each superclass and their mean, on default pages.

    While the tower learns to see, the readout head is scored; afterwards the model's own answers are.
    """
    objective.eval()
    scores, truth = [], []
    for batch in DataLoader(pages, batch_size=16, collate_fn=collate):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = objective.look(batch["tiles"])
            if objective.stage == "see":
                score = objective.readout(tokens)[2]
            else:
                hidden = objective.read(tokens, batch["ids"], batch["segment"])
                score = objective.margins(hidden, batch["closed"])
        scores.append(score[:, : len(SUPERCLASS_PHRASES)].float().numpy())
        truth.append(batch["diagnoses"][:, : len(SUPERCLASS_PHRASES)].numpy())
    score, true = np.concatenate(scores), np.concatenate(truth)
    each = {name: float(roc_auc_score(true[:, k], score[:, k])) for k, name in enumerate(SUPERCLASS_PHRASES)}
    return {"macro": float(np.mean(list(each.values()))), **each}
