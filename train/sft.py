"""Supervised fine-tuning of a PULSE model on conversations, as PULSE itself was trained.

Hugging Face's Trainer does the work: in one process; in several, started by ``torchrun`` or
``accelerate launch``; with FSDP where the recipe says so. The global batch, its order and the loss, the
mean over all supervised tokens of the batch, are the same for any number of processes.
"""

from __future__ import annotations

import gc
import math
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed

from pulse_edge.bundle import sha256_file
from pulse_edge.contract import IGNORE_ID
from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import load_model, read_card, resolve_model, save_model
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.curve import Curve
from pulse_edge.train.resume import Marker, last_complete
from pulse_edge.train.sft_data import Conversations, collate, divide, predicting
from pulse_edge.train.sft_recipe import (
    SftRecipe,
    SftSettings,
    empty_model,
    freeze,
    share_batch,
    tokens_per_page,
    tokens_per_tile,
)
from pulse_edge.train.sources.ecginstruct import EcgInstruct

INTENDED_USE = "Research and software testing. Not a medical device; not for diagnosis or treatment."


def fine_tune(
    recipe: SftRecipe, data: Path, output: Path, pages: int | None = None, workers: int = 1
) -> dict[str, Any]:
    """Fine-tune ``recipe.init`` and write the best weights as a checkpoint.

    A training that was interrupted, even by SIGKILL, goes on from its last whole checkpoint in
    ``<output>.training``, with any number of processes. There too: ``curve.png`` and TensorBoard's file.

    Args:
        recipe: what to do.
        data: JSON file in ECGInstruct's form.
        output: folder of the checkpoint.
        pages: conversations in all, instead of the recipe's epochs.
        workers: processes that read pictures, for each process that trains.

    Returns:
        ``{"checkpoint", "parameters", "trainable", "history", "metrics", "left_out"}``; history has a row for
        every step and every evaluation.

    Raises:
        UserError: the data, the base weights or the number of processes do not suit the recipe.
    """
    try:
        return _fine_tune(recipe, data, output, pages, workers)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gc.collect()  # what FSDP shards must be gone before the processes part
            torch.distributed.destroy_process_group()


def _fine_tune(
    recipe: SftRecipe, data: Path, output: Path, pages: int | None, workers: int
) -> dict[str, Any]:
    settings, processes = recipe.train, int(os.environ.get("WORLD_SIZE", "1"))
    first = os.environ.get("RANK", "0") == "0"
    _check_devices(processes)
    at_a_time, repeats = share_batch(settings.batch, settings.per_device, processes)
    base = resolve_model(recipe.init)
    tokenizer = Tokenizer.from_folder(base)
    model = load_base(recipe, base)
    if processes > 1 and model.config.vision_config.model_type == "pulse_conv" and not settings.freeze_vision:
        raise UserError(
            "A convolutional tower is trained in one process only. Freeze it, or use one process."
        )
    examples = EcgInstruct(data)
    learned, held = divide(examples, settings.hold_out)
    steps = (settings.epochs * len(learned) if pages is None else pages) // settings.batch
    if not steps:
        raise UserError(
            f"{len(learned)} conversations do not fill one batch of {settings.batch}. Use a smaller batch."
        )
    if first:
        told = f"{len(learned)} conversations to learn, {len(held)} held out; left out: {examples.left_out}"
        Console(stderr=True).print(told)
    work = output.with_name(output.name + ".training")
    work.mkdir(parents=True, exist_ok=True)

    def items(places: Any, length: int | None) -> Conversations:
        tile = tokens_per_tile(model.config)
        log = work / "left_out.txt"
        return Conversations(
            examples,
            places,
            tokenizer,
            recipe.model.merge,
            tile,
            settings.max_length,
            length,
            recipe.seed,
            log,
        )

    set_seed(recipe.seed)
    trainer = SftTrainer(
        model=model,
        args=arguments(recipe, model, work, steps, (at_a_time, repeats), workers, bool(len(held))),
        train_dataset=items(learned, steps * settings.batch),
        eval_dataset=items(held, None) if len(held) else None,
        data_collator=collate,
        compute_loss_func=token_loss,
        callbacks=[Curve(work), Marker()],
    )
    last = last_complete(work, tidy=first)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    result = _finish(recipe, trainer, base, tokenizer, work, output, len(learned), len(held), first)
    return {**result, "left_out": examples.left_out}


class SftTrainer(Trainer):
    """transformers' Trainer, with our order of the data and our reading of checkpoints."""

    # The dataset draws its own order, so that item k is the same in every run: it is kept.
    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        data: Dataset[Any] = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(data)  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers 5 saves under other names than it loads here, and only warns of missing weights.
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            target = self.model if model is None else model
            target.load_state_dict(load_model(resume_from_checkpoint, "float32").state_dict())


