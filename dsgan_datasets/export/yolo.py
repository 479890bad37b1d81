"""Formats "yolo-seg" and "yolo-pose": the folders, text files and data.yaml of YOLO's instance masks and keypoints."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options, Slot, foreground, instances, object_box
from dsgan_datasets.polygons import INSET, Array, mask_to_polygons
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.keypoints import Keypoints, keypoints_of
from dsgan_datasets.targets.segmentation import LabelSchema


class _Yolo(ABC):
    """``images/{train,val}/*.png``, ``labels/{train,val}/*.txt`` and ``data.yaml``; see `Layout`."""

    default_splits: ClassVar[Mapping[str, float]] = {"val": 0.1}

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        self.folder = folder
        self.input = input
        self.options = options
        self.splits = splits

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""
        return slot.path("images", "png")

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """A line for each object; an empty file if there are none."""
        return {slot.path("labels", "txt"): "".join(self.lines(sample)).encode("ascii")}, None

    @abstractmethod
    def lines(self, sample: Sample) -> Iterable[str]:
        """What a sample holds."""

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:  # noqa: B027  # all is in the samples' own files
        """Nothing."""

    def finish(self) -> None:
        """Write data.yaml."""
        folders = {split: f"images/{split}" for split in self.splits} or {"train": "images"}
        folders.setdefault("val", folders["train"])  # the key is required
        content = {**folders, **self.facts()}
        # JSON is YAML too, except for keys that are numbers.
        lines = [f"{name}: {value}\n" if name in folders else _yaml(name, value) for name, value in content.items()]
        (self.folder / "data.yaml").write_text(
            "# Without `path`, the folders are looked for beside this file.\n" + "".join(lines), encoding="utf-8"
        )

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What data.yaml says beside the folders."""


class YoloSeg(_Yolo):
    """Instances as polygons.

    A line is one connected region: ``class x1 y1 x2 y2 …``, coordinates as shares of width and height. Class numbers
    count the classes that instances are made of, from 0.

    Source: https://docs.ultralytics.com/datasets/segment/
    """

    holds: ClassVar[tuple[str, ...] | None] = (LabelSchema.kind,)
    needs: ClassVar[tuple[str, ...]] = (LabelSchema.kind,)
    takes: ClassVar[tuple[str, ...]] = ("things", "instances", "min_instance_area")

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        super().__init__(folder, input, options, splits)
        self.rule = options.rule(input.schema, "components")

    def lines(self, sample: Sample) -> Iterable[str]:
        """The polygons."""
        for category, mask in instances(self.rule, sample):
            for polygon in mask_to_polygons(mask, INSET):
                yield f"{category} {_shares(polygon, self.input.source.image_size)}\n"

    def facts(self) -> dict[str, Any]:
        """The classes."""
        return {"names": dict(enumerate(self.rule.names))}


class YoloPose(_Yolo):
    """One object with a box and keypoints.

    A line is ``class x y width height`` of the box, then ``x y v`` of each point, as shares of width and height. The
    box is that of the mask's foreground if there is a mask, else `box_around` the points.

    Source: https://docs.ultralytics.com/datasets/pose/
    """

    holds: ClassVar[tuple[str, ...] | None] = (Keypoints.kind, LabelSchema.kind)
    needs: ClassVar[tuple[str, ...]] = (Keypoints.kind,)
    takes: ClassVar[tuple[str, ...]] = ("things", "min_instance_area", "category")

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        super().__init__(folder, input, options, splits)
        self.keypoints = keypoints_of(input.targets)
        self.rule = options.object_rule(input.targets)

    def lines(self, sample: Sample) -> Iterable[str]:
        """The object, unless it has neither a point nor a pixel in the image."""
        size = self.input.source.image_size
        value: Tensor = sample[self.keypoints.field].cpu()
        if (box := object_box(value, foreground(self.rule, sample), size)) is None:
            return
        left, top, right, bottom = box
        corners = np.array([((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)])
        points = (f"{_shares(row[None, :2], size)} {int(row[2])}" for row in value.double().numpy())
        yield f"0 {_shares(corners, size)} {' '.join(points)}\n"

    def facts(self) -> dict[str, Any]:
        """The class and its points."""
        return {
            "kpt_shape": [self.keypoints.num_points, 3],
            "flip_idx": list(self.keypoints.mirror_order),
            "names": {0: self.options.category},
            "kpt_names": {0: list(self.keypoints.names)},
        }


def _yaml(name: str, value: Any) -> str:
    """A line, or for a dict several."""
    if not isinstance(value, dict):
        return f"{name}: {json.dumps(value, ensure_ascii=False)}\n"
    return f"{name}:\n" + "".join(f"  {key}: {json.dumps(v, ensure_ascii=False)}\n" for key, v in value.items())


def _shares(points: Array, size: tuple[int, int]) -> str:
    """Points as shares of width and height; seven digits: 1/2000 of a pixel in pictures of up to 10,000."""
    height, width = size
    return " ".join(f"{x / width:.7g} {y / height:.7g}" for x, y in points.tolist())
