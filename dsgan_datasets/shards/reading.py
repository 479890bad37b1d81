"""Shards -> datasets: a stream (near-sequential reading, as training wants it) and a map (any record, at once)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from dsgan_datasets._deprecation import renamed_keywords
from dsgan_datasets.checks import integer
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards.locations import Locations, ShardSet
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.datasets import DSGANDataset, SampleStream
from dsgan_datasets.sources.streaming import Uneven
from dsgan_datasets.sources.transforming import Transforms

__all__ = ["Locations", "ShardDataset", "ShardMapDataset", "ShardSet"]


class _OfShards:
    """What datasets show of their shards."""

    source: ShardSource

    @property
    def shards(self) -> ShardSet:
        """The shards, as their manifests describe them."""
        return self.source.shards

    @property
    def schema(self) -> Any:
        """Classes of the masks; ValueError if there are none."""
        return self.source.schema

    @property
    def license(self) -> str:
        """Of the samples."""
        return self.source.license

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.source.image_size


class ShardMapDataset(_OfShards, DSGANDataset):
    """Map-style: number -> sample, read by the offsets in the manifest.

    Args:
        path_or_urls: see `ShardSet`.
        transforms: torchvision v2 transforms of a dict of tv_tensors, see `DSGANIterableDataset`.
        extras: fields that the samples must have: "uncertainty", "latent". What is stored is always read.

    Raises:
        ShardError, OSError: as `ShardSet`; when a sample is read, if its shard is missing or damaged.
        ValueError: the shards do not hold an extra.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(10, 14), samples_per_shard=2)
        >>> dataset = ShardMapDataset(tmp)
        >>> len(dataset), dataset[-1].index, torch.equal(dataset[0].image, labeled.generate([10]).image[0])
        (4, tensor(13), True)
    """

    source: ShardSource

    def __init__(
        self, path_or_urls: Locations, *, transforms: Transforms | None = None, extras: Collection[str] = ()
    ) -> None:
        source = ShardSource(path_or_urls, whole_files=False)
        source.check_extras(extras)
        super().__init__(source, transforms=transforms, extras=extras)


class ShardDataset(_OfShards, SampleStream):
    """A stream of the samples in shards; they are those that the generator gave.

    Ranks, workers, global batches, epochs and resuming are as in `DSGANIterableDataset`: the order of an epoch depends
    on neither ranks nor workers, and a resumed stream reads nothing of what was delivered before.

    With `shuffle`, shards come in another order every epoch, and samples change places inside windows of this many
    samples of that order; both depend on seed and epoch alone. View groups stay together if the shards hold whole ones.

    Nothing that a tar or a URL says is executed: there are no "pipe:" URLs and no pickles.

    Args:
        path_or_urls: see `ShardSet`.
        shuffle: samples of a shuffling window; 0 keeps the order. As many records are held in memory, not decoded.
        seed: 0 … 2^64-1, of the shuffling.
        rank, world_size, split_by_rank, global_batch, loader_batch_size, uneven: see `DSGANIterableDataset`.
        same_epoch: give every epoch the order of epoch 0.
        check_hashes: read each shard once in full before its first sample, and compare its SHA-256.
        transforms: torchvision v2 transforms of a dict of tv_tensors, see `DSGANIterableDataset`.
        extras: fields that the samples must have: "uncertainty", "latent". What is stored is always read.

    Raises:
        ShardError, OSError: as `ShardSet`; while iterating, if a shard is missing or damaged.
        ValueError: an argument out of range, or the shards do not hold an extra.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> _ = write_shards(labeled, tmp, range(5), samples_per_shard=2)
        >>> [int(sample.index) for sample in ShardDataset(tmp)]
        [0, 1, 2, 3, 4]
    """

    source: ShardSource

    @renamed_keywords(repeat="same_epoch")
    def __init__(
        self,
        path_or_urls: Locations,
        *,
        shuffle: int = 0,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        split_by_rank: bool | None = None,
        global_batch: int | None = None,
        loader_batch_size: int | None = None,
        uneven: Uneven | None = None,
        same_epoch: bool = False,
        check_hashes: bool = False,
        transforms: Transforms | None = None,
        extras: Collection[str] = (),
    ) -> None:
        self.shuffle = integer("shuffle", shuffle, 0)
        source = ShardSource(path_or_urls, check_hashes=check_hashes, read_together=max(self.shuffle, 1))
        source.check_extras(extras)
        super().__init__(
            source,
            seed=seed,
            rank=rank,
            world_size=world_size,
            split_by_rank=split_by_rank,
            global_batch=global_batch,
            loader_batch_size=loader_batch_size,
            uneven=uneven,
            same_epoch=same_epoch,
            transforms=transforms,
            extras=extras,
        )

    @property
    def check_hashes(self) -> bool:
        """Whether SHA-256 digests are compared."""
        return self.source.check_hashes

    def _samples(self, numbers: Callable[[], Iterator[int]]) -> Generator[Sample]:
        # Without a thread: reading and decoding leave nothing to wait for, and workers do it side by side.
        yield from self.source.stream(numbers(), extras=self.extras)

    def _numbering(self, epoch: int) -> Callable[[int], int]:
        length = len(self.shards)
        if not self.shuffle:
            return lambda position: position % length
        order = ShuffledOrder(
            [place.shard.count for place in self.shards.places],
            window=self.shuffle,
            seed=self.seed,
            epoch=0 if self.same_epoch else epoch,
            group=self.source.group,
        )
        return lambda position: order.number(position % length)

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprints": list(self.shards.fingerprints),
            "plans": list(self.shards.digests),
            "samples": len(self.shards),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "uneven": self.uneven,
            "same_epoch": self.same_epoch,
        }


class ShuffledOrder:
    """Position in an epoch -> number of a sample; any position at once.

    The shards are permuted, then the view groups inside of windows of that order.

    Args:
        counts: samples of each shard.
        window: samples of a window (at least one view group).
        seed, epoch: decide the permutations.
        group: samples of a view group; divides all counts.

    Example:
        >>> order = ShuffledOrder([4, 4], window=4, seed=0, epoch=0)
        >>> sorted(order.number(position) for position in range(8))
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(self, counts: list[int], *, window: int, seed: int, epoch: int, group: int = 1) -> None:
        self._key = np.array([seed, epoch], dtype=np.uint64)
        self._group = group
        self._units_at_once = max(window // group, 1)
        self._units = sum(counts) // group
        firsts = [0, *accumulate(counts)]
        shards = self._permutation(0, len(counts)).tolist()
        # Where each shard begins in the epoch, and what to add there to get the number.
        self._begins = np.array([0, *accumulate(counts[shard] for shard in shards)][:-1], dtype=np.int64)
        self._shifts = np.array([firsts[shard] for shard in shards], dtype=np.int64) - self._begins
        self._window = lru_cache(maxsize=2)(self._numbers_of_window)

    def number(self, position: int) -> int:
        """Number of the sample at a position."""
        unit, member = divmod(position, self._group)
        window, place = divmod(unit, self._units_at_once)
        return int(self._window(window)[place]) + member

    def _numbers_of_window(self, window: int) -> np.ndarray:
        """Numbers of the first samples of the view groups in a window, in their order."""
        first = window * self._units_at_once
        units = min(self._units_at_once, self._units - first)
        positions = (first + self._permutation(window + 1, units)) * self._group
        shard = np.searchsorted(self._begins, positions, side="right") - 1
        numbers: np.ndarray = positions + self._shifts[shard]
        return numbers

    def _permutation(self, stream: int, length: int) -> np.ndarray:
        """One of the permutations that seed and epoch decide."""
        words = np.random.Philox(key=self._key, counter=np.array([0, stream, 0, 0], dtype=np.uint64))
        return words.random_raw(length).argsort(kind="stable")
