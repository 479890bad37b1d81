"""Does a photo look like what a generator makes? Its colors and details, place by place, against those of random draws.

An inversion alone cannot tell: W+ is large enough to imitate a ball or a cloud quite well, and the labels read there
mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.inversion.pyramids import laplacian_pyramid

#: Sides of the grids on which colors and the energy of details are taken.
_COLOR_GRID, _DETAIL_GRID = 8, 4
#: Share of the diagonal in the covariance: there are hardly more draws than numbers.
_SHRINKAGE = 0.1
#: Draws are judged by a distribution that was measured without them, in so many parts.
_FOLDS = 4
#: A photo counts as foreign beyond so many times the distance that 99 % of the held-out draws keep. Photos differ from
#: draws more than draws from each other: the sensor, the JPEG encoder, whatever the generator has not learned.
_MARGIN, _SHARE = 1.5, 0.99
#: Standard deviations that no statistic is below: a level of 8 bits of a color, and what rounding to such levels makes
#: of the energy of no details. Where all draws are alike, as around a scan, even rounding would count as foreign.
_LEAST_COLOR, _LEAST_DETAIL = 1 / 127.5, 0.05


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of vectors, as what takes it to the standard one.

    Attributes:
        mean: float64 [F].
        factor: lower Cholesky factor of the covariance, float64 [F, F].
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Gaussian:
        """The distribution of statistics of images, float64 [D, F]."""
        covariance = torch.cov(rows.t())
        diagonal = covariance.diagonal().maximum(_least_variance(rows.shape[1])).diag()
        covariance += diagonal - covariance.diagonal().diag()
        return cls(rows.mean(0), torch.linalg.cholesky((1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal))

    def distances(self, rows: Tensor) -> Tensor:
        """Squared Mahalanobis distance of rows [N, F], divided by F: float64 [N]."""
        deviations: Tensor = torch.linalg.solve_triangular(self.factor, (rows - self.mean).t(), upper=False)
        return deviations.square().mean(0)


@dataclass(frozen=True)
class Domain:
    """What a generator's images look like; make one with `of`.

    Attributes:
        distribution: of the statistics of its draws.
        limit: distance beyond which a photo is foreign.
    """

    distribution: Gaussian
    limit: float

    @classmethod
    def of(cls, statistics: Tensor) -> Domain:
        """The domain of draws of a generator.

        Args:
            statistics: `image_statistics` of its draws, [D, F].
        """
        rows = statistics.double().cpu()
        parts = torch.arange(len(rows)) % _FOLDS
        held_out = [Gaussian.of(rows[parts != part]).distances(rows[parts == part]) for part in range(_FOLDS)]
        return cls(Gaussian.of(rows), _MARGIN * float(torch.cat(held_out).quantile(_SHARE)))

    def distances(self, images: Tensor) -> Tensor:
        """How far images float32 [N, 3, H, W] from -1 to 1 are from the domain: float32 [N] on the CPU, about 0.5 for a
        draw."""
        return self.distribution.distances(image_statistics(images).double().cpu()).float()


def _least_variance(count: int) -> Tensor:
    """Of each of the `image_statistics`, float64 [F]."""
    least = torch.full((count,), _LEAST_DETAIL, dtype=torch.float64)
    least[: 3 * _COLOR_GRID**2] = _LEAST_COLOR
    return least.square()


def image_statistics(images: Tensor) -> Tensor:
    """Colors on a grid of 8×8, and logarithms of the energy of details of each size on a grid of 4×4: float32 [N, F].

    Args:
        images: [N, 3, H, W] from -1 to 1, at most as large as a thumbnail.
    """
    *details, _ = laplacian_pyramid(images)
    energies: Sequence[Tensor] = [
        (F.adaptive_avg_pool2d(band.square().mean(1, keepdim=True), _DETAIL_GRID) + 1e-4).log() for band in details
    ]
    colors = F.adaptive_avg_pool2d(images, _COLOR_GRID)
    return torch.cat([part.flatten(1) for part in (colors, *energies)], dim=1)
