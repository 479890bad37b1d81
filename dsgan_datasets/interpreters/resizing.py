"""Bilinear resizing as matrices: what each output row or column reads, and with what weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def bilinear_matrix(n_in: int, n_out: int) -> Tensor:
    """The matrix [n_out, n_in] that resizes an axis as `interpolate(mode="bilinear", align_corners=False)` does.

    Example:
        >>> bilinear_matrix(2, 4)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]])
    """
    lower, upper, fraction, _ = bilinear_taps(n_in, n_out)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64, device="cpu")
    matrix.scatter_add_(1, lower[:, None], 1 - fraction[:, None])
    matrix.scatter_add_(1, upper[:, None], fraction[:, None])
    return matrix.float()


class Taps(NamedTuple):
    """Of each output of an axis: the two inputs that it lies between, and the weight of the second.

    Attributes:
        lower, upper: int64 [outputs].
        fraction: float64 [outputs].
        inputs: how many there are.
    """

    lower: Tensor
    upper: Tensor
    fraction: Tensor
    inputs: int

    @classmethod
    def at(cls, positions: Tensor, inputs: int) -> Taps:
        """Outputs at these positions, float64, among the inputs; beyond the first and the last one nothing changes."""
        positions = positions.clamp(0, inputs - 1)
        lower = positions.floor().long()
        return cls(lower, (lower + 1).clamp(max=inputs - 1), positions - lower, inputs)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """First and one past the last input that the outputs from `first` to before `last` read."""
        return int(self.lower[first]), int(self.upper[last - 1]) + 1


def bilinear_taps(n_in: int, n_out: int) -> Taps:
    """Taps of an axis that is resized as `interpolate(mode="bilinear", align_corners=False)` does."""
    return Taps.at((torch.arange(n_out, dtype=torch.float64, device="cpu") + 0.5) * (n_in / n_out) - 0.5, n_in)


def shrink(f: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps [N, C, h, w] larger than the frame to its size: projecting them afterwards is cheaper.

    Plain bilinear without antialiasing, as published. Other maps are returned unchanged.
    """
    h, w = f.shape[2:]
    if (h, w) == tuple(size) or h < size[0] or w < size[1]:
        return f
    return F.interpolate(f, size=tuple(size), mode="bilinear", align_corners=False)
