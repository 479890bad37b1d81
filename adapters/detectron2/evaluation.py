"""Evaluators for registered datasets with a length."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils.file_io import PathManager

from dsgan_datasets.adapters.detectron2.registered import REGISTERED
from dsgan_datasets.adapters.detectron2.streams import no_end
from dsgan_datasets.images import open_picture

#: Formats that keep class ids.
_LOSSLESS = ("PNG", "TIFF", "BMP", "PPM")


def load_sem_seg(file_name: str, dtype: Any = None) -> np.ndarray:
    """A `sem_seg_loading_fn` for SemSegEvaluator, whose own fails with numpy 2: class ids [H, W], writable.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> load_sem_seg(register("truth", "demo-faces", device="cpu").path(0, "mask"), dtype=int).shape
        (64, 64)
    """
    with PathManager.open(file_name, "rb") as file:
        return np.array(open_picture(file.read(), formats=_LOSSLESS, most_pixels=2**28, what=file_name), dtype=dtype)


def build_evaluator(name: str, output_dir: str, *, distributed: bool = True) -> DatasetEvaluator:
    """The evaluator that fits the metadata of a dataset; return it from `build_evaluator` of your trainer.

    "sem_seg" is measured by SemSegEvaluator, "instances" and "keypoints" by COCOEvaluator, "panoptic" by both of them
    (panoptic quality needs files that a generated dataset does not have). COCO annotations are written anew, never
    taken from an earlier run.

    Args:
        name: a registered dataset, generated or real.
        output_dir: folder for predictions and annotations.
        distributed: gather the results of all ranks.

    Raises:
        ValueError: there is no evaluator for such a dataset, or it is a stream without end.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> dataset = register("val", "demo-faces", length=2, device="cpu")
        >>> type(build_evaluator("val", "output")).__name__
        'SemSegEvaluator'
    """
    if name in REGISTERED and REGISTERED[name].length is None:
        raise ValueError(no_end(name))
    kind = MetadataCatalog.get(name).get("evaluator_type")
    evaluators: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        evaluators.append(SemSegEvaluator(name, distributed, output_dir, sem_seg_loading_fn=load_sem_seg))
    if kind in ("coco", "coco_panoptic_seg"):
        # Its cache goes by the name of the dataset alone: another seed or checkpoint would get the old annotations.
        sigmas = MetadataCatalog.get(name).get("keypoint_oks_sigmas", ())
        evaluators.append(
            COCOEvaluator(
                name, distributed=distributed, output_dir=output_dir, allow_cached_coco=False, kpt_oks_sigmas=sigmas
            )
        )
    if not evaluators:
        raise ValueError(
            f"dataset {name!r} has evaluator_type {kind!r}; there are evaluators for sem_seg, coco, coco_panoptic_seg"
        )
    return DatasetEvaluators(evaluators) if len(evaluators) > 1 else evaluators[0]
