"""What is exported: consecutive samples of a generator, of shards, or of any other source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsgan_datasets.checks import integer, names
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards import Folder, Manifest
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.base import SampleSource
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema, schema_of


@dataclass(frozen=True)
class ExportInput:
    """Consecutive samples of a source.

    Args:
        source: of the samples; it also knows their labels, size and license.
        numbers: numbers of the samples in the source.
        seed: of the dataset.
        start: index of the first sample, which differs from its number in shards that do not begin at index 0.
        fingerprint: of the checkpoint that made the samples.
        labels: fields of the labels that are exported, such as ("mask",); None for all.
        names: what the files of each sample are called, by index; None for nine digits of the index.
        facts: what samples.jsonl says of each sample beside the usual, by index; None for nothing.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> chosen = ExportInput.generated(labeled, 4, seed=0, start=10)
        >>> chosen.start, len(chosen.numbers)
        (10, 4)
    """

    source: SampleSource
    numbers: range
    seed: int
    start: int
    fingerprint: str
    labels: tuple[str, ...] | None = None
    names: Sequence[str] | None = None
    facts: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def generated(cls, source: SampleSource, num_samples: int, *, start: int = 0, seed: int = 0) -> ExportInput:
        """Consecutive samples of a `LabeledGenerator`, generated while they are exported.

        Raises:
            ValueError: num_samples or start out of range.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
            >>> ExportInput.generated(labeled, 20).num_samples
            20
        """
        count = integer("num_samples", num_samples, 1, MAX_INDEX)
        first = integer("start", start, 0, MAX_INDEX - count + 1)
        return cls(source, range(first, first + count), seed, first, source.fingerprint)

    @classmethod
    def read(
        cls, shards: str | os.PathLike[str], num_samples: int | None = None, *, start: int | None = None
    ) -> ExportInput:
        """Consecutive samples of a shard set, read while they are exported.

        Args:
            shards: folder or URL that `write_shards` wrote to.
            num_samples: None for all from `start` on.
            start: index of the first sample; None for the first one of the set.

        Raises:
            ShardError: no finished shards, or a damaged manifest; while exporting, a damaged shard.
            ValueError: num_samples or start out of range.
            OSError: they cannot be read.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
            >>> _ = write_shards(labeled, tmp, range(10, 15), seed=3)
            >>> found = ExportInput.read(tmp, start=12)
            >>> found.num_samples, found.seed
            (3, 3)
        """
        plan = Manifest.read(Folder(shards)).plan
        end = plan.start + plan.num_samples
        first = plan.start if start is None else integer("start", start, plan.start, end - 1)
        count = end - first if num_samples is None else integer("num_samples", num_samples, 1, end - first)
        numbers = range(first - plan.start, first - plan.start + count)
        return cls(ShardSource(shards), numbers, plan.seed, first, plan.fingerprint)

    @property
    def samples(self) -> Iterator[Sample]:
        """The samples, in order."""
        return self.source.stream(self.numbers, seed=self.seed)

    def name_of(self, sample: Sample) -> str:
        """What the files of a sample are called, without folder and ending."""
        index = int(sample.index)
        return f"{index:09d}" if self.names is None else self.names[index]

    @property
    def num_samples(self) -> int:
        """How many they are."""
        return len(self.numbers)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The labels of each sample that are exported."""
        return tuple(t for t in self.source.targets if self.labels is None or t.field in self.labels)

    def choose(self, labels: Sequence[str] | None) -> ExportInput:
        """The same samples with some of their labels; None for all.

        Raises:
            ValueError: no labels, or one that the source does not have.
        """
        if labels is None:
            return self
        fields = names("labels", [labels] if isinstance(labels, str) else labels)
        known = [target.field for target in self.source.targets]
        if not fields or not set(fields) <= set(known):
            raise ValueError(f"labels must be some of {', '.join(known)}, not {', '.join(fields) or 'none'}")
        return replace(self, labels=fields)

    @property
    def schema(self) -> LabelSchema:
        """What the class ids of the masks mean; ValueError if the source has no masks."""
        return schema_of(self.targets)
