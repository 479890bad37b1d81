"""Where exported samples come from: a generator, or shards that it has written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from dsgan_datasets.checks import integer
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards import Folder, Manifest, ShardMapDataset
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class Source:
    """Samples, and what is known about all of them.

    Attributes:
        samples: in the order in which they are exported.
        num_samples: how many they are.
        schema: what their class ids mean.
        image_size: (H, W).
        seed: of the dataset.
        fingerprint: of the checkpoint that made them.
        license: of the samples.
        start: index of the first sample; the others follow it without gaps.
        group_size: samples of one group, which share a latent and so must not be torn apart between training and validation.
    """

    samples: Iterable[Sample]
    num_samples: int
    schema: LabelSchema
    image_size: tuple[int, int]
    seed: int
    fingerprint: str
    license: str
    start: int = 0
    group_size: int = 1

    @classmethod
    def generated(cls, labeled: LabeledGenerator, num_samples: int, *, start: int = 0, seed: int = 0) -> Source:
        """Consecutive samples of a generator, made while they are exported.

        Raises:
            ValueError: num_samples or start out of range.

        Example:
            >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
            >>> Source.generated(labeled, 20).image_size
            (64, 64)
        """
        count = integer("num_samples", num_samples, 1, MAX_INDEX)
        first = integer("start", start, 0, MAX_INDEX - count + 1)
        return cls(
            samples=labeled.stream(range(first, first + count), seed=seed),
            num_samples=count,
            schema=labeled.schema,
            image_size=labeled.image_size,
            seed=seed,
            fingerprint=labeled.fingerprint,
            license=labeled.license,
            start=first,
            group_size=labeled.recipe.group_size,
        )

    @classmethod
    def read(
        cls, shards: str | os.PathLike[str], num_samples: int | None = None, *, start: int | None = None
    ) -> Source:
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
            >>> source = Source.read(tmp, start=12)
            >>> source.num_samples, source.seed
            (3, 3)
        """
        plan = Manifest.read(Folder(shards)).plan
        end = plan.start + plan.num_samples
        first = plan.start if start is None else integer("start", start, plan.start, end - 1)
        count = end - first if num_samples is None else integer("num_samples", num_samples, 1, end - first)
        dataset = ShardMapDataset(shards)
        return cls(
            samples=(dataset[i - plan.start] for i in range(first, first + count)),
            num_samples=count,
            schema=plan.schema,
            image_size=plan.image_size,
            seed=plan.seed,
            fingerprint=plan.fingerprint,
            license=plan.license,
            start=first,
            group_size=plan.recipe.group_size,
        )
