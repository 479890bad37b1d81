"""Format "mmseg": the folders that MMSegmentation's own datasets read, and configs that name them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from dsgan_datasets.export.folder import FolderLayout
from dsgan_datasets.export.inputs import ExportInput
from dsgan_datasets.export.layouts import Options
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.segmentation import LabelSchema


class MMSeg(FolderLayout):
    """``img_dir/{train,val}/*.png`` and a folder and a config for each label; see `Layout`.

    Masks are ``ann_dir/{train,val}/*.png`` and ``dataset.py``; a map of one channel, such as "depth", is
    ``depth_dir/{train,val}/*.png`` and ``dataset_depth.py``.
    """

    holds: ClassVar[tuple[str, ...] | None] = (LabelSchema.kind, DenseMap.kind)
    needs: ClassVar[tuple[str, ...]] = (LabelSchema.kind, DenseMap.kind)
    default_splits: ClassVar[Mapping[str, float]] = {"val": 0.1}
    images = "img_dir"

    def __init__(self, folder: Path, input: ExportInput, options: Options, splits: Mapping[str, int]) -> None:
        super().__init__(folder, input, options, splits)
        for target in input.targets:
            if isinstance(target, DenseMap) and target.num_channels > 1:
                raise ValueError(
                    f"{target.field} has {target.num_channels} channels, MMSegmentation reads maps of one: choose the "
                    "format folder, or leave it out (labels=[…], --label)"
                )
        self.folders = {
            target: "ann_dir" if isinstance(target, LabelSchema) else f"{target.field}_dir" for target in input.targets
        }

    def finish(self) -> None:
        """Write the configs."""
        for target, folder in self.folders.items():
            if isinstance(target, LabelSchema):
                name, config = "dataset.py", self._of_masks(target, folder)
            else:
                assert isinstance(target, DenseMap)
                name, config = f"dataset_{target.field}.py", self._of_map(target, folder)
            (self.folder / name).write_text(config, encoding="utf-8")

    def _of_masks(self, schema: LabelSchema, folder: str) -> str:
        names = "".join(f"        {name!r},\n" for name in schema.classes)
        colors = "".join(f"        {list(color)},\n" for color in schema.palette)
        head = f"""Dataset settings for MMSegmentation 1.x.

Name this file in the _base_ of a config, beside a model and a schedule.
The model's heads need num_classes={schema.num_classes} and ignore_index={schema.ignore_index}."""
        settings = f"""metainfo = dict(
    classes=(
{names}    ),
    palette=[
{colors}    ],
)
"""
        kind = """type="BaseSegDataset",
        data_prefix=dict(img_path="{images}", seg_map_path="{labels}"),
        seg_map_suffix=".png",
        reduce_zero_label=False,
        metainfo=metainfo,"""
        evaluator = f'dict(type="IoUMetric", iou_metrics=["mIoU"], ignore_index={schema.ignore_index})'
        return self._config(head, settings, 'dict(type="LoadAnnotations")', kind, folder, evaluator)

    def _of_map(self, target: DenseMap, folder: str) -> str:
        shift = target.step - target.low
        head = f"""Settings of {target.field} for MMSegmentation 1.x.

Name this file in the _base_ of a config, beside a model and a schedule.
Values are loaded as {target.field} {shift:+.9g}: above 0 where they are known, and 0 where not, which MMSegmentation's
losses and its DepthMetric leave out. The highest is {target.high + shift:.9g}; {target.field}.json says the unit."""
        load = f"""dict(
        type="LoadDepthAnnotation",
        decode_backend="cv2",
        to_float32=True,
        depth_rescale_factor={target.step!r},  # for each level of the 16-bit PNG
    )"""
        kind = """type="NYUDataset",
        data_prefix=dict(img_path="{images}", depth_map_path="{labels}"),
        depth_map_suffix=".png","""
        return self._config(head, "", load, kind, folder, 'dict(type="DepthMetric")')

    def _config(self, head: str, settings: str, load: str, kind: str, folder: str, evaluator: str) -> str:
        first = next(iter(self.splits), "")
        held_out = "val" if "val" in self.splits else first
        return f'''"""{head}
"""

data_root = "{{{{ fileDirname }}}}"  # the folder of this file, wherever it is moved to
{settings}train_pipeline = [
    dict(type="LoadImageFromFile"),
    {load},
    dict(type="PackSegInputs"),
]
test_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset={self._dataset(kind, folder, first, "train_pipeline")},
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset={self._dataset(kind, folder, held_out, "test_pipeline")},
)
test_dataloader = val_dataloader
val_evaluator = {evaluator}
test_evaluator = val_evaluator
'''

    def _dataset(self, kind: str, folder: str, split: str, pipeline: str) -> str:
        images, labels = ("/".join(part for part in (name, split) if part) for name in (self.images, folder))
        return f"""dict(
        {kind.format(images=images, labels=labels)}
        data_root=data_root,
        img_suffix=".png",
        pipeline={pipeline},
    )"""
