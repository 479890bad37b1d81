"""Generated samples that a student sees several times, where making one takes longer than learning from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

#: Samples held for further use.
_RING = 2048


def reused(
    samples: Iterator[tuple[Tensor, ...]], batch_size: int, uses: int, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    """Batches in which each generated sample is seen `uses` times on average.

    A stream that shows each sample once would keep the student waiting: a ring holds the newest samples, and batches
    are drawn from it.

    Args:
        samples: batches without end of `batch_size` // `uses` samples: tensors with a batch axis.
        batch_size: of what is returned.
        uses: 1 hands the samples on as they are.
        seed: of the choice.

    Example:
        >>> numbers = ((torch.tensor([2 * i, 2 * i + 1]),) for i in itertools.count())
        >>> batch = next(reused(numbers, batch_size=4, uses=2, seed=0))
        >>> batch[0].shape
        torch.Size([4])
    """
    if uses == 1:
        yield from samples
        return
    random = torch.Generator().manual_seed(seed)
    ring: list[tuple[Tensor, ...]] = []
    for place in itertools.count():
        ring.extend(zip(*next(samples), strict=True))
        del ring[:-_RING]
        if place < uses:  # a first stock
            continue
        rows = torch.randint(len(ring), (batch_size,), generator=random).tolist()
        yield tuple(torch.stack(field) for field in zip(*(ring[row] for row in rows), strict=True))
