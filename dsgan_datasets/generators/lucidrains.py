"""The network of lucidrains' stylegan2-pytorch, returning its features: StyleGAN2's ideas in a form of its own.

Written from a description of what it computes. Against the published StyleGAN2: one style a block, no equalized
learning rate but in the mapping, bilinear upsampling, one noise image from which each layer takes its part, linear
attention where asked for (arXiv 1812.01243), and images from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator, FeatureInfo, PyramidConfig
from dsgan_datasets.generators.layers import SLOPE, to_conv_layout
from dsgan_datasets.recipe import FeatureLayout

_HEADS = 8


@dataclass(frozen=True, kw_only=True)
class LucidrainsConfig(PyramidConfig):
    """Shape of a network of lucidrains.

    Args:
        const_channels: channels of the first map.
        learned_const: whether the first map is learned, or made from the styles.
        attention: resolutions of the blocks that begin with attention.
        attention_dim: channels of all heads together; 0 without attention.
    """

    architecture = "lucidrains"
    max_resolution = 1024

    const_channels: int
    learned_const: bool = True
    attention: tuple[int, ...] = ()
    attention_dim: int = 0
    mapping_lr_multiplier: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "attention", tuple(self.attention))
        integer("const_channels", self.const_channels, 1, 8192)
        integer("attention_dim", self.attention_dim, 0, 8192)
        if not isinstance(self.learned_const, bool):
            raise ValueError(f"learned_const must be true or false, not {self.learned_const!r:.40}")
        if not set(self.attention) <= set(self.resolutions):
            raise ValueError(f"attention must name some of the resolutions {self.resolutions}, not {self.attention}")
        if bool(self.attention) != bool(self.attention_dim) or self.attention_dim % _HEADS:
            raise ValueError(f"attention_dim must be a multiple of {_HEADS} with attention, else 0")
        if self.c_dim or self.img_size is not None:
            raise ValueError("such a network is square and has no classes")

    def channels_in(self, resolution: int) -> int:
        """Channels of what a block reads."""
        return self.const_channels if resolution == 4 else self.channels[resolution // 2]


class _Mapping(nn.Module):
    """z -> w."""

    w_avg: Tensor | None

    def __init__(self, cfg: LucidrainsConfig) -> None:
        super().__init__()
        widths = [cfg.z_dim, *[cfg.mapping_width or cfg.w_dim] * (cfg.mapping_layers - 1), cfg.w_dim]
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            self.add_module(f"fc{i}", nn.Linear(n_in, n_out))
        self.num_layers, self.lr_multiplier = cfg.mapping_layers, cfg.mapping_lr_multiplier
        self.register_buffer("w_avg", torch.empty(cfg.w_dim) if cfg.has_w_avg else None)

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Z [N, z_dim] -> w [N, w_dim]; there are no classes."""
        x = F.normalize(z, dim=1)
        for i in range(self.num_layers):
            layer = self.get_submodule(f"fc{i}")
            assert isinstance(layer, nn.Linear)
            x = F.leaky_relu(F.linear(x, layer.weight * self.lr_multiplier, layer.bias * self.lr_multiplier), SLOPE)
        return x


