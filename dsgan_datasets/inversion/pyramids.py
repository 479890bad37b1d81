"""What two images are compared by: maps of details, fine and coarse, on the scale of the generator's own images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.imagenet import ImageNetEncoder

#: Sides below which an image is not halved again.
_COARSEST = 4


#: Names of pyramids.
Comparison = Literal["pixels", "lpips", "efficientnet"]
#: Images float32 [N, 3, H, W] from -1 to 1 -> maps [N, C, h, w]; differentiable, on the device of the images.
Pyramid = Callable[[Tensor], Sequence[Tensor]]


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """The details of an image that each halving loses, from fine to coarse, and the coarsest image.

    It knows nothing but pixels and needs no download.

    Args:
        images: [N, 3, H, W].

    Example:
        >>> [tuple(band.shape[2:]) for band in laplacian_pyramid(torch.zeros(1, 3, 16, 16))]
        [(16, 16), (8, 8), (4, 4)]
    """
    bands = []
    while min(images.shape[2:]) > _COARSEST:
        coarse = F.avg_pool2d(images, 2, ceil_mode=True)
        bands.append(images - F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False))
        images = coarse
    return [*bands, images]


def load_pyramid(name: Comparison, device: torch.device) -> Pyramid:
    """What images are compared by.

    Args:
        name: "pixels" is `laplacian_pyramid`; "lpips" and "efficientnet" compare features of a pretrained network too.
        device: that it computes on.

    Raises:
        ImportError: the package that the network comes with is not installed.
    """
    if name == "pixels":
        return laplacian_pyramid
    network = _NETWORKS[name]().to(device).eval().requires_grad_(False)
    return lambda images: [*laplacian_pyramid(images), *network(images)]


class _LPIPS(nn.Module):
    """AlexNet's features, weighted as Zhang et al. (LPIPS, CVPR 2018) fitted them; the package fetches the weights."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise ImportError("comparing by lpips needs the package lpips: pip install lpips") from error
        self.lpips = lpips.LPIPS(net="alex", verbose=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.lpips.net.forward(self.lpips.scaling_layer(images))
        weights = [layer.model[-1].weight for layer in self.lpips.lins]
        return [F.normalize(f, eps=1e-10) * w.clamp_min(0).sqrt() for f, w in zip(features, weights, strict=True)]


def _efficientnet() -> nn.Module:
    """The first stages of EfficientNet-Lite0, to an eighth of the side: coarser features know what, but not where."""
    return ImageNetEncoder(stages=3)


_NETWORKS: dict[str, Callable[[], nn.Module]] = {"lpips": _LPIPS, "efficientnet": _efficientnet}


class Difference:
    """How unlike images are, in units of how unlike the generator's images are to their average: 1 is no better than
    the average image.

    Args:
        pyramid: what is compared.
        scales: of each map of the pyramid, see `Spread`.
    """

    def __init__(self, pyramid: Pyramid, scales: Sequence[float]) -> None:
        self.pyramid = pyramid
        self._scales = tuple(scales)

    def __call__(self, maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Mean squared difference of the maps [N, C, h, w] of N images and those of N others, [N]."""
        each = [(a - b).square().mean((1, 2, 3)) / s for a, b, s in zip(maps, others, self._scales, strict=True)]
        return torch.stack(each).mean(0)


class Spread:
    """Variance of the maps of many images, which are seen a few at a time."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, maps: Sequence[Tensor]) -> None:
        """Count the maps [N, C, h, w] of N images in."""
        sums, squares = [m.double().sum(0) for m in maps], [m.double().square().sum(0) for m in maps]
        self._count += len(maps[0])
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._squares = [a + b for a, b in zip(self._squares, squares, strict=True)] if self._squares else squares

    @property
    def scales(self) -> list[float]:
        """Mean variance of each map."""
        return [
            max(float((square / self._count - (total / self._count).square()).mean()), 1e-12)
            for total, square in zip(self._sums, self._squares, strict=True)
        ]
