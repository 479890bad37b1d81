"""The fast path: records -> what a model takes, without files, encoding or a way through the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from torch import Tensor

from dsgan_datasets.adapters.detectron2.registered import Record, RegisteredDataset, resolve
from dsgan_datasets.adapters.detectron2.tasks import Found
from dsgan_datasets.samples import Sample
from dsgan_datasets.sources.addresses import SCHEME
from dsgan_datasets.targets.instances import tight_boxes
from dsgan_datasets.transforms import RandomHorizontalFlip


class DSGANDatasetMapper:
    """A `mapper=` for `build_detection_train_loader` and `build_detection_test_loader`.

    Gives ``image`` (uint8 [3, H, W]), ``height``, ``width``, ``file_name``, ``image_id`` and, as the registered task
    says, ``sem_seg`` (int64 [H, W]) and ``instances`` (`Instances` with gt_boxes, gt_classes, gt_masks, a `BitMasks`,
    and gt_keypoints). All tensors lie where the samples are generated and are views of the generated batch wherever
    they can be: do not change them in place. The size is that of the samples; INPUT.MIN_SIZE_* is not looked at.
    Finding instances makes the host wait for their number, and copies nothing else.

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
        labels = dataset.labels
        sample = Sample({**dataset.sample(index)})
        if self.flip_prob:
            sides = {target.field: sample[target.field] for target in labels.targets}
            sample.update(RandomHorizontalFlip(labels.targets, self.flip_prob)({"image": sample.image, **sides}))
        image = sample.image.flip(0) if self.image_format == "BGR" else sample.image
        sem_seg = labels.sem_seg(sample.mask) if labels.semantic else None
        found = labels.instances(sample) if labels.counted and self.is_train else None
        if self.augmentations is not None:
            image, sem_seg, found = _augmented(self.augmentations, dataset, image, sem_seg, found)
        mapped = {key: record[key] for key in ("file_name", "height", "width", "image_id")}
        mapped["image"] = image
        if sem_seg is not None:
            mapped["sem_seg"] = sem_seg
        if found is not None:
            mapped["instances"] = _instances(found, tuple(image.shape[1:]))
        return mapped


def _instances(found: Found, size: tuple[int, ...]) -> Instances:
    """Instances as models take them."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(found.boxes)
    instances.gt_classes = found.categories
    if found.masks is not None:
        instances.gt_masks = BitMasks(found.masks)
    if found.keypoints is not None:
        instances.gt_keypoints = Keypoints(found.keypoints)
    return instances


def _augmented(
    augmentations: T.AugmentationList,
    dataset: RegisteredDataset,
    image: Tensor,
    sem_seg: Tensor | None,
    found: Found | None,
) -> tuple[Tensor, Tensor | None, Found | None]:
    """All after Detectron2's augmentations, on the CPU, without the instances that are cut away."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    augmented = T.AugInput(pixels, sem_seg=None if sem_seg is None else sem_seg.byte().cpu().numpy())
    applied = augmentations(augmented)
    sided = any(getattr(target, "flip_pairs", ()) for target in dataset.labels.targets)
    if sided and any(isinstance(t, T.HFlipTransform) for t in applied.transforms):
        raise ValueError(
            f"an augmentation mirrored a sample of {dataset.name!r}, whose labels have left and right sides, without "
            "exchanging them: take RandomFlip out of augmentations and use DSGANDatasetMapper(flip_prob=0.5)"
        )
    image = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
    if sem_seg is not None:
        sem_seg = torch.from_numpy(augmented.sem_seg.astype(np.int64))
    return image, sem_seg, None if found is None else _moved(found, applied, image.shape[1:])


def _moved(found: Found, applied: T.TransformList, size: torch.Size) -> Found:
    """Instances where transforms of an image, which has this (H, W) now, move them."""
    categories = found.categories.cpu()
    boxes = torch.from_numpy(applied.apply_box(found.boxes.cpu().numpy())).float()
    boxes = torch.stack([boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])], -1).flatten(1)
    left = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    moved = Found(boxes, categories)
    if found.masks is not None:
        cut = [applied.apply_segmentation(mask) for mask in found.masks.byte().cpu().numpy()]
        moved.masks = torch.from_numpy(np.array(cut, dtype=bool).reshape(len(cut), *size))
        left = moved.masks.any((1, 2))
    if found.keypoints is not None:
        moved.keypoints = _moved_points(found.keypoints.cpu(), applied, size)
    moved.categories = categories[left]
    moved.masks = None if moved.masks is None else moved.masks[left]
    moved.keypoints = None if moved.keypoints is None else moved.keypoints[left]
    moved.boxes = boxes[left] if moved.masks is None else tight_boxes(moved.masks)
    return moved


def _moved_points(points: Tensor, applied: T.TransformList, size: torch.Size) -> Tensor:
    """Points [I, K, 3] where transforms move them; those beyond the image are no longer in it."""
    places = applied.apply_coords(points[..., :2].reshape(-1, 2).double().numpy()).reshape(*points.shape[:2], 2)
    moved = torch.cat([torch.from_numpy(places).float(), points[..., 2:]], -1)
    x, y, v = moved.unbind(-1)
    inside = (v > 0) & (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])
    return torch.where(inside[..., None], moved, 0.0)
