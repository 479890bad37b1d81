"""Masks without a classifier: k-means of generator features, as in Segmentation in Style.

Pakhomov, Hira, Wagle, Green and Navab 2021, https://arxiv.org/abs/2107.12518. There a person looks at the clusters and
names them; here each takes the class that most of its pixels have in the annotated images. The level of the features is
the one whose named clusters fit the annotated images best.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets import AnnotatedImages, LabeledGenerator, sample_latents
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.latents import Purpose

from .data import IGNORE
from .students import class_iou

CLUSTERS_PER_CLASS = 20
SAMPLES, PIXELS = 256, 128  # images that are clustered, pixels of each


class Clusters:
    """Named clusters of the features of one level.

    Args:
        side: rows of the feature maps that are clustered.
        mean, std: [C], of the features.
        centers: [k, C], of standardized features.
        classes: class id of each cluster, int64 [k].
    """

    def __init__(self, side: int, mean: Tensor, std: Tensor, centers: Tensor, classes: Tensor) -> None:
        self.side, self.mean, self.std, self.centers, self.classes = side, mean, std, centers, classes

    def label(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Masks int64 [N, H, W] of feature maps."""
        maps = (level(features, self.side) - self.mean[:, None, None]) / self.std[:, None, None]
        # |f - c|² = |f|² - 2 f·c + |c|²: a 1x1 convolution, which can be resized afterwards as it is linear in f
        near = 2 * torch.einsum("nchw,kc->nkhw", maps, self.centers) - self.centers.square().sum(1)[:, None, None]
        near = F.interpolate(near, size=size, mode="bilinear", align_corners=False)
        return self.classes[near.argmax(1)]


def level(features: list[Tensor], side: int) -> Tensor:
    """The maps of so many rows, concatenated: [N, C, side, side]."""
    return torch.cat([f.float() for f in features if f.shape[2] == side], 1)


@torch.no_grad()
def fit_clusters(labeled: LabeledGenerator, annotated: AnnotatedImages) -> Clusters:
    """Cluster every level from 16 rows on, name the clusters, keep the level that fits the annotated images best."""
    generator, recipe = labeled.generator, labeled.recipe
    random = torch.Generator().manual_seed(0)
    latents = sample_latents(range(SAMPLES), generator.z_dim, seed=0, purpose=Purpose.CALIBRATION)
    points: dict[int, list[Tensor]] = {}
    for part in latents.split(recipe.compute_batch):
        _, features = synthesize(generator, recipe, part)
        for side in {f.shape[2] for f in features if f.shape[2] >= min(16, features[-1].shape[2])}:
            pixels = level(features, side).flatten(2).transpose(1, 2)  # [N, P, C]
            drawn = torch.randint(pixels.shape[1], (len(part), PIXELS), generator=random).to(pixels.device)
            points.setdefault(side, []).append(pixels.gather(1, drawn[..., None].expand(-1, -1, pixels.shape[2])))
    _, features = synthesize(generator, recipe, annotated.latents)
    truth, k = annotated.masks.to(generator.device), labeled.schema.num_classes
    best: tuple[float, Clusters] | None = None
    for side, parts in sorted(points.items()):
        flat = torch.cat(parts).flatten(0, 1)
        mean, std = flat.mean(0), flat.std(0).clamp_min(1e-6)
        centers = k_means((flat - mean) / std, CLUSTERS_PER_CLASS * k, random)
        identity = Clusters(side, mean, std, centers, torch.arange(len(centers), device=flat.device))
        found = identity.label(features, labeled.image_size)
        named = Clusters(side, mean, std, centers, majority_class(found, truth, len(centers), k))
        fit = class_iou(named.classes[found], truth, k).nanmean().item()
        if best is None or fit > best[0]:
            best = (fit, named)
    assert best is not None
    return best[1]


def majority_class(found: Tensor, truth: Tensor, clusters: int, num_classes: int) -> Tensor:
    """The class that most pixels of each cluster have; 0 for a cluster that has none.

    Args:
        found: clusters, of any shape.
        truth: classes and `IGNORE`, of the same shape.

    Returns:
        int64 [clusters].
    """
    counted = truth != IGNORE
    pairs = found[counted] * num_classes + truth[counted]
    return torch.bincount(pairs, minlength=clusters * num_classes).view(clusters, num_classes).argmax(1)


def k_means(points: Tensor, k: int, random: torch.Generator, iterations: int = 50) -> Tensor:
    """Centers [k, C] of points [P, C]: Lloyd's iterations from a k-means++ start (Arthur and Vassilvitskii 2007).

    A center that loses all its points stays where it is.

    Raises:
        ValueError: fewer points than centers.
    """
    if len(points) < k:
        raise ValueError(f"{k} clusters need at least as many points, got {len(points)}")
    chosen = [int(torch.randint(len(points), (), generator=random))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < k:
        reach = nearest.double().cumsum(0)
        drawn = torch.rand((), generator=random, dtype=torch.float64).item() * reach[-1]
        chosen.append(min(int(torch.searchsorted(reach, drawn, right=True)), len(points) - 1))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    centers = points[chosen].clone()
    for _ in range(iterations):
        owner = assign(points, centers)
        counts = torch.bincount(owner, minlength=k)
        sums = torch.zeros_like(centers).index_add_(0, owner, points)
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def assign(points: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each point, int64 [P]."""
    return (2 * points @ centers.T - centers.square().sum(1)).argmax(1)


@torch.no_grad()
def clustered_samples(
    labeled: LabeledGenerator, clusters: Clusters, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and cluster masks of a generator, without end."""
    generator, recipe = labeled.generator, labeled.recipe
    first = 0
    while True:
        latents = sample_latents(range(first, first + batch_size), generator.z_dim, seed=seed)
        images, features = synthesize(generator, recipe, latents)
        yield images, clusters.label(features, labeled.image_size)
        first += batch_size
