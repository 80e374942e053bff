"""Read and write checkpoints: a folder with weights, ``config.json``, tokenizer and ``pulse.json``.

Reading accepts the layouts of :mod:`pulse_edge.model.layouts`, whatever the folder is called. Weights
are memory-mapped, so that a 14 GB checkpoint takes no second copy. Nothing is ever initialised at
random: a checkpoint that does not hold exactly what the model needs is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.contract import CHECKPOINT_CARD
from pulse_edge.errors import CheckpointError, MissingExtraError, UnknownNameError, UserError
from pulse_edge.model.layouts import HEAD, NEWLINE, TABLE, canonical, pulse_config
from pulse_edge.model.quantized import INTEGERS
from pulse_edge.model.tokenizer import TOKENIZER_CONFIG, Tokenizer
from pulse_edge.model.weights import brief, open_weights, read_json, refuse, take_quantized

if TYPE_CHECKING:
    import torch

    from pulse_edge.model.pulse import PulseForConditionalGeneration

CARD_SCHEMA = 1
SHIPPED = Path(__file__).parents[1] / "assets"


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the folder of a shipped model's name (``"pulse-nano"``) or of a path.

    Raises:
        CheckpointError: if a path was given and is not a folder.
        UnknownNameError: if a name was given and no such model is shipped.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    shipped = {path.parent.name: path.parent for path in SHIPPED.glob(f"*/{CHECKPOINT_CARD}")}
    if name in shipped:
        return shipped[name]
    if folder.exists() or len(folder.parts) > 1:
        raise CheckpointError(
            f"{name} is not a folder on this machine. A checkpoint on the Hugging Face hub is downloaded "
            "first: huggingface-cli download <owner>/<model> --local-dir <folder>; then give that folder."
        )
    raise UnknownNameError("model", name, shipped)


def read_card(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's ``pulse.json``; a checkpoint of other origin gets an empty card with its name.

    Raises:
        CheckpointError: if the file is not valid, or of a newer schema.
    """
    file = Path(folder) / CHECKPOINT_CARD
    empty: dict[str, Any] = {
        "schema": CARD_SCHEMA,
        "name": Path(folder).resolve().name,
        "parent": None,
        "recipe": None,
        "data": None,
        "metrics": [],
        "labels": {},
        "scoring": {},
        "calibration": None,
        "answers": None,
        "licences": [],
        "intended_use": "",
    }
    if not file.is_file():
        return empty
    card = read_json(file)
    schema = card.get("schema")
    if schema != CARD_SCHEMA:
        raise CheckpointError(
            f"{file} has schema {schema!r}; this pulse-edge reads schema {CARD_SCHEMA}. Update pulse-edge."
        )
    return {**empty, **card}


