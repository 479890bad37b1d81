"""Annotated images -> pixels with their features, and draws of them.

Only labeled pixels are read: their features come from each map at its native resolution, by bilinear interpolation at
the pixel's position. The full-resolution tensor of the published code (16 images of 512² with 5,056 channels: 80 GB in
float32) is never built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.fitting.tasks import PixelTask
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe


@dataclass(frozen=True)
class LabeledPixels:
    """Pixels with their features and what is to be learned of them.

    Attributes:
        features: float32 [P, C], as the generator gives them; on its device.
        learned: of each pixel, [P, ...], on the same device; see `PixelTask.learned`.
        strata: group of each pixel, int64 [P] on the CPU.
        image: number of the annotated image that each pixel belongs to, int64 [P] on the CPU.
    """

    features: Tensor
    learned: Tensor
    strata: Tensor
    image: Tensor

    @classmethod
    @torch.no_grad()
    def gather(
        cls,
        generator: FeatureGenerator,
        latents: Tensor,
        task: PixelTask,
        recipe: Recipe,
        pixels_per_image: int,
        random: torch.Generator,
    ) -> LabeledPixels:
        """Choose pixels of each image, and read their features."""
        frame = recipe.frame_size(generator.img_size)
        top, width = (recipe.crop or (0, 0))[0], frame[1]
        strata = task.strata.cpu()
        chosen = [_choose(groups.flatten(), pixels_per_image, task.choice_balance, random) for groups in strata]
        counts = torch.tensor([len(places) for places in chosen])
        # Filled image by image: gathered pieces and their concatenation would take the memory twice.
        features = torch.empty(int(counts.sum()), sum(generator.feature_channels), device=generator.device)
        slots = features.split(counts.tolist())
        with tqdm(total=len(slots), desc="reading features", unit="image", delay=2, leave=False) as progress:

            def read(number: int) -> None:
                z, places = latents[number], chosen[number]
                _, maps = synthesize(generator, recipe.override(dtype="float32"), z[None])
                slots[number].copy_(gather_features(maps, places // width + top, places % width, frame))
                progress.update()

            parallel_map(read, range(len(slots)), generator.device)
        learned = torch.cat([task.learned(number, places) for number, places in enumerate(chosen)])
        groups = torch.cat([groups.flatten()[places] for groups, places in zip(strata, chosen, strict=True)])
        image = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return cls(features, learned.to(generator.device), groups, image)


def gather_features(maps: Sequence[Tensor], rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """Concatenated features of some pixels of one image, as if every map were resized to `size` (bilinear).

    Args:
        maps: [1, C_l, h_l, w_l].
        rows, columns: places of P pixels in the frame.
        size: (H, W) of the frame.

    Returns:
        float32 [P, C].
    """
    # grid_sample's coordinates run from -1 to 1 over the outer edges of a map, whatever its size; clamping at the
    # border is what bilinear resizing does.
    x = (columns.to(maps[0].device) + 0.5) * (2 / size[1]) - 1
    y = (rows.to(maps[0].device) + 0.5) * (2 / size[0]) - 1
    grid = torch.stack([x, y], dim=-1)[None, None]
    picked = [
        F.grid_sample(f.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0]
        for f in maps
    ]
    return torch.cat(picked).t()


@torch.no_grad()
def moments(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over some rows, without a copy of them.

    No deviation is less than a hundredth of the median one: a channel that hardly varies in the few annotated images
    would drown all others in an image where it does.
    """
    blocks = [block.to(features.device) for block in rows.split(4096)]
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for block in blocks:
        total += features[block].sum(0)
    mean = (total / len(rows)).float()
    squares = torch.zeros_like(total)
    for block in blocks:
        squares += (features[block] - mean).square_().sum(0)
    std = (squares / len(rows)).sqrt().float()
    return mean, std.clamp_min(max(0.01 * float(std.median()), 1e-6))


class BalancedDraws:
    """Draws pixels, those of rare groups more often than they occur.

    Args:
        strata: group of each pixel, int64 [P] on the CPU.
        rows: pixels to draw from, int64 on the CPU.
        balance: a pixel of a group of frequency p has weight p ** -balance.
        random: of the draws.
    """

    def __init__(self, strata: Tensor, rows: Tensor, balance: float, random: torch.Generator) -> None:
        self.cumulative = _weights(strata[rows], balance).cumsum(0)
        self.rows = rows
        self.random = random

    def __call__(self, *shape: int) -> Tensor:
        """Positions of drawn pixels, int64 of that shape, on the CPU."""
        uniform = torch.rand(shape, generator=self.random, dtype=torch.float64)
        drawn = torch.searchsorted(self.cumulative, uniform * self.cumulative[-1], right=True)
        return self.rows[drawn.clamp(max=len(self.cumulative) - 1)]


def _weights(strata: Tensor, balance: float) -> Tensor:
    """Weight of each pixel by the frequency of its group, float64 [P]."""
    return (torch.bincount(strata).double().clamp(min=1) ** -balance)[strata]


def _choose(strata: Tensor, count: int, balance: float, random: torch.Generator) -> Tensor:
    """Places of up to `count` different pixels whose group is not -1."""
    usable = (strata >= 0).nonzero()[:, 0]
    if balance == 0 or len(usable) <= count:
        return usable[torch.randperm(len(usable), generator=random)[:count]]
    # Weighted draws without replacement: the largest of u ** (1 / weight) (Efraimidis and Spirakis, 2006).
    uniform = torch.rand(len(usable), generator=random, dtype=torch.float64)
    return usable[(uniform.log() / _weights(strata[usable], balance)).topk(count).indices]
