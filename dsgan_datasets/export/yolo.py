"""Format "yolo-seg": the folders, polygon files and data.yaml of YOLO's instance segmentation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options, Slot
from dsgan_datasets.polygons import INSET, Array, mask_to_polygons
from dsgan_datasets.samples import Sample


class YoloSeg:
    """``images/{train,val}/*.png``, ``labels/{train,val}/*.txt`` and ``data.yaml``; see `Layout`.

    A line is one connected region: ``class x1 y1 x2 y2 …``, coordinates as shares of width and height. Class numbers
    count the classes that instances are made of, from 0.

    Source: https://docs.ultralytics.com/datasets/segment/
    """

    default_splits: ClassVar[Mapping[str, float]] = {"val": 0.1}

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        self.folder = folder
        self.input = input
        self.options = options
        self.splits = splits
        self.things = options.things_of(input.schema)
        self.names = [input.schema.classes[thing] for thing in self.things]

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""
        return slot.path("images", "png")

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """The polygons; an empty file if there are none."""
        lines = [
            f"{self.things.index(thing)} {_shares(polygon, self.input.source.image_size)}\n"
            for thing, mask in self.options.instances(sample, self.things, components=True)
            for polygon in mask_to_polygons(mask, INSET)
        ]
        return {slot.path("labels", "txt"): "".join(lines).encode("ascii")}, None

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Write data.yaml."""
        folders = {split: f"images/{split}" for split in self.splits} or {"train": "images"}
        folders.setdefault("val", folders["train"])  # the key is required
        names = dict(enumerate(self.names))
        lines = [f"{split}: {path}\n" for split, path in folders.items()]
        # JSON strings are YAML strings too.
        lines += ["names:\n", *(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in names.items())]
        (self.folder / "data.yaml").write_text(
            "# Without `path`, the folders are looked for beside this file.\n" + "".join(lines), encoding="utf-8"
        )


def _shares(polygon: Array, size: tuple[int, int]) -> str:
    """Points as shares of width and height; seven digits: 1/2000 of a pixel in pictures of up to 10,000."""
    height, width = size
    return " ".join(f"{x / width:.7g} {y / height:.7g}" for x, y in polygon.tolist())
