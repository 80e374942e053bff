"""The golden vectors of the Swift package, computed by the Python code; `generate.py` writes them.

Pictures and models are formulas of integers that both languages compute alike, so that the files hold
answers and hardly any input.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pulse_edge.evaluate.labels import DEFAULT_LABELS, DEFAULT_SCORING
from pulse_edge.model.merge import MERGES, merge_index
from pulse_edge.model.preprocess import geometry, normalize, tiles
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.runtimes.generate import greedy, yes_no
from pulse_edge.runtimes.session import Session

ASSETS: Final = Path(__file__).resolve().parents[2] / "pulse_edge" / "assets"
TOKENIZER: Final = ASSETS / "pulse-nano" / "tokenizer.model"
MODULUS: Final = 1 << 31

TEXTS: Final = (
    "", " ", "  ", "a", " a", "a ", "a  b", "\n", "\t", "The rhythm is sinus rhythm at 72 bpm.",
    "ST elevation in V2, V3", "</s>", "<s>", "<unk>", "</s>USER", "</s> USER", "a</s>", "a</s>b", " </s>",
    "</s></s>", "<unk><unk> a", "▁", "▁a", "a▁b", " ▁", "▁ </s>", "naïve café", "Ünïcödé ß", "心電図 😀 🫀",
    "e\u0301", "\u200b", "\x00", "\x7f", "<0x41>", "<image>", "µV × 10²", "½ mV", "PR 160 ms, QRS 92 ms",
    "\r\n", "'" * 9, "x" * 200, "ãéîõü" * 7, "ab " * 30,
)  # fmt: skip
CONVERSATIONS: Final = (
    [("What does this ECG show?", None)],
    [("Does this ECG show atrial fibrillation?", "Yes"), ("And the rate?", None)],
    [("Where? <image>", None)],
    [("<image>", "</s>"), ("<image> twice", None)],
    [("", None)],
    [("Q", ""), ("R", None)],
    [("心電図 🫀?", "é"), ("e\u0301 <image", None)],
)


def picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Return a picture uint8 [height, width, 3] of a formula: noise for even seeds, waves for odd ones."""
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    if seed % 2:
        value = (x * (3 + c) + y * (5 - c)) // (seed % 7 + 2)
        value = np.where(value % 512 < 256, value % 256, 255 - value % 256)
    else:
        value = (y * width + x) * 3 + c
        value = ((value * 1103515245 + seed * 12345) % MODULUS * 1103515245 + 12345) % MODULUS >> 16
    return np.ascontiguousarray((value % 256).astype(np.uint8))


def tile_cases() -> dict[str, list[Any]]:
    """Geometry of many sizes, and tiles of a few pictures by their hash."""
    rng = random.Random(5)
    sizes = [(w, h) for w in (1, 2, 335, 336, 337, 672, 1008) for h in (1, 2, 335, 336, 337, 672, 1008)]
    sizes += [(2200, 1700), (1700, 2200), (4032, 3024), (3024, 4032), (2550, 3300), (10000, 10), (10, 10000)]
    sizes += [(rng.randrange(1, 5000), rng.randrange(1, 5000)) for _ in range(400)]
    sizes += [(rng.randrange(1, 40), rng.randrange(1, 40)) for _ in range(40)]
    places = [geometry(*size) for size in sizes]
    shapes = [
        (336, 336, 2), (33, 21, 4), (1, 1, 6), (1, 700, 8), (900, 3, 10), (640, 479, 12), (400, 1000, 14),
        (1000, 400, 16), (1100, 850, 1), (850, 1100, 3), (672, 336, 5), (1344, 672, 18), (2200, 1700, 7),
    ]  # fmt: skip
    merges = [(size, tokens, merge) for size in sizes[-60:] for tokens in (1, 4, 49) for merge in MERGES]
    return {
        "geometry": [[*p.size, *p.best, *p.resized, *p.paste, p.views] for p in places],
        "pictures": [_picture_case(*shape) for shape in shapes],
        "upright": [_upright(orientation) for orientation in range(1, 9)],
        "merges": [_merge_case(*case) for case in merges],
    }


def _upright(orientation: int) -> dict[str, Any]:
    image = Image.fromarray(picture(7, 5, 2))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    turned = np.asarray(ImageOps.exif_transpose(image))
    return {"orientation": orientation, "size": turned.shape[:2], "pixels": turned.ravel().tolist()}


def _merge_case(size: tuple[int, int], tokens: int, merge: str) -> dict[str, Any]:
    index = merge_index(geometry(*size).views, tokens, size, merge)
    digest = hashlib.sha256(index.astype("<i4").tobytes()).hexdigest()
    return {"size": size, "tokens": tokens, "merge": merge, "count": len(index), "sha256": digest}