def write_card_field(folder: Path, name: str, value: Any) -> None:
    """Write one field of a checkpoint's ``pulse.json``, and its new hash where ``SHA256SUMS`` lists the file.

    Raises:
        CheckpointError: the card is not valid.
        PulseEdgeError: the folder cannot be written.
    """
    from pulse_edge.bundle import sha256_file, write_atomic

    file, sums = folder / CHECKPOINT_CARD, folder / "SHA256SUMS"
    whole = read_card(folder)
    card = {**(read_json(file) if file.is_file() else whole), name: value}
    write_atomic(file, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    if sums.is_file():
        lines = [line.split() for line in sums.read_text(encoding="utf-8").splitlines()]
        text = "".join(
            f"{sha256_file(file) if path == CHECKPOINT_CARD else digest}  {path}\n" for digest, path in lines
        )
        write_atomic(sums, text.encode())


def load_model(
    path: str | Path, dtype: str | torch.dtype | None = None, packed: bool = False
) -> PulseForConditionalGeneration:
    """Load a checkpoint, ready for inference.

    Args:
        path: its folder, in the LLaVA or a Hugging Face layout, or a shipped model's name.
        dtype: of the weights in memory, e.g. ``"float32"``; ``None`` keeps them as they are, uncopied
            (those that stand as integers are given the embedding table's).
        packed: where more than ``packed_linear.LARGE`` weights of the decoder stand as integers, they stay so
            in memory, and every use of them is slower.

    Raises:
        CheckpointError: if anything is missing, left over, damaged or of another shape.
        MissingExtraError: without torch, transformers or safetensors.
        UserError: if the dtype is unknown.
    """
    with _needs_torch():
        import torch

        from pulse_edge.model.packed_linear import LARGE, pack, packed_size
        from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration

    kind = _dtype(dtype)
    folder = resolve_model(path)
    settings = folder / "config.json"
    raw = read_json(settings)
    weights = open_weights(folder)
    kept = weights[TABLE].dtype if TABLE in weights else torch.float32
    packed = packed and packed_size(weights) > LARGE
    try:
        shapes = {name.removesuffix(INTEGERS): tuple(tensor.shape) for name, tensor in weights.items()}
        fields = pulse_config(raw, shapes)
        config = PulseConfig.from_dict(fields)
        with torch.device("meta"):
            model = PulseForConditionalGeneration(config)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a wrong value in the file leads to
        raise CheckpointError(
            f"{settings} does not describe a model ({brief(error)}). Restore the original file."
        ) from error
    if packed:
        pack(model, weights)
    for name, weight in take_quantized(weights).items():  # what the integers stand for
        weights[name] = torch.from_numpy(weight.dequantize()).to(kind or kept)
    _assign(model, weights, folder, kind)
    compute_buffers(model)
    model.tie_weights()
    model.eval()
    return model


def save_model(
    model: PulseForConditionalGeneration, tokenizer: Tokenizer, folder: Path, card: Mapping[str, Any]
) -> None:
    """Write a checkpoint in Hugging Face layout with its card, completely or not at all.

    Args:
        model: its weights are written in their own dtype.
        tokenizer: its files are copied.
        folder: replaced if it exists.
        card: the fields of ``pulse.json``; ``schema`` is filled in.
    """
    from transformers.utils import logging

    from pulse_edge.bundle import atomic_folder

    text = json.dumps({"schema": CARD_SCHEMA, **card}, indent=2, ensure_ascii=False) + "\n"
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with atomic_folder(folder) as work:
            model.save_pretrained(work)
            (work / CHECKPOINT_CARD).write_text(text, "utf-8")
            for file in work.iterdir():
                file.chmod(0o644)  # safetensors lets only the owner read
            shutil.copyfile(tokenizer.path, work / tokenizer.path.name)
            settings = tokenizer.path.with_name(TOKENIZER_CONFIG)
            if settings.is_file():
                shutil.copyfile(settings, work / TOKENIZER_CONFIG)
    finally:
        if bars:
            logging.enable_progress_bar()


def _assign(
    model: PulseForConditionalGeneration,
    weights: dict[str, torch.Tensor],
    folder: Path,
    dtype: torch.dtype | None,
) -> None:
    """Put the weights into a model that was built without any."""
    import torch

    places = {canonical(name): (name, tensor) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings and TABLE in weights:
        weights.setdefault(HEAD, weights[TABLE])
    if model.config.merge == "flat" and TABLE in weights:
        weights.setdefault(NEWLINE, torch.zeros_like(weights[TABLE][0]))  # has a place, but is never read
    refuse(folder, "lacks", weights.keys(), places.keys(), "Download it again, completely.")
    refuse(folder, "has no use for", places.keys(), weights.keys(), "Restore its config.json.")
    state = {}
    for name, (own, place) in places.items():
        tensor = weights[name]
        if tensor.shape != place.shape:
            raise CheckpointError(
                f"{folder} holds {name} of shape {list(tensor.shape)}, but its config.json asks for "
                f"{list(place.shape)}. Restore its config.json."
            )
        state[own] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    model.load_state_dict(state, assign=True)


def compute_buffers(model: PulseForConditionalGeneration) -> None:
    """Compute what the meta device left out: rotary frequencies and position numbers, always in float32."""
    import torch

    for name, module in list(model.named_modules()):
        missing = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not missing:
            continue
        if missing == ["position_ids"]:
            module.position_ids = torch.arange(module.num_positions).expand((1, -1))
        elif "inv_freq" in missing:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, type(module)(module.config))
        else:
            raise CheckpointError(
                f"The model's constants {missing} in {name} cannot be computed by this pulse-edge with this "
                "version of transformers. Install transformers >=4.57,<6."
            )


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    kind = getattr(torch, name, None) if isinstance(name, str) else name
    if kind is None and name is None:
        return None
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise UserError(f"Unknown dtype {name!r}. Use float32, float16 or bfloat16.")
    return kind


@contextmanager
def _needs_torch() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train") from error
