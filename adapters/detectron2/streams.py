"""Registered dataset -> datasets of records: a stream, a finite list, and a stream mixed with real data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from types import FrameType
from typing import Any, overload

from torch.utils.data import Dataset, get_worker_info

from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset, lookup
from dsgan_datasets.checks import position
from dsgan_datasets.sources.datasets import SourceStream
from dsgan_datasets.sources.mixture import Mixture


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
        if self.length is None:
            _refuse_listing(self.registered.name)
        self._check_groups()
        return super().__iter__()

    def __len__(self) -> int:
        """Records that this rank sees in an epoch; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError(no_end(self.registered.name))
        return super().__len__()

    def _made(self, numbers: Callable[[], Iterator[int]]) -> Generator[Record]:
        for made, batch in self._batches(numbers):
            self.registered.keep(made, batch)
            yield from map(self.registered.record, made)

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


class MixedStream(Mixture):
    """Generated and real records in turn, in a stated ratio, without end: a `Mixture`.

    Args:
        dataset: name of a registered dataset, without view groups.
        real: records of the real data; anything with a length and integer indices.
        generated_fraction: share f of generated records, 0 < f < 1.
        seed: 0 … 2^64-1, of the shuffling.

    Raises:
        ValueError: the recipe of the dataset has view groups, which single real records would tear.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> _ = register("generated", "demo-faces", device="cpu")
        >>> photos = [{"file_name": "1.jpg", "sem_seg_file_name": "1.png"}]
        >>> stream = MixedStream("generated", photos, generated_fraction=0.75)
        >>> [len(record) for record in itertools.islice(stream, 4)]
        [2, 5, 5, 5]
    """

    def __init__(self, dataset: str, real: Sequence[Record], *, generated_fraction: float, seed: int = 0) -> None:
        generated = RecordStream(dataset)
        if generated.group > 1:
            raise ValueError(
                f"{dataset!r} has view groups of {generated.group}, which a mixture with single real records would "
                "tear: register it with group_size=1, or name both datasets in DATASETS.TRAIN"
            )
        fraction = Fraction(generated_fraction).limit_denominator(1_000_000)
        super().__init__([generated, real], [fraction, 1 - fraction], seed=seed)
        self.registered = generated.registered

    def __iter__(self) -> Iterator[Record]:
        """Records of this consumer; ValueError if an evaluator of Detectron2 lists them, as they have no end."""
        _refuse_listing(self.registered.name)
        return super().__iter__()


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


def _refuse_listing(name: str) -> None:
    """ValueError if an evaluator of Detectron2 is about to list a stream without end."""
    if caller_in("detectron2.evaluation", "detectron2.data.datasets"):
        raise ValueError(no_end(name))


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
