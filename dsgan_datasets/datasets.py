"""Labelled generator -> datasets that a DataLoader understands: a stream, and a map.

Which process makes which index is decided here, and nowhere else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dsgan_datasets.checks import integer, position
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.samples import Sample, SampleBatch

Transforms = Callable[..., Any]
Uneven = Literal["drop", "pad", "keep"]

#: Batches that the generating thread may be ahead of the consumer.
_AHEAD = 2


class DSGANIterableDataset(IterableDataset[Sample]):
    """A stream of labelled samples, generated ahead of the consumer on a thread.

    Index i belongs to consumer (i − start) mod (world size · workers); consumer c is worker c // world size of rank
    c mod world size. If the recipe has views, whole groups are dealt out instead of single indices. Put it into any
    DataLoader, or iterate it as it is.

    Args:
        labeled: makes the samples.
        seed: 0 … 2^64-1; another seed is another dataset.
        start: first index.
        length: indices an epoch has, over all ranks and workers; None for a stream without end.
        batch_size: samples generated at a time. Only a matter of speed: the samples are the same.
        rank: of this process; None asks torch.distributed when iteration starts (0 if it is not initialised).
        world_size: number of ranks; None likewise.
        transforms: torchvision v2 transforms of (image, mask), given as tv_tensors.Image and tv_tensors.Mask.
        uneven: when `length` does not divide by the world size: "keep" gives some ranks one sample (view group) more,
            "drop" leaves out the last ones, "pad" repeats the first ones. With "keep", ranks that wait for each other
            after every step (DDP) hang at the end of an epoch: use "drop" or "pad" there.
        repeat: make `set_epoch` keep the samples of epoch 0.

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
    ) -> None:
        if uneven not in ("drop", "pad", "keep"):
            raise ValueError(f'uneven must be "drop", "pad" or "keep", not {uneven!r}')
        _check_labeled(labeled)
        start = integer("start", start, 0, MAX_INDEX)
        length = None if length is None else integer("length", length, 1, MAX_INDEX - start + 1)
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        if world_size is not None:
            world_size = integer("world_size", world_size, 1)
            rank = integer("rank", rank, 0, world_size - 1)
        views = labeled.recipe.views
        if start % views or (length or 0) % views:
            raise ValueError(f"start {start} and length {length} must be multiples of the recipe's views, {views}")
        self.labeled = labeled
        self.seed = check_seed(seed)
        self.start = start
        self.length = length
        self.batch_size = integer("batch_size", batch_size, 1)
        self.rank = rank
        self.world_size = world_size
        self.transforms = transforms
        self.uneven: Uneven = uneven
        self.repeat = repeat
        # In shared memory, so that set_epoch reaches workers that live longer than an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._running_epoch = 0
        self._running = False
        self._consumed = 0  # of the epoch that runs, or ran last
        self._resume_at: int | None = None

    def __iter__(self) -> Iterator[Sample]:
        """Samples of this consumer, one by one."""
        for batch in self._remaining():
            for sample in batch.rows():
                self._consumed += 1
                yield sample if self.transforms is None else _transformed(sample, self.transforms)

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
        self._consumed, self._resume_at = self._resume_at or 0, None
        self._running_epoch, self._running = int(self._epoch), True
        try:
            yield from generated_ahead(self.labeled, self._indices(self._consumed), self.seed, self.batch_size)
        finally:  # at the end, and where the consumer leaves early
            self._running = False

    def _indices(self, consumed: int) -> Iterator[int]:
        """Indices of this consumer in this epoch, without the first `consumed` ones."""
        consumer, consumers = self._consumer()
        views = self.labeled.recipe.views
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
        """View groups of the epoch after dropping or padding, so that all ranks get the same number of samples."""
        assert self.length is not None
        groups, (_, world_size) = self.length // self.labeled.recipe.views, self._rank_and_world_size()
        if self.uneven == "keep":
            return groups
        if self.uneven == "drop":
            return groups - groups % world_size
        return groups + -groups % world_size

    def _consumer(self) -> tuple[int, int]:
        """(number of this consumer, number of consumers)."""
        rank, world_size = self._rank_and_world_size()
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Rank fastest: which indices a rank sees does not depend on how many workers it has.
        return number * world_size + rank, world_size * workers

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        return current_rank() or (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker has no process group: it is told the rank of the process that sent it here."""
        state = self.__dict__.copy()
        if current_rank() is not None:
            state["rank"], state["world_size"] = self._rank_and_world_size()
        return state

    def __len__(self) -> int:
        """Samples that this rank sees in an epoch; TypeError for a stream without end."""
        if self.length is None:
            raise TypeError("this stream has no end; give it a length")
        rank, world_size = self._rank_and_world_size()
        return len(range(rank, self._even_groups(), world_size)) * self.labeled.recipe.views

    def set_epoch(self, epoch: int) -> None:
        """Go to the indices start + epoch · length …; takes effect when iteration starts, in living workers too.

        Without a length there is one endless epoch and nothing changes.
        """
        self._epoch.fill_(integer("epoch", epoch, 0, MAX_INDEX))

    def state_dict(self) -> dict[str, Any]:
        """Where this consumer is: samples handed out (not those generated ahead), and what they belong to."""
        epoch = int(self._epoch)
        if self._resume_at is not None:
            consumed = self._resume_at
        elif self._running:
            epoch, consumed = self._running_epoch, self._consumed
        else:  # between two epochs: set_epoch may already have named the next one
            consumed = self._consumed if epoch == self._running_epoch else 0
        return {**self._identity(), "epoch": epoch, "consumed": consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, when iteration starts next.

        Raises:
            ValueError: the state belongs to another stream, or is none; the message names the field.
        """
        if not isinstance(state, dict):
            raise ValueError(f"cannot resume: expected the dict of state_dict(), got {type(state).__name__}")
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise ValueError(f"cannot resume: {name} is {here!r} here, but {state.get(name)!r} in the saved state")
        epoch = integer("epoch in the saved state", state.get("epoch"), 0, MAX_INDEX)
        self._resume_at = integer("consumed in the saved state", state.get("consumed"), 0, MAX_INDEX)
        self._epoch.fill_(epoch)

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
    """A finite map-style view: index -> labelled sample, the same whatever the order.

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
        return [s if self.transforms is None else _transformed(s, self.transforms) for s in samples]


def generated_ahead(
    labeled: LabeledGenerator, indices: Iterable[int], seed: int, batch_size: int
) -> Iterator[SampleBatch]:
    """Batches of samples, in order, generated on a thread (and a CUDA stream) of their own while the consumer works."""
    process = os.getpid()
    samples = labeled.stream(indices, seed=seed)
    cuda_stream: torch.cuda.Stream | None = None
    if labeled.device.type == "cuda":
        cuda_stream = torch.cuda.Stream(labeled.device)
        cuda_stream.wait_stream(torch.cuda.current_stream(labeled.device))

    def produce() -> tuple[SampleBatch | None, torch.cuda.Event | None]:
        with nullcontext() if cuda_stream is None else torch.cuda.stream(cuda_stream):
            rows = list(islice(samples, batch_size))
            batch = SampleBatch.stack(rows) if rows else None
            return batch, None if cuda_stream is None else cuda_stream.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="dsgan-generate") as thread:
        pending = deque(thread.submit(produce) for _ in range(_AHEAD))
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
            for future in pending:
                future.cancel()


def _hand_over(batch: SampleBatch, done: torch.cuda.Event) -> None:
    """Make the consumer's CUDA stream wait for the batch, and the allocator for the consumer."""
    for tensor in batch.values():
        if tensor.is_cuda:
            consumer = torch.cuda.current_stream(tensor.device)
            consumer.wait_event(done)
            tensor.record_stream(consumer)


def _transformed(sample: Sample, transforms: Transforms) -> Sample:
    from torchvision import tv_tensors

    result = transforms(tv_tensors.Image(sample.image), tv_tensors.Mask(sample.mask))
    if not isinstance(result, tuple | list) or [isinstance(part, torch.Tensor) for part in result] != [True, True]:
        raise ValueError(
            f"transforms must take (image, mask) and return two tensors (image, mask); "
            f"got {type(result).__name__}: {result!r:.80}"
        )
    return Sample({**sample, "image": result[0], "mask": result[1]})


def current_rank() -> tuple[int, int] | None:
    """(rank, world size) of this process; None if torch.distributed is not initialised in it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None


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
