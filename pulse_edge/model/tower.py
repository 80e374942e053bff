"""The convolutional vision tower of the small members of the family (pulse-nano).

CLIP's ViT spends 381 GFLOP on a tile; an edge student cannot. This tower reads the same
336 x 336 tile with plain convolutions (a residual network after He et al., 2016, whose stem is a
patch projection) and emits 7 x 7 tokens instead of 24 x 24. Batch normalisation, because it folds
into the convolutions at export and leaves graphs that every int8 engine takes. A few transformer
layers then let the tokens of all tiles of a page see each other: what a curve means depends on which
lead it belongs to, and that is written elsewhere on the page.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pulse_edge.contract import MAX_TILES, TILE_SIZE, exact_div


class PulseConvVisionConfig(PretrainedConfig):
    """Shape of :class:`PulseConvVisionModel`.

    Args:
        widths: channels after the stem and after each further stage.
        strides: down-sampling of the stem and of each stage; their product is the token pitch in pixels.
        depths: residual blocks in each stage.
        image_size: side of the square tile in pixels.
        context_layers: transformer layers over all tokens of a page.
        context_heads: of their attention.
        inner: channels inside the residual blocks of each stage; as outside by default, fewer once pruned.
        context_mlp: width inside the context layers; twice the last of ``widths`` by default.
    """

    model_type = "pulse_conv"
    base_config_key = "vision_config"

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 48, 96, 192),
        strides: tuple[int, ...] = (4, 2, 2, 3),
        depths: tuple[int, ...] = (0, 1, 2, 1),
        image_size: int = TILE_SIZE,
        context_layers: int = 0,
        context_heads: int = 6,
        inner: tuple[int, ...] | None = None,
        context_mlp: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.widths, self.strides, self.depths = tuple(widths), tuple(strides), tuple(depths)
        self.image_size = image_size
        self.context_layers, self.context_heads = context_layers, context_heads
        self.inner = self.widths if inner is None else tuple(inner)
        self.context_mlp = 2 * self.widths[-1] if context_mlp is None else context_mlp
        pitch = 1
        for stride in self.strides:
            pitch *= stride
        self.patch_size = pitch  # LlavaNext derives the tokens per tile from image_size // patch_size
        self.hidden_size = self.widths[-1]
        super().__init__(**kwargs)

    @property
    def tokens_per_tile(self) -> int:
        """Tokens that the tower emits for one tile."""
        return int(exact_div(self.image_size, self.patch_size)) ** 2


class _Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm2(self.conv2(nn.functional.gelu(self.norm1(self.conv1(x)))))


class _Stage(nn.Module):
    def __init__(self, width_in: int, width: int, inner: int, stride: int, depth: int, stem: bool) -> None:
        super().__init__()
        kernel, padding = (stride, 0) if stem else (3, 1 if stride < 3 else 0)
        self.down = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(_Residual(width, inner) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.norm(self.down(x)))
        for block in self.blocks:
            x = block(x)
        return x


class _Context(nn.Module):
    """A pre-norm transformer layer (Xiong et al., 2020) over the tokens of a page, [B, N, C]."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.expand, self.shrink = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.mix(read.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.shrink(nn.functional.gelu(self.expand(self.norm2(x))))


class PulseConvVisionModel(PreTrainedModel):
    """Tiles to tokens: float [B, 3, 336, 336] -> ``last_hidden_state`` [B, tokens_per_tile, hidden_size].

    A learned position is added to every token, one for each place on each of the five tiles, so that
    the language model knows where on the page it looks: tiles must come page by page, the base view
    first, and pages of a batch must have five tiles each; a single page with fewer is filled up with
    empty tiles. There is no class token: use ``vision_feature_select_strategy="full"``.
    """

    config_class = PulseConvVisionConfig
    config: PulseConvVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vision_tower"

    def __init__(self, config: PulseConvVisionConfig) -> None:
        super().__init__(config)
        widths_in = (3, *config.widths[:-1])
        self.stages = nn.ModuleList(
            _Stage(*sizes, stem=i == 0)
            for i, sizes in enumerate(
                zip(widths_in, config.widths, config.inner, config.strides, config.depths, strict=True)
            )
        )
        self.position = nn.Parameter(torch.zeros(MAX_TILES, config.tokens_per_tile, config.hidden_size))
        self.context = nn.ModuleList(
            _Context(config.hidden_size, config.context_heads, config.context_mlp)
            for _ in range(config.context_layers)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            # Running statistics are buffers: a model built on the meta device has them unset.
            module.reset_running_stats()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PulseConvVisionModel):
            nn.init.normal_(module.position, std=0.3)

    def train(self, mode: bool = True) -> PulseConvVisionModel:
        """Switch between training and evaluation; a frozen tower keeps its statistics, in evaluation."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self

    @torch.no_grad()
    def silence_blocks(self) -> None:
        """Make every residual block and context layer the identity; they learn away from it."""
        for module in self.modules():
            if isinstance(module, _Residual):
                module.norm2.weight.zero_()
            elif isinstance(module, _Context):
                module.mix.weight.zero_()
                module.shrink.weight.zero_()

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Run the tower; ``hidden_states`` holds only the last layer, which is the one that is used."""
        given = len(pixel_values)
        if given % MAX_TILES:  # as the device runtimes do, whose graph has one static shape
            pixel_values = nn.functional.pad(pixel_values, (0,) * 7 + (-given % MAX_TILES,))
        x = pixel_values.to(self.position.dtype).contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        tile = torch.arange(len(x), device=x.device) % MAX_TILES
        tokens = x.flatten(2).transpose(1, 2) + self.position.index_select(0, tile)
        if self.context:
            pages = tokens.reshape(-1, MAX_TILES * tokens.shape[1], tokens.shape[2])
            for layer in self.context:
                pages = layer(pages)
            tokens = pages.reshape(tokens.shape)
        tokens = tokens[:given]
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register("pulse_conv", PulseConvVisionConfig, exist_ok=True)
AutoModel.register(PulseConvVisionConfig, PulseConvVisionModel, exist_ok=True)
