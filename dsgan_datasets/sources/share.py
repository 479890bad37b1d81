"""Who gets which samples: one order of an epoch, for any number of ranks and workers.

An epoch has positions 0, 1, 2, … Global batch g holds the positions gB … gB + B - 1. Of it rank r of R takes its slice
of b = B / R, which the workers of its DataLoader load in items of u samples: worker w of W makes the items i₀ + w,
i₀ + w + W, …, where i₀ items were delivered before. So a training that stops after k global batches continues at
position kB, whatever R, W and u are then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from types import FrameType

import torch.distributed as dist
from torch.utils.data import get_worker_info


@dataclass(frozen=True)
class Share:
    """The samples of one consumer: a rank, or a DataLoader worker of a rank.

    Args:
        rank, world_size: r of R.
        worker, workers: w of W; (0, 1) without workers.
        global_batch: B; a multiple of R.
        item: u, the samples of one item of a DataLoader; divides b = B / R. None: b.
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
            unit = self.world_size * self.group
            nearest = -(-self.global_batch // unit) * unit
            raise ValueError(
                f"each of {self.world_size} ranks takes {b} of the global_batch {self.global_batch}, which would tear "
                f"view groups of {self.group}: choose a multiple of {unit}, such as {nearest}"
            )
        if self.workers > 1 and (b % self.per_item or self.per_item % self.group):
            fitting = [u for u in range(self.group, b + 1, self.group) if b % u == 0]
            raise ValueError(
                f"a DataLoader item of {self.per_item} samples must divide the {b} samples that a rank takes of a "
                f"global batch, and hold whole view groups of {self.group}: items of "
                f"{', '.join(map(str, fitting))} do (loader_batch_size)"
            )

    @classmethod
    def here(
        cls,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        global_batch: int | None = None,
        item: int | None = None,
        group: int = 1,
    ) -> Share:
        """The share of this process.

        Args:
            rank, world_size: None asks torch.distributed (one rank if it is not initialized).
            global_batch: None deals out single view groups: rank · worker of all takes every n-th of them.
            item: see `Share`; one view group without a global batch.
            group: see `Share`.
        """
        if rank is None or world_size is None:
            rank, world_size = current_rank() or (0, 1)
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if global_batch is None:
            global_batch, item = world_size * group, group
        return cls(rank, world_size, number, workers, global_batch, item, group)

    @property
    def rank_batch(self) -> int:
        """b, the samples of a global batch that this rank takes."""
        return self.global_batch // self.world_size

    @property
    def per_item(self) -> int:
        """u."""
        return self.item or self.rank_batch

    def positions(
        self, length: int | None, *, batches_done: int = 0, within: int = 0, samples_done: int = 0
    ) -> Iterator[range]:
        """This consumer's positions of an epoch, as consecutive ranges of at most an item.

        Args:
            length: positions of the epoch, see `even_length`; None for no end. A last global batch that is not full
                gives the ranks what lies in it.
            batches_done: global batches that were delivered before this iterator began.
            within: samples that each rank was given of the next global batch before this iterator began.
            samples_done: samples that this very consumer has delivered since.

        Raises:
            ValueError: `within` ends inside an item, and there are several workers.
        """
        b = self.rank_batch
        # One worker makes all items in order: a rank's slice is then one range.
        u = b if self.workers == 1 else self.per_item
        if self.workers == 1:
            first, skip = batches_done, within + samples_done
        else:
            items, rest = divmod(within, u)
            if rest:
                raise ValueError(
                    f"{within} samples of a global batch were delivered, which is not a multiple of the {u} samples "
                    "of a DataLoader item: continue without workers, or with one"
                )
            first, skip = batches_done * (b // u) + items, samples_done
        items, skip = divmod(skip, u)
        for i in count(first + self.worker + items * self.workers, self.workers):
            g, offset = divmod(i * u, b)
            if length is not None and g * self.global_batch >= length:
                return
            start = g * self.global_batch + self.rank * b + offset
            stop = start + u if length is None else min(start + u, length)
            if start + skip < stop:
                yield range(start + skip, stop)
            skip = 0

    def even_length(self, length: int, uneven: str) -> int:
        """Positions of an epoch of `length` samples: "drop" and "pad" round to global batches, "keep" does not.

        Example:
            >>> share = Share(global_batch=4)
            >>> [share.even_length(10, uneven) for uneven in ("drop", "pad", "keep")]
            [8, 12, 10]
        """
        if uneven == "keep":
            return length
        rest = length % self.global_batch
        return length - rest if uneven == "drop" else length + -length % self.global_batch

    def count(self, length: int) -> int:
        """Samples of an epoch of `length` positions that this rank (all its workers together) gets."""
        whole, rest = divmod(length, self.global_batch)
        return whole * self.rank_batch + min(max(rest - self.rank * self.rank_batch, 0), self.rank_batch)


def current_rank() -> tuple[int, int] | None:
    """(rank, world size) of this process; None if torch.distributed is not initialized in it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None


def loader_batch(dataset: object) -> int | None:
    """Samples that the DataLoader which is reading a dataset takes at once; None if none is, or it takes single ones.

    Seen on the stack of calls: a dataset does not know its loader.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.data._utils.fetch":
            asked = frame.f_locals.get("possibly_batched_index")
            is_read = getattr(frame.f_locals.get("self"), "dataset", None) is dataset
            return len(asked) if is_read and isinstance(asked, list) else None
        frame = frame.f_back
    return None


#: Loaders of accelerate that share out among ranks what they read.
_SHARING_LOADERS = ("DataLoaderShard.", "DataLoaderDispatcher.", "IterableDatasetShard.")


def accelerate_is_reading() -> bool:
    """Whether a loader that accelerate prepared is reading: it shares out samples among the ranks itself.

    Seen on the stack of calls, also of a forked worker, whose stack begins as its parent's. `skip_first_batches` of a
    loader that was not prepared shares out nothing.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            code = frame.f_code
            if code.co_qualname.startswith(_SHARING_LOADERS):
                return True
        frame = frame.f_back
    return False
