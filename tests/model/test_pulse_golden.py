"""The whole model against the PULSE reference code: embeddings, logits, tokens, loss and gradients.

Bound: 1e-4 on logits, which also catches a tanh-GELU in the projector (1.4e-3).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from pulse_edge.contract import IGNORE_ID, PAD_ID
from pulse_edge.errors import ImageError, UserError
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.layouts import canonical
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt, encode_training
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer

BOUND = 1e-4
FLAT = "pulse_tiny_flat"
CASES = ["a_page_5views", "b_strip_4views", "c_strip_3views", "d_portrait_5views", "e_tall_4views"]


@cache
def load(folder):
    return load_model(folder, dtype="float32")


@pytest.fixture
def model(golden, tiny):
    return load(golden / "model" / tiny)


@pytest.fixture
def expected(gold, tiny):
    return gold("model/gold.json")[tiny]


def picture(golden, name):
    with Image.open(golden / "preprocess/images" / name) as image:
        return preprocess(image), image.size


def greedy(backend, embeddings, ids, count=24):
    """Return the logits of `count` steps and the tokens chosen, with the cache."""
    logits = [backend.prefill(embeddings, ids)]
    while len(logits) < count:
        logits.append(backend.step(int(logits[-1].argmax())))
    return np.stack(logits), [int(row.argmax()) for row in logits]


@pytest.mark.parametrize("case", CASES)
def test_image_cases(golden, tiny, model, expected, case):
    entry = next(entry for entry in expected["cases"] if entry["case"] == case)
    tokenizer = Tokenizer.from_folder(golden / "model" / tiny)
    ids = encode_prompt(build_prompt([(entry["question"], None)]), tokenizer)
    assert ids == entry["input_ids"]
    pixels, size = picture(golden, entry["image"])
    backend = TorchBackend(model)
    embeddings = backend.encode(pixels, size)
    assert len(embeddings) == entry["n_visual_tokens"]
    logits, tokens = greedy(backend, embeddings, ids)
    assert tokens == entry["greedy_tokens_fp32"]
    for token, value in entry["logits_last_top5"]:
        assert abs(logits[0, token] - value) < BOUND
    stored = golden / "model" / f"{tiny}__{case}.npz"
    if not stored.exists():
        return
    with np.load(stored) as arrays:
        assert np.abs(logits[0] - arrays["logits_last"]).max() < BOUND
        assert np.abs(logits - arrays["greedy_step_logits"]).max() < BOUND
        if "image_features" in arrays:
            with torch.inference_mode():
                features = model.encode_images(torch.from_numpy(pixels)).numpy()
            assert np.abs(features - arrays["image_features"]).max() < BOUND
        with torch.inference_mode():
            embeds = model.embed_prompt(ids, torch.from_numpy(embeddings))[0]
        np.testing.assert_allclose(embeds.norm(dim=-1).numpy(), arrays["inputs_embeds_row_norm"], atol=BOUND)
        if "inputs_embeds" in arrays:
            assert np.abs(embeds.numpy() - arrays["inputs_embeds"]).max() < BOUND


@pytest.mark.parametrize("turn", [0, 1], ids=["proper", "arena"])
def test_second_turn(golden, model, expected, turn):
    entry = expected["two_turn"][turn]
    pixels, size = picture(golden, entry["image"])
    backend = TorchBackend(model)
    logits, tokens = greedy(backend, backend.encode(pixels, size), entry["input_ids"])
    assert np.abs(logits[0] - entry["logits_last"]).max() < BOUND
    assert tokens == entry["greedy_tokens_fp32"]


def test_text_only(model, expected):
    entry = expected["text_only"]
    logits, tokens = greedy(TorchBackend(model), None, entry["input_ids"])
    assert np.abs(logits[0] - entry["logits_last"]).max() < BOUND
    assert tokens == entry["greedy_tokens_fp32"]


def test_generate_of_transformers_stops_at_the_stop_token(golden, model, expected):
    entry = expected["stop_token"]
    case = next(case for case in expected["cases"] if case["case"] == entry["case"])
    pixels, size = picture(golden, case["image"])
    new = model.generate(
        torch.tensor([case["input_ids"]]),
        pixel_values=torch.from_numpy(pixels)[None],
        image_sizes=[size],
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=entry["eos_token_id"],
        pad_token_id=PAD_ID,
    )
    assert new[0].tolist() == entry["new_tokens"]


def training_batch(golden, gold, tiny, names):
    samples = {entry["name"]: entry["sample"] for entry in gold("tokens/labels.json")["samples"]}
    tokenizer = Tokenizer.from_folder(golden / "model" / tiny)
    rows = [encode_training(samples[name]["conversations"], tokenizer, 4096) for name in names]
    pictures = [picture(golden, samples[name]["image"]) for name in names]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([torch.tensor(ids) for ids, _ in rows], True, PAD_ID),
        "labels": pad([torch.tensor(labels) for _, labels in rows], True, IGNORE_ID),
        "attention_mask": pad([torch.ones(len(ids), dtype=torch.long) for ids, _ in rows], True),
        "pixel_values": [torch.from_numpy(pixels) for pixels, _ in pictures],
        "image_sizes": [size for _, size in pictures],
    }


@pytest.mark.parametrize("batch", range(5))
def test_training_loss(golden, gold, tiny, model, expected, batch):
    entry = expected["train_loss"][batch]
    inputs = training_batch(golden, gold, tiny, entry["samples"])
    with torch.no_grad():
        _, mask, labels = model.merge_inputs(**inputs)
        out = model(**inputs)
    assert mask.sum(1).tolist() == entry["merged_attention_mask_lengths"]
    supervised = [
        [[place, int(row[place])] for place in (row != IGNORE_ID).nonzero()[:, 0].tolist()] for row in labels
    ]
    assert supervised == entry["merged_supervised_position_and_label"]
    assert out.logits.shape[1] == entry["merged_len"]
    assert abs(float(out.loss) - entry["loss"]) < 1e-5


def test_gradients_with_the_tower_frozen(golden, gold, tiny, expected):
    entry = expected["train_loss"][0]
    model = load_model(golden / "model" / tiny, dtype="float32").train()
    model.model.vision_tower.requires_grad_(False)
    model(**training_batch(golden, gold, tiny, entry["samples"])).loss.backward()
    gradients = {canonical(name): value.grad for name, value in model.named_parameters()}
    for name, norm in entry["grad_norm"].items():
        assert float(gradients[canonical(name)].norm()) == pytest.approx(norm, rel=1e-4), name


def test_training_cuts_what_inference_refuses(golden, gold):
    """The reference cuts in both; a question that silently disappears is of no use to anybody."""
    model = load_model(golden / "model" / FLAT, dtype="float32")
    longest = gold("model/gold.json")[FLAT]["truncation"]["inputs_embeds_shape"][1]
    model.config.text_config.max_position_embeddings = longest
    inputs = training_batch(golden, gold, FLAT, ["1turn"])
    embeds, mask, labels = model.merge_inputs(**inputs)
    assert embeds.shape[1] == mask.shape[1] == labels.shape[1] == longest == 1000
    del inputs["labels"]
    with pytest.raises(UserError, match="context is 1000"):
        model.merge_inputs(**inputs)


def case_a(golden, model, expected):
    entry = expected["cases"][0]
    pixels, size = picture(golden, entry["image"])
    backend = TorchBackend(model)
    return backend.prefill(backend.encode(pixels, size), entry["input_ids"])


def mistake_stock_clip(model, golden):
    from safetensors.torch import load_file

    stock = {
        canonical(f"vision_tower.{k}"): v.float()
        for k, v in load_file(golden / "model/stock_clip/model.safetensors").items()
    }
    with torch.no_grad():
        for name, value in model.named_parameters():
            if canonical(name).startswith("vision."):
                value.copy_(stock[canonical(name)])


def mistake_layer(model, golden):
    model.config.vision_feature_layer = -1


def mistake_tanh(model, golden):
    model.model.multi_modal_projector.act = torch.nn.GELU("tanh")


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (mistake_stock_clip, "stock CLIP weights instead of the checkpoint tower"),
        (mistake_layer, "mm_vision_select_layer -1"),
        (mistake_tanh, "tanh GELU in projector"),
    ],
)
def test_typical_mistakes_change_the_logits_as_in_the_reference(golden, gold, mistake, name):
    """So what is loaded is the checkpoint's own tower, its layer -2 and an exact GELU."""
    expected = gold("model/gold.json")[FLAT]
    model = load_model(golden / "model" / FLAT, dtype="float32")
    right = case_a(golden, model, expected)
    mistake(model, golden)
    changed = np.abs(case_a(golden, model, expected) - right).max()
    assert changed == pytest.approx(
        expected["negative_controls_case_a"][name]["max_abs_logit_change"], rel=1e-2
    )
    assert changed > BOUND


def test_prompt_and_images_must_agree(model):
    with pytest.raises(UserError, match=r"1 place.* but 0"):
        model.embed_prompt([1, -200, 5])
    with pytest.raises(UserError, match=r"2 place.* but 1"):
        model.embed_prompt([1, -200, -200], torch.zeros(4, 64))
    with pytest.raises(UserError, match=r"0 place.* but 1"):
        model.embed_prompt([1, 5], torch.zeros(4, 64))
    with pytest.raises(UserError, match="no picture came"):
        model(torch.tensor([[1, -200, 5]]))
    with pytest.raises(ImageError, match="has 5 tiles, not 1"):
        model.merge_images(torch.zeros(1, 576, 64), (2200, 1700))
