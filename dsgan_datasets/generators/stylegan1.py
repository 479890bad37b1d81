"""StyleGAN (Karras et al., CVPR 2019, arXiv 1812.04948) as DatasetGAN uses it, returning its features.

Written from the papers: adaptive instance normalization and per-pixel noise (section 2), equalized learning rate and
fused up-convolution (Progressive GAN, section 4.1 and its release). The order of the features is DatasetGAN's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator, FeatureInfo, Precomputed, PyramidConfig, positive
from dsgan_datasets.generators.layers import (
    SLOPE,
    SQRT2,
    EqualizedLinear,
    MappingNetwork,
    blur,
    blur_kernel,
    in_place,
    to_conv_layout,
)
from dsgan_datasets.operations import conv2d, conv_transpose2d
from dsgan_datasets.recipe import FeatureLayout

#: Output resolution from which the published networks fuse upsampling and convolution.
FUSED_FROM = 128


@dataclass(frozen=True, kw_only=True)
class StyleGAN1Config(PyramidConfig):
    """Shape of a StyleGAN1.

    Args:
        num_ws: style vectors; the published networks take 18 at every resolution, and small ones leave the last unused.
        norm_eps: added to the variance by the instance normalization: 1e-8 in the original, 1e-5 in DatasetGAN's port.
    """

    architecture = "stylegan1"
    max_resolution = 1024
    later = (*PyramidConfig.later, "norm_eps")

    num_ws: int = 18
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("num_ws", self.num_ws, 2 * len(self.resolutions), 64)
        positive("norm_eps", self.norm_eps)


class _Conv(Precomputed):
    """3×3 convolution; `up` doubles the resolution and blurs.

    Repeating every pixel and filtering with 3×3 is one transposed convolution with 4×4, at 4/9 of the multiplications.
    """

    blur_kernel: Tensor
    kernel: Tensor

    def __init__(self, n_in: int, n_out: int, *, up: bool = False, fused: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 3, 3))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.register_buffer("blur_kernel", torch.empty(1, 1, 3, 3), persistent=False)
        self.register_buffer("kernel", torch.empty(0), persistent=False)
        self.up = up
        self.fused = fused

    def precompute(self) -> None:
        """See `Precomputed`."""
        self.blur_kernel = blur_kernel((1.0, 2.0, 1.0), self.weight.device)
        kernel = self.weight * (SQRT2 / math.sqrt(self.weight[0].numel()))
        if self.up:
            kernel = _sum_of_shifts(kernel if self.fused else kernel.flip(2, 3)).transpose(0, 1).contiguous()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        kernel, bias = self.kernel.to(x.dtype), self.bias.to(x.dtype)
        if not self.up:
            return conv2d(x, kernel, bias, padding=1)
        x = conv_transpose2d(x, kernel, stride=2, padding=1)
        x = blur(x, self.blur_kernel)
        return x.add_(bias[:, None, None]) if in_place(x) else x + bias[:, None, None]


class _Epilogue(nn.Module):
    """Noise, leaky ReLU, and adaptive instance normalization (StyleGAN, equation 1)."""

    noise_const: Tensor

    def __init__(self, cfg: StyleGAN1Config, channels: int, resolution: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(cfg.w_dim, 2 * channels)
        self.noise_strength = nn.Parameter(torch.empty(channels))
        self.register_buffer("noise_const", torch.empty(cfg.size_of(resolution)))
        self.norm_eps = cfg.norm_eps

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        if in_place(x) and len(x) == 1:
            return self._finish(x, w, noise)
        if noise is not None:
            x = x + (noise * self.noise_strength[:, None, None]).to(x.dtype)
        x = F.leaky_relu(x, SLOPE)
        # Statistics in float32: sums over an image leave the range of half precision.
        x = F.instance_norm(x.float(), eps=self.norm_eps).to(x.dtype)
        style: Tensor = self.affine(w)[:, :, None, None].to(x.dtype)
        scale, shift = style.chunk(2, dim=1)
        return x * (scale + 1) + shift

    def _finish(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """The same for one image on a CPU, in few passes: normalized like a batch, of which it is the only image."""
        if noise is not None:
            x = torch.addcmul(x, noise.to(x.dtype), self.noise_strength[:, None, None].to(x.dtype))
        else:
            x = x.clone(memory_format=torch.preserve_format)  # the convolution's result may be a feature map
        # Statistics are float32 at least, as they are with gradients.
        scale, shift = self.affine(w)[0].to(torch.promote_types(x.dtype, torch.float32)).chunk(2)
        x = F.leaky_relu_(x, SLOPE)
        return F.batch_norm(x, None, None, weight=scale + 1, bias=shift, training=True, eps=self.norm_eps)


class _Block(nn.Module):
    """The layers of one resolution."""

    def __init__(self, cfg: StyleGAN1Config, resolution: int) -> None:
        super().__init__()
        channels = cfg.channels[resolution]
        if resolution == 4:
            self.const = nn.Parameter(torch.empty(channels, *cfg.size_of(4)))
            self.bias = nn.Parameter(torch.empty(channels))
        else:
            self.conv0 = _Conv(cfg.channels[resolution // 2], channels, up=True, fused=resolution >= FUSED_FROM)
        self.epilogue0 = _Epilogue(cfg, channels, resolution)
        self.conv1 = _Conv(channels, channels)
        self.epilogue1 = _Epilogue(cfg, channels, resolution)


class _ToRGB(nn.Module):
    """1×1 convolution to the image."""

    def __init__(self, n_in: int, img_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(img_channels, n_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(img_channels))

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.weight / math.sqrt(self.weight.shape[1])).to(x.dtype)
        return conv2d(x, kernel).float() + self.bias[:, None, None]


class _Synthesis(nn.Module):
    """ws -> image and features."""

    def __init__(self, cfg: StyleGAN1Config) -> None:
        super().__init__()
        for resolution in cfg.resolutions:
            self.add_module(f"b{resolution}", _Block(cfg, resolution))
        self.torgb = _ToRGB(cfg.channels[cfg.img_resolution], cfg.img_channels)

    def blocks(self) -> list[_Block]:
        """The blocks, coarse to fine."""
        return [m for m in self.children() if isinstance(m, _Block)]

    def forward(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        features: list[Tensor] = []
        x = ws.new_empty(0)
        for i, block in enumerate(self.blocks()):
            if i == 0:
                x = to_conv_layout((block.const + block.bias[:, None, None]).to(dtype).expand(len(ws), -1, -1, -1))
            else:
                x = block.conv0(x)
            x = block.epilogue0(x, ws[:, 2 * i], noise[2 * i])
            raw = block.conv1(x)
            x = block.epilogue1(raw, ws[:, 2 * i + 1], noise[2 * i + 1])
            features += [x, raw]  # DatasetGAN's order: the block's output, then its second convolution as it is
        return self.torgb(x), features


class StyleGAN1(FeatureGenerator):
    """A frozen StyleGAN1; make one with `load_generator`.

    Args:
        config: its shape.
        features: "datasetgan": of each block, coarse to fine, its output (after the second AdaIN) and its raw second
            convolution (with bias; before noise, activation and normalization).

    Raises:
        ValueError: a feature layout that StyleGAN1 does not have.
    """

    layouts = ("datasetgan",)
    synthesis_network: _Synthesis

    def __init__(self, config: StyleGAN1Config, features: FeatureLayout | None = None) -> None:
        super().__init__(config, features)
        self.mapping_network = MappingNetwork(config)
        self.synthesis_network = _Synthesis(config)
        self.num_ws = config.num_ws
        self.feature_info = tuple(
            FeatureInfo(config.channels[r], height, name, width)
            for r, (height, width) in ((r, config.size_of(r)) for r in config.resolutions)
            for name in (f"b{r}", f"b{r}.conv1")
        )

    def _synthesize(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        image, features = self.synthesis_network(ws, noise, dtype)
        return image, features

    def _stored_noise(self) -> list[Tensor]:
        return [e.noise_const for b in self.synthesis_network.blocks() for e in (b.epilogue0, b.epilogue1)]


def _sum_of_shifts(kernel: Tensor) -> Tensor:
    """A 3×3 kernel -> the 4×4 kernel whose transposed convolution of stride 2 repeats every pixel before filtering.

    The published networks sum over the four unit shifts without mirroring the kernel, as a convolution of the repeated
    image would need: from 128 pixels on it acts mirrored, and the two forms are not interchangeable. Below, where they
    repeat pixels and convolve, the kernel is mirrored beforehand.
    """
    padded = F.pad(kernel, (1, 1, 1, 1))
    return padded[..., 1:, 1:] + padded[..., :-1, 1:] + padded[..., 1:, :-1] + padded[..., :-1, :-1]
