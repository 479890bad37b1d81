"""Format "coco": images, and instances as COCO's JSON with run lengths, boxes and areas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsgan_datasets.export.layouts import Options, Place
from dsgan_datasets.export.source import Source
from dsgan_datasets.polygons import encode_rle, tight_box
from dsgan_datasets.samples import Sample


class Coco:
    """``images/*.png`` and ``annotations/instances_*.json``; see `Layout`.

    Category ids are class ids; image ids are the samples' indices.

    Source: https://cocodataset.org/#format-data
    """

    default_splits: ClassVar[Mapping[str, float]] = {}

    def __init__(self, folder: Path, source: Source, options: Options, splits: Mapping[str, int]) -> None:
        self.folder = folder
        self.source = source
        self.options = options
        encode_rle(np.zeros((1, 1), dtype=bool))  # says at once if pycocotools is missing
        (folder / "annotations").mkdir()
        self.files = {split: _JsonFile(self._path(split)) for split in splits or [""]}

    def _path(self, split: str) -> Path:
        return self.folder / "annotations" / f"instances_{split or 'train'}.json"

    def image_path(self, place: Place) -> str:
        """Where the image goes."""
        return place.path("images", "png")

    def annotate(self, sample: Sample, place: Place) -> tuple[dict[str, bytes], Any]:
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
            for thing, mask in self.options.instances(sample)
        ]
        return {}, annotations

    def note(self, sample: Sample, place: Place, told: Any) -> None:
        """Take down image and annotations."""
        height, width = self.source.image_size
        name = self.image_path(place).removeprefix("images/")
        image = {"id": int(sample.index), "file_name": name, "height": height, "width": width, "license": 1}
        self.files[place.split].add(image, told)

    def finish(self) -> None:
        """Complete the JSON files."""
        source, schema = self.source, self.source.schema
        for file in self.files.values():
            file.close(
                {
                    "info": {
                        "description": "Generated labeled samples",
                        "seed": source.seed,
                        "fingerprint": source.fingerprint,
                    },
                    "licenses": [{"id": 1, "name": source.license, "url": ""}],
                    "categories": [
                        {"id": thing, "name": schema.classes[thing], "supercategory": "part"}
                        for thing in self.options.things
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
        self.images.write("\n], " + json.dumps(rest, ensure_ascii=False)[1:])
        self.images.close()
        self.annotations.close()
        self.waiting.unlink()
