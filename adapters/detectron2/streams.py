"""Registered dataset -> datasets of records: a stream, a finite list, and a stream mixed with real data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dsgan_datasets.adapters.detectron2.registered import Record, lookup
from dsgan_datasets.checks import integer
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.sources.datasets import generated_ahead
from dsgan_datasets.sources.local import LabeledSource
from dsgan_datasets.sources.resuming import resumed_worker


class RecordStream(IterableDataset[Record]):
    """Records of a registered dataset, whose samples are generated in batches ahead of the consumer.

    Ranks and DataLoader workers share the indices: consumer c of C has c, c + C, c + 2C, …, and worker w of rank r is
    consumer w · world size + r.

    Args:
        dataset: name of a registered dataset.
        length: indices that an epoch has, over all ranks; those that do not divide by the world size are dropped, so
            that ranks which wait for each other end together. None: no end, which is what Detectron2's trainers want.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> dataset = register("stream", "demo-faces", device="cpu")
        >>> [record["image_id"] for record in RecordStream("stream", length=3)]
        [0, 1, 2]
    """

    def __init__(self, dataset: str, *, length: int | None = None) -> None:
        self.registered = lookup(dataset)
        if not isinstance(self.registered.source, LabeledSource):
            raise ValueError(f"dataset {dataset!r} is read from shards, which are no stream: use RecordList")
        self._source = self.registered.source
        self.length = None if length is None else integer("length", length, 1, MAX_INDEX + 1)
        self._sent_by: tuple[int, int] | None = None
        self._batches_done = 0
        self._batch_size = 1

    def resume(self, batches: int, batch_size: int) -> None:
        """Continue where a DataLoader of as many workers stood after `batches` batches of `batch_size` records."""
        self._batches_done = integer("batches", batches, 0)
        self._batch_size = integer("batch_size", batch_size, 1)

    def __iter__(self) -> Iterator[Record]:
        """Records of this consumer."""
        return self._records(*self._share())

    def _share(self) -> tuple[int, int, int]:
        """(number of this consumer, number of consumers, records that this one has given before)."""
        rank, world_size = self._rank_and_world_size()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        former, batches = resumed_worker(worker, workers, self._batches_done)
        return former * world_size + rank, world_size * workers, batches * self._batch_size

    def _rank_and_world_size(self) -> tuple[int, int]:
        return self._sent_by or (comm.get_rank(), comm.get_world_size())

    def _records(self, consumer: int, consumers: int, done: int) -> Iterator[Record]:
        dataset = self.registered
        _, world_size = self._rank_and_world_size()
        end = MAX_INDEX + 1 if self.length is None else self.length - self.length % world_size
        labeled = self._source.labeled
        indices = range(consumer, end, consumers)[done:]
        for batch in generated_ahead(labeled, indices, dataset.seed, labeled.recipe.compute_batch):
            for index in dataset.keep(batch):
                yield dataset.record(index)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker has no process group: it is told the rank of the process that sent it here."""
        # Without a process group there may be one later: the stream may be on its way to the ranks themselves.
        here = self._rank_and_world_size() if comm.get_world_size() > 1 else self._sent_by
        return {**self.__dict__, "_sent_by": here}


class MixedStream(RecordStream):
    """Generated and real records in turn, in a stated ratio, without end.

    Of its first m records, consumer c of C has floor(m · f + c / C) generated: every run of records holds the ratio as
    closely as whole numbers can, and so do all consumers together, because the floors add up to floor(C · m · f). The
    real records are shuffled anew in each epoch, and each is seen once before any is seen twice, over all ranks and
    workers. Generated samples are made in batches all the same.

    Args:
        dataset: name of a registered dataset.
        real: records of the real data; anything with a length and integer indices.
        generated_fraction: share f of generated records, 0 < f < 1.
        seed: of the shuffling.
    """

    def __init__(self, dataset: str, real: Sequence[Record], *, generated_fraction: float, seed: int = 0) -> None:
        super().__init__(dataset)
        self.real = real
        # 0.1 is meant as one tenth, not as the nearest binary fraction.
        self.generated_fraction = Fraction(generated_fraction).limit_denominator(1_000_000)
        self.seed = seed

    def _records(self, consumer: int, consumers: int, done: int) -> Iterator[Record]:
        def made_before(m: int) -> int:
            return int(m * self.generated_fraction + Fraction(consumer, consumers))

        made = made_before(done)
        generated = super()._records(consumer, consumers, made)
        real = self._shuffled(range(consumer, MAX_INDEX + 1, consumers)[done - made :])
        for m in count(done):
            yield next(generated if made_before(m + 1) > made_before(m) else real)

    def _shuffled(self, positions: range) -> Iterator[Record]:
        """The real records at some positions of the endless sequence of shuffled epochs."""
        shuffled = -1, np.empty(0, dtype=np.int64)
        for position in positions:
            epoch, place = divmod(position, len(self.real))
            if epoch != shuffled[0]:
                words = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)).random_raw(len(self.real))
                shuffled = epoch, words.argsort(kind="stable")
            yield self.real[int(shuffled[1][place])]


class RecordList(Dataset[Record]):
    """The records of a registered dataset with a length; a sample is generated when its record is first read.

    Args:
        dataset: name of a registered dataset.

    Raises:
        ValueError: the dataset has no length.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> dataset = register("list", "demo-faces", length=5, device="cpu")
        >>> records = RecordList("list")
        >>> len(records), records[-1]["image_id"]
        (5, 4)
    """

    def __init__(self, dataset: str) -> None:
        self.registered = lookup(dataset)
        if self.registered.length is None:
            raise ValueError(f"dataset {dataset!r} has no end: register it with a length")
        self.length = self.registered.length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        """One record; negative indices count from the end, IndexError beyond it."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range for a dataset of {self.length} samples")
        return self.registered.record(int(index) % self.length)