def _picture_case(width: int, height: int, seed: int) -> dict[str, Any]:
    pixels = picture(width, height, seed)
    cut = tiles(pixels)
    digests = {
        name: hashlib.sha256(array.tobytes()).hexdigest()
        for name, array in (("pixels", pixels), ("tiles", cut), ("normalized", normalize(cut).astype("<f4")))
    }
    return {"width": width, "height": height, "seed": seed, "views": len(cut), **digests}


def text_cases() -> dict[str, list[Any]]:
    """Prompts, token ids and their text on the shipped tokenizer, with both settings of ``legacy``."""
    rng = random.Random(6)
    encoded, decoded, prompts = [], [], []
    for legacy in (False, True):
        tokenizer = Tokenizer(TOKENIZER, legacy)
        pieces = [tokenizer.decode([i]) or " " for i in range(tokenizer.vocab_size)]
        texts = [
            *TEXTS,
            *("".join(rng.choices([*pieces, " ", "<unk>", "</s>", "é"], k=12)) for _ in range(40)),
        ]
        # What decode gives for lone bytes is U+FFFD: text like any other.
        encoded += [{"legacy": legacy, "text": text, "ids": tokenizer.encode(text)} for text in texts]
        runs = [
            [rng.randrange(-2, tokenizer.vocab_size + 2) for _ in range(rng.randrange(14))] for _ in range(80)
        ]
        runs += [[rng.randrange(3, 259) for _ in range(8)] for _ in range(20)]
        runs += [list("心é🫀".encode()[k : k + 5]) for k in range(6)]
        runs += [[b + 3 for b in "aé🫀".encode()[k:]] for k in range(5)]
        runs += [tokenizer.encode(text) for text in TEXTS]
        for ids in runs:
            both = [tokenizer.decode(ids, skip_special=skip) for skip in (True, False)]
            decoded.append({"legacy": legacy, "ids": ids, "text": both[0], "all": both[1]})
        for turns in CONVERSATIONS:
            for image in (True, False):
                prompt = build_prompt(turns, image)
                ids = encode_prompt(prompt, tokenizer)
                prompts.append(
                    {"legacy": legacy, "image": image, "turns": turns, "prompt": prompt, "ids": ids}
                )
    return {"prompts": prompts, "encode": encoded, "decode": decoded}


