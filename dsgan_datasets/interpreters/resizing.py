"""Bilinear resizing as matrices: what each output row or column reads, and with what weight."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

#: Columns of a tile of `column_tiles`, about.
TILE = 16


def bilinear_matrix(n_in: int, n_out: int) -> Tensor:
    """The matrix [n_out, n_in] that resizes an axis as `interpolate(mode="bilinear", align_corners=False)` does.

    Example:
        >>> bilinear_matrix(2, 4)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]])
    """
    lower, upper, fraction = bilinear_taps(n_in, n_out)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64, device="cpu")
    matrix.scatter_add_(1, lower[:, None], 1 - fraction[:, None])
    matrix.scatter_add_(1, upper[:, None], fraction[:, None])
    return matrix.float()


def bilinear_taps(n_in: int, n_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each output: the two inputs that it lies between, int64 [n_out], and the weight of the second, float64."""
    centers = (torch.arange(n_out, dtype=torch.float64, device="cpu") + 0.5) * (n_in / n_out) - 0.5
    centers = centers.clamp(0, n_in - 1)
    lower = centers.floor().long()
    return lower, (lower + 1).clamp(max=n_in - 1), centers - lower


def source_rows(n_in: int, n_out: int, top: int, bottom: int) -> tuple[int, int]:
    """First and one past the last source row that output rows top…bottom read."""
    lower, upper, _ = bilinear_taps(n_in, n_out)
    return int(lower[top]), int(upper[bottom - 1]) + 1


@lru_cache(maxsize=16)
def column_tiles(widths: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
    """For tiles of output columns: which columns of the concatenated levels they read, and with what weights.

    Args:
        widths: columns of each level.
        width: columns of the output.

    Returns:
        index int64 [tiles, taps] and weight float32 [tiles, columns per tile, taps]; unused taps weigh zero.
    """
    divisors = [d for d in range(1, min(width, 2 * TILE) + 1) if width % d == 0]
    tile = min(divisors, key=lambda d: abs(math.log(d / TILE)))
    matrix = torch.cat([bilinear_matrix(w, width) for w in widths], dim=1).unflatten(0, (-1, tile))
    used = matrix.ne(0).any(1)
    taps = int(used.sum(1).max())
    index = used.float().topk(taps, dim=1).indices.sort(1).values
    return index, matrix.gather(2, index.unsqueeze(1).expand(-1, tile, -1))


def shrink(f: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps [N, C, h, w] larger than the frame to its size: projecting them afterwards is cheaper.

    Plain bilinear without antialiasing, as published. Other maps are returned unchanged.
    """
    h, w = f.shape[2:]
    if (h, w) == tuple(size) or h < size[0] or w < size[1]:
        return f
    return F.interpolate(f, size=tuple(size), mode="bilinear", align_corners=False)
