"""PULSE as a transformers model: LLaVA-NeXT whose merging is read from the checkpoint.

transformers' LlavaNext always unpads and adds newlines, which is numerically wrong for PULSE-7B; it
also reserves vocabulary entries for the image. Here the image stands in the token ids as -200 and its
embeddings are put in place before the language model runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

import pulse_edge.model.tower  # noqa: F401 - registers the convolutional tower with transformers
from pulse_edge.contract import GRID_PINPOINTS, IGNORE_ID, IMAGE_TOKEN_ID, MAX_TILES, exact_div
from pulse_edge.errors import UserError
from pulse_edge.model.ink import kept_tokens
from pulse_edge.model.merge import merge_index
from pulse_edge.model.spread import spread_positions


class PulseConfig(LlavaNextConfig):
    """LlavaNextConfig plus ``merge``, ``keep_tokens`` and ``keep_by``; where the kept tokens stand is said by
    ``text_config.spread`` (:func:`.places.positions`).

    Args:
        merge: "flat" (PULSE-7B and its students) or "spatial_unpad" (LLaVA-1.6).
        keep_tokens: visual tokens that are kept of every page; a multiple of five, for five tiles. None
            keeps all.
        keep_by: which: one of ``model.merge.KEEP_BY``.
        kwargs: of LlavaNextConfig.
    """

    model_type = "pulse"

    def __init__(
        self, merge: str = "flat", keep_tokens: int | None = None, keep_by: str = "ink", **kwargs: Any
    ) -> None:
        kwargs.setdefault("image_token_index", IMAGE_TOKEN_ID)
        kwargs.setdefault("image_grid_pinpoints", [list(size) for size in GRID_PINPOINTS])
        super().__init__(**kwargs)
        self.merge, self.keep_tokens, self.keep_by = merge, keep_tokens, keep_by


class PulseForConditionalGeneration(LlavaNextForConditionalGeneration):
    """PULSE: vision tower, projector and language model.

    ``vision_config`` may be CLIP's or ``pulse_conv``'s. Image sizes are (width, height) throughout, as in
    the reference code; transformers' LlavaNext takes (height, width).
    """

    config_class = PulseConfig
    config: PulseConfig

    def __init__(self, config: PulseConfig) -> None:
        super().__init__(config)
        spread_positions(self.model.language_model)

    def encode_images(self, pixel_values: Tensor, every: bool = False) -> Tensor:
        """Run tower and projector on tiles: float [n, 3, 336, 336] -> [n, T, H], nothing merged.

        With ``keep_tokens``, unless ``every`` token is asked for: [5, keep_tokens / 5, H], whatever ``n``.
        """
        tower, keep = self.model.vision_tower, None if every else self.config.keep_tokens
        if keep is not None:  # the tiles that a narrow page lacks are zeros, and have no ink
            missing = MAX_TILES - len(pixel_values)
            pixel_values = nn.functional.pad(pixel_values, (0,) * 7 + (missing,))
        hidden = tower(pixel_values.to(tower.dtype), output_hidden_states=True).hidden_states
        features = hidden[self.config.vision_feature_layer]
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]  # the class token
        if keep is not None:
            index = kept_tokens(pixel_values, features.shape[1], keep, self.config.keep_by)
            features = features.flatten(0, 1).index_select(0, index)
            features = features.unflatten(0, (MAX_TILES, exact_div(keep, MAX_TILES)))
        projected: Tensor = self.model.multi_modal_projector(features)
        return projected

    def choose_tokens(self, pixel_values: Tensor, rows: Tensor) -> Tensor:
        """Keep the rows [5 T, H] of a page's five tiles that the model keeps: [N, H]."""
        config = self.config
        if config.keep_tokens is None:
            return rows
        return rows[kept_tokens(pixel_values, len(rows) // MAX_TILES, config.keep_tokens, config.keep_by)]

    def merge_images(self, features: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Merge the features [n, T, H] of one picture of (width, height) pixels into [N, H].

        Raises:
            ImageError: if ``n`` is not the number of views of a picture of this size.
            UserError: if the configuration's merge is unknown.
        """
        n, tokens, width = features.shape
        if self.config.keep_tokens is not None:
            return features.reshape(n * tokens, width)
        index = merge_index(n, tokens, image_size, self.config.merge)
        rows = features.reshape(n * tokens, width)
        if self.config.merge == "flat":
            return rows
        newline = self.model.image_newline.to(rows)
        return torch.cat([rows, newline[None]])[torch.from_numpy(index).to(rows.device)]

    def embed_prompt(self, input_ids: Sequence[int] | Tensor, image_embeds: Tensor | None = None) -> Tensor:
        """Embed one prompt.

        Args:
            input_ids: L token ids, -200 where the image goes.
            image_embeds: [N, H] of :meth:`merge_images`, or ``None`` for a prompt without an image.

        Returns:
            [1, L - 1 + N, H], or [1, L, H] without an image.

        Raises:
            UserError: if the prompt has more or fewer places for an image than images are given.
        """
        table = self.get_input_embeddings()
        ids = torch.as_tensor(input_ids, device=self.device).reshape(-1).long()
        places = (ids == IMAGE_TOKEN_ID).nonzero().flatten().tolist()
        if len(places) != (image_embeds is not None):
            raise UserError(
                f"The prompt has {len(places)} place(s) for an image, but {int(image_embeds is not None)} "
                "image(s) came with it. PULSE reads one image: give one <image> and one picture, or neither."
            )
        if image_embeds is None:
            parts = [table(ids)]
        else:
            middle = image_embeds.to(self.device, table.weight.dtype)
            parts = [table(ids[: places[0]]), middle, table(ids[places[0] + 1 :])]
        return torch.cat(parts)[None]

    def merge_inputs(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | Iterable[Tensor],
        image_sizes: Iterable[Sequence[int]] | Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put the images of a batch in place, one picture for each row, and pad on the right.

        Args:
            input_ids: int64 [B, L]; the picture of a row without -200 is ignored, as the reference does.
            pixel_values: [B, n, 3, 336, 336], or B tensors [n, 3, 336, 336].
            image_sizes: B pairs (width, height).
            attention_mask: [B, L], zero where a row is padded.
            labels: [B, L]; with labels, rows longer than the model's context are cut, as in training.

        Returns:
            inputs_embeds [B, M, H], attention_mask [B, M], labels [B, M] or ``None``.

        Raises:
            UserError: if a row does not fit the model's context, or has several images.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows, targets = [], []
        for number, (pixels, size) in enumerate(zip(pixel_values, image_sizes, strict=True)):
            kept = mask[number].bool()
            ids = input_ids[number][kept]
            target = torch.full_like(ids, IGNORE_ID) if labels is None else labels[number][kept]
            image = None
            if (ids == IMAGE_TOKEN_ID).any():
                width, height = (int(side) for side in size)
                image = self.merge_images(self.encode_images(pixels), (width, height))
            rows.append(self._fit(self.embed_prompt(ids, image)[0], cut=labels is not None))
            targets.append(_spread(target, ids, image)[: len(rows[-1])])
        lengths = torch.tensor([len(row) for row in rows], device=input_ids.device)
        merged = (torch.arange(int(lengths.max()), device=input_ids.device) < lengths[:, None]).to(mask)
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        padded = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORE_ID)
        return embeds, merged, None if labels is None else padded

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,  # transformers' generate looks for the name
        **kwargs: Any,
    ) -> Any:
        """Run the model; see :meth:`merge_inputs` for the arguments and LlavaNext for the rest.

        Logits and loss are those of the merged sequence.
        """
        if input_ids is not None and pixel_values is not None and image_sizes is not None:
            inputs_embeds, attention_mask, labels = self.merge_inputs(
                input_ids, pixel_values, image_sizes, attention_mask, labels
            )
            input_ids = None
        elif input_ids is not None and (input_ids == IMAGE_TOKEN_ID).any():
            raise UserError(
                "The token ids hold an image, but no picture came with them. "
                "Pass pixel_values and image_sizes, or leave the image out of the prompt."
            )
        return super().forward(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate as transformers does; with an image only the new tokens are returned, as in LLaVA.

        Raises:
            UserError: if several prompts with images come at once.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        pixel_values, sizes = kwargs.pop("pixel_values", None), kwargs.pop("image_sizes", None)
        if pixel_values is None:
            return super().generate(input_ids, **kwargs)
        if len(input_ids) != 1:
            raise UserError("One picture is answered at a time. Call generate once for each prompt.")
        mask = kwargs.pop("attention_mask", None)
        embeds, mask, _ = self.merge_inputs(input_ids, pixel_values, sizes, mask)
        return super().generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def _fit(self, embeds: Tensor, cut: bool) -> Tensor:
        longest = self.config.text_config.max_position_embeddings
        if len(embeds) > longest and not cut:
            raise UserError(
                f"Image and text make {len(embeds)} tokens, but the model's context is {longest}. "
                "Ask a shorter question."
            )
        return embeds[:longest]


def _spread(target: Tensor, ids: Tensor, image: Tensor | None) -> Tensor:
    """Make room for the image in the labels of a row."""
    if image is None:
        return target
    place = int((ids == IMAGE_TOKEN_ID).nonzero()[0])
    return torch.cat([target[:place], target.new_full((len(image),), IGNORE_ID), target[place + 1 :]])


AutoConfig.register("pulse", PulseConfig, exist_ok=True)
AutoModel.register(PulseConfig, PulseForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(PulseConfig, PulseForConditionalGeneration, exist_ok=True)
