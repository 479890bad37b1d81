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

from dsgan_datasets.fitting.annotated import AnnotatedImages, check_annotated
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class LabeledPixels:
    """Pixels with their features and classes: what an interpreter is trained on.

    Attributes:
        features: float32 [P, C], as the generator gives them; on its device.
        labels: class ids int64 [P], on the same device.
        image: number of the annotated image that each pixel belongs to, int64 [P] on the CPU.
        num_classes: K.
    """

    features: Tensor
    labels: Tensor
    image: Tensor
    num_classes: int

    @classmethod
    @torch.no_grad()
    def gather(
        cls,
        generator: FeatureGenerator,
        annotated: AnnotatedImages,
        schema: LabelSchema,
        recipe: Recipe,
        pixels_per_image: int,
        random: torch.Generator,
    ) -> LabeledPixels:
        """Draw pixels evenly from all images and read their features; ValueError if masks or latents do not fit."""
        num_classes = schema.num_classes
        check_annotated(generator, annotated, schema, recipe)
        frame = recipe.frame_size(generator.img_size)
        top, width = (recipe.crop or (0, 0))[0], frame[1]
        chosen = [_choose(mask, schema.ignore_index, pixels_per_image, random) for mask in annotated.masks]
        counts = torch.tensor([len(places) for places in chosen])
        # Filled image by image: gathered pieces and their concatenation would take the memory twice.
        features = torch.empty(int(counts.sum()), sum(generator.feature_channels), device=generator.device)
        slots = features.split(counts.tolist())
        with tqdm(total=len(slots), desc="reading features", unit="image", delay=2, leave=False) as progress:

            def read(number: int) -> None:
                z, places = annotated.latents[number], chosen[number]
                _, maps = synthesize(generator, recipe.override(dtype="float32"), z[None])
                slots[number].copy_(gather_features(maps, places // width + top, places % width, frame))
                progress.update()

            parallel_map(read, range(len(slots)), generator.device)
        labels = [mask.flatten()[places] for mask, places in zip(annotated.masks, chosen, strict=True)]
        image = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return cls(features, torch.cat(labels).to(generator.device), image, num_classes)


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
    """Draws pixels, those of rare classes more often than they occur.

    Args:
        labels: class ids int64 [P].
        rows: pixels to draw from, int64 on the CPU.
        balance: a pixel of a class of frequency p has weight p ** -balance.
        random: of the draws.
    """

    def __init__(self, labels: Tensor, rows: Tensor, balance: float, random: torch.Generator) -> None:
        drawn_from = labels.cpu()[rows]
        weights = torch.bincount(drawn_from).double().clamp(min=1) ** -balance
        self.cumulative = weights[drawn_from].cumsum(0)
        self.rows = rows
        self.random = random

    def __call__(self, *shape: int) -> Tensor:
        """Positions of drawn pixels, int64 of that shape, on the CPU."""
        uniform = torch.rand(shape, generator=self.random, dtype=torch.float64)
        drawn = torch.searchsorted(self.cumulative, uniform * self.cumulative[-1], right=True)
        return self.rows[drawn.clamp(max=len(self.cumulative) - 1)]


def _choose(mask: Tensor, ignore_index: int, count: int, random: torch.Generator) -> Tensor:
    """Places of up to `count` pixels in the flattened mask, none of them ignored."""
    usable = (mask.flatten() != ignore_index).nonzero()[:, 0]
    return usable[torch.randperm(len(usable), generator=random)[:count]]
