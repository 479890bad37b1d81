"""Format "coco": images, and instances as COCO's JSON with run lengths, boxes and areas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options, Slot
from dsgan_datasets.polygons import encode_rle
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.instances import tight_box


class Coco:
    """``images/*.png`` and ``annotations/instances_*.json``; see `Layout`.

    Category ids are class ids; image ids are the samples' indices.

    Source: https://cocodataset.org/#format-data
    """

    default_splits: ClassVar[Mapping[str, float]] = {}

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        self.folder = folder
        self.input = input
        self.options = options
        self.schema = input.schema
        self.things = options.things_of(input.schema)
        encode_rle(np.zeros((1, 1), dtype=bool))  # fails at once if pycocotools is missing
        (folder / "annotations").mkdir()
        self.files = {split: _JsonFile(self._path(split)) for split in splits or [""]}

    def _path(self, split: str) -> Path:
        return self.folder / "annotations" / f"instances_{split or 'train'}.json"

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""
        return slot.path("images", "png")

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """No files; the annotations."""
        annotations = [
            {
                "image_id": int(sample.index),
                "category_id": thing,
                "bbox": tight_box(mask),
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": encode_rle(mask),
            }
            for thing, mask in self.options.instances(sample, self.things)
        ]
        return {}, annotations

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:
        """Write image and annotations."""
        height, width = self.input.source.image_size
        name = self.image_path(slot).removeprefix("images/")
        image = {"id": int(sample.index), "file_name": name, "height": height, "width": width, "license": 1}
        self.files[slot.split].add(image, summary)

    def finish(self) -> None:
        """Complete the JSON files."""
        input = self.input
        for file in self.files.values():
            file.close(
                {
                    "info": {
                        "description": "Generated labeled samples",
                        "seed": input.seed,
                        "fingerprint": input.fingerprint,
                    },
                    "licenses": [{"id": 1, "name": input.source.license, "url": ""}],
                    "categories": [
                        {"id": thing, "name": self.schema.classes[thing], "supercategory": "part"}
                        for thing in self.things
                    ],
                }
            )


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
