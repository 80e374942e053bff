"""Whole models, traced and converted, against PyTorch: vision towers and a decoder with states."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pulse_edge.export.milrun import load_package

ct = pytest.importorskip("coremltools", reason='Core ML needs pip install "pulse-edge[coreml]"')

CONTEXT, HEADS, SIZE, LAYERS, WIDTH = 64, 4, 16, 2, 64


def _trace(module: nn.Module, *inputs: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every length that it makes a constant
        return torch.jit.trace(module.eval(), inputs)


def _distance(got: Any, expected: Tensor) -> float:
    """Greatest error, in units of the greatest value."""
    reference = expected.detach().numpy().astype(np.float64)
    return float(np.abs(got.astype(np.float64) - reference).max() / np.abs(reference).max())


class Tower(nn.Module):
    """Convolutions with batch norms and a residue, pools, a transposed convolution, an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.GELU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.SiLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.down = nn.Conv2d(16, 32, (3, 2), (2, 1), padding=(1, 0), dilation=(1, 2))
        self.up = nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.norm, self.head = nn.GroupNorm(4, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x / 255 - 0.5) / 0.27)
        x = self.pool(x + self.depthwise(x))
        x = self.norm(functional.leaky_relu(self.up(self.down(x)), 0.1))
        x = functional.interpolate(x, size=(9, 9), mode="bilinear", align_corners=False)
        x = functional.avg_pool2d(x, 3, 2, ceil_mode=True, count_include_pad=False)
        return self.head(x.mean((2, 3))).softmax(-1)


class Block(nn.Module):
    """A layer of a decoder as Llama has it, its rotary tables given."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.rise = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.fall = nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.first, self.second = nn.Parameter(1 + 0.1 * torch.randn(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(1, x.shape[1], HEADS, SIZE).transpose(1, 2)

    def feed(self, x: Tensor) -> Tensor:
        x = _rms(x) * self.second
        return self.fall(functional.silu(self.gate(x)) * self.rise(x))


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cosine + torch.cat([-right, left], -1) * sine


class Decoder(nn.Module):
    """Two layers whose cache is a state; the length of the past is that of the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 100, bias=False)
        angles = torch.arange(CONTEXT)[:, None] * 10000.0 ** (-torch.arange(0, SIZE, 2) / SIZE)
        self.register_buffer("cosine", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sine", torch.cat([angles, angles], -1).sin())
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(LAYERS, 1, HEADS, CONTEXT, SIZE))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        end = mask.shape[-1]
        begin = end - x.shape[1]
        cosine, sine = self.cosine[begin:end], self.sine[begin:end]
        for i, block in enumerate(self.blocks):
            y = _rms(x) * block.first
            self.keys[i, :, :, begin:end] = _turn(block.heads(block.k(y)), cosine, sine)
            self.values[i, :, :, begin:end] = block.heads(block.v(y))
            query = _turn(block.heads(block.q(y)), cosine, sine)
            keys, values = self.keys[i, :, :, :end], self.values[i, :, :, :end]
            seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            x = x + block.o(seen.transpose(1, 2).reshape(x.shape))
            x = x + block.feed(x)
        return self.head(_rms(x[:, -1:]))

    def whole(self, x: Tensor) -> Tensor:
        """All logits in one pass without a cache: an independent reference."""
        length = x.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        for block in self.blocks:
            y = _rms(x) * block.first
            query, keys = (
                _turn(block.heads(part(y)), self.cosine[:length], self.sine[:length])
                for part in (block.q, block.k)
            )
            weights = (query @ keys.transpose(-1, -2) / SIZE**0.5 + mask).softmax(-1)
            seen = weights @ block.heads(block.v(y))
            x = x + block.o(seen.transpose(1, 2).reshape(x.shape))
            x = x + block.feed(x)
        return self.head(_rms(x))


def _causal(new: int, end: int) -> np.ndarray:
    past = np.arange(end) <= np.arange(end - new, end)[:, None]
    return np.where(past, 0, -np.inf)[None, None].astype(np.float32)


@pytest.fixture(scope="module")
def decoder(save: Callable[..., Path], tmp_path_factory: Any) -> tuple[Decoder, Callable[..., Path]]:
    """The decoder and a way to its package: functions of 8 and of 1 rows, compressed or not."""
    torch.manual_seed(0)
    module = Decoder().eval()
    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=module.keys.shape, dtype=np.float16), name=name)
        for name in ("keys", "values")
    ]
    converted: dict[tuple[str, str], Path] = {}
    made: dict[tuple[str, bool], Path] = {}

    def convert(name: str, new: int, precision: str) -> Path:
        if (name, precision) not in converted:
            end = ct.RangeDim(new, CONTEXT, default=new)
            converted[name, precision] = save(
                _trace(module, torch.zeros(1, new, WIDTH), torch.zeros(1, 1, new, 2 * new)),
                tmp_path_factory.mktemp("one") / f"{name}.mlpackage",
                inputs=[ct.TensorType("x", (1, new, WIDTH)), ct.TensorType("mask", (1, 1, new, end))],
                outputs=[ct.TensorType("logits")],
                states=states,
                compute_precision=getattr(ct.precision, precision),
            )
        return converted[name, precision]

    def package(precision: str, config: Any = None) -> Path:
        key = (precision, config is not None)
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("decoder")
        describe = ct.utils.MultiFunctionDescriptor()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, new in (("prefill", 8), ("step", 1)):
                path = convert(name, new, precision)
                if config is not None:
                    whole = ct.models.MLModel(str(path), skip_model_load=True)
                    path = folder / f"{name}.mlpackage"
                    ct.optimize.coreml.linear_quantize_weights(whole, config).save(str(path))
                describe.add_function(str(path), "main", name)
            describe.default_function_name = "prefill"
            ct.utils.save_multifunction(describe, str(folder / "decoder.mlpackage"))
        made[key] = folder / "decoder.mlpackage"
        return made[key]

    return module, package


