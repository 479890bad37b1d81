"""Further discriminators, which see images through a network that knows ImageNet.

Such a network tells fine detail apart long before a discriminator that starts from nothing does. Written from papers:
frozen features and small networks on them beside the usual discriminator (Vision-aided GAN, section 3 of
https://arxiv.org/abs/2112.09130), at several scales (Projected GAN, section 3.1 of https://arxiv.org/abs/2111.01007),
with spectral normalization (https://arxiv.org/abs/1802.05957). One looks in turn at the whole image and at a quarter of
it in twice the size: ImageNet's objects are larger than an eye or a mouth of these. Another may look at `closeups`.

Shapes: N images, H = W pixels, P patches; images are float [N, 3, H, W] in [-1, 1].
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from dsgan_datasets.imagenet import ImageNetEncoder

#: Smallest side of a map of features that is looked at, and the coarsest of the encoder's stages (counted from 0).
MIN_SIDE, LAST_STAGE = 4, 3
#: What is seen of batches of images, of all alike; it may draw random numbers. Differentiable by the images.
View: TypeAlias = Callable[[Sequence[Tensor], torch.Generator], list[Tensor]]
#: Channels of the networks on the features.
WIDTH = 64
SLOPE = 0.2


def whole(images: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Images moved by up to a sixteenth of the side, mirrored at the border.

    The features know positions, so nothing may always be at the same one.

    Example:
        >>> (x,) = whole([torch.zeros(2, 3, 32, 32)], torch.Generator())
        >>> tuple(x.shape)
        (2, 3, 32, 32)
    """
    side = images[0].shape[3]
    top, left = _corner(side // 8, random)
    padded = (F.pad(x, (side // 16,) * 4, mode="reflect") for x in images)
    return [x[..., top : top + side, left : left + side] for x in padded]


def quarter(images: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """A part of the images, the same of all, in twice the size."""
    side = images[0].shape[3] // 2
    top, left = _corner(side, random)
    parts = (x[..., top : top + side, left : left + side] for x in images)
    return [F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) for x in parts]


def _corner(room: int, random: torch.Generator) -> list[int]:
    return torch.randint(0, room + 1, (2,), generator=random, device=random.device).tolist()


class PretrainedDiscriminator(nn.Module):
    """Real (high) or generated (low)? Asked of frozen features at a quarter of the resolution and coarser.

    Args:
        resolution: side of the images, from 16.
        dtype: precision of the features; what is learned is float32.
        views: what it looks at; each has small networks of its own.

    Raises:
        ImportError: the packages of the encoder are not installed; the message says how to install them.

    Example:
        >>> discriminator = PretrainedDiscriminator(64)
        >>> [tuple(logits.shape) for logits in discriminator(discriminator.features(torch.zeros(2, 3, 64, 64)))]
        [(2, 64), (2, 16), (2, 4)]
    """

    def __init__(
        self, resolution: int, dtype: torch.dtype = torch.float32, views: Sequence[View] = (whole, quarter)
    ) -> None:
        super().__init__()
        stages = [stage for stage in range(1, LAST_STAGE + 1) if resolution >> (stage + 1) >= MIN_SIDE]
        self.dtype, self.views = dtype, tuple(views)
        self.encoder = ImageNetEncoder(stages[-1] + 1).eval().requires_grad_(False)
        self.heads = nn.ModuleList(_head(self.encoder.channels[stage]) for _ in views for stage in stages)

    def features(self, images: Tensor) -> list[Tensor]:
        """Frozen features of images, fine to coarse; differentiable by the images."""
        x = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return [maps.float() for maps in self.encoder(x)[1:]]

    def forward(self, features: list[Tensor], view: int = 0) -> list[Tensor]:
        """Logits [N, P] of patches for each map of features, by the networks of a view (its number)."""
        first = view * len(features)
        heads = self.heads[first : first + len(features)]
        return [head(maps).flatten(1) for head, maps in zip(heads, features, strict=True)]


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, WIDTH, 1)),
        nn.LeakyReLU(SLOPE),
        spectral_norm(nn.Conv2d(WIDTH, WIDTH, 4, 2, 1)),
        nn.LeakyReLU(SLOPE),
        spectral_norm(nn.Conv2d(WIDTH, 1, 3, 1, 1)),
    )


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Non-saturating loss of the discriminator, summed over the scales."""
    return torch.stack([F.softplus(f).mean() + F.softplus(-r).mean() for r, f in zip(real, fake, strict=True)]).sum()


def generator_loss(fake: list[Tensor]) -> Tensor:
    """Non-saturating loss of the generator, summed over the scales."""
    return torch.stack([F.softplus(-f).mean() for f in fake]).sum()
