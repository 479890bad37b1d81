"""Labeled generator -> datasets that a DataLoader understands: a stream, and a map.

Which process makes which index is decided here, and nowhere else.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from dsgan_datasets.checks import integer, position
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.sources.streaming import ResumableStream, Transforms, Uneven, transformed

#: Batches that the generating thread may be ahead of the consumer, unless it is said.
_AHEAD = 2


class DSGANIterableDataset(ResumableStream):
    """A stream of labeled samples, generated ahead of the consumer on a thread.

    Index i belongs to consumer (i − start) mod (world size · workers); consumer c is worker c // world size of rank
    c mod world size. If the recipe has views, whole groups are dealt out instead of single indices. Put it into any
    DataLoader, or iterate it as it is.

    Args:
        labeled: makes the samples.
        seed: 0 … 2^64-1; another seed is another dataset.
        start: first index.
        length: indices an epoch has, over all ranks and workers; None for a stream without end.
        batch_size: samples generated at a time. Only a matter of speed: the samples are the same.
        rank: of this process; None asks torch.distributed when iteration starts (0 if it is not initialized).
        world_size: number of ranks; None likewise.
        transforms: torchvision v2 transforms of (image, mask), given as tv_tensors.Image and tv_tensors.Mask.
        uneven: when `length` does not divide by the world size: "keep" gives some ranks one sample (view group) more,
            "drop" leaves out the last ones, "pad" repeats the first ones. With "keep", ranks that wait for each other
            after every step (DDP) hang at the end of an epoch: use "drop" or "pad" there.
        repeat: make `set_epoch` keep the samples of epoch 0.
        ahead: batches that are generated before they are asked for, at most (None: two); each takes memory.
        share: part of the time that may go into generating, in (0, 1]. With 0.25 the generating thread rests three
            times as long as each batch took (less what it had to wait for the consumer), and what trains on the same
            GPU has it to itself in the meantime.

    Raises:
        ValueError: an argument out of range, or view groups that `start` or `length` cut.
        RuntimeError: at the start of iteration, in a DataLoader worker whose generator is on a GPU.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> dataset = DSGANIterableDataset(labeled, length=16, seed=1)
        >>> batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
        >>> batch.image.shape
        torch.Size([4, 3, 64, 64])
    """

    def __init__(
        self,
        labeled: LabeledGenerator,
        *,
        seed: int = 0,
        start: int = 0,
        length: int | None = None,
        batch_size: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
        transforms: Transforms | None = None,
        uneven: Uneven = "keep",
        repeat: bool = False,
        ahead: int | None = None,
        share: float = 1.0,
    ) -> None:
        super().__init__(rank=rank, world_size=world_size, transforms=transforms, uneven=uneven)
        _check_labeled(labeled)
        start = integer("start", start, 0, MAX_INDEX)
        length = None if length is None else integer("length", length, 1, MAX_INDEX - start + 1)
        views = labeled.recipe.group_size
        if start % views or (length or 0) % views:
            raise ValueError(f"start {start} and length {length} must be multiples of the recipe's views, {views}")
        self.labeled = labeled
        self.seed = check_seed(seed)
        self.start = start
        self.length = length
        self.batch_size = integer("batch_size", batch_size, 1)
        self.repeat = repeat
        self.ahead = None if ahead is None else integer("ahead", ahead, 1)
        self.share = _checked_share(share)

    def __iter__(self) -> Iterator[Sample]:
        """Samples of this consumer, one by one."""
        for batch in self._remaining():
            for sample in batch.rows():
                self._consumed += 1
                yield sample if self.transforms is None else transformed(sample, self.transforms)

    def batches(self) -> Iterator[SampleBatch]:
        """Whole batches of `batch_size` samples (the last may be shorter), as they were generated.

        Raises:
            ValueError: the dataset has transforms, which are defined on single samples.
        """
        if self.transforms is not None:
            raise ValueError(
                "batches() gives samples as generated; apply transforms to the batch, or iterate the dataset"
            )
        for batch in self._remaining():
            self._consumed += batch.num_samples
            yield batch

    def _remaining(self) -> Iterator[SampleBatch]:
        """What this consumer has not yet handed out of its epoch."""
        refuse_cuda_in_worker(self.labeled.device)
        with self._resumed() as consumed:
            indices = self._indices(consumed)
            yield from generated_ahead(
                self.labeled, indices, self.seed, self.batch_size, ahead=self.ahead, share=self.share
            )

    def _indices(self, consumed: int) -> Iterator[int]:
        """Indices of this consumer in this epoch, without the first `consumed` ones."""
        consumer, consumers = self._consumer()
        views = self.labeled.recipe.group_size
        if self.length is None:
            first, length = self.start, MAX_INDEX + 1 - self.start
            groups = range(consumer, length // views, consumers)
        else:
            first, length = self.start + (0 if self.repeat else int(self._epoch) * self.length), self.length
            groups = range(consumer, self._even_groups(), consumers)
        skipped, within = divmod(consumed, views)
        positions = (group * views + view for group in groups[skipped:] for view in range(views))
        return (first + position % length for position in islice(positions, within, None))

    def _even_groups(self) -> int:
        """View groups of the epoch after dropping or padding."""
        assert self.length is not None
        return self._evened(self.length // self.labeled.recipe.group_size)

    def __len__(self) -> int:
        """Samples that this rank sees in an epoch; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError("this stream has no end; give it a length")
        rank, world_size = self._rank_and_world_size()
        return len(range(rank, self._even_groups(), world_size)) * self.labeled.recipe.group_size

    def set_epoch(self, epoch: int) -> None:
        """Go to the indices start + epoch · length …; takes effect when iteration starts, in living workers too.

        Without a length there is one endless epoch and nothing changes.
        """
        super().set_epoch(epoch)

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.labeled.fingerprint,
            "seed": self.seed,
            "start": self.start,
            "length": self.length,
            "uneven": self.uneven,
            "repeat": self.repeat,
            "consumers": self._consumer()[1],
        }


