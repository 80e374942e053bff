"""Llama's SentencePiece tokenizer, with neither transformers nor protobuf.

Behaves as the slow ``LlamaTokenizer`` of transformers 4.37, which PULSE was trained with; the fast
tokenizers differ after ``</s>`` and on ill-formed UTF-8, so nothing here goes through them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from pulse_edge.errors import CheckpointError
from pulse_edge.model.weights import read_json

TOKENIZER_FILE = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"

_SPACE = "▁"  # how SentencePiece writes a space inside a piece
# ModelProto.normalizer_spec.add_dummy_prefix = false. Serialised protobuf messages that are put one
# after the other merge, and the later value of a field wins; so these bytes behind a model switch the
# prefix off, as `legacy=False` of transformers does by way of the protobuf package.
_WITHOUT_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class Tokenizer:
    """Text to token ids and back.

    Args:
        path: of ``tokenizer.model``.
        legacy: as in ``tokenizer_config.json``. ``True`` puts a space before text that follows a special
            token (``"</s>USER"`` gives ``</s> ▁USER``); ``False`` does so at the very start only.
        max_length: longest sequence that the model takes, in tokens; ``None`` if it is not known.

    Raises:
        CheckpointError: if the file is absent or is not a SentencePiece model with ``<s>``, ``</s>`` and
            ``<unk>``.
    """

    def __init__(self, path: Path, legacy: bool = True, max_length: int | None = None) -> None:
        self.path, self.legacy, self.max_length = Path(path), legacy, max_length
        self._pieces = _load(self.path, dummy_prefix=legacy)
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        self.unk_id: int = self._pieces.unk_id()
        if min(self.bos_id, self.eos_id, self.unk_id) < 0:
            raise CheckpointError(
                f"{self.path} lacks <s>, </s> or <unk>, which every Llama tokenizer has. "
                "Use the tokenizer.model that belongs to the checkpoint."
            )
        special = (self.bos_id, self.eos_id, self.unk_id)
        self._special: dict[str, int] = {self._pieces.id_to_piece(i): i for i in special}
        self._split = re.compile("(" + "|".join(re.escape(piece) for piece in self._special) + ")")
        self._guard = self._pieces.encode("<unk>")

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Open the tokenizer of a checkpoint or bundle, with the settings of its ``tokenizer_config.json``.

        Raises:
            CheckpointError: if a file is absent or cannot be read.
        """
        folder = Path(folder)
        file = folder / TOKENIZER_CONFIG
        settings = read_json(file) if file.is_file() else {}
        legacy, longest = settings.get("legacy"), settings.get("model_max_length")
        # transformers writes 1e30 where it does not know a length, and takes a missing `legacy` as true.
        known = isinstance(longest, int) and 0 < longest < 10**9
        return cls(folder / TOKENIZER_FILE, legacy is not False, longest if known else None)

    @property
    def vocab_size(self) -> int:
        """Number of pieces; ids run from 0 to one less."""
        return int(self._pieces.get_piece_size())

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the token ids of a text; ``<s>``, ``</s>`` and ``<unk>`` in it become their tokens.

        Args:
            text: any Unicode text.
            bos: put the beginning-of-sequence token first.
        """
        start = [self.bos_id] if bos else []
        if not text:
            return start
        if not self.legacy:
            text = _SPACE + text.replace(_SPACE, " ")
        ids: list[int] = []
        for part in filter(None, self._split.split(text)):
            ids += [self._special[part]] if part in self._special else self._encode_part(part)
        if not self.legacy and len(ids) > 1 and ids[1] in self._special.values():
            # The prefix stands alone before a special token: it belongs to no text.
            ids = ids[1:] if self._pieces.id_to_piece(ids[0]) == _SPACE else ids
        return start + ids

    def encode_inside(self, text: str) -> list[int]:
        """Return the token ids of text that goes on behind other text: no space is put before it."""
        ids = list(self._pieces.encode("<unk>" + text))
        if ids[: len(self._guard)] == self._guard:
            return ids[len(self._guard) :]
        return list(self._pieces.encode(text))

    def token_bytes(self) -> list[bytes | None]:
        """Return what each token writes, a space for ``▁``; None for tokens that write nothing (``<s>``)."""
        pieces, written = self._pieces, list[bytes | None]()
        for token in range(self.vocab_size):
            piece = pieces.id_to_piece(token)
            if pieces.is_byte(token):
                written.append(bytes([int(piece[3:5], 16)]))  # <0x0A>
            elif pieces.is_control(token) or pieces.is_unknown(token) or pieces.is_unused(token):
                written.append(None)
            else:
                written.append(piece.replace(_SPACE, " ").encode())
        return written

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of token ids.

        Args:
            ids: ids without a piece (the image sentinel, rows that only pad an embedding table) are left out.
            skip_special: leave out ``<s>``, ``</s>`` and ``<unk>``.
        """
        named = set(self._special.values())
        known = [i for i in ids if 0 <= i < self.vocab_size and not (skip_special and i in named)]
        pieces = [self._pieces.id_to_piece(i) for i in known]
        if pieces and pieces[0].startswith(_SPACE):
            pieces[0] = pieces[0][1:]  # the prefix that `encode` put there
        text, after_special = "", False
        run: list[str] = []
        for place, piece in enumerate(pieces):
            if piece in self._special:
                gap = " " if self.legacy and place and not after_special else ""
                text, run, after_special = text + gap + self._decode_run(run) + piece, [], True
            else:
                run.append(piece)
                after_special = False
        return text + self._decode_run(run)

    def _encode_part(self, part: str) -> list[int]:
        """Encode text that holds no special token."""
        if self.legacy or not part.startswith((_SPACE, " ")):
            return list(self._pieces.encode(part))
        # SentencePiece may drop leading spaces; behind "<unk>" they are inner ones.
        return list(self._pieces.encode("<unk>" + part))[len(self._guard) :]

    def _decode_run(self, pieces: Sequence[str]) -> str:
        return str(self._pieces.decode(list(pieces))) if pieces else ""

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Path, bool, int | None]]:
        # SentencePiece's own pickling is slow and version-bound; workers read the file again.
        return Tokenizer, (self.path, self.legacy, self.max_length)


def _load(path: Path, dummy_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    try:
        model = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. PULSE's tokenizer is the SentencePiece model "
            "`tokenizer.model`; copy it from the checkpoint's origin (a tokenizer.json does not replace it)."
        ) from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(model + (b"" if dummy_prefix else _WITHOUT_DUMMY_PREFIX))
    except RuntimeError:
        loaded = False
    if not model or not loaded:
        raise CheckpointError(
            f"{path} is not a SentencePiece model ({len(model)} bytes; damaged, or a Git LFS pointer?). "
            "Download it again."
        )
    return processor
