"""Layers that every StyleGAN has: equalized linear layers and the mapping network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.generators.base import Deriving, GeneratorConfig
from dsgan_datasets.operations import conv2d

SQRT2 = math.sqrt(2.0)
SLOPE = 0.2
#: Largest factor in float16, which ends at 65504.
_LARGEST = 6e4


class EqualizedLinear(Deriving):
    """Fully connected layer with equalized learning rate: the stored weight times lr / sqrt(fan_in).

    Source: Progressive GAN, section 4.1 (arXiv 1710.10196).
    """

    def __init__(self, n_in: int, n_out: int, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """[N, n_in] -> [N, n_out]."""
        gain = self.lr_multiplier / math.sqrt(self.weight.shape[1])
        if x.is_cuda:  # float64 is out of reach of the switches that shorten the products of a whole process
            weight = self.derived("weight", self.weight, lambda weight: weight.double() * gain)
            bias = self.derived("bias", self.bias, lambda bias: bias.double() * self.lr_multiplier)
            return F.linear(x.double(), weight, bias).to(x.dtype)
        return F.linear(x, self.weight * gain, self.bias * self.lr_multiplier)


class MappingNetwork(nn.Module):
    """z and class -> w (StyleGAN, figure 1b), with the average w that truncation pulls towards."""

    w_avg: Tensor | None

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        if cfg.c_dim:
            self.embed = EqualizedLinear(cfg.c_dim, cfg.embed_dim)
        hidden = [cfg.mapping_width or cfg.w_dim] * (cfg.mapping_layers - 1)
        widths = [cfg.z_dim + cfg.embed_dim, *hidden, cfg.w_dim]
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            self.add_module(f"fc{i}", EqualizedLinear(n_in, n_out, cfg.mapping_lr_multiplier))
        self.num_layers = cfg.mapping_layers
        self.is_joined = cfg.normalize == "joined"
        averages = cfg.c_dim if cfg.w_avg_per_class else cfg.centroids
        average = torch.empty(averages, cfg.w_dim) if averages else torch.empty(cfg.w_dim)
        self.register_buffer("w_avg", average if cfg.has_w_avg else None)

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Z [N, z_dim] and one-hot c [N, c_dim] -> w [N, w_dim]."""
        if c is None:
            x = unit_rms(z)
        elif self.is_joined:
            x = unit_rms(torch.cat([z, self.embed(c)], dim=1))
        else:
            x = torch.cat([unit_rms(z), unit_rms(self.embed(c))], dim=1)
        for i in range(self.num_layers):
            x = F.leaky_relu(self.get_submodule(f"fc{i}")(x), SLOPE) * SQRT2
        return x


def blur_kernel(taps: Sequence[float], device: torch.device) -> Tensor:
    """Quarters of the taps along both axes, [1, 1, k, k]. Made once: copying the taps makes the host wait for a GPU."""
    line = torch.tensor(taps, device=device) / 4
    return torch.outer(line, line)[None, None]


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter every channel of x [N, C, H, W] with the kernel [1, 1, k, k], zeros beyond the border."""
    channels = x.shape[1]
    return conv2d(x, kernel.to(x.dtype).expand(channels, -1, -1, -1), padding=1, groups=channels)


def demodulation(style: Tensor, squared_weight: Tensor) -> Tensor:
    """What normalizes the outputs of a styled layer (StyleGAN2, equation 3): [N, I] and [I, O] -> [N, O]."""
    if style.is_cuda:  # see EqualizedLinear
        squares = style.double().square() @ squared_weight.double()
        return (squares + 1e-8).rsqrt().to(style.dtype)
    return (style.square() @ squared_weight + 1e-8).rsqrt()


def scaled_by(x: Tensor, factor: Tensor) -> Tensor:
    """Maps [N, C, H, W] times a factor [N, C], in the precision of the maps."""
    return x * factor[:, :, None, None].to(x.dtype)


def within(dtype: torch.dtype, factor: Tensor) -> Tensor:
    """A factor [N, O] of maps in a precision: that of a dead channel, 1e4 and more, would be infinite in float16."""
    return factor.clamp(max=_LARGEST) if dtype == torch.float16 else factor


def conv_kernel(layer: Deriving, weight: Tensor, like: Tensor) -> Tensor:
    """The weight of a layer in the precision (and on a GPU, in half precision, the memory format) of its maps."""
    if not like.is_cuda:
        return weight.to(like.dtype)
    return layer.derived(like.dtype, weight, lambda weight: to_conv_layout(weight.to(like.dtype)))


def to_conv_layout(x: Tensor) -> Tensor:
    """As channels_last what is fastest with it: tensors on a CPU, and those of half precision on a GPU."""
    is_faster = x.dtype != torch.float32 if x.is_cuda else x.device.type == "cpu"
    return x.contiguous(memory_format=torch.channels_last) if is_faster else x


def in_place(x: Tensor) -> bool:
    """Whether a layer may write over its own result: on a CPU, where fresh memory is slow, and without gradients."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def unit_rms(x: Tensor) -> Tensor:
    """Vectors [N, n] scaled to a mean square of 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
