"""What a dataset needs of the place that samples come from: a generator, shards, or later another machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema


@runtime_checkable
class SampleSource(Protocol):
    """Samples by number: a generator with weights, a checkpoint that loads them when needed, or shards.

    Attributes:
        targets: the labels of each sample.
        image_size: (H, W) of images.
        fingerprint: SHA-256 (hex); equal prints, equal samples under equal numbers and seeds.
        license: of the samples.
        group: samples of a view group, which streams keep together (1: no groups).
        block: samples that cost together no more than one of them: a GPU's compute batch (1 elsewhere).
        num_samples: how many there are; None without end.
        device: that samples are made on, and where their images and labels stay; the CPU for those that are read.

    Example:
        >>> source: SampleSource = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> source.batch([3, 4], seed=0).image.shape
        torch.Size([2, 3, 64, 64])
    """

    @property
    def targets(self) -> tuple[Target, ...]: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def license(self) -> str: ...

    @property
    def group(self) -> int: ...

    @property
    def block(self) -> int: ...

    @property
    def num_samples(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        """The samples of some numbers, one by one, in order; a source may read a little ahead of `indices`."""

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """The samples of some numbers, in the order asked for. `sample.index` is what the sample was made as, which in
        shards need not be its number."""


class NamedSource(SampleSource, Protocol):
    """A source that a config of a framework names.

    Attributes:
        name: a word for people: the last part of where the samples come from.
        identity: what the config said, for comparing it with another.
        schema: what the class ids of the masks mean.

    Example:
        >>> from dsgan_datasets.sources import CheckpointSource
        >>> source: NamedSource = CheckpointSource("demo-faces", device="cpu")
        >>> source.name
        'demo-faces'
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def schema(self) -> LabelSchema: ...
