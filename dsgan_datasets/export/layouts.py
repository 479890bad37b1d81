"""What the formats have in common: a layout turns each sample into files, and in the end writes the dataset's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.polygons import Array
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.instances import find_instances, tight_box
from dsgan_datasets.targets.keypoints import box_around
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        things: class ids that instances are made of; None for all but class 0.
        components: whether each connected region of a class is an instance, or all regions of a class are one.
        min_area: pixels; smaller instances are left out.
        category: what the object is called that keypoints belong to.
    """

    things: tuple[int, ...] | None
    components: bool
    min_area: int
    category: str

    def things_of(self, schema: LabelSchema) -> tuple[int, ...]:
        """Class ids that instances are made of."""
        return tuple(range(1, schema.num_classes)) if self.things is None else self.things

    def instances(
        self, sample: Sample, things: tuple[int, ...], *, components: bool | None = None
    ) -> list[tuple[int, Array]]:
        """(class id, bool mask [H, W]) of every instance of some classes."""
        categories = torch.full((256,), -1, device="cpu")
        categories[list(things)] = torch.tensor(things, device="cpu")
        masks, classes = find_instances(
            sample.mask.cpu(),
            categories,
            components=self.components if components is None else components,
            min_area=self.min_area,
        )
        return list(zip(classes.tolist(), masks.numpy(), strict=True))

    def foreground(self, sample: Sample, targets: Sequence[Target]) -> Array | None:
        """The pixels of all instances together, bool [H, W]; None without masks, or if there are none."""
        schema = next((target for target in targets if isinstance(target, LabelSchema)), None)
        if schema is None:
            return None
        found: Array = np.isin(sample.mask.cpu().numpy(), self.things_of(schema))
        return found if found.any() else None


@dataclass(frozen=True)
class Slot:
    """Where a sample goes.

    Attributes:
        name: file name without its extension.
        split: "train", "val" …; empty if there are no splits.
    """

    name: str
    split: str

    def path(self, folder: str, extension: str) -> str:
        """Relative path of a file of this sample."""
        return "/".join(part for part in (folder, self.split, f"{self.name}.{extension}") if part)


def object_box(
    points: Tensor, foreground: Array | None, size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """The box (left, top, right, bottom) of an object with keypoints [K, 3]: of its mask if there is one, else around
    the points; None if it has neither."""
    if foreground is None:
        return box_around(points, size)
    left, top, width, height = tight_box(foreground)
    return left, top, left + width, top + height


class Layout(Protocol):
    """One format.

    Constructed with the folder to write to, the input, the options, and the number of samples of each split. The input
    has labels of the kinds that the format holds only, and at least one that it needs.
    """

    #: Kinds of labels that the format holds; None for every kind.
    holds: ClassVar[tuple[str, ...] | None]
    #: Kinds of which it needs one or more.
    needs: ClassVar[tuple[str, ...]]
    #: Splits that the format's users expect; empty for one dataset.
    default_splits: ClassVar[Mapping[str, float]]

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None: ...

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """Files of the labels, and a summary for `collect`; runs on several threads."""

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:
        """Keep what goes into files of the whole dataset; called in the order of the samples."""

    def finish(self) -> None:
        """Write what belongs to the whole dataset."""
