"""A part of the frame, and what of each level of features its labels depend on.

A training step need not compute all of a large image. The labels of a region depend on some rows and columns of the
finest level, these on some of the next coarser one, and so on; of the small levels that is all of them. What is
computed from these parts equals what the whole gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from torch import Tensor

from dsgan_datasets.interpreters.resizing import bilinear_matrix, bilinear_taps

Span = tuple[int, int]  #: first and one past the last row or column
Step = Tensor | slice  #: a matrix that resizes an axis; or the part of it that is kept, at the same size


@dataclass(frozen=True, eq=False)
class Region:
    """Rows and columns of the frame.

    Attributes:
        rows, columns: of the frame.
        spans: (rows, columns) of each level that these read.
        steps: of each level but the first, and then of the frame: how the level before is resized, (rows, columns); or
            what is kept of it where the size is the same.
    """

    rows: Span
    columns: Span
    spans: Sequence[tuple[Span, Span]]
    steps: Sequence[tuple[Step, Step]]

    @classmethod
    def of(
        cls,
        rows: Span,
        columns: Span,
        size: tuple[int, int],
        levels: Sequence[tuple[int, int]],
        convolutions: Sequence[int],
    ) -> Region:
        """What some rows and columns of the frame read.

        Args:
            rows, columns: of the frame.
            size: (H, W) of the frame.
            levels: (h, w) of each level, coarse to fine.
            convolutions: 3×3 convolutions of each level.
        """
        axes = [
            _axis(part, size[axis], tuple(level[axis] for level in levels), tuple(convolutions))
            for axis, part in enumerate((rows, columns))
        ]
        spans = list(zip(*(axis_spans for axis_spans, _ in axes), strict=True))
        return cls(rows, columns, spans, list(zip(*(steps for _, steps in axes), strict=True)))

    def cut(self, level: Tensor, number: int) -> Tensor:
        """What is read of level `number`, [..., h, w]."""
        rows, columns = self.spans[number]
        return level[..., slice(*rows), slice(*columns)]

    def resize(self, x: Tensor, number: int) -> Tensor:
        """From level `number` - 1 to the next, or to the frame: a `fusion.Resize`."""
        rows, columns = self.steps[number - 1]
        x = x[..., rows, :] if isinstance(rows, slice) else rows.to(x) @ x
        return x[..., columns] if isinstance(columns, slice) else x @ columns.to(x).mT


@lru_cache(maxsize=64)
def _axis(
    part: Span, outer: int, sides: tuple[int, ...], convolutions: tuple[int, ...]
) -> tuple[list[Span], list[Step]]:
    """Of one axis: what is read of each level, and the steps between them."""
    spans: list[Span] = [part]
    steps: list[Step] = []
    for (fine, coarse), depth in zip(pairwise([outer, *reversed(sides)]), reversed(convolutions), strict=True):
        first, last = spans[-1] if coarse == fine else bilinear_taps(coarse, fine).span(*spans[-1])
        read = max(0, first - depth), min(coarse, last + depth)  # a convolution reads a neighbor
        if coarse == fine:
            steps.append(slice(first - read[0], last - read[0]))
        else:
            steps.append(bilinear_matrix(coarse, fine)[slice(*spans[-1]), slice(*read)])
        spans.append(read)
    return spans[:0:-1], steps[::-1]
