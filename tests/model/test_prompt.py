"""Prompts and training labels against the reference code's own."""

from __future__ import annotations

import pytest

from pulse_edge.contract import IGNORE_ID, PAD_ID, ROLES
from pulse_edge.errors import UserError
from pulse_edge.model.prompt import build_prompt, encode_prompt, encode_training, render_messages
from pulse_edge.model.tokenizer import Tokenizer

QUESTION = "What abnormalities can you see in this ECG image?"
both = pytest.mark.parametrize("legacy", [False, True])


@pytest.fixture
def cases(gold):
    return {case["name"]: case for case in gold("prompt/prompts.json")["cases"]}


def plain(case):
    """Whether a case is of our template and made of texts (web-demo tuples are not read)."""
    return case["template"] == "llava_v1" and all(
        not isinstance(text, list) for _, text in case.get("messages", [])
    )


def test_messages_give_the_golden_prompts(cases):
    chosen = [case for case in cases.values() if "messages" in case and plain(case)]
    assert len(chosen) == 10
    for case in chosen:
        messages = [(ROLES[speaker], text) for speaker, text in case["messages"]]
        assert render_messages(messages) == case["prompt"], case["name"]
        turns = list(zip(messages[::2], messages[1::2], strict=True))
        conversation = [(question or "", answer) for (_, question), (_, answer) in turns]
        assert build_prompt(conversation, image=False) == case["prompt"], case["name"]


@pytest.mark.parametrize(
    "name", ["arena_2turn_turn1", "arena_2turn_turn2", "arena_3turn_turn3", "arena_2turn_emptyanswer_turn2"]
)
def test_the_arena_scripts_malformed_prompts_can_be_written(cases, name):
    """The script leaves an open slot and then adds the answer as a second message."""
    case = cases[name]
    messages = []
    for place, question in enumerate(case["questions"]):
        messages += [(ROLES[0], question if place else f"<image>\n{question}"), (ROLES[1], None)]
        messages += [(ROLES[1], answer) for answer in case["previous_answers"][place : place + 1]]
    assert render_messages(messages) == case["prompt"]


def test_the_image_goes_first_unless_it_has_a_place(cases):
    assert build_prompt([(QUESTION, None)]) == cases["v1_1turn_image"]["prompt"]
    assert build_prompt([(QUESTION, None)], image=False) == cases["v1_1turn_noimage"]["prompt"]
    middle = "Look at <image> and say the rhythm."
    assert build_prompt([(middle, None)]) == cases["v1_image_in_middle"]["prompt"]
    second = "Is there ST elevation in lead V2? Answer yes or no."
    answer = "The ECG shows atrial fibrillation with a heart rate of 110 bpm."
    assert build_prompt([(QUESTION, answer), (second, None)]) == cases["v1_2turn_image"]["prompt"]


def test_the_template_is_not_vicunas(cases):
    assert build_prompt([(QUESTION, None)]) != cases["vicuna_v1_contrast"]["prompt"]


@both
def test_training_samples_give_the_golden_labels(golden, gold, legacy):
    tokenizer = Tokenizer(golden / "tokens/tokenizer.model", legacy)
    samples = gold("tokens/labels.json")["samples"]
    masked = 0
    for entry in samples:
        sample, expected = entry["sample"], entry[f"legacy_{str(legacy).lower()}"]
        ids, labels = encode_training(sample["conversations"], tokenizer, 4096, image="image" in sample)
        assert ids == expected["input_ids"], entry["name"]
        assert labels == expected["labels"], entry["name"]
        masked += set(labels) == {IGNORE_ID}
    assert len(samples) >= 13
    assert masked == 4  # unanswered, empty answer, two answers that hold a separator


def test_long_samples_are_cut_as_the_collator_cuts_them(golden, gold):
    tokenizer = Tokenizer(golden / "tokens/tokenizer.model", legacy=False)
    labels = gold("tokens/labels.json")
    samples = {entry["name"]: entry["sample"]["conversations"] for entry in labels["samples"]}
    cut = labels["truncated"]
    got = encode_training(samples[cut["sample"]], tokenizer, cut["model_max_length"])
    assert got == (cut["input_ids"][0], cut["labels"][0])


def test_padding_gives_the_golden_batch(golden, gold):
    tokenizer = Tokenizer(golden / "tokens/tokenizer.model", legacy=False)
    labels = gold("tokens/labels.json")
    samples = {entry["name"]: entry["sample"]["conversations"] for entry in labels["samples"]}
    batch = labels["collated"]
    for row, name in enumerate(batch["samples"]):
        ids, targets = encode_training(samples[name], tokenizer, 4096)
        space = len(batch["input_ids"][row]) - len(ids)
        assert ids + [PAD_ID] * space == batch["input_ids"][row]
        assert targets + [IGNORE_ID] * space == batch["labels"][row]
        assert [bool(mask) for mask in batch["attention_mask"][row]] == [True] * len(ids) + [False] * space


@pytest.mark.parametrize(
    "conversations",
    [
        [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}],
        [{"from": "human", "value": "a"}, {"from": "system", "value": "b"}],
        [{"value": "a"}],
    ],
)
def test_speakers_out_of_turn_are_refused(golden, conversations):
    tokenizer = Tokenizer(golden / "tokens/tokenizer.model")
    with pytest.raises(UserError, match="must take turns"):
        encode_training(conversations, tokenizer, 4096)


def test_two_images_give_two_sentinels(golden, cases):
    tokenizer = Tokenizer(golden / "tokens/tokenizer.model")
    prompt = cases["model_ecg_py_gives_two_images"]["prompt"]
    assert encode_prompt(prompt, tokenizer).count(-200) == 2
