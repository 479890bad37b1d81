"""Formats "folder" and "imagefolder": images and labels side by side."""

from __future__ import annotations

import json
from collections import defaultdict
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
    takes: ClassVar[tuple[str, ...]] = ()
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


class ImageFolder(FolderLayout):
    """The same files as ``load_dataset("imagefolder")`` of Hugging Face wants them; see `Layout`.

    A folder for each split (the export itself without splits), and in it ``metadata.jsonl``, which pairs each image
    with its labels: columns image, mask, index, and one for each other label that is a picture. The path of a label of
    another kind is a column of text.
    """

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        super().__init__(folder, input, options, splits)
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def image_path(self, slot: Slot) -> str:
        """Where the image goes."""
        return _split_first(super().image_path(slot), slot)

    def annotate(self, sample: Sample, slot: Slot) -> tuple[dict[str, bytes], Any]:
        """The labels, and where they go."""
        files, _ = super().annotate(sample, slot)
        files = {_split_first(path, slot): content for path, content in files.items()}
        return files, list(files)

    def collect(self, sample: Sample, slot: Slot, summary: Any) -> None:
        """A row of the split's table."""
        inside = len(f"{slot.split}/") if slot.split else 0
        row: dict[str, Any] = {"file_name": self.image_path(slot)[inside:]}
        for target, path in zip(self.folders, summary, strict=True):
            row[f"{target.field}_{'file_name' if path.endswith('.png') else 'path'}"] = path[inside:]
        self.rows[slot.split].append({**row, "index": int(sample.index)})

    def finish(self) -> None:
        """Write the tables."""
        for split, rows in self.rows.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / split / "metadata.jsonl").write_text(text, encoding="utf-8")


def _split_first(path: str, slot: Slot) -> str:
    """images/train/7.png -> train/images/7.png: the reader takes nothing from beside its table."""
    folder, _, rest = path.partition("/")
    return f"{slot.split}/{folder}/{rest.removeprefix(f'{slot.split}/')}" if slot.split else path
