"""The constants that every port of PULSE must share (Python, ONNX, TensorRT, Core ML, Swift).

Source: the PULSE reference code, commit a439b6c (AIMedLab/PULSE): ``llava/mm_utils.py``,
``llava/conversation.py`` and the released configuration. The golden vectors in the tests
hold every value here against that code's own outputs.
"""

from __future__ import annotations

from typing import Final


def exact_div(a: int, b: int) -> int:
    """Return ``a / b``, which must be whole.

    Raises:
        ValueError: if ``b`` does not divide ``a``; a contract constant is then wrong.
    """
    if a % b:
        raise ValueError(f"{a} is not divisible by {b}: a contract constant is wrong")
    return a // b


# --- image -> tiles ---------------------------------------------------------------------------
TILE_SIZE: Final = 336
PATCH_SIZE: Final = 14
PATCHES_PER_SIDE: Final = exact_div(TILE_SIZE, PATCH_SIZE)
TOKENS_PER_TILE: Final = PATCHES_PER_SIDE**2  # PULSE-7B; a student may emit fewer
GRID_PINPOINTS: Final = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # (w, h)
MAX_TILES: Final = 1 + max(exact_div(w, TILE_SIZE) * exact_div(h, TILE_SIZE) for w, h in GRID_PINPOINTS)
PAD_COLOUR: Final = (0, 0, 0)
IMAGE_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)  # CLIP, RGB
IMAGE_STD: Final = (0.26862954, 0.26130258, 0.27577711)

# --- prompt -----------------------------------------------------------------------------------
IMAGE_TOKEN: Final = "<image>"
IMAGE_TOKEN_ID: Final = -200  # sentinel in token ids, replaced by image embeddings
IGNORE_ID: Final = -100  # masked position in training labels
SYSTEM: Final = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
ROLES: Final = ("USER", "ASSISTANT")
SEP: Final = " "
SEP2: Final = "</s>"
BOS_ID: Final = 1
EOS_ID: Final = 2
PAD_ID: Final = 0

# --- artefacts --------------------------------------------------------------------------------
BUNDLE_SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
CHECKPOINT_CARD: Final = "pulse.json"
REPORT: Final = "report.html"  # the certificate of a compressed model

# What the last output of the capture graph holds, in this order.
CAPTURE_FACTS: Final = (
    "rows",
    "columns",
    "seed",
    "seen",
    "quarter_turns",
    "orientation_sure",
    "residual_mm",
    "major",
    "views",
    "width",
    "height",
)
