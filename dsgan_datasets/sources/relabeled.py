"""Some of a source's classes, or coarser ones, as a source: for configs that choose classes where they name data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.tensors import fingerprint
from dsgan_datasets.labelers.base import merged_probabilities
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema


def choose_classes(
    source: NamedSource,
    classes: Sequence[str] | None = None,
    merge: Mapping[str, Iterable[str]] | None = None,
) -> NamedSource:
    """The source with masks of other classes; the source itself if nothing changes.

    Args:
        source: has masks.
        classes: names of the classes to keep, in the order of their new ids; pixels of others are ignored.
        merge: new class name -> names of the classes it replaces, see `LabelSchema.merge`; before the choice.

    Raises:
        ValueError: an unknown class, or one that is named twice.

    Example:
        >>> from dsgan_datasets.sources.local import CheckpointSource
        >>> source = CheckpointSource("demo-faces", device="cpu")
        >>> chosen = choose_classes(source, ["hair", "face"], merge={"face": ["skin", "nose", "lips", "mouth"]})
        >>> chosen.schema.classes, sorted(set(chosen.batch([0]).mask.flatten().tolist()))
        (('hair', 'face'), [0, 1, 255])
    """
    if classes is None and merge is None:
        return source
    schema = chosen(source.schema, classes, merge)
    if schema == source.schema:
        return source
    merged = source.schema
    ids: Sequence[int] = range(merged.num_classes)
    if merge is not None:
        merged, ids = merged.merge(merge), merged.class_map_to(merge)
    names = [merged.classes[i] for i in ids]
    table = [schema.classes.index(name) if name in schema.classes else schema.ignore_index for name in names]
    return RelabeledSource(source, schema, table)


def chosen(
    schema: LabelSchema, classes: Sequence[str] | None = None, merge: Mapping[str, Iterable[str]] | None = None
) -> LabelSchema:
    """The schema of what `choose_classes` gives."""
    merged = schema if merge is None else schema.merge(merge)
    return merged if classes is None else merged.choose(classes)


class RelabeledSource:
    """A source whose masks have other class ids; get one from `choose_classes`. A `NamedSource`.

    Args:
        source: makes the samples.
        schema: what the new ids mean.
        table: the new id of each class of the source.
    """

    def __init__(self, source: NamedSource, schema: LabelSchema, table: Sequence[int]) -> None:
        self.source = source
        self.schema = schema
        self.table = tuple(table)

    @cached_property
    def fingerprint(self) -> str:
        """Of the source and the new ids."""
        return fingerprint(self.source.fingerprint, self.table, self.schema.num_classes)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Those of the source, with the new classes."""
        return tuple(self.schema if target.field == "mask" else target for target in self.source.targets)

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    @property
    def identity(self) -> dict[str, Any]:
        """That of the source, and the classes."""
        return {**self.source.identity, "classes": self.schema.classes}

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of images and masks."""
        return self.source.image_size

    @property
    def license(self) -> str:
        """Of the samples."""
        return self.source.license

    @property
    def group(self) -> int:
        """Samples of a view group."""
        return self.source.group

    @property
    def block(self) -> int:
        """Samples that cost together no more than one of them."""
        return self.source.block

    @property
    def num_samples(self) -> int | None:
        """How many there are; None without end."""
        return self.source.num_samples

    @property
    def device(self) -> torch.device:
        """That samples are made on."""
        return self.source.device

    def stream(self, indices: Iterable[int], *, seed: int = 0, extras: Collection[str] = ()) -> Iterator[Sample]:
        """See `SampleSource`."""
        for sample in self.source.stream(indices, seed=seed, extras=extras):
            yield Sample(self._relabeled(sample))

    def batch(self, indices: Sequence[int], *, seed: int = 0, extras: Collection[str] = ()) -> SampleBatch:
        """See `SampleSource`."""
        return SampleBatch(self._relabeled(self.source.batch(indices, seed=seed, extras=extras)))

    def _relabeled(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a sample or of a batch with the new classes; what was ignored stays ignored."""
        relabeled = {**fields, "mask": self._relabeled_mask(fields["mask"])}
        if "probabilities" in fields:
            classes = self.schema.num_classes
            relabeled["probabilities"] = merged_probabilities(fields["probabilities"], self.table, classes)
        return relabeled

    def _relabeled_mask(self, mask: Tensor) -> Tensor:
        lookup = torch.full((256,), self.schema.ignore_index, dtype=mask.dtype)
        lookup[: len(self.table)] = torch.tensor(self.table, dtype=mask.dtype)
        return lookup.to(mask.device)[mask]
