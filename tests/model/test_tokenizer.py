"""The tokenizer against the slow LlamaTokenizer's ids and texts, for both of its `legacy` values."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.errors import CheckpointError
from pulse_edge.model.prompt import encode_prompt
from pulse_edge.model.tokenizer import Tokenizer

both = pytest.mark.parametrize("legacy", [False, True])


def key(legacy):
    return f"legacy_{str(legacy).lower()}"


def open_tokenizer(golden, legacy=False):
    return Tokenizer(golden / "tokens/tokenizer.model", legacy)


@both
def test_prompts_give_the_golden_ids(golden, gold, legacy):
    tokenizer = open_tokenizer(golden, legacy)
    cases = gold("tokens/tokens.json")["prompts"]
    assert len(cases) == 32
    for case in cases:
        assert encode_prompt(case["prompt"], tokenizer) == case[f"ids_{key(legacy)}"], case["name"]


@both
def test_texts_give_the_golden_ids(golden, gold, legacy):
    tokenizer = open_tokenizer(golden, legacy)
    for case in gold("tokens/tokens.json")["encode"]:
        assert tokenizer.encode(case["text"]) == case[key(legacy)], case["text"]
        assert tokenizer.encode(case["text"], bos=False) == case[key(legacy)][1:]


def test_ids_give_the_golden_texts(golden, gold):
    tokenizer, legacy = open_tokenizer(golden, False), open_tokenizer(golden, True)
    cases = gold("tokens/tokens.json")["decode"]
    assert len(cases) == 107
    for case in cases:
        assert tokenizer.decode(case["ids"], skip_special=False) == case["raw"]
        assert tokenizer.decode(case["ids"]).strip() == case["skip_special_tokens_strip"]
        assert legacy.decode(case["ids"]).strip() == case["skip_legacy_true"]


def test_ids_without_a_piece_are_left_out(golden):
    tokenizer = open_tokenizer(golden)
    ids = tokenizer.encode("Sinus rhythm.")
    assert tokenizer.decode([*ids, -200, tokenizer.vocab_size, 10**6]) == "Sinus rhythm."
    assert tokenizer.decode([]) == ""


def test_constants(golden, gold):
    tokenizer, expected = open_tokenizer(golden), gold("tokens/tokens.json")
    assert tokenizer.vocab_size == expected["vocab_size"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (expected["bos"], expected["eos"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0")))
def test_any_text_survives(golden, text):
    tokenizer = open_tokenizer(golden)
    ids = tokenizer.encode(text, bos=False)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids, skip_special=False) == text


def test_a_pickled_tokenizer_is_the_same(golden):
    """Training workers get it so."""
    tokenizer = open_tokenizer(golden, legacy=False)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("A</s>B") == tokenizer.encode("A</s>B") == [1, 271, 2, 466]


def test_from_folder_reads_the_settings(golden, tmp_path):
    assert Tokenizer.from_folder(golden / "tokens").legacy is False
    assert Tokenizer.from_folder(golden / "tokens").max_length == 4096
    shutil.copy(golden / "tokens/tokenizer.model", tmp_path)
    assert Tokenizer.from_folder(tmp_path).legacy is True  # as transformers takes a missing setting
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": None, "model_max_length": 10**30}))
    assert Tokenizer.from_folder(tmp_path).legacy is True
    assert Tokenizer.from_folder(tmp_path).max_length is None


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 50])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a SentencePiece model|lacks <s>"):
        Tokenizer.from_folder(tmp_path)


def test_missing_and_broken_files_are_refused(golden, tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer.model cannot be read"):
        Tokenizer.from_folder(tmp_path)
    shutil.copy(golden / "tokens/tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Tokenizer.from_folder(tmp_path)