class Toy:
    """A stand-in for a model, exact in every language: logits are a hash of all tokens that were read.

    Args:
        vocabulary: number of tokens.
        context: the most tokens that it takes.
    """

    def __init__(self, vocabulary: int, context: int) -> None:
        self.vocabulary, self.context = vocabulary, context
        self._read: list[int] = [1]

    @property
    def position(self) -> int:
        """Tokens read so far; the picture counts as three."""
        return len(self._read) - 1

    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Return three numbers that depend on the picture: its size, and whether its tiles are five."""
        return np.array([[image_size[0]], [image_size[1]], [len(tiles)]], np.float32)

    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything and read."""
        self.reset()
        for token in tokens:
            read = [int(row[0]) for row in embeddings] if token < 0 and embeddings is not None else [token]
            logits = self.extend(read)
        return logits

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens."""
        for token in tokens:
            self._read.append((self._read[-1] * 33 + token + 7) % MODULUS)
        state = self._read[-1]
        return np.array(
            [(state // 64 * (v + 3) + v * 17) % 1009 / 256 for v in range(self.vocabulary)], np.float32
        )

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token."""
        return self.extend([token])

    def reset(self) -> None:
        """Forget everything."""
        self._read = [1]

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``."""
        self._read = self._read[: position + 1]


def session_cases() -> dict[str, list[Any]]:
    """Greedy choices, probabilities, streamed pieces, and whole sessions on the toy model."""
    tokenizer = Tokenizer.from_folder(TOKENIZER.parent)
    rng = random.Random(7)
    rows = [[rng.randrange(-99, 99) / 8 for _ in range(tokenizer.vocab_size)] for _ in range(6)]
    rows += [[0.0] * tokenizer.vocab_size, [-200.0, *[90.0] * (tokenizer.vocab_size - 1)]]
    chosen = []
    for row in rows:
        logits = np.array(row, np.float32)
        asked = yes_no(logits, tokenizer, "Yes", "No")
        chosen.append({"logits": row, "greedy": int(np.argmax(logits)), "probability": asked})
    streams = []
    runs = [tokenizer.encode("Sinus rhythm, é 🫀 心電図.", bos=False)] + [
        [rng.randrange(3, tokenizer.vocab_size) for _ in range(24)] for _ in range(6)
    ]
    for ids in runs:
        pieces = [
            piece
            for piece, _ in greedy(_Script(ids, tokenizer.vocab_size), tokenizer, _hot(ids[0]), len(ids))
        ]
        streams.append({"ids": ids, "pieces": pieces})
    return {
        "choices": chosen,
        "streams": streams,
        "sessions": [_session(tokenizer, *how) for how in _SESSIONS],
    }


_SESSIONS: Final = ((900, 128), (110, 128), (900, 3), (900, 0))


def _session(tokenizer: Tokenizer, context: int, longest: int) -> dict[str, Any]:
    toy = Toy(tokenizer.vocab_size, context)
    session = Session(toy, tokenizer, DEFAULT_LABELS, DEFAULT_SCORING, longest)
    steps: list[dict[str, Any]] = []
    for shape in ((64, 48, 2), (48, 64, 3), (64, 48, 2)):
        pixels = picture(*shape)
        for question in ("What does this ECG show?", "Is the rate normal?"):
            pieces = list(session.stream(pixels, question))
            steps.append({"picture": shape, "question": question, "pieces": pieces, "position": toy.position})
        labels = [[name, value] for name, value in session.label(pixels).items()]
        steps.append({"picture": shape, "labels": labels, "position": toy.position})
    return {"context": context, "max_new_tokens": longest, "steps": steps}


class _Script(Toy):
    """Says given tokens, whatever it reads."""

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        super().__init__(vocabulary, len(ids))
        self._ids = list(ids[1:])

    def step(self, token: int) -> NDArray[np.float32]:
        return _hot(self._ids.pop(0))


def _hot(token: int) -> NDArray[np.float32]:
    row: NDArray[np.float32] = np.eye(1, 4096, token, dtype=np.float32)[0]
    return row


class _Packages:
    """Core ML packages by formulas, and the order in which an app has to call them.

    The decoder has two chunks: the first adds one to every row, the second gives the row asked for, the
    position and what the mask shows.
    """

    ROWS, CACHE, MASKED, TOKENS, CONTEXT = 32, 192, -10000.0, 4, 160

    def __init__(self, merge: str) -> None:
        self.merge, self.position = merge, 0
        self.calls: list[list[int]] = []

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows of a picture: tile, token and the sum of the tile's pixels, modulo 251."""
        cut = tiles(pixels)
        sums = cut.reshape(len(cut), -1).sum(1, dtype=np.int64) % 251
        rows = [[100 * i + t, s] for i, s in enumerate(sums) for t in range(self.TOKENS)]
        index = merge_index(len(cut), self.TOKENS, (pixels.shape[1], pixels.shape[0]), self.merge)
        chosen: NDArray[np.float32] = np.array([*rows, [7, 8]], np.float32)[index]
        return chosen

    def read(self, rows: NDArray[np.float32]) -> list[float]:
        """Read rows: one by the function ``decode``, more by ``prefill``, filled up behind with zeros."""
        logits: list[float] = []
        while len(rows):
            length = 1 if len(rows) == 1 else self.ROWS
            part, rows = rows[:length], rows[length:]
            shown = [min(self.position + row + 1, self.CACHE) for row in range(length)]
            last = len(part) - 1
            logits = [*(float(value) + 1 for value in part[last]), float(self.position), float(sum(shown))]
            self.calls.append(
                [length, self.position, last if length > 1 else -1, sum(shown), int(part.sum())]
            )
            self.position += len(part)
        return logits


def _rows(tokens: Sequence[int]) -> NDArray[np.float32]:
    return np.array([[token, token % 7] for token in tokens], np.float32).reshape(-1, 2)


def engine_cases() -> dict[str, list[Any]]:
    """The calls that a bundle's packages get for a picture, questions behind it and answers."""
    cases = []
    for merge in MERGES:
        for shape in ((64, 48, 2), (40, 90, 4)):
            model = _Packages(merge)
            before, after = list(range(3, 43)), [5, 6]
            rows = np.concatenate([_rows(before), model.encode(picture(*shape)), _rows(after)])
            results = [model.read(rows)]
            kept = model.position
            results += [model.read(_rows(tokens)) for tokens in (list(range(60, 95)), [9], [10, 11])]
            model.position = kept
            results.append(model.read(_rows([12])))
            cases.append(
                {"merge": merge, "picture": shape, "before": before, "after": after, "logits": results}
                | {"calls": model.calls, "kept": kept}
            )
    return {"cases": cases}


MAKERS: Final = {
    "tiles": tile_cases,
    "text": text_cases,
    "session": session_cases,
    "engine": engine_cases,
}
