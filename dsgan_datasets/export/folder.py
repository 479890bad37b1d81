"""Format "folder": images and masks of class ids side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsgan_datasets.export.layouts import Options, Place
from dsgan_datasets.export.source import Source
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards.codec import png


class Folder:
    """``images/*.png`` (RGB) and ``masks/*.png`` (8-bit grayscale, pixel = class id); see `Layout`."""

    default_splits: ClassVar[Mapping[str, float]] = {}
    images, masks = "images", "masks"

    def __init__(self, folder: Path, source: Source, options: Options, splits: Mapping[str, int]) -> None:
        self.folder = folder
        self.source = source
        self.splits = splits

    def image_path(self, place: Place) -> str:
        """Where the image goes."""
        return place.path(self.images, "png")

    def annotate(self, sample: Sample, place: Place) -> tuple[dict[str, bytes], Any]:
        """The mask."""
        return {place.path(self.masks, "png"): png(sample.mask)}, None

    def note(self, sample: Sample, place: Place, told: Any) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing: samples.jsonl and classes.json are in every export."""
