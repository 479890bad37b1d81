"""Where a generator's style vectors lie: their average and spread, and the images there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.latents import Purpose, sample_latents

#: Directions in which styles hardly vary count as if they had this share of the largest variance.
_LEAST_VARIANCE = 1e-4
#: Draws of which average and spread are taken.
_DRAWS = 4096


@dataclass(frozen=True)
class StyleSpace:
    """Coordinates in which the style vectors of random draws have mean 0 and variance 1 in every direction.

    Optimizers take steps of equal size in every coordinate; the directions of w itself differ in scale by a factor of
    up to a hundred.

    Attributes:
        mean: average style vector, float32 [w_dim].
        basis: coordinates -> style vector without its mean, float32 [w_dim, w_dim].
        inverse: of `basis`.
        draws: style vectors of the draws, float32 [D, w_dim].
    """

    mean: Tensor
    basis: Tensor
    inverse: Tensor
    draws: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, generator: FeatureGenerator, seed: int = 0) -> StyleSpace:
        """The space of a generator, measured on draws of all its classes."""
        z = sample_latents(range(_DRAWS), generator.z_dim, seed=seed, purpose=Purpose.AVERAGE).to(generator.device)
        classes = None
        if generator.c_dim:
            classes = F.one_hot(torch.arange(_DRAWS, device=generator.device) % generator.c_dim, generator.c_dim)
        draws = torch.cat(
            [
                generator.mapping(block, None if classes is None else classes[at : at + len(block)])[:, 0]
                for at, block in ((at, z[at : at + 256]) for at in range(0, _DRAWS, 256))
            ]
        )
        exact = draws.double()
        mean = exact.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov(exact.t()).reshape(len(mean), len(mean)))
        deviation = variance.clamp_min(max(float(variance.max()) * _LEAST_VARIANCE, 1e-12)).sqrt()
        basis, inverse = directions * deviation, (directions / deviation).t()
        return cls(mean.float(), basis.float().contiguous(), inverse.float().contiguous(), draws)

    def styles(self, coordinates: Tensor) -> Tensor:
        """Style vectors [..., w_dim] of coordinates [..., w_dim]."""
        return self.mean + coordinates @ self.basis.t()

    def coordinates(self, styles: Tensor) -> Tensor:
        """Inverse of `styles`."""
        return (styles - self.mean) @ self.inverse.t()