class DSGANDataset(Dataset[Sample]):
    """A finite map-style view: index -> labeled sample, the same whatever the order.

    Asking for whole batches (`__getitems__`, as the stock DataLoader does) is faster than asking sample by sample: a
    GPU always computes `recipe.compute_batch` samples, and a CPU computes them side by side.

    Args:
        labeled: makes the samples.
        length: number of samples.
        seed: 0 … 2^64-1; another seed is another dataset.
        transforms: torchvision v2 transforms of (image, mask), given as tv_tensors.Image and tv_tensors.Mask.

    Raises:
        ValueError: length below 1 or seed out of range.

    Example:
        >>> dataset = DSGANDataset(LabeledGenerator.from_pretrained("demo-faces", device="cpu"), 100)
        >>> dataset[-1].index
        tensor(99)
    """

    def __init__(
        self, labeled: LabeledGenerator, length: int, *, seed: int = 0, transforms: Transforms | None = None
    ) -> None:
        _check_labeled(labeled)
        self.labeled = labeled
        self.length = integer("length", length, 1, MAX_INDEX)
        self.seed = check_seed(seed)
        self.transforms = transforms

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """One sample; negative indices count from the end, IndexError beyond it."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, generated together."""
        refuse_cuda_in_worker(self.labeled.device)
        samples = self.labeled.generate([position(i, self.length) for i in indices], seed=self.seed).rows()
        return [s if self.transforms is None else transformed(s, self.transforms) for s in samples]


def generated_ahead(
    labeled: LabeledGenerator,
    indices: Iterable[int],
    seed: int,
    batch_size: int,
    *,
    ahead: int | None = None,
    share: float = 1.0,
) -> Iterator[SampleBatch]:
    """Batches of samples, in order, generated on a thread (and a CUDA stream) of their own while the consumer works.

    Args:
        labeled: makes the samples.
        indices: of the samples.
        seed: of the samples.
        batch_size: samples a batch.
        ahead: batches that wait for the consumer, at most.
        share: part of the time that may go into generating, in (0, 1].
    """
    process = os.getpid()
    samples = labeled.stream(indices, seed=seed)
    cuda_stream: torch.cuda.Stream | None = None
    if labeled.device.type == "cuda":
        cuda_stream = torch.cuda.Stream(labeled.device)
        cuda_stream.wait_stream(torch.cuda.current_stream(labeled.device))

    rest = _Rest(share)

    def produce() -> tuple[SampleBatch | None, torch.cuda.Event | None]:
        with rest.before_work(), nullcontext() if cuda_stream is None else torch.cuda.stream(cuda_stream):
            rows = list(islice(samples, batch_size))
            batch = SampleBatch.stack(rows) if rows else None
            done = None if cuda_stream is None else cuda_stream.record_event()
            if done is not None and share < 1:
                done.synchronize()  # the time that the GPU took is what counts
            return batch, done

    with ThreadPoolExecutor(1, thread_name_prefix="dsgan-generate") as thread:
        pending = deque(thread.submit(produce) for _ in range(ahead or _AHEAD))
        try:
            while True:
                if os.getpid() != process:
                    raise RuntimeError(
                        "this process was forked from one with an open stream: start another iteration in it"
                    )
                batch, done = pending.popleft().result()
                if batch is None:
                    return
                pending.append(thread.submit(produce))
                if done is not None:
                    _hand_over(batch, done)
                yield batch
        finally:
            rest.end()
            for future in pending:
                future.cancel()


class _Rest:
    """Pauses between pieces of work, so that these take a share of the time."""

    def __init__(self, share: float) -> None:
        self._pause_per_second = 1 / _checked_share(share) - 1
        self._until = 0.0
        self._ended = threading.Event()

    @contextmanager
    def before_work(self) -> Iterator[None]:
        """Wait until the pause for the last piece of work is over, and time the next one."""
        if (pause := self._until - time.monotonic()) > 0:
            self._ended.wait(pause)
        start = time.monotonic()
        yield
        now = time.monotonic()
        self._until = now + (now - start) * self._pause_per_second

    def end(self) -> None:
        """No more pauses, not even the one that is being made."""
        self._ended.set()


def _checked_share(share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"share must be a number above 0 and up to 1, not {share!r}")
    return float(share)


def _hand_over(batch: SampleBatch, done: torch.cuda.Event) -> None:
    """Make the consumer's CUDA stream wait for the batch, and the allocator for the consumer."""
    for tensor in batch.values():
        if tensor.is_cuda:
            consumer = torch.cuda.current_stream(tensor.device)
            consumer.wait_event(done)
            tensor.record_stream(consumer)


def _check_labeled(labeled: LabeledGenerator) -> None:
    if not isinstance(labeled, LabeledGenerator):
        raise ValueError(f"expected a LabeledGenerator, got {labeled!r:.80}: use LabeledGenerator.from_pretrained(…)")


def refuse_cuda_in_worker(device: torch.device) -> None:
    """RuntimeError in a DataLoader worker, if the generator is, or would be, on a GPU."""
    if device.type == "cuda" and get_worker_info() is not None:
        raise RuntimeError(
            "the generator is on a GPU, and CUDA cannot be used in a DataLoader worker: set num_workers=0 (samples are "
            "generated ahead on a thread of their own), or load the checkpoint with device='cpu'"
        )