def token_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy of the next token, the mean over the supervised tokens of the global batch.

    Args:
        outputs: ``logits`` [B, P, V] at the positions ``sft_data.predicting`` chose.
        labels: [B, M], -100 where nothing is supervised.
        num_items_in_batch: supervised tokens of the whole step, over all processes and repeats, which the
            Trainer counts; those of ``labels`` if it is not given.
    """
    target = labels[:, 1:][:, predicting(labels)]
    logits = outputs.logits.float().flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(
        logits, target.flatten(), ignore_index=IGNORE_ID, reduction="sum"
    )
    count = (target != IGNORE_ID).sum() if num_items_in_batch is None else num_items_in_batch
    return loss / torch.as_tensor(count, device=loss.device).clamp(min=1)


def load_base(recipe: SftRecipe, base: Path) -> PulseForConditionalGeneration:
    """Load the weights to start from, in float32, frozen and merging as the recipe says.

    Raises:
        CheckpointError: the folder holds no usable checkpoint.
        UserError: its architecture is not the recipe's, or the recipe's length does not suit it.
    """
    settings = recipe.train
    shapes = {name: tuple(t.shape) for name, t in empty_model(recipe.model).state_dict().items()}
    model = load_model(base, "float32")
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"{base} is not of the recipe's architecture: {len(wrong)} weights differ, for one {wrong[0]}, "
            f"{found.get(wrong[0])} instead of {shapes.get(wrong[0])}. Use another init or recipe."
        )
    model.config.merge = recipe.model.merge  # LLaVA-1.6 unpads; PULSE starts from it and does not
    visual, context = tokens_per_page(model.config), model.config.text_config.max_position_embeddings
    if not visual < settings.max_length <= context:
        raise UserError(
            f"max_length is {settings.max_length}: it must exceed the image's {visual} tokens and not the "
            f"model's context of {context}. Correct the recipe."
        )
    freeze(model, settings.freeze_vision)
    return model


def arguments(
    recipe: SftRecipe,
    model: PulseForConditionalGeneration,
    work: Path,
    steps: int,
    shared: tuple[int, int],
    workers: int,
    evaluates: bool,
) -> TrainingArguments:
    """Return the Trainer's arguments; what the recipe does not name is as in PULSE's script or neutral.

    Args:
        recipe: the recipe.
        model: for the names of the layers that FSDP shards.
        work: folder of the Trainer's checkpoints.
        steps: in all.
        shared: of :func:`share_batch`.
        workers: processes that read pictures.
        evaluates: whether conversations are held out.
    """
    settings = recipe.train
    cuda = torch.cuda.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    sharded = bool(settings.fsdp) and several
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=shared[0],
        per_device_eval_batch_size=shared[0],
        gradient_accumulation_steps=shared[1],
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        max_grad_norm=1.0,
        bf16=settings.precision == "bf16",
        tf32=True if cuda and settings.precision == "bf16" else None,
        use_cpu=not cuda,
        # FSDP has its own checkpointing, which gathers a layer once less.
        **(_checkpointing() if settings.gradient_checkpointing and not sharded else {}),
        fsdp=settings.fsdp if sharded else "",
        fsdp_config=_fsdp(model, settings) if sharded else None,
        ddp_backend="gloo" if several and not cuda else None,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.evaluate_every if evaluates else None,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=3 if evaluates else 2,  # the best, and the newest may be half-written
        seed=recipe.seed,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=2 if workers else None,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=False,
    )


def _checkpointing() -> dict[str, Any]:
    """Return the arguments for gradient checkpointing, which transformers 5 renames."""
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _fsdp(model: PulseForConditionalGeneration, settings: SftSettings) -> dict[str, Any]:
    layers = {type(model.model.language_model.layers[0]).__name__}
    layers |= {type(m).__name__ for m in model.model.vision_tower.modules() if hasattr(m, "layer_norm1")}
    return {
        "transformer_layer_cls_to_wrap": sorted(layers),
        "activation_checkpointing": settings.gradient_checkpointing,
        "state_dict_type": "FULL_STATE_DICT",
    }


def _check_devices(processes: int) -> None:
    """One process with several GPUs would make the Trainer use DataParallel, which cannot share tiles."""
    if processes == 1 and torch.cuda.device_count() > 1:
        count = torch.cuda.device_count()
        raise UserError(
            f"This machine has {count} GPUs, but one process was started. Use all of them with: "
            f"torchrun --nproc-per-node {count} -m pulse_edge.cli train …, or one: CUDA_VISIBLE_DEVICES=0."
        )


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}


def _finish(
    recipe: SftRecipe,
    trainer: SftTrainer,
    base: Path,
    tokenizer: Tokenizer,
    work: Path,
    output: Path,
    learned: int,
    held: int,
    first: bool,
) -> dict[str, Any]:
    """Write the best checkpoint, in the first process."""
    state = trainer.state
    best = Path(state.best_model_checkpoint or work / f"checkpoint-{state.global_step}")
    metrics = []
    if state.best_metric is not None:
        where = {"set": "held-out conversations", "what": "conversations", "n": held}
        metrics = [{"stage": recipe.train.precision, **where, "loss": state.best_metric}]
    if first:
        parent = read_card(base)
        card = {
            "name": recipe.name,
            "parent": {"name": parent["name"], "sha256": _hashes(base), "recipe": parent["recipe"]},
            "recipe": f"{recipe.name}.yaml, seed {recipe.seed}, {best.name} of {state.global_step} steps",
            "data": {"conversations": learned, "held_out": held},
            "metrics": metrics,
            "labels": parent["labels"],
            "scoring": parent["scoring"],
            "licences": parent["licences"],
            "intended_use": INTENDED_USE,
        }
        model = load_model(best, "bfloat16" if recipe.train.precision == "bf16" else "float32")
        save_model(model, tokenizer, output, card)
    parameters = list(trainer.model.parameters())
    return {
        "checkpoint": str(output),
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "history": list(state.log_history),
        "metrics": metrics,
    }
