"""The fast path: records -> what a model takes, without files, encoding or a way through the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset, resolve
from dsgan_datasets.sources.addresses import SCHEME
from dsgan_datasets.targets.instances import tight_boxes
from dsgan_datasets.transforms import RandomHorizontalFlip


class DSGANDatasetMapper:
    """A `mapper=` for `build_detection_train_loader` and `build_detection_test_loader`.

    Gives ``image`` (uint8 [3, H, W]), ``height``, ``width``, ``file_name``, ``image_id`` and, as the registered task
    says, ``sem_seg`` (int64 [H, W]) and ``instances`` (`Instances` with gt_boxes, gt_classes and gt_masks, a
    `BitMasks`). All tensors lie where the samples are generated and are views of the generated batch wherever they
    can be: do not change them in place. The size is that of the samples; INPUT.MIN_SIZE_* is not looked at. Finding
    instances makes the host wait for their number, and copies nothing else.

    Built from a config (``DSGANDatasetMapper(cfg, is_train)``) it follows INPUT.FORMAT, RANDOM_FLIP and CROP.

    Args:
        is_train: False leaves out instances, flip and augmentations.
        augmentations: Detectron2's. They work on numpy arrays, so with them samples go through the CPU and stay there.
            Do not put `RandomFlip` in here for a schema with left and right parts; there is `flip_prob`.
        image_format: "BGR" (what most of Detectron2's models want) or "RGB".
        flip_prob: probability of a mirror image, whose left and right parts trade their class ids.
        real_mapper: for the real records of a mixed dataset; from a config it is the stock `DatasetMapper`.

    Raises:
        ValueError: an argument out of range; when called, a record that is not generated without `real_mapper`.

    Example:
        >>> from dsgan_datasets.adapters.detectron2 import register
        >>> dataset = register("fast", "demo-faces", device="cpu")
        >>> mapped = DSGANDatasetMapper(image_format="RGB")(dataset.record(0))
        >>> mapped["image"].shape, mapped["sem_seg"].dtype
        (torch.Size([3, 64, 64]), torch.int64)
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform] = (),
        image_format: str = "BGR",
        flip_prob: float = 0.0,
        real_mapper: Callable[[Record], Record | None] | None = None,
    ) -> None:
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"image_format (INPUT.FORMAT) must be BGR or RGB, not {image_format!r}")
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"flip_prob is a probability, not {flip_prob!r}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations) if is_train and augmentations else None
        self.image_format = image_format
        self.flip_prob = flip_prob if is_train else 0.0
        self.real_mapper = real_mapper

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments for the constructor."""
        augmentations = []
        if cfg.INPUT.CROP.ENABLED:
            augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if cfg.INPUT.RANDOM_FLIP == "vertical":
            augmentations.append(T.RandomFlip(horizontal=False, vertical=True))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "flip_prob": 0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0,
            "real_mapper": DatasetMapper(cfg, is_train),
        }

    def __call__(self, record: Record) -> Record | None:
        """One record, mapped; the record stays as it is."""
        if not record["file_name"].startswith(SCHEME):
            if self.real_mapper is None:
                raise ValueError(
                    f"{record['file_name']} is not a generated sample: give real_mapper=DatasetMapper(…) for real data"
                )
            return self.real_mapper(record)
        dataset, index, _ = resolve(record["file_name"])
        sample = dataset.sample(index)
        image, mask = sample.image, sample.mask
        if self.flip_prob:
            image, mask = RandomHorizontalFlip(dataset.schema, self.flip_prob)(image, mask)
        if self.image_format == "BGR":
            image = image.flip(0)
        targets: dict[str, Tensor] = {}
        if dataset.task != "instances":
            targets["sem_seg"] = dataset.sem_seg(mask)
        if dataset.task != "sem_seg" and self.is_train:
            targets["masks"], targets["classes"] = dataset.instances(mask)
        if self.augmentations is not None:
            image, targets = _augmented(self.augmentations, dataset, image, targets)
        mapped = {key: record[key] for key in ("file_name", "height", "width", "image_id")}
        mapped["image"] = image
        if "sem_seg" in targets:
            mapped["sem_seg"] = targets["sem_seg"]
        if "masks" in targets:
            mapped["instances"] = _instances(targets["masks"], targets["classes"])
        return mapped


def _instances(masks: Tensor, classes: Tensor) -> Instances:
    """bool masks [I, H, W] and int64 classes [I] as models take them."""
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_boxes = Boxes(tight_boxes(masks))
    instances.gt_classes = classes
    instances.gt_masks = BitMasks(masks)
    return instances


def _augmented(
    augmentations: T.AugmentationList, dataset: RegisteredDataset, image: Tensor, targets: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Image and targets after Detectron2's augmentations, on the CPU, without the instances that are cut away."""
    sem_seg = targets["sem_seg"].byte().cpu().numpy() if "sem_seg" in targets else None
    augmented = T.AugInput(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()), sem_seg=sem_seg)
    applied = augmentations(augmented)
    if dataset.schema.flip_pairs and any(isinstance(t, T.HFlipTransform) for t in applied.transforms):
        raise ValueError(
            f"an augmentation mirrored a sample of {dataset.name!r}, whose classes have left and right sides, without "
            "exchanging them: take RandomFlip out of augmentations and use DSGANDatasetMapper(flip_prob=0.5)"
        )
    image = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
    moved: dict[str, Tensor] = {}
    if sem_seg is not None:
        moved["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
    if "masks" in targets:
        cut = [applied.apply_segmentation(mask) for mask in targets["masks"].byte().cpu().numpy()]
        shape = (len(cut), *image.shape[1:])
        masks = torch.from_numpy(np.array(cut, dtype=bool).reshape(shape))
        left = masks.any((1, 2))
        moved["masks"], moved["classes"] = masks[left], targets["classes"].cpu()[left]
    return image, moved