def _generate(package: Any, x: Tensor) -> list[Any]:
    """Read 16 rows in two prefills, the others one by one; return the logits behind each."""
    state, logits = package.new_state("prefill"), []
    for begin in (0, 8):
        fed = {"x": x[:, begin : begin + 8].numpy(), "mask": _causal(8, begin + 8)}
        logits.append(package.run("prefill", fed, state)["logits"])
    for at in range(16, x.shape[1]):
        fed = {"x": x[:, at : at + 1].numpy(), "mask": _causal(1, at + 1)}
        logits.append(package.run("step", fed, state)["logits"])
    return logits


@pytest.mark.parametrize(
    ("stored", "precision", "bound"),
    [("FLOAT32", "fp32", 3e-6), ("FLOAT16", "fp32", 2e-3), ("FLOAT16", "fp16", 1e-2)],
)
def test_a_decoder_with_states(stored: str, precision: str, bound: float, decoder: Any) -> None:
    """Prefill, then 40 steps, the state carried from one function to the other."""
    module, package = decoder
    x = torch.randn(1, 56, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module.whole(x)
    places = [7, *range(15, 56)]
    got = _generate(load_package(package(stored), precision), x)
    errors = [_distance(one[:, 0], expected[:, at]) for one, at in zip(got, places, strict=True)]
    assert max(errors) < bound
    assert (max(errors) > 1e-5) == (stored == "FLOAT16")  # so that the bounds say something


def test_a_compressed_decoder(decoder: Any) -> None:
    """int4 by block: milrun's answer is that of PyTorch with the very weights that were stored."""
    from pulse_edge.export.milrun.steps import ComputeStep

    module, make = decoder
    config = ct.optimize.coreml.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32, weight_threshold=512
    )
    path = make("FLOAT16", ct.optimize.coreml.OptimizationConfig(global_config=config))
    package = load_package(path)
    assert package.operations("step")["constexpr_blockwise_shift_scale"] == 7 * LAYERS + 1
    x = torch.randn(1, 24, WIDTH, generator=torch.Generator().manual_seed(2))
    got = _generate(package, x)
    stored = [
        step.fixed["weight"].clone()
        for step, _ in package.plan("step").steps
        if isinstance(step, ComputeStep) and step.op.name == "linear"
    ]
    copy = Decoder().eval()
    copy.load_state_dict(module.state_dict())
    linears = [part for part in copy.modules() if isinstance(part, nn.Linear)]
    for part in linears:  # the stored weight nearest to each is its own
        near = [w for w in stored if w.shape == part.weight.shape]
        part.weight.data = min(near, key=lambda w: float((w - part.weight.data).square().sum()))
    with torch.no_grad():
        expected, exact = copy.whole(x), module.whole(x)
    assert _distance(got[-1][:, 0], expected[:, -1]) < 2e-3
    assert _distance(got[-1][:, 0], exact[:, -1]) > 1e-2


@pytest.mark.parametrize(("stored", "bound"), [("FLOAT32", 1e-5), ("FLOAT16", 1e-2)])
def test_a_convolutional_tower(stored: str, bound: float, save: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    tower = Tower().train()
    with torch.no_grad():
        tower(255 * torch.rand(8, 3, 41, 37))  # so that the running statistics are not trivial
    tower.eval()
    page = torch.randint(0, 256, (41, 37, 3), dtype=torch.uint8)
    planes = page.permute(2, 0, 1)[None].float()
    path = save(
        _trace(tower, planes),
        tmp_path / "tower.mlpackage",
        inputs=[ct.ImageType("page", shape=planes.shape)],
        compute_precision=getattr(ct.precision, stored),
    )
    precision = "fp16" if stored == "FLOAT16" else "fp32"
    (got,) = load_package(path, precision).run(None, {"page": page.numpy()}).values()
    with torch.no_grad():
        assert _distance(got, tower(planes)) < bound


@pytest.mark.parametrize(
    ("stored", "precision", "bound"), [("FLOAT32", "fp32", 1e-5), ("FLOAT16", "fp16", 2e-2)]
)
def test_clip(stored: str, precision: str, bound: float, save: Callable[..., Path], tmp_path: Path) -> None:
    """The vision tower of transformers itself, small: patches, class token, positions, pre-norm blocks."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = CLIPVisionConfig(
                hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                image_size=56, patch_size=14, attn_implementation="sdpa",
            )  # fmt: skip
            self.clip = CLIPVisionModel(config).eval()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    torch.manual_seed(4)
    features = Features()
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    pixels = torch.randn(2, 3, 56, 56)
    path = save(
        _trace(features, pixels),
        tmp_path / "clip.mlpackage",
        inputs=[ct.TensorType("pixels", pixels.shape)],
        compute_precision=getattr(ct.precision, stored),
    )
    package = load_package(path, precision)
    (got,) = package.run(None, {"pixels": pixels.numpy()}).values()
    with torch.no_grad():
        assert _distance(got, features(pixels)) < bound
