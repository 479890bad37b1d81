"""A small U-Net, from scratch. The demo's annotator and the students of the benchmarks are U-Nets too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597) with group normalization.

    The statistics of group norm are the image's own, so they survive a change of domain.

    Args:
        num_classes: K.
        widths: channels at full, half, ... resolution, each a multiple of 4.
        up_convolutions: 3×3 convolutions of a block on the way up, 1 or 2; on the way down it has 2.
        upsampling: "bilinear" or "nearest".

    Example:
        >>> UNet(12, (8, 16, 32))(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 12, 64, 64])
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int], *, up_convolutions: int = 2, upsampling: str = "bilinear"
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in pairwise((3, *widths)))
        self.up = nn.ModuleList(_block(a + b, a, up_convolutions) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Outputs of the blocks on the way down, full resolution first, of images float [N, 3, H, W] in [-1, 1]."""
        outputs: list[Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if outputs else x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K, H, W] of images float [N, 3, H, W] in [-1, 1]; each level but the first halves H and W."""
        *skips, x = self.levels(x)
        corners = False if self.upsampling == "bilinear" else None
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            larger = F.interpolate(x, scale_factor=2.0, mode=self.upsampling, align_corners=corners)
            x = block(torch.cat((skip, larger), 1))
        logits: Tensor = self.head(x)
        return logits


def _block(n_in: int, n_out: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (n_in, n_out)[:convolutions]:
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.GroupNorm(4, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
