"""Conversations become PULSE's prompts and token ids.

Source of the method: ``conv_llava_v1`` in ``llava/conversation.py``, ``tokenizer_image_token`` in
``llava/mm_utils.py`` and ``preprocess_v1`` in ``llava/train/train.py`` of AIMedLab/PULSE (commit
a439b6c). The template is ``llava_v1`` ("a curious human"), not ``vicuna_v1`` ("a curious user").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pulse_edge.contract import IGNORE_ID, IMAGE_TOKEN, IMAGE_TOKEN_ID, ROLES, SEP, SEP2, SYSTEM
from pulse_edge.errors import UserError
from pulse_edge.model.tokenizer import Tokenizer

_SPEAKERS = {"human": ROLES[0], "gpt": ROLES[1]}  # LLaVA's training files
_ANSWER = f"{SEP}{ROLES[1]}: "  # parts instruction and answer of one turn


def build_prompt(turns: Sequence[tuple[str, str | None]], image: bool = True) -> str:
    """Write a conversation as PULSE reads it.

    Args:
        turns: (question, answer) pairs; the answer of the last one is ``None`` where the model shall speak.
        image: put the image before the first question, unless a question already says where it goes.

    Returns:
        The prompt, ``<image>`` standing for the image.
    """
    place = image and not any(IMAGE_TOKEN in question for question, _ in turns)
    messages: list[tuple[str, str | None]] = []
    for number, (question, answer) in enumerate(turns):
        messages.append((ROLES[0], f"{IMAGE_TOKEN}\n{question}" if place and number == 0 else question))
        messages.append((ROLES[1], answer))
    return render_messages(messages)


def render_messages(messages: Sequence[tuple[str, str | None]]) -> str:
    """Write single messages, in any order of speakers, with the separators of ``llava_v1``.

    Args:
        messages: (role, text) pairs, roles as in ``ROLES``; an empty text or ``None`` leaves the turn open.
    """
    text = SYSTEM + SEP
    for number, (role, message) in enumerate(messages):
        # Separators alternate by position, not by speaker; PULSE's arena script depends on it.
        text += f"{role}: {message}{(SEP, SEP2)[number % 2]}" if message else f"{role}:"
    return text


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a prompt, -200 standing for each ``<image>``.

    Every piece of text between images is tokenised as if it stood alone, as the reference does.
    """
    first, *others = prompt.split(IMAGE_TOKEN)
    ids = tokenizer.encode(first)
    for text in others:
        ids += [IMAGE_TOKEN_ID, *tokenizer.encode(text, bos=False)]
    return ids


def encode_training(
    conversations: Sequence[Mapping[str, str]], tokenizer: Tokenizer, max_length: int, image: bool = True
) -> tuple[list[int], list[int]]:
    """Encode one training sample as PULSE's dataset and collator do.

    Args:
        conversations: LLaVA's ``[{"from": "human" | "gpt", "value": text}, …]``, speakers in turn. A leading
            "gpt" message is dropped; ``<image>`` moves to the start of its message.
        tokenizer: the model's.
        max_length: longest sample in tokens; what is longer is cut.
        image: whether the sample has an image.

    Returns:
        input_ids, and labels of the same length: -100 but for the answers and the ``</s>`` behind them. A
        sample that the reference cannot align (unanswered, an answer that holds a separator) is -100
        throughout.

    Raises:
        UserError: if a speaker is unknown or speaks twice in a row.
    """
    prompt = render_messages(_messages(conversations, image))
    if image:
        ids = encode_prompt(prompt, tokenizer)
    else:
        ids = tokenizer.encode(prompt)[:max_length]
    labels, end = _mask(prompt, ids, tokenizer)
    # Padding is <unk>, so the reference counts an <unk> inside the text as padding too.
    if end < max_length and end != len(ids) - ids.count(tokenizer.unk_id):
        labels = [IGNORE_ID] * len(ids)
    return ids[:max_length], labels[:max_length]


def _mask(prompt: str, ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Return the labels and the position behind the last turn that could be aligned."""
    labels = list(ids)
    end = 1  # <s>
    labels[:end] = [IGNORE_ID] * end
    for number, turn in enumerate(prompt.split(SEP2)):
        parts = turn.split(_ANSWER)
        if len(parts) != 2:
            break
        length = len(encode_prompt(turn, tokenizer))
        # Less <s>, and less the space that the answer's first token will own.
        instruction = len(encode_prompt(parts[0] + _ANSWER, tokenizer)) - 2
        if number and not tokenizer.legacy:
            # Tokenised alone a turn starts with a space that it does not have behind </s>.
            length, instruction = length - 1, instruction - 1
        labels[end : end + instruction] = [IGNORE_ID] * len(labels[end : end + instruction])
        end += length
    labels[end:] = [IGNORE_ID] * len(labels[end:])
    return labels, end


def _messages(conversations: Sequence[Mapping[str, str]], image: bool) -> list[tuple[str, str | None]]:
    messages: list[tuple[str, str | None]] = []
    for number, message in enumerate(conversations):
        speaker, text = message.get("from", ""), message.get("value", "")
        role = _SPEAKERS.get(speaker)
        if number == 0 and role == ROLES[1]:
            continue
        if role != ROLES[len(messages) % 2]:
            raise UserError(
                f"Message {number + 1} of a training sample is from {speaker!r}: human and gpt must take "
                "turns, human first. Correct the sample."
            )
        if image and IMAGE_TOKEN in text:
            text = f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()
        messages.append((role, text))
    return messages
