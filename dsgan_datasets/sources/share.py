"""Who gets which samples: one order of an epoch, for any number of ranks and workers.

An epoch has positions 0, 1, 2, … Global batch g holds the positions gB … gB + B - 1. Of it rank r of R takes its slice
of b = B / R, which the workers of its DataLoader load in items of u samples: worker w of W makes the items i₀ + w,
i₀ + w + W, …, where i₀ items were delivered before. So a training that stops after k global batches continues at
position kB, whatever R, W and u are then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Share:
    """The samples of one consumer: a rank, or a DataLoader worker of a rank.

    Args:
        rank, world_size: r of R.
        worker, workers: w of W; (0, 1) without workers.
        global_batch: B; a multiple of R.
        item: u, the samples of one item of a DataLoader; divides b = B / R.
        group: samples of a view group, which stay together.

    Raises:
        ValueError: numbers that do not divide; the message names some that do.

    Example:
        >>> share = Share(rank=1, world_size=2, global_batch=4)
        >>> [list(positions) for positions in share.positions(10)]
        [[2, 3], [6, 7]]
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1
    global_batch: int = 1
    item: int | None = None
    group: int = 1

    def __post_init__(self) -> None:
        b, rest = divmod(self.global_batch, self.world_size)
        if rest:
            lower, upper = self.global_batch - rest, self.global_batch - rest + self.world_size
            works = f"{lower} or {upper}" if lower else f"{upper}"
            raise ValueError(
                f"global_batch {self.global_batch} does not divide among {self.world_size} ranks: choose {works}"
            )
        if b % self.group:
            works = self.world_size * self.group
            raise ValueError(
                f"each of {self.world_size} ranks takes {b} of the global_batch {self.global_batch}, which would tear "
                f"view groups of {self.group}: choose a multiple of {works}, such as {-(-self.global_batch // works) * works}"
            )
        if self.workers > 1 and (b % self.per_item or self.per_item % self.group):
            fitting = [u for u in range(self.group, b + 1, self.group) if b % u == 0]
            raise ValueError(
                f"a DataLoader item of {self.per_item} samples must divide the {b} samples that a rank takes of a global "
                f"batch, and hold whole view groups of {self.group}: items of {', '.join(map(str, fitting))} do"
            )

    @property
    def rank_batch(self) -> int:
        """b, the samples of a global batch that this rank takes."""
        return self.global_batch // self.world_size

    @property
    def per_item(self) -> int:
        """u."""
        return self.item or self.rank_batch

    def positions(self, length: int | None, *, batches_done: int = 0, samples_done: int = 0) -> Iterator[range]:
        """This consumer's positions of an epoch, as consecutive ranges of at most an item.

        Args:
            length: positions of the epoch, see `even_length`; None for no end. A last global batch that is not full
                gives the ranks what lies in it.
            batches_done: global batches that were delivered before.
            samples_done: samples that this very consumer has delivered after them.
        """
        b = self.rank_batch
        # One worker makes all items in order: a rank's slice is then one range.
        u = self.per_item if self.workers > 1 else b
        first = batches_done * (b // u)
        skip = samples_done
        for i in count(first + self.worker, self.workers):
            g, within = divmod(i * u, b)
            start = g * self.global_batch + self.rank * b + within
            if length is not None and g * self.global_batch >= length:
                return
            stop = start + u if length is None else min(start + u, length)
            if skip >= u:
                skip -= u
                continue
            if start + skip < stop:
                yield range(start + skip, stop)
            skip = 0

    def count(self, length: int) -> int:
        """Samples of an epoch of so many positions that this rank (all its workers together) gets."""
        whole, rest = divmod(length, self.global_batch)
        return whole * self.rank_batch + min(max(rest - self.rank * self.rank_batch, 0), self.rank_batch)
