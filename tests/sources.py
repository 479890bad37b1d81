"""A source of samples that costs nothing, and a DataLoader's order without its processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any
from unittest import mock

import torch
from torch.utils.data import IterableDataset

from dsgan_datasets import LabelSchema, Sample, SampleBatch


class NumberSource:
    """Sample i is a pixel whose index is i, and whose color is that number; a `SampleSource`.

    Attributes:
        asked: numbers that were asked for.
    """

    targets = (LabelSchema(("a", "b")),)
    image_size = (1, 1)
    fingerprint = "0" * 64
    license = "CC0-1.0"
    block = 1
    device = torch.device("cpu")

    def __init__(self, num_samples: int | None = None, group: int = 1) -> None:
        self.num_samples = num_samples
        self.group = group
        self.asked: list[int] = []

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        for index in indices:
            self.asked.append(index)
            image = torch.tensor([index >> shift & 255 for shift in (0, 8, 16)], dtype=torch.uint8).reshape(3, 1, 1)
            mask = torch.zeros(1, 1, dtype=torch.int64)
            yield Sample({"image": image, "mask": mask, "index": torch.tensor(index)})

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        return SampleBatch.stack(list(self.stream(indices)))

    @staticmethod
    def numbers(images: torch.Tensor) -> list[int]:
        """The indices of samples, of their images [N, 3, 1, 1] alone."""
        numbers: list[int] = (images.reshape(-1, 3).long() << torch.tensor([0, 8, 16])).sum(1).tolist()
        return numbers


class Worker:
    """What `get_worker_info` gives in a DataLoader worker."""

    def __init__(self, number: int, workers: int, base_seed: int = 1) -> None:
        self.id, self.num_workers, self.seed = number, workers, base_seed + number


@contextmanager
def as_worker(worker: Worker | None) -> Iterator[None]:
    """A context in which streams believe to be in that worker."""
    with ExitStack() as patches:
        for module in ("share", "streaming", "datasets"):
            patches.enter_context(mock.patch(f"dsgan_datasets.sources.{module}.get_worker_info", lambda: worker))
        yield


def loaded(dataset: Callable[[], IterableDataset[Any]], workers: int, batch_size: int) -> Iterator[list[int]]:
    """The indices of each batch that a DataLoader would give, without its processes.

    Args:
        dataset: gives what is sent to each worker.
        workers: of the DataLoader.
        batch_size: of the DataLoader.
    """
    if not workers:
        rows = iter(dataset())
        while batch := [int(sample.index) for sample in islice(rows, batch_size)]:
            yield batch
        return
    copies = []
    for number in range(workers):
        with as_worker(Worker(number, workers)):
            rows = iter(dataset())
            first = next(rows, None)  # what a worker is asked for begins in it
        copies.append(_with(first, rows))
    while copies:
        for rows in list(copies):
            if batch := [int(sample.index) for sample in islice(rows, batch_size)]:
                yield batch
            else:
                copies.remove(rows)


def _with(first: Any, rows: Iterator[Any]) -> Iterator[Any]:
    if first is not None:
        yield first
        yield from rows
