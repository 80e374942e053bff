"""Small random models, and the bundles exported from them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sentencepiece

Step = Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]


@pytest.fixture(scope="session")
def student(make_student: Callable[..., Any]) -> Any:
    """The random model; its MLP is 96 wide, which no block of int4 divides."""
    return make_student(
        hidden_size=64,
        intermediate_size=96,
        vocab_size=400,
        max_position_embeddings=400,
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def checkpoint(student: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model as a checkpoint with a small tokenizer of its own and a card."""
    from pulse_edge.model.checkpoint import save_model
    from pulse_edge.model.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    out = io.BytesIO()
    text = ["USER: Does this ECG show a normal ECG? ASSISTANT: Yes", "USER: Report. ASSISTANT: No rhythm"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20), model_writer=out, model_type="bpe", vocab_size=400,
        byte_fallback=True, normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": False}))
    card = {
        "name": "student",
        "metrics": [{"stage": "student", "set": "none", "auroc": {"macro": 0.5}}],
        "licences": [{"what": "weights", "licence": "none"}],
    }
    save_model(student, Tokenizer.from_folder(folder), folder.parent / "student", card)
    return folder.parent / "student"


# LLaVA's names of what Hugging Face's layout calls otherwise.
_LLAVA = (
    ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.language_model.", "model."),
)


def _llava(name: str) -> str:
    return next((new + name.removeprefix(old) for old, new in _LLAVA if name.startswith(old)), name)


@pytest.fixture(scope="session")
def clip_model() -> Any:
    """A random PULSE with a CLIP tower of two layers, of which one is used, and no tied weights."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

    from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration

    torch.manual_seed(4)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, image_size=336,
        patch_size=56, hidden_act="quick_gelu", initializer_range=0.1, projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, vocab_size=400,
        num_key_value_heads=2, max_position_embeddings=400, initializer_range=0.15, tie_word_embeddings=False,
    )  # fmt: skip
    config = PulseConfig(
        text_config=text, vision_config=vision, vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    model = PulseForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                value.add_(0.2 * torch.randn_like(value))
    return model


@pytest.fixture(scope="session")
def clip_checkpoint(clip_model: Any, checkpoint: Path) -> Callable[..., Path]:
    """Write the random PULSE as bfloat16, in the released LLaVA layout, sharded, or Hugging Face's.

    ``change`` may alter the tensors by name, and return them; it sees Hugging Face's names.
    """
    import shutil

    import torch
    from safetensors.torch import save_file

    def write(folder: Path, layout: str = "llava", change: Any = None) -> Path:
        folder.mkdir(parents=True)
        state = {
            k: v.bfloat16() for k, v in clip_model.state_dict().items() if not k.endswith("position_ids")
        }
        state = change(state) if change else state
        config = clip_model.config
        if layout == "hf":
            raw = config.to_dict()
            save_file(state, folder / "model.safetensors")
        else:
            state = {_llava(name): value for name, value in state.items() if name != "model.image_newline"}
            text = config.text_config.to_dict()
            text.pop("model_type")
            raw = {
                **text, "rope_theta": 10000.0, "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu",
                "image_aspect_ratio": "anyres", "mm_vision_select_feature": "patch",
                "mm_vision_select_layer": -2, "mm_patch_merge_type": "flat",
            }  # fmt: skip
            names = sorted(state)
            shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
            for file, part in shards.items():
                save_file({name: state[name].contiguous() for name in part}, folder / file)
            where = {name: file for file, part in shards.items() for name in part}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        (folder / "config.json").write_text(json.dumps(raw, default=str))
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copyfile(checkpoint / name, folder / name)
        assert not any(isinstance(value, torch.nn.Parameter) for value in state.values())
        return folder

    return write


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Export the random model for a target in a precision, once."""
    from pulse_edge.export import export_bundle

    made: dict[tuple[str, str], Path] = {}

    def export(target: str, precision: str) -> Path:
        key = (target, precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("bundles") / "-".join(key)
            export_bundle(checkpoint, folder, target, precision=precision)
            made[key] = folder
        return made[key]

    return export


class Arrays:
    """Weights in memory, as the exporter asks for them; ``held`` counts the rows that someone holds."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        from pulse_edge.model.layouts import canonical

        self.arrays = {canonical(name): np.asarray(value) for name, value in state.items()}
        self.asked: list[str] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def kind(self, name: str) -> str:
        return {"float32": "F32", "float16": "F16", "uint16": "BF16"}[str(self.arrays[name].dtype)]

    def form(self, name: str) -> None:
        return None

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        self.asked.append(name)
        return self.arrays[name][start:stop].copy()


@pytest.fixture(scope="session")
def in_memory() -> type[Arrays]:
    return Arrays


@pytest.fixture(scope="session")
def write_decoder() -> Callable[..., list[str]]:
    """Write a decoder with its weights; returns the layers that int4 does not fit."""
    from pulse_edge.export.decoder import plan_decoder

    def write(path: Path, shape: Any, weights: Any, how: Any) -> list[str]:
        writer, kept = plan_decoder(path, shape, weights, how)
        writer.fill()
        return kept

    return write


@pytest.fixture(scope="session")
def run() -> Callable[[Path], Step]:
    """Open a decoder graph; the function that results reads embeddings and a cache.

    It returns the logits [V] and the cache; without a cache it begins with an empty one.
    """
    import onnxruntime

    def open_decoder(path: Path) -> Step:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        caches = [entry for entry in session.get_inputs() if entry.name.startswith("past_key_values.")]
        counted = any(entry.name == "total_sequence_length" for entry in session.get_inputs())
        kind = np.float16 if "16" in caches[0].type else np.float32
        empty = {c.name: np.zeros([d if isinstance(d, int) else 0 for d in c.shape], kind) for c in caches}
        outputs = ["logits", *(name.replace("past_key_values", "present") for name in empty)]

        def step(embeds: np.ndarray, past: Mapping[str, np.ndarray] | None = None) -> Any:
            feed = {"inputs_embeds": embeds.astype(np.float32), **(empty if past is None else past)}
            if counted:
                length = embeds.shape[1] + feed["past_key_values.0.key"].shape[2]
                feed["total_sequence_length"] = np.array([length], np.int32)
            logits, *present = session.run(outputs, feed)
            return logits[0], dict(zip(empty, present, strict=True))

        return step

    return open_decoder


@pytest.fixture(scope="session")
def stored() -> Callable[[Path], dict[str, np.ndarray]]:
    """Read the weights out of a graph's data file, by what the graph says; int4 unpacked to int8."""

    def read(path: Path) -> dict[str, np.ndarray]:
        model = onnx.load(str(path), load_external_data=False)
        arrays = {}
        for tensor in model.graph.initializer:
            if not tensor.external_data:
                arrays[tensor.name] = onnx.numpy_helper.to_array(tensor)
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            raw = (path.parent / place["location"]).read_bytes()
            raw = raw[int(place["offset"]) : int(place["offset"]) + int(place["length"])]
            if tensor.data_type == onnx.TensorProto.INT4:
                both = np.frombuffer(raw, np.uint8)
                values = np.stack([both & 15, both >> 4], axis=1).reshape(-1).astype(np.int8)
                flat = np.where(values > 7, values - 16, values).astype(np.int8)
            else:
                flat = np.frombuffer(raw, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            arrays[tensor.name] = flat.reshape(tuple(tensor.dims))
        return arrays

    return read
