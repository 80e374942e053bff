"""Train the small tokenizer of a model that does not inherit one.

SentencePiece BPE with the settings of Llama's (byte fallback, split digits, identity
normalisation, unk/bos/eos = 0/1/2), so that the very same code reads it and PULSE's own.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from pulse_edge.bundle import write_atomic
from pulse_edge.contract import BOS_ID, EOS_ID, PAD_ID, ROLES, SYSTEM
from pulse_edge.ecg.instruct import (
    CLOSED_QUESTIONS,
    FINDINGS,
    RATE_QUESTIONS,
    REPORT_QUESTION,
    RHYTHMS,
    SUPERCLASS_PHRASES,
    Facts,
    report,
)
from pulse_edge.ecg.record import LEADS


def train_tokenizer(folder: Path, vocab_size: int = 768, seed: int = 0) -> None:
    """Write ``tokenizer.model`` and ``tokenizer_config.json`` into an existing folder.

    Args:
        folder: where the two files go.
        vocab_size: pieces, the 256 byte pieces included.
        seed: of the corpus of questions and reports.
    """
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(random.Random(seed)),
        model_writer=out,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    write_atomic(folder / "tokenizer.model", out.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 1024,
    }
    write_atomic(folder / "tokenizer_config.json", (json.dumps(settings, indent=2) + "\n").encode())


def _corpus(rng: random.Random) -> Iterator[str]:
    yield from [f"{SYSTEM} {ROLES[0]}:"] * 200
    phrases = [*SUPERCLASS_PHRASES.values(), *RHYTHMS.values(), *FINDINGS.values()]
    for phrase in phrases * 20:
        question, answer = rng.choice(CLOSED_QUESTIONS).format(phrase=phrase), rng.choice(("Yes", "No"))
        yield f"\n{question} {ROLES[1]}: {answer}"
    for question in [*RATE_QUESTIONS, REPORT_QUESTION] * 100:
        yield f"\n{question} {ROLES[1]}: The heart rate is {rng.randint(30, 200)} bpm."
    for lead in LEADS * 20:
        yield f"\n{lead}: Lead {lead}."
    codes, groups = [*RHYTHMS, *FINDINGS], [*SUPERCLASS_PHRASES]
    for _ in range(3000):
        facts = Facts(
            frozenset(rng.sample(codes, rng.randint(1, 5))),
            frozenset(rng.sample(groups, rng.randint(0, 2))),
            rng.uniform(30, 200),
        )
        yield report(facts)
