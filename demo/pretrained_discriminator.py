"""A second discriminator, which sees images through a network that knows ImageNet.

Such a network tells fine detail apart long before a discriminator that starts from nothing does. Written from papers:
frozen features and small networks on them beside the usual discriminator (Vision-aided GAN, section 3 of
https://arxiv.org/abs/2112.09130), at several scales (Projected GAN, section 3.1 of https://arxiv.org/abs/2111.01007),
with spectral normalization (https://arxiv.org/abs/1802.05957). It looks at the whole image, or at a quarter of it in
twice the size: ImageNet's objects are larger than an eye or a mouth of these.

Shapes: N images, H = W pixels, P patches; images are float [N, 3, H, W] in [-1, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from dsgan_datasets.imagenet import ImageNetEncoder

#: Smallest side of a map of features that is looked at, and the coarsest of the encoder's stages (counted from 0).
MIN_SIDE, LAST_STAGE = 4, 3
#: The whole image and an enlarged part have networks of their own.
VIEWS = 2
#: Channels of the networks on the features.
WIDTH = 64
SLOPE = 0.2


class PretrainedDiscriminator(nn.Module):
    """Real (high) or generated (low)? Asked of frozen features at a quarter of the resolution and coarser.

    Args:
        resolution: side of the images, from 16.
        dtype: precision of the features; what is learned is float32.

    Raises:
        ImportError: the packages of the encoder are not installed; the message says how to install them.

    Example:
        >>> discriminator = PretrainedDiscriminator(64)
        >>> [tuple(logits.shape) for logits in discriminator(discriminator.features(torch.zeros(2, 3, 64, 64)))]
        [(2, 64), (2, 16), (2, 4)]
    """

    def __init__(self, resolution: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        stages = [stage for stage in range(1, LAST_STAGE + 1) if resolution >> (stage + 1) >= MIN_SIDE]
        self.dtype = dtype
        self.encoder = ImageNetEncoder(stages[-1] + 1).eval().requires_grad_(False)
        self.heads = nn.ModuleList(_head(self.encoder.channels[stage]) for _ in range(VIEWS) for stage in stages)

    def features(self, images: Tensor) -> list[Tensor]:
        """Frozen features of images, fine to coarse; differentiable by the images."""
        x = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return [maps.float() for maps in self.encoder(x)[1:]]

    def forward(self, features: list[Tensor], view: int = 0) -> list[Tensor]:
        """Logits [N, P] of patches for each map of features, by the networks of a view (0: whole, 1: enlarged)."""
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


def seen(images: Sequence[Tensor], view: int, random: torch.Generator) -> list[Tensor]:
    """Batches of images, all seen alike: moved (view 0) or a part of them in twice the size (view 1).

    The features know positions, so nothing may always be at the same one: images move by up to a sixteenth of the side,
    mirrored at the border.

    Example:
        >>> (x,) = seen([torch.zeros(2, 3, 32, 32)], 1, torch.Generator())
        >>> tuple(x.shape)
        (2, 3, 32, 32)
    """
    side = images[0].shape[3]
    room = side // 2 if view else side // 8
    top, left = torch.randint(0, room + 1, (2,), generator=random, device=random.device).tolist()
    if view:
        half = (x[..., top : top + side // 2, left : left + side // 2] for x in images)
        return [F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) for x in half]
    padded = (F.pad(x, (side // 16,) * 4, mode="reflect") for x in images)
    return [x[..., top : top + side, left : left + side] for x in padded]
