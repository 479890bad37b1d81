"""Format "folder": images and labels side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options, Slot
from dsgan_datasets.samples import Sample
from dsgan_datasets.targets.base import Target


class FolderLayout:
    """``images/*.png`` (RGB) and a folder for each label as its target encodes it; see `Layout`.

    Masks are ``masks/*.png`` (8-bit grayscale, pixel = class id).
    """

    holds: ClassVar[tuple[str, ...] | None] = None
    needs: ClassVar[tuple[str, ...]] = ()
    default_splits: ClassVar[Mapping[str, float]] = {}
    images: ClassVar[str] = "images"

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        self.folder = folder
        self.splits = splits
        self.folders: dict[Target, str] = {target: target.folder for target in input.targets}

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""
        return slot.path(self.images, "png")

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """The labels."""
        return {
            slot.path(folder, target.extension.rpartition(".")[2]): target.encode(sample[target.field])
            for target, folder in self.folders.items()
        }, None

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing: the files that describe the dataset are in every export."""
