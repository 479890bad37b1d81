"""Format "mmseg": the folders that MMSegmentation's own BaseSegDataset reads, and a config that names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from dsgan_datasets.export.folder import FolderLayout
from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options


class MMSeg(FolderLayout):
    """``img_dir/{train,val}/*.png``, ``ann_dir/{train,val}/*.png`` and ``dataset.py``; see `Layout`."""

    default_splits: ClassVar[Mapping[str, float]] = {"val": 0.1}
    images = "img_dir"

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        super().__init__(folder, input, options, splits)
        self.schema = input.schema
        self.folders = {self.schema: "ann_dir"}

    def finish(self) -> None:
        """Write the config."""
        (self.folder / "dataset.py").write_text(self._config(), encoding="utf-8")

    def _config(self) -> str:
        schema = self.schema
        first = next(iter(self.splits), "")
        held_out = "val" if "val" in self.splits else first
        names = "".join(f"        {name!r},\n" for name in schema.classes)
        colors = "".join(f"        {list(color)},\n" for color in schema.palette)
        return f'''"""Dataset settings for MMSegmentation 1.x.

Name this file in the _base_ of a config, beside a model and a schedule.
The model's heads need num_classes={schema.num_classes} and ignore_index={schema.ignore_index}.
"""

data_root = "{{{{ fileDirname }}}}"  # the folder of this file, wherever it is moved to
metainfo = dict(
    classes=(
{names}    ),
    palette=[
{colors}    ],
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset={self._dataset(first, "train_pipeline")},
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset={self._dataset(held_out, "test_pipeline")},
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"], ignore_index={schema.ignore_index})
test_evaluator = val_evaluator
'''

    def _dataset(self, split: str, pipeline: str) -> str:
        images, masks = ("/".join(part for part in (kind, split) if part) for kind in (self.images, "ann_dir"))
        return f"""dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="{images}", seg_map_path="{masks}"),
        img_suffix=".png",
        seg_map_suffix=".png",
        reduce_zero_label=False,
        metainfo=metainfo,
        pipeline={pipeline},
    )"""
