"""Registered dataset -> datasets of records: a stream, a finite list, and a stream mixed with real data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from types import FrameType
from typing import Any, overload

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset, lookup
from dsgan_datasets.checks import position
from dsgan_datasets.sources.datasets import SourceStream
from dsgan_datasets.sources.streaming import Iteration


class RecordStream(SourceStream[Record]):
    """Records of a registered dataset, whose samples are generated in batches ahead of the consumer.

    Ranks and DataLoader workers share the records as in `DSGANIterableDataset`; view groups stay together. `ResumeHook`
    sets the global batch (SOLVER.IMS_PER_BATCH), so that the order is the same for any number of ranks and workers.

    Args:
        dataset: name of a registered dataset.
        length: samples that an epoch has, over all ranks; of several ranks all get as many, the rest is left out. None:
            without end, which is what Detectron2's trainers want.
        start: number of the first sample.

    Raises:
        ValueError: an argument out of range, or a dataset that has an end; while iterating, view groups that several
            workers of a loader of single records would tear.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> dataset = register("stream", "demo-faces", device="cpu")
        >>> [record["image_id"] for record in RecordStream("stream", length=3)]
        [0, 1, 2]
    """

    def __init__(self, dataset: str, *, length: int | None = None, start: int = 0) -> None:
        self.registered = _endless(dataset)
        super().__init__(self.registered.source, seed=self.registered.seed, length=length, start=start)

    def __iter__(self) -> Iterator[Record]:
        """Records of this consumer.

        Raises:
            ValueError: an evaluator of Detectron2 lists a stream without end.
        """
        if self.length is None and caller_in("detectron2.evaluation", "detectron2.data.datasets"):
            raise ValueError(no_end(self.registered.name))
        self._check_groups()
        with self._iteration() as iteration:
            for record in self._records(iteration):
                self._deliver(iteration)
                yield record

    def __len__(self) -> int:
        """Records that this rank sees in an epoch; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError(no_end(self.registered.name))
        return super().__len__()

    def _records(self, iteration: Iteration) -> Iterator[Record]:
        for numbers, batch in self._numbered(iteration):
            self.registered.keep(numbers, batch)
            yield from map(self.registered.record, numbers)

    def _check_groups(self) -> None:
        worker, item = get_worker_info(), self.loader_batch_size
        if worker is not None and worker.num_workers > 1 and item is not None and item % self.group:
            raise ValueError(
                f"{self.registered.name!r} has view groups of {self.group}, but this loader takes {item} record(s) at "
                f"a time from each of {worker.num_workers} workers, which would tear them: set DATALOADER.NUM_WORKERS "
                "to 0 or 1, or DATALOADER.ASPECT_RATIO_GROUPING to False with a batch of whole groups"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.source = self.registered.source  # that of this process


class MixedStream(RecordStream):
    """Generated and real records in turn, in a stated ratio, without end.

    Records have one order, whatever the number of ranks and workers: lane l of global batch g is generated if
    floor((g + 1) · f + l / B) > floor(g · f + l / B). So the first g batches hold floor(g · B · f) generated records,
    and what any lane has seen keeps the ratio too, as closely as whole numbers can. The real records are shuffled anew
    in each epoch, and each is seen once before any is seen twice. Generated samples are made in batches all the same.

    Args:
        dataset: name of a registered dataset, without view groups.
        real: records of the real data; anything with a length and integer indices.
        generated_fraction: share f of generated records, 0 < f < 1.
        seed: 0 … 2^64-1, of the shuffling.

    Raises:
        ValueError: the recipe of the dataset has view groups, which single real records would tear.
    """

    def __init__(self, dataset: str, real: Sequence[Record], *, generated_fraction: float, seed: int = 0) -> None:
        super().__init__(dataset)
        if self.group > 1:
            raise ValueError(
                f"{dataset!r} has view groups of {self.group}, which a mixture with single real records would tear: "
                "register it with group_size=1, or name both datasets in DATASETS.TRAIN"
            )
        self.real = real
        # 0.1 is meant as one tenth, not as the nearest binary fraction.
        self.generated_fraction = Fraction(generated_fraction).limit_denominator(1_000_000)
        self.mixing_seed = seed

    def _records(self, iteration: Iteration) -> Iterator[Record]:
        generated = super()._records(iteration)
        place_of = self._places(iteration)
        shuffled = lru_cache(maxsize=2)(self._shuffled)
        for place in iteration.positions():
            is_generated, number = place_of(place)
            if is_generated:
                yield next(generated)
            else:
                epoch, which = divmod(number, len(self.real))
                yield self.real[int(shuffled(epoch)[which])]

    def _numbers(self, iteration: Iteration) -> Iterator[int]:
        """Numbers of the generated samples among the positions that are left."""
        place_of = self._places(iteration)
        places = map(place_of, iteration.positions())
        return (number for is_generated, number in places if is_generated)

    def _places(self, iteration: Iteration) -> Callable[[int], tuple[bool, int]]:
        """A function: position -> (whether it is generated, its number among the generated or the real ones)."""
        size, fraction = iteration.share.global_batch, self.generated_fraction

        def before(g: int, lane: int) -> int:
            """Generated records of a lane in the first g batches."""
            return (g * fraction.numerator * size + lane * fraction.denominator) // (fraction.denominator * size)

        @lru_cache(maxsize=2)
        def lanes(g: int) -> tuple[list[bool], list[int]]:
            """Of global batch g: which lanes are generated, and how many generated records precede each."""
            chosen = [before(g + 1, lane) > before(g, lane) for lane in range(size)]
            first = g * size * fraction.numerator // fraction.denominator
            return chosen, [first, *(first + n for n in np.cumsum(chosen).tolist())]

        def place_of(place: int) -> tuple[bool, int]:
            g, lane = divmod(place, size)
            chosen, generated_before = lanes(g)
            made = generated_before[lane]
            return chosen[lane], made if chosen[lane] else place - made

        return place_of

    def _shuffled(self, epoch: int) -> np.ndarray:
        """The order of the real records in an epoch of theirs."""
        words = np.random.Philox(key=np.array([self.mixing_seed, epoch], dtype=np.uint64)).random_raw(len(self.real))
        return words.argsort(kind="stable")

    def _identity(self) -> dict[str, Any]:
        mixed = {"real": len(self.real), "fraction": str(self.generated_fraction), "mixing_seed": self.mixing_seed}
        return {**super()._identity(), **mixed}


class RecordList(Dataset[Record], Sequence[Record]):
    """The records of a registered dataset with a length, a sequence as Detectron2's ``list[dict]`` is one.

    Looking at records generates nothing; a sample is generated when its picture or its annotations are first read.

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
            raise ValueError(no_end(dataset))
        self.length = self.registered.length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """One record, or a list of some; negative indices count from the end, IndexError beyond it."""
        if isinstance(index, slice):
            return [self.registered.record(number) for number in range(self.length)[index]]
        return self.registered.record(position(index, self.length))


def _endless(name: str) -> RegisteredDataset:
    """The registered dataset of a stream."""
    dataset = lookup(name)
    if dataset.source.num_samples is not None:
        raise ValueError(f"dataset {name!r} is read from shards, which have an end: use RecordList")
    return dataset


def no_end(name: str) -> str:
    """What to say where a dataset without end is to be listed or measured."""
    return (
        f"dataset {name!r} has no end, so that it cannot be listed, evaluated or joined with others: register it with "
        "a length (length: 500) for evaluation, and mix a stream with real data by DSGAN.MIXTURES (register_mixture)"
    )


def refuse_joining(name: str) -> None:
    """ValueError if Detectron2 is about to join this stream with other datasets of DATASETS.TRAIN, which it cannot.

    It would fail with an assertion of PyTorch, or make an endless list. The names are those that
    `get_detection_dataset_dicts` was called with, read off the stack.
    """
    frame = caller_in("detectron2.data.build", function="get_detection_dataset_dicts")
    names = [] if frame is None else frame.f_locals.get("names", [])
    if not isinstance(names, str) and len(names) > 1:
        raise ValueError(
            f"{', '.join(names)} cannot be joined, as {name!r} is a stream without end: name a mixture in "
            "DATASETS.TRAIN (DSGAN.MIXTURES, register_mixture), or register it with a length"
        )


def caller_in(*modules: str, function: str | None = None) -> FrameType | None:
    """The nearest call from one of these modules or packages, and of that function if one is named."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(modules) and function in (None, frame.f_code.co_name):
            return frame
        frame = frame.f_back
    return None
