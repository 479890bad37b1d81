"""What the formats have in common: a layout turns each sample into files, and in the end writes the dataset's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.polygons import Array
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target, find_target
from dsgan_datasets.targets.instances import InstanceMode, InstanceRule, tight_box
from dsgan_datasets.targets.keypoints import box_around
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        things: names of the classes that instances are made of; None for all but class 0.
        mode: "classes" or "components", see `InstanceRule`.
        min_area: pixels; smaller instances are left out.
        category: what the object is called that keypoints belong to.
    """

    things: tuple[str, ...] | None
    mode: InstanceMode
    min_area: int
    category: str

    def rule(self, schema: LabelSchema, mode: InstanceMode | None = None) -> InstanceRule:
        """Which parts of a mask are instances."""
        return InstanceRule(schema, things=self.things, mode=mode or self.mode, min_area=self.min_area)

    def object_rule(self, targets: Sequence[Target]) -> InstanceRule | None:
        """The rule that makes one object of all of them; None without masks."""
        schema = find_target(targets, LabelSchema)
        return None if schema is None else self.rule(schema, "object")


def instances(rule: InstanceRule, sample: Sample) -> list[tuple[int, Array]]:
    """(category, bool mask [H, W]) of every instance in the mask of a sample."""
    masks, categories = rule.find(sample.mask.cpu())
    return list(zip(categories.tolist(), masks.numpy(), strict=True))


def foreground(rule: InstanceRule | None, sample: Sample) -> Array | None:
    """The pixels of the one object in a sample, bool [H, W]; None without masks, or if there are none."""
    return None if rule is None else next((mask for _, mask in instances(rule, sample)), None)


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
    #: What else the format takes, by the names of the arguments of `export`.
    takes: ClassVar[tuple[str, ...]]
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