class _StyledConv(nn.Module):
    """3×3 convolution with style, noise and leaky ReLU."""

    def __init__(self, cfg: LucidrainsConfig, n_in: int, n_out: int) -> None:
        super().__init__()
        self.style = nn.Linear(cfg.w_dim, n_in)
        self.noise = nn.Linear(1, n_out)
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 3, 3))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        style = self.style(w) + 1
        demodulation = (style.square() @ self.weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        # Styles scale the activations and this the result, which is the same as scaling the kernel of each sample.
        x = F.conv2d(x * style[:, :, None, None].to(x.dtype), self.weight.to(x.dtype), padding=1)
        x = x * demodulation[:, :, None, None].to(x.dtype)
        height, width = x.shape[2:]
        added = self.noise.bias[:, None, None]
        if noise is not None:
            # The network was trained with rows and columns of the noise exchanged.
            part = noise[..., :width, :height].transpose(-2, -1)
            added = added + self.noise.weight[:, :, None] * part
        return F.leaky_relu(x + added.to(x.dtype), SLOPE)


class _ToRGB(nn.Module):
    """1×1 convolution to the image, styled but not demodulated."""

    def __init__(self, cfg: LucidrainsConfig, n_in: int) -> None:
        super().__init__()
        self.style = nn.Linear(cfg.w_dim, n_in)
        self.weight = nn.Parameter(torch.empty(cfg.img_channels, n_in, 1, 1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w) + 1
        return F.conv2d(x * style[:, :, None, None].to(x.dtype), self.weight.to(x.dtype)).float()


class _Normalize(nn.Module):
    """Normalization over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=1, keepdim=True, correction=0)
        normal = (x - mean) * (variance + 1e-5).rsqrt()
        return (normal * self.gain[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Attention(nn.Module):
    """Linear attention, then a small network for each pixel, both beside the identity."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm0, self.norm1 = _Normalize(channels), _Normalize(channels)
        self.to_q = nn.Conv2d(channels, dim, 1, bias=False)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.to_kv = nn.Conv2d(channels, 2 * dim, 1, bias=False)
        self.to_out = nn.Conv2d(dim, channels, 1)
        self.expand, self.reduce = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.float()
        x = x + self._attend(self.norm0(x))
        x = x + self.reduce(F.leaky_relu(self.expand(self.norm1(x)), SLOPE))
        return x.to(dtype)

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        k, v = self.to_kv(self.depthwise(x)).chunk(2, dim=1)
        q, k, v = (t.unflatten(1, (_HEADS, -1)).flatten(3) for t in (self.to_q(x), k, v))  # [N, heads, dim, pixels]
        q = q.softmax(dim=2) * q.shape[2] ** -0.5
        context = k.softmax(dim=3) @ v.transpose(2, 3)
        attended = (context.transpose(2, 3) @ q).flatten(1, 2).unflatten(2, (height, width))
        made: Tensor = self.to_out(F.gelu(attended))
        return made


class _Block(nn.Module):
    """The layers of one resolution."""

    def __init__(self, cfg: LucidrainsConfig, resolution: int) -> None:
        super().__init__()
        n_in, n_out = cfg.channels_in(resolution), cfg.channels[resolution]
        self.attention = _Attention(n_in, cfg.attention_dim) if resolution in cfg.attention else None
        self.conv0 = _StyledConv(cfg, n_in, n_out)
        self.conv1 = _StyledConv(cfg, n_out, n_out)
        self.torgb = _ToRGB(cfg, n_out)


class _Synthesis(nn.Module):
    """ws -> image and features."""

    noise_const: Tensor

    def __init__(self, cfg: LucidrainsConfig) -> None:
        super().__init__()
        if cfg.learned_const:
            self.const = nn.Parameter(torch.empty(cfg.const_channels, 4, 4))
        else:
            self.from_style = nn.Parameter(torch.empty(cfg.w_dim, cfg.const_channels, 4, 4))
        self.learned_const = cfg.learned_const
        self.initial = nn.Conv2d(cfg.const_channels, cfg.const_channels, 3, padding=1)
        for resolution in cfg.resolutions:
            self.add_module(f"b{resolution}", _Block(cfg, resolution))
        self.register_buffer("noise_const", torch.empty(cfg.img_resolution, cfg.img_resolution))

    def blocks(self) -> list[_Block]:
        """The blocks, coarse to fine."""
        return [m for m in self.children() if isinstance(m, _Block)]

    def forward(self, ws: Tensor, noise: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        if self.learned_const:
            x = self.const.expand(len(ws), -1, -1, -1)
        else:
            x = torch.einsum("nl,lchw->nchw", ws.mean(1), self.from_style)
        x = to_conv_layout(self.initial(x).to(dtype))
        image: Tensor | None = None
        maps = []
        for i, block in enumerate(self.blocks()):
            if block.attention is not None:
                x = block.attention(x)
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            for layer in (block.conv0, block.conv1):
                x = layer(x, ws[:, i], noise)
            maps.append(x)
            made = block.torgb(x, ws[:, i])
            image = made if image is None else _upsample_image(image) + made
        assert image is not None
        return image, maps


class LucidrainsGAN(FeatureGenerator):
    """A frozen network of lucidrains' stylegan2-pytorch; make one with `load_generator`. Its images are from 0 to 1.

    Args:
        config: its shape.
        features: "convs": the output of each block, coarse to fine.

    Raises:
        ValueError: a feature layout that it does not have.
    """

    layouts = ("convs",)
    image_range = (0.0, 1.0)
    synthesis_network: _Synthesis

    def __init__(self, config: LucidrainsConfig, features: FeatureLayout | None = None) -> None:
        super().__init__(config, features)
        self.mapping_network = _Mapping(config)
        self.synthesis_network = _Synthesis(config)
        self.num_ws = len(config.resolutions)
        self.feature_info = tuple(FeatureInfo(config.channels[r], r, f"b{r}", r) for r in config.resolutions)

    def _synthesize(
        self, ws: Tensor, noise: Sequence[Tensor | None], dtype: torch.dtype
    ) -> tuple[Tensor, list[Tensor]]:
        image, maps = self.synthesis_network(ws, noise[0], dtype)
        return image, maps

    def _stored_noise(self) -> list[Tensor]:
        return [self.synthesis_network.noise_const]


def _upsample_image(x: Tensor) -> Tensor:
    """Bilinear ×2, then the filter [1, 2, 1], which sees the image mirrored beyond its border."""
    x = F.pad(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), (1, 1, 1, 1), mode="reflect")
    lines = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    return (lines[..., :-2, :] + 2 * lines[..., 1:-1, :] + lines[..., 2:, :]) / 4
