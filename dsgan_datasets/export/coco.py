"""Format "coco": images, and instances of parts and an object's keypoints as COCO's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options, Slot, foreground, instances, object_box
from dsgan_datasets.polygons import encode_rle
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.instances import tight_box
from dsgan_datasets.targets.keypoints import Keypoints, keypoints_of
from dsgan_datasets.targets.segmentation import LabelSchema


class _Task(Protocol):
    """What one of COCO's JSON files describes."""

    #: First part of the file's name.
    name: ClassVar[str]

    def __init__(self, input: ExportInput, options: Options) -> None: ...

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """What is on an image, without ids."""

    def categories(self) -> list[dict[str, Any]]:
        """What there can be."""


class _Instances:
    """Masks: instances of parts, whose category ids are class ids."""

    name: ClassVar[str] = "instances"

    def __init__(self, input: ExportInput, options: Options) -> None:
        self.rule = options.rule(input.schema)

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """The instances."""
        return [
            {"category_id": self.rule.things[category], **_region(mask)}
            for category, mask in instances(self.rule, sample)
        ]

    def categories(self) -> list[dict[str, Any]]:
        """The classes."""
        return [
            {"id": thing, "name": name, "supercategory": "part"}
            for thing, name in zip(self.rule.things, self.rule.names, strict=True)
        ]


class _Keypoints:
    """One object, of category 1, with keypoints; box, area and run lengths are those of the mask if there is one."""

    name: ClassVar[str] = "keypoints"

    def __init__(self, input: ExportInput, options: Options) -> None:
        self.input = input
        self.options = options
        self.target = keypoints_of(input.targets)
        self.rule = options.object_rule(input.targets)

    def annotations(self, sample: Sample) -> list[dict[str, Any]]:
        """The object, unless it has neither a point nor a pixel in the image."""
        value: Tensor = sample[self.target.field].cpu()
        pixels = foreground(self.rule, sample)
        if (box := object_box(value, pixels, self.input.source.image_size)) is None:
            return []
        left, top, right, bottom = (round(edge, 4) for edge in box)
        width, height = round(right - left, 4), round(bottom - top, 4)
        region = {"bbox": [left, top, width, height], "area": round(width * height, 4), "iscrowd": 0}
        return [
            {
                "category_id": 1,
                **(region if pixels is None else _region(pixels)),
                "keypoints": [number for row in value.tolist() for number in _coco_point(*row)],
                "num_keypoints": int((value[:, 2] > 0).sum()),
            }
        ]

    def categories(self) -> list[dict[str, Any]]:
        """The object; ids of points in its skeleton count from 1."""
        skeleton = [[a + 1, b + 1] for a, b in self.target.skeleton]
        name = self.options.category
        return [
            {"id": 1, "name": name, "supercategory": name, "keypoints": list(self.target.names), "skeleton": skeleton}
        ]


#: Kind of label -> the file that holds it.
_TASKS: dict[str, type[_Task]] = {LabelSchema.kind: _Instances, Keypoints.kind: _Keypoints}


class Coco:
    """``images/*.png``, ``annotations/instances_*.json`` and ``annotations/keypoints_*.json``; see `Layout`.

    Image ids are the samples' indices.

    Source: https://cocodataset.org/#format-data
    """

    holds: ClassVar[tuple[str, ...] | None] = tuple(_TASKS)
    needs: ClassVar[tuple[str, ...]] = tuple(_TASKS)
    takes: ClassVar[tuple[str, ...]] = ("things", "instances", "min_instance_area", "category")
    default_splits: ClassVar[Mapping[str, float]] = {}

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        self.input = input
        self.tasks = [_TASKS[target.kind](input, options) for target in input.targets]
        encode_rle(np.zeros((1, 1), dtype=bool))  # fails at once if pycocotools is missing
        (folder / "annotations").mkdir()
        self.files = {
            (task.name, split): _JsonFile(folder / "annotations" / f"{task.name}_{split or 'train'}.json")
            for task in self.tasks
            for split in splits or [""]
        }

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""
        return slot.path("images", "png")

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """No files; the annotations of each task."""
        return {}, [
            [{"image_id": int(sample.index), **annotation} for annotation in task.annotations(sample)]
            for task in self.tasks
        ]

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:
        """Write image and annotations."""
        height, width = self.input.source.image_size
        name = self.image_path(slot).removeprefix("images/")
        image = {"id": int(sample.index), "file_name": name, "height": height, "width": width, "license": 1}
        for task, found in zip(self.tasks, summary, strict=True):
            self.files[task.name, slot.split].add(image, found)

    def finish(self) -> None:
        """Complete the JSON files."""
        input = self.input
        for task in self.tasks:
            for (name, _), file in self.files.items():
                if name == task.name:
                    file.close(
                        {
                            "info": {
                                "description": "Generated labeled samples",
                                "seed": input.seed,
                                "fingerprint": input.fingerprint,
                            },
                            "licenses": [{"id": 1, "name": input.source.license, "url": ""}],
                            "categories": task.categories(),
                        }
                    )


def _region(mask: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
    """Box, area and run lengths of a bool mask [H, W] that is not empty."""
    return {"bbox": tight_box(mask), "area": int(mask.sum()), "iscrowd": 0, "segmentation": encode_rle(mask)}


def _coco_point(x: float, y: float, v: float) -> tuple[float, float, int]:
    """A point as COCO counts: the center of the first pixel is (0, 0), where ours is (0.5, 0.5)."""
    return (round(x - 0.5, 4), round(y - 0.5, 4), int(v)) if v > 0 else (0, 0, 0)


class _JsonFile:
    """``{"images": […], "annotations": […], …}``, written as it comes: annotations wait in a file, not in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = path.with_suffix(".part")
        self.images = path.open("w", encoding="utf-8")
        self.annotations = self.waiting.open("w+", encoding="utf-8")
        self.images.write('{"images": [\n')
        self.num_images = self.num_annotations = 0

    def add(self, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
        """An image and what is on it."""
        self.images.write(",\n" * bool(self.num_images) + json.dumps(image))
        self.num_images += 1
        for annotation in annotations:
            self.num_annotations += 1  # ids count from 1: COCO's evaluation takes 0 for "no match"
            numbered = {"id": self.num_annotations, **annotation}
            self.annotations.write(",\n" * (self.num_annotations > 1) + json.dumps(numbered))

    def close(self, rest: dict[str, Any]) -> None:
        """Put both lists into the file, and the rest behind them."""
        self.images.write('\n], "annotations": [\n')
        self.annotations.seek(0)
        while block := self.annotations.read(1 << 20):
            self.images.write(block)
        self.images.write("\n], " + json.dumps(rest)[1:])
        self.images.close()
        self.annotations.close()
        self.waiting.unlink()
