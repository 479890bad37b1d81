"""Any source of samples -> datasets that a DataLoader understands: a stream, and a map."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from dsgan_datasets._deprecation import renamed_keywords, warn_renamed
from dsgan_datasets.checks import boolean, integer, names, position
from dsgan_datasets.exits import closed_at_exit
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.sources.base import SampleSource
from dsgan_datasets.sources.read_ahead import check_duty_cycle, read_ahead
from dsgan_datasets.sources.streaming import ResumableStream, Uneven
from dsgan_datasets.sources.transforming import Transforms, check_transforms, transformed
from dsgan_datasets.targets.base import Target

Item_co = TypeVar("Item_co", covariant=True)


class _OfSource:
    """What datasets show of their source."""

    source: SampleSource

    @property
    def labeled(self) -> SampleSource:
        """Old name of `source`."""
        warn_renamed("dataset.labeled", "dataset.source")
        return self.source

    @property
    def targets(self) -> tuple[Target, ...]:
        """The labels of each sample."""
        return self.source.targets


class SourceStream(_OfSource, ResumableStream[Item_co]):
    """A stream over a source; subclasses make in `_made` what they hand out, of `_batches`.

    Args:
        source: gives the samples.
        seed: 0 … 2^64-1; another seed is another dataset.
        start: number of the first sample.
        length: samples an epoch has, over all ranks and workers; None for a stream without end, or for all samples of a
            source that has an end.
        batch_size: samples prepared at a time.
        same_epoch: give every epoch the samples (and the order) of epoch 0, instead of new ones.
        prefetch: batches that are prepared before they are asked for, at most (None: two).
        duty_cycle: part of the time that may go into preparing samples, in (0, 1].
        extras: further fields of the samples.
        sharing: see `ResumableStream`.

    Raises:
        ValueError: an argument out of range, or view groups that `start` or `length` cut.

    Example:
        >>> class Scores(SourceStream[float]):
        ...     def _made(self, numbers):
        ...         for _, batch in self._batches(numbers):
        ...             yield from batch.uncertainty_score.tolist()
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> len(list(Scores(labeled, length=5)))
        5
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        seed: int = 0,
        start: int = 0,
        length: int | None = None,
        batch_size: int = 8,
        same_epoch: bool = False,
        prefetch: int | None = None,
        duty_cycle: float = 1.0,
        extras: Collection[str] = (),
        **sharing: Any,
    ) -> None:
        check_source(source)
        end = source.num_samples
        start = integer("start", start, 0, MAX_INDEX if end is None else end - 1)
        last = MAX_INDEX if end is None else end - 1
        if length is not None:
            length = integer("length", length, 1, last - start + 1)
        elif end is not None:
            length = end - start
        if start % source.group or (length or 0) % source.group:
            raise ValueError(
                f"start {start} and length {length} must be multiples of the recipe's group_size, {source.group}"
            )
        super().__init__(length=length, group=source.group, **sharing)
        self.source = source
        self.seed = check_seed(seed)
        self.start = start
        self.batch_size = integer("batch_size", batch_size, 1)
        self.same_epoch = boolean("same_epoch", same_epoch)
        self.prefetch = None if prefetch is None else integer("prefetch", prefetch, 1)
        self.duty_cycle = check_duty_cycle(duty_cycle)
        self.extras = _check_extras(extras)

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch of your choice, which takes effect when iteration starts, in living workers too.

        Epochs follow each other without it. A generator gives the samples start + epoch · length …, unless
        `same_epoch`. Without a length there is one endless epoch and nothing changes.
        """
        super().set_epoch(epoch)

    def _numbering(self, epoch: int) -> Callable[[int], int]:
        length = self.length
        if length is None:
            return lambda position: self.start + position
        moves = not self.same_epoch and self.source.num_samples is None
        first = self.start + (epoch * length if moves else 0)
        return lambda position: first + position % length

    def _batches(self, numbers: Callable[[], Iterator[int]]) -> Generator[tuple[list[int], SampleBatch]]:
        """The samples of some numbers in batches, prepared ahead, with their numbers."""
        refuse_cuda_in_worker(self.source.device)
        samples = self.source.stream(numbers(), seed=self.seed, extras=self.extras)
        batches = read_ahead(
            samples,
            self.batch_size,
            device=self.source.device,
            owner=self.source,
            prefetch=self.prefetch,
            duty_cycle=self.duty_cycle,
        )
        rest = numbers()
        with closing(batches):
            for batch in batches:
                yield list(islice(rest, batch.num_samples)), batch

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.source.fingerprint,
            "seed": self.seed,
            "start": self.start,
            "length": self.length,
            "uneven": self.uneven,
            "same_epoch": self.same_epoch,
        }


class SampleStream(SourceStream[Sample]):
    """A `SourceStream` that hands out samples, transformed.

    Args:
        source: gives the samples.
        transforms: torchvision v2 transforms, see `DSGANIterableDataset`.
        options: see `SourceStream`.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> stream = SampleStream(labeled, start=100, length=2)
        >>> [int(sample.index) for sample in stream]
        [100, 101]
    """

    def __init__(self, source: SampleSource, *, transforms: Transforms | None = None, **options: Any) -> None:
        super().__init__(source, **options)
        self.transforms = check_transforms(transforms)

    def _made(self, numbers: Callable[[], Iterator[int]]) -> Generator[Sample]:
        with closing(self._samples(numbers)) as samples:
            for sample in samples:
                if self.transforms is not None:
                    sample = transformed(sample, self.transforms, self.source.targets)
                yield sample

    def _samples(self, numbers: Callable[[], Iterator[int]]) -> Generator[Sample]:
        with closing(self._batches(numbers)) as batches:
            for _, batch in batches:
                yield from batch.rows()

    def batches(self) -> Iterator[SampleBatch]:
        """Whole batches of `batch_size` samples (the last may be shorter), as they were generated or read.

        Raises:
            ValueError: the dataset has transforms, which are defined on single samples.
        """
        if self.transforms is not None:
            raise ValueError(
                "batches() gives samples as generated; apply transforms to the batch, or iterate the dataset"
            )
        return closed_at_exit(self._iterate_batches())

    def _iterate_batches(self) -> Generator[SampleBatch]:
        with self._iteration() as iteration, closing(self._batches(partial(self._numbers, iteration))) as batches:
            for _, batch in batches:
                self._deliver(iteration, batch.num_samples)
                yield batch


class DSGANIterableDataset(SampleStream):
    """A stream of labeled samples, generated ahead of the consumer on a thread.

    Put it into any DataLoader, or iterate it as it is. Ranks and workers share the samples without gap or overlap; view
    groups stay together. With `global_batch` the order of an epoch is the same for any number of ranks and workers, and
    a training that stops after k steps continues with other numbers of them: save ``state_dict(step=k)`` and give it to
    `load_state_dict`. Without it, sample i belongs to consumer i mod (world size · workers), where consumer c is worker
    c // world size of rank c mod world size.

    Args:
        source: makes the samples: a `LabeledGenerator`, or any other `SampleSource`.
        seed: 0 … 2^64-1; another seed is another dataset.
        start: number of the first sample.
        length: samples an epoch has, over all ranks and workers; None for a stream without end (of a source that has
            an end: all its samples).
        batch_size: samples generated at a time. Only a matter of speed: the samples are the same.
        rank: of this process; None asks torch.distributed when iteration starts (0 if it is not initialized).
        world_size: number of ranks; None likewise.
        split_by_rank: False where a launcher shares out batches among the ranks itself (accelerate's ``prepare``, the
            Trainer of Hugging Face). None finds out whether accelerate does, and then warns.
        global_batch: samples of all ranks in a step: batch size · ranks.
        loader_batch_size: batch size of the DataLoader, if it is not global_batch / ranks, as with accumulated
            gradients.
        transforms: torchvision v2 transforms of a dict: "image" (a tv_tensors.Image), the labels ("mask", a
            tv_tensors.Mask; "keypoints", a KeyPoints; see `Target.wrap`), and "uncertainty" and "probabilities" (Masks
            too) if they are among the extras.
        uneven: what happens to a last global batch that is not full (without `global_batch`: to samples, or view
            groups, that do not divide by the number of ranks): "keep" gives some ranks less, "drop" leaves it out,
            "pad" fills it up with the first samples. None is "keep" on one rank and "drop" on several, as ranks that
            wait for each other after every step (DDP) would hang at the end of an epoch.
        same_epoch: give every epoch the samples of epoch 0. Otherwise a pass that came to its end is followed by one
            over new samples, `length` further on; one that was left early is repeated.
        prefetch: batches that are generated before they are asked for, at most (None: two); each takes memory.
        duty_cycle: part of the time that may go into generating, in (0, 1]. With 0.25 the generating thread rests
            three times as long as each batch took (less what it had to wait for the consumer), and what trains on the
            same GPU has it to itself in the meantime.
        extras: further fields of the samples: "uncertainty" (per pixel), "latent" (z), "probabilities" (of each class
            of the mask, float16 [K, H, W], mean of the interpreter's members; not in shards).

    Raises:
        ValueError: an argument out of range, numbers that do not divide, or view groups that `start` or `length` cut.
        RuntimeError: at the start of iteration, in a DataLoader worker whose generator is on a GPU.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> dataset = DSGANIterableDataset(labeled, length=16, seed=1)
        >>> batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
        >>> batch.image.shape
        torch.Size([4, 3, 64, 64])
    """

    @renamed_keywords(labeled="source", repeat="same_epoch", ahead="prefetch", share="duty_cycle")
    def __init__(
        self,
        source: SampleSource,
        *,
        seed: int = 0,
        start: int = 0,
        length: int | None = None,
        batch_size: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
        split_by_rank: bool | None = None,
        global_batch: int | None = None,
        loader_batch_size: int | None = None,
        transforms: Transforms | None = None,
        uneven: Uneven | None = None,
        same_epoch: bool = False,
        prefetch: int | None = None,
        duty_cycle: float = 1.0,
        extras: Collection[str] = (),
    ) -> None:
        super().__init__(
            source,
            seed=seed,
            start=start,
            length=length,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            split_by_rank=split_by_rank,
            global_batch=global_batch,
            loader_batch_size=loader_batch_size,
            transforms=transforms,
            uneven=uneven,
            same_epoch=same_epoch,
            prefetch=prefetch,
            duty_cycle=duty_cycle,
            extras=extras,
        )


class DSGANDataset(_OfSource, Dataset[Sample]):
    """A finite map-style view: index -> labeled sample, the same whatever the order.

    Asking for whole batches (`__getitems__`, as the stock DataLoader does) is faster than asking sample by sample: a
    GPU always computes `recipe.compute_batch` samples, and a CPU computes them side by side.

    Args:
        source: makes the samples: a `LabeledGenerator`, or any other `SampleSource`.
        length: number of samples; None for all of a source that has an end.
        seed: 0 … 2^64-1; another seed is another dataset.
        transforms: torchvision v2 transforms of a dict of tv_tensors, see `DSGANIterableDataset`.
        extras: further fields of the samples: "uncertainty", "latent", "probabilities".

    Raises:
        ValueError: length below 1 or beyond the end, or seed out of range.

    Example:
        >>> dataset = DSGANDataset(LabeledGenerator.from_pretrained("demo-faces", device="cpu"), 100)
        >>> dataset[-1].index
        tensor(99)
    """

    @renamed_keywords(labeled="source")
    def __init__(
        self,
        source: SampleSource,
        length: int | None = None,
        *,
        seed: int = 0,
        transforms: Transforms | None = None,
        extras: Collection[str] = (),
    ) -> None:
        check_source(source)
        if length is None and source.num_samples is None:
            raise ValueError("this source has no end: give the dataset a length")
        self.source = source
        most = MAX_INDEX if source.num_samples is None else source.num_samples
        self.length = integer("length", most if length is None else length, 1, most)
        self.seed = check_seed(seed)
        self.transforms = check_transforms(transforms)
        self.extras = _check_extras(extras)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """One sample; negative indices count from the end, IndexError beyond it."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, generated together."""
        refuse_cuda_in_worker(self.source.device)
        numbers = [position(i, self.length) for i in indices]
        # Not `batch`, whose rows would be stacked here only to be taken apart again.
        samples = self.source.stream(numbers, seed=self.seed, extras=self.extras)
        if self.transforms is None:
            return list(samples)
        return [transformed(sample, self.transforms, self.source.targets) for sample in samples]


def check_source(source: SampleSource) -> None:
    """Refuse what makes no samples.

    Raises:
        ValueError: it is something else.
    """
    # Not isinstance: before Python 3.12 that reads every property, and a fingerprint hashes all weights.
    if isinstance(source, type) or any(
        inspect.getattr_static(source, member, None) is None for member in ("stream", "batch", "fingerprint")
    ):
        raise ValueError(
            f"expected a LabeledGenerator or another source of samples, got {source!r:.80}: use "
            "LabeledGenerator.from_pretrained(…)"
        )


def _check_extras(extras: Collection[str]) -> tuple[str, ...]:
    if isinstance(extras, str):
        raise ValueError(f"extras are several names: give ({extras!r},)")
    return names("extras", extras)


def refuse_cuda_in_worker(device: torch.device) -> None:
    """RuntimeError in a DataLoader worker, if the generator is, or would be, on a GPU."""
    if device.type == "cuda" and get_worker_info() is not None:
        raise RuntimeError(
            "the generator is on a GPU, and CUDA cannot be used in a DataLoader worker: set num_workers=0 (samples are "
            "generated ahead on a thread of their own), or load the checkpoint with device='cpu'"
        )
