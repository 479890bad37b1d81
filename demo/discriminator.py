"""The discriminator of StyleGAN2, its R1 penalty, and adaptive augmentation.

Written from the papers: residual blocks with blurred downsampling (StyleGAN2, https://arxiv.org/abs/1912.04958, section
4.1), minibatch standard deviation (Progressive GAN, https://arxiv.org/abs/1710.10196, section 3), R1
(https://arxiv.org/abs/1801.04406, equation 9), augmentation (StyleGAN2-ADA, https://arxiv.org/abs/2006.06676).

Shapes: N images, H = W pixels; images are float [N, 3, H, W] in [-1, 1].
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQRT2 = math.sqrt(2.0)
#: Of the leaky ReLU for negative values.
SLOPE = 0.2
#: Images that are compared with each other.
GROUP = 4


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def blur(x: Tensor, padding: int) -> Tensor:
    """[1, 3, 3, 1] along both axes, mean kept: [N, C, H, W] -> [N, C, H + 2 padding - 3, …]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


def minibatch_std(x: Tensor, group: int = GROUP) -> Tensor:
    """Append a channel that says how much the images of each group differ: [N, C, H, W] -> [N, C + 1, H, W]."""
    group = math.gcd(group, len(x))
    sets = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (group, -1))
    std = (sets.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, std.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:]).to(x.dtype)], 1)


class _Conv(nn.Module):
    """Convolution with equalized learning rate: weights of unit scale times gain / sqrt(fan_in)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor, gain: float = 1.0, stride: int = 1, padding: int = 0) -> Tensor:
        weight = self.weight * (gain / math.sqrt(self.weight[0].numel()))
        bias = None if self.bias is None else self.bias * gain
        return F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), stride, padding)


class _Linear(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class _Block(nn.Module):
    """Halves the resolution; the finest one also takes the image."""

    def __init__(self, n_in: int, n_out: int, *, first: bool) -> None:
        super().__init__()
        if first:
            self.fromrgb = _Conv(3, n_in, 1)
        self.first = first
        self.conv0 = _Conv(n_in, n_in, 3)
        self.conv1 = _Conv(n_in, n_out, 3)
        self.skip = _Conv(n_in, n_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # leaky ReLU is homogeneous: its gain sqrt(2) goes into the weights, and so does the sqrt(1/2) of the sum.
        if self.first:
            x = _lrelu(self.fromrgb(x, SQRT2))
        y = _lrelu(self.conv0(x, SQRT2, padding=1))
        y = _lrelu(self.conv1(blur(y, padding=2), stride=2))
        # Not a blur of stride 2: on a CPU its backward pass takes many times as long, a third of the whole step.
        return self.skip(blur(x, padding=1)[:, :, ::2, ::2], math.sqrt(0.5)) + y


class _Last(nn.Module):
    """Minibatch standard deviation and what turns 4×4 pixels into a number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels + 1, channels, 3)
        self.fc = _Linear(channels * 16, channels)
        self.out = _Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = _lrelu(self.conv(minibatch_std(x), SQRT2, padding=1)).to(self.out.weight.dtype)
        return self.out(_lrelu(self.fc(x.flatten(1))) * SQRT2)[:, 0]


class Discriminator(nn.Module):
    """Real (high) or generated (low)?

    Args:
        channels: resolution -> channels at that resolution, from 4 to that of the images.

    Example:
        >>> Discriminator({4: 8, 8: 8, 16: 4})(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2])
    """

    def __init__(self, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.resolutions = sorted(channels, reverse=True)
        for resolution in self.resolutions[:-1]:
            n_in, n_out = channels[resolution], channels[resolution // 2]
            self.add_module(f"b{resolution}", _Block(n_in, n_out, first=resolution == self.resolutions[0]))
        self.b4 = _Last(channels[4])

    def forward(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits [N] of images [N, 3, H, W]; `dtype` is the precision of the convolutions."""
        x = images.to(dtype, memory_format=torch.channels_last)
        for resolution in self.resolutions:
            x = self.get_submodule(f"b{resolution}")(x)
        return x


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Squared norm [N] of the gradient of the logits by the images; differentiable by the discriminator's weights."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def augment(x: Tensor, p: float, random: torch.Generator) -> Tensor:
    """Move, scale, turn and recolor each image, each with probability p; differentiable by x.

    A part of what the paper does (appendix B): the geometric and color transforms that made up most of the gain.
    """
    if p == 0:
        return x
    n = len(x)

    def chosen() -> Tensor:
        return (torch.rand(n, generator=random, device=x.device) < p).float()

    def normal() -> Tensor:
        return torch.randn(n, generator=random, device=x.device)

    def uniform() -> Tensor:
        return torch.rand(n, generator=random, device=x.device) * 2 - 1

    scale = torch.exp2(0.2 * normal() * chosen())
    angle = math.pi * uniform() * chosen()
    moved = chosen()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [cos, -sin, 0.25 * uniform() * moved, sin, cos, 0.25 * uniform() * moved]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    brightness, contrast = 0.2 * normal() * chosen(), torch.exp2(0.5 * normal() * chosen())
    saturation = torch.exp2(normal() * chosen())
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * saturation[:, None, None, None]
    return x * contrast[:, None, None, None] + brightness[:, None, None, None]
