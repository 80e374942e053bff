"""The PyTorch backend: what every exported bundle is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache

from pulse_edge.errors import UserError
from pulse_edge.model.pulse import PulseForConditionalGeneration


class TorchBackend:
    """Runs a model step by step with a key-value cache; implements ``runtimes.session.Backend``.

    Args:
        model: as :func:`pulse_edge.model.checkpoint.load_model` returns it.
    """

    def __init__(self, model: PulseForConditionalGeneration) -> None:
        self.model = model.eval()
        self.reset()

    @torch.inference_mode()
    def encode(self, tiles: NDArray[np.float32], image_size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the visual embeddings [N, H] of a picture's tiles [n, 3, 336, 336]; size is (w, h)."""
        features = self.model.encode_images(torch.tensor(tiles, device=self.model.device))
        return _to_numpy(self.model.merge_images(features, image_size))

    @torch.inference_mode()
    def prefill(self, embeddings: NDArray[np.float32] | None, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Forget everything and read a prompt; return the logits [V] behind its last token.

        Args:
            embeddings: of :meth:`encode`, or ``None`` for a prompt without an image.
            tokens: ids with one -200 where the image goes.

        Raises:
            UserError: if the prompt is longer than the model's context, or images and places do not agree.
        """
        self.reset()
        image = None if embeddings is None else torch.tensor(embeddings)
        return self._run(self.model.embed_prompt(tokens, image))

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read further tokens; return the logits [V] behind the last one."""
        return self._run(self.model.embed_prompt(tokens))

    def step(self, token: int) -> NDArray[np.float32]:
        """Read one token; return the logits [V] behind it."""
        return self.extend([token])

    def reset(self) -> None:
        """Forget everything."""
        self._cache: Any = DynamicCache()

    @property
    def context(self) -> int:
        """The most tokens that the model can hold, visual ones included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def position(self) -> int:
        """Tokens read so far, visual ones included."""
        return int(self._cache.get_seq_length())

    def rewind(self, position: int) -> None:
        """Forget what was read behind ``position``.

        Raises:
            ValueError: if ``position`` lies ahead.
        """
        if not 0 <= position <= self.position:
            raise ValueError(f"cannot rewind to {position}: {self.position} tokens were read")
        if position == 0:
            self.reset()
        elif position < self.position:
            self._cache.crop(position - self.position)  # minus what goes; transformers 4 and 5 agree on that

    def _run(self, embeds: torch.Tensor) -> NDArray[np.float32]:
        start, length = self.position, embeds.shape[1]
        if start + length > self.context:
            raise UserError(
                f"The conversation makes {start + length} tokens, but the model's context is {self.context}. "
                "Start a new one, or ask a shorter question."
            )
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=torch.arange(start, start + length, device=embeds.device)[None],
            use_cache=True,
            **cache_argument(self.model.model.language_model, self._cache),
        ).last_hidden_state
        return _to_numpy(self.model.lm_head(hidden[0, -1]))


def cache_argument(module: nn.Module, cache: object) -> dict[str, object]:
    """The key-value cache under the keyword that ``module.forward`` takes.

    transformers 5.24 renamed ``past_key_values`` to ``cache`` and warns about the old name.
    """
    parameters = inspect.signature(module.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache}


def _to_numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
