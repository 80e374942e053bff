"""Many questions about one page as one sequence: the image prefix is computed once for all of them.

The questions are kept apart by an attention mask (:mod:`pulse_edge.model.packed`), so that a model that is
taught or scored this way sees what it sees at inference: one question after one image.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pulse_edge.contract import EOS_ID, IGNORE_ID, IMAGE_TOKEN, IMAGE_TOKEN_ID, MAX_TILES, ROLES
from pulse_edge.ecg import instruct
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer

# How much one answer of a kind counts; a report has some forty tokens, a closed answer one.
ANSWER_WEIGHT: Final = {"superclass": 1.0, "finding": 0.5, "rate": 0.5, "report": 1.0}
PAD_SEGMENT: Final = -1


def image_prefix(tokenizer: Tokenizer, tokens_per_tile: int) -> list[int]:
    """Token ids up to and including the image, one sentinel per visual token of five flat tiles."""
    prompt = build_prompt([("", None)])
    ids = encode_prompt(prompt[: prompt.index(IMAGE_TOKEN)] + IMAGE_TOKEN, tokenizer)
    at = ids.index(IMAGE_TOKEN_ID)
    return ids[:at] + [IMAGE_TOKEN_ID] * (tokens_per_tile * MAX_TILES)


def after_image(question: str, tokenizer: Tokenizer, answer: str | None = None) -> list[int]:
    """Token ids of what follows the image: question, assistant's turn and, if given, the answer."""
    text = f"\n{question} {ROLES[1]}:" + (f" {answer}" if answer is not None else "")
    ids = tokenizer.encode(text, bos=False)
    return ids + [EOS_ID] if answer is not None else ids


def pack(prefix: list[int], turns: list[instruct.Turn], tokenizer: Tokenizer) -> dict[str, Any]:
    """Pack the prefix and all turns.

    Returns:
        ids, segment (0 is the shared prefix), labels, weights: 1-D arrays of equal length; closed:
        indices of the positions from which the superclass answers are read, -1 where not asked.
    """
    ids, segment = list(prefix), [0] * len(prefix)
    labels, weights = [IGNORE_ID] * len(prefix), [0.0] * len(prefix)
    closed = []
    for number, turn in enumerate(turns, start=1):
        quiet = len(after_image(turn.question, tokenizer))
        tokens = after_image(turn.question, tokenizer, turn.answer)
        answered = len(tokens) - quiet
        if turn.kind == "superclass":
            closed.append(len(ids) + quiet - 1)
        ids += tokens
        segment += [number] * len(tokens)
        labels += [IGNORE_ID] * quiet + tokens[quiet:]
        # The first token carries a closed answer; in longer answers every token counts the same.
        weights += [0.0] * quiet + [ANSWER_WEIGHT[turn.kind] / answered] * answered
    return {
        "ids": np.asarray(ids, np.int64),
        "segment": np.asarray(segment, np.int64),
        "labels": np.asarray(labels, np.int64),
        "weights": np.asarray(weights, np.float32),
        "closed": np.asarray(closed or [-1] * len(instruct.SUPERCLASS_PHRASES), np.int64),
    }
