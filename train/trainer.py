"""Train a small PULSE from a recipe with the Hugging Face Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from pulse_edge.bundle import write_atomic
from pulse_edge.ecg.instruct import SUPERCLASS_PHRASES
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.dataset import DefaultPages, PageDataset, collate
from pulse_edge.train.examples import BeatBasis, Example
from pulse_edge.train.objective import TrainingObjective
from pulse_edge.train.recipe import Recipe, TrainSettings


def fit(
    model: PulseForConditionalGeneration,
    recipe: Recipe,
    tokenizer: Tokenizer,
    learn: list[Example],
    validate: list[Example],
    basis: BeatBasis,
    work: Path,
    workers: int = 1,
) -> list[dict[str, float]]:
    """Train ``model`` in place and leave it with its best averaged weights.

    An interrupted run goes on from the last checkpoint in ``work``.

    Args:
        model: a fresh or earlier model.
        recipe: what to do.
        tokenizer: the model's.
        learn: examples to learn from.
        validate: examples of other patients, for choosing the weights that are kept.
        basis: of the median beats.
        work: folder for the Trainer's checkpoints and the history.
        workers: processes that render pages.

    Returns:
        The history: one row per validation.
    """
    settings = recipe.train
    set_seed(recipe.seed)
    objective = TrainingObjective(model, len(basis.components), settings.measure_weight)
    tokens = model.config.vision_config.tokens_per_tile
    pages = PageDataset(learn, tokenizer, basis, tokens, settings.pages, recipe.seed)
    keeper = _Keeper(objective, DefaultPages(validate, tokenizer, tokens), tokenizer, settings, work)
    trainer = _InOrder(
        model=objective,
        args=_arguments(recipe, work, workers),
        train_dataset=pages,
        data_collator=collate,
        callbacks=[keeper],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    keeper.restore_best()
    return keeper.history


def _arguments(recipe: Recipe, work: Path, workers: int) -> TrainingArguments:
    settings = recipe.train
    steps = settings.pages // settings.batch
    return TrainingArguments(
        output_dir=str(work),
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
        save_total_limit=1,
        seed=recipe.seed,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=2 if workers else None,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=False,
    )


class _InOrder(Trainer):
    """The dataset draws its own order, so that item k is the same in every run; keep it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class _Keeper(TrainerCallback):
    """Averages the weights, validates the average and keeps the best."""

    def __init__(
        self,
        objective: TrainingObjective,
        pages: DefaultPages,
        tokenizer: Tokenizer,
        settings: TrainSettings,
        work: Path,
    ) -> None:
        self.objective, self.pages, self.every, self.work = objective, pages, settings.evaluate_every, work
        self.answers = answer_ids(tokenizer)
        self.average = AveragedModel(
            objective, multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay), use_buffers=True
        )
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        saved = self.work / f"checkpoint-{state.global_step}" / "average.pt"
        if state.global_step and saved.is_file():
            self.average.load_state_dict(torch.load(saved, weights_only=True))
            self.history = json.loads((self.work / "history.json").read_text())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.average.update_parameters(self.objective)
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            row = {"step": state.global_step, **validate(self.average.module, self.pages, self.answers)}
            if not self.history or row["macro"] >= max(past["macro"] for past in self.history):
                torch.save(self.average.module.state_dict(), self.work / "best.pt")
            self.history.append(row)
            write_atomic(self.work / "history.json", json.dumps(self.history, indent=1).encode())
            print(json.dumps(row), flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.save(self.average.state_dict(), self.work / f"checkpoint-{state.global_step}" / "average.pt")

    def restore_best(self) -> None:
        self.objective.load_state_dict(torch.load(self.work / "best.pt", weights_only=True))


def answer_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of "Yes" and "No" where they follow "ASSISTANT:"."""
    return [tokenizer.encode(f": {word}", bos=False)[-1] for word in ("Yes", "No")]


@torch.no_grad()
def validate(objective: TrainingObjective, pages: DefaultPages, answers: list[int]) -> dict[str, float]:
    """Return the AUROC of each superclass and their mean, by label scoring on default pages."""
    objective.eval()
    scores, truth = [], []
    for batch in DataLoader(pages, batch_size=20, collate_fn=collate):  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = objective.hidden_states(batch["ids"], batch["segment"], batch["tiles"])
            logits = objective.model.lm_head(hidden[:, :-1]).float()
        asked = (batch["labels"][:, 1:] == answers[0]) | (batch["labels"][:, 1:] == answers[1])
        yes = logits[..., answers[0]] - logits[..., answers[1]]
        scores.append(yes[asked].reshape(len(yes), -1).numpy())
        truth.append((batch["labels"][:, 1:][asked] == answers[0]).reshape(len(yes), -1).numpy())
    score, true = np.concatenate(scores), np.concatenate(truth)
    each = {
        name: float(roc_auc_score(true[:, k], score[:, k])) for k, name in enumerate(SUPERCLASS_PHRASES)
    }
    return {"macro": float(np.mean(list(each.values()))), **each}
