"""Which draws are worth annotating: samples unlike each other, or samples that an interpreter is unsure about."""

from __future__ import annotations

import torch
from torch import Tensor


def pooled_features(features: list[Tensor]) -> Tensor:
    """One point a sample: the mean over the picture of every feature channel, [N, C]."""
    return torch.cat([f.float().mean((2, 3)) for f in features], dim=1).cpu()


def diverse(points: Tensor, count: int, weights: Tensor | None = None) -> list[int]:
    """Rows that cover the others well: k-center, greedily (Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985), over standardized columns.

    Begins with the most ordinary row, then takes the one farthest from all taken so far. With weights it begins with
    the heaviest, and distances count times the weight: rows that are both heavy and unlike the others.

    Args:
        points: [N, C].
        count: rows to take, at most N.
        weights: [N], none negative; such as the uncertainty of each sample.

    Returns:
        row numbers, ascending.

    Raises:
        ValueError: fewer rows than asked for.

    Example:
        >>> diverse(torch.tensor([[4.0], [0.1], [9.0], [5.0]]), 2)
        [1, 3]
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"cannot choose {count} of {len(points)} candidates")
    if len(points) == 1:
        return [0]  # which has no deviation to standardize by
    points = (points - points.mean(0)) / points.std(0).clamp_min(1e-6)
    if weights is None:
        first, weights = int(points.square().sum(1).argmin()), torch.ones(len(points), device=points.device)
    else:
        first = int(weights.argmax())
    chosen = [first]
    nearest = _distances(points, first)
    while len(chosen) < count:
        gain = nearest * weights
        gain[chosen] = -1  # equal points have distance 0, and none is taken twice
        chosen.append(int(gain.argmax()))
        nearest = torch.minimum(nearest, _distances(points, chosen[-1]))
    return sorted(chosen)


def _distances(points: Tensor, row: int) -> Tensor:
    """Of all points to one of them."""
    return (points - points[row]).square().sum(1).sqrt()
