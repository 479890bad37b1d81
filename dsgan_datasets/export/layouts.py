"""What the formats have in common: a layout turns samples into files, and says at the end what it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from dsgan_datasets.export.source import Source
from dsgan_datasets.polygons import Array
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.instances import find_instances


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        things: class ids that instances are made of.
        components: whether each connected region of a class is an instance, or all regions of a class are one.
        min_area: pixels; smaller instances are left out.
    """

    things: tuple[int, ...]
    components: bool
    min_area: int

    def instances(self, sample: Sample, *, components: bool | None = None) -> list[tuple[int, Array]]:
        """(class id, bool mask [H, W]) of every instance."""
        categories = torch.full((256,), -1)
        categories[list(self.things)] = torch.tensor(self.things)
        masks, classes = find_instances(
            sample.mask.cpu(),
            categories,
            components=self.components if components is None else components,
            min_area=self.min_area,
        )
        return list(zip(classes.tolist(), masks.numpy(), strict=True))


@dataclass(frozen=True)
class Place:
    """Where a sample goes.

    Attributes:
        name: file name without ending.
        split: "train", "val" …; empty if there are no splits.
    """

    name: str
    split: str

    def path(self, folder: str, ending: str) -> str:
        """Relative path of a file of this sample."""
        return "/".join(part for part in (folder, self.split, f"{self.name}.{ending}") if part)


class Layout(Protocol):
    """One format. Constructed with the folder to write to, the source, the options and the number a split."""

    #: Splits that the format's users expect; empty for one dataset.
    default_splits: ClassVar[Mapping[str, float]]

    def __init__(self, folder: Path, source: Source, options: Options, splits: Mapping[str, int]) -> None: ...

    def image_path(self, place: Place) -> str:
        """Where the image goes."""

    def annotate(self, sample: Sample, place: Place) -> tuple[dict[str, bytes], Any]:
        """Files of the labels, and what `note` is to be told; runs on several threads."""

    def note(self, sample: Sample, place: Place, told: Any) -> None:
        """Take down what goes into files of the whole dataset; called in the order of the samples."""

    def finish(self) -> None:
        """Write what belongs to the whole dataset."""


def category_names(options: Options, source: Source) -> list[str]:
    """Names of the classes that instances are made of."""
    return [source.schema.classes[thing] for thing in options.things]
