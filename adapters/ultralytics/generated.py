"""What a data YAML says of generated images -> sets of samples with labels as Ultralytics keeps them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from dsgan_datasets.checks import integer
from dsgan_datasets.device import Device
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.polygons import INSET, mask_to_polygons
from dsgan_datasets.shards.locations import Locations
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.addresses import SampleAddress
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.sources.local import CheckpointSource
from dsgan_datasets.sources.relabeled import choose_classes
from dsgan_datasets.targets.instances import InstanceMode, InstanceRule, tight_boxes

Array = np.ndarray[Any, np.dtype[Any]]

#: Samples of an epoch, and of a validation set, unless it is said.
EPOCH_LENGTH, VALIDATION_LENGTH = 1000, 200


class GeneratedSet:
    """Samples of a checkpoint or of shards as boxes and polygons. The arguments are keys of ``dsgan:`` in a data YAML.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        shards: in place of it, a folder or URL of shards that `dsgan shards write` made, or several.
        length: samples of an epoch; every epoch of a checkpoint has new ones. None: 1000 of a checkpoint, all of shards.
        seed: 0 … 2^64-1; another seed is another dataset.
        things: names of the classes that instances are made of; None for all but class 0, the background.
        instances: "components" is one instance a connected region of a class, "classes" one a class, "object" a single
            one of all things together.
        min_instance_area: pixels; smaller instances are left out.
        classes: names of the classes to keep, in the order of their new ids; pixels of others are ignored.
        merge: new class name -> names of the classes it replaces, before `classes` are chosen.
        device: None is the current CUDA device of the process that loads, if there is one, else the CPU.
        recipe: fields of `Recipe` to change, such as ``truncation_psi: 0.7``.

    Attributes:
        source: gives the samples.
        fresh: whether there are new samples for every epoch.

    Raises:
        CheckpointError, ShardError: there is no such thing, or it is damaged.
        OSError: shards cannot be read.
        ValueError: an argument that is unknown or out of range.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        shards: Locations | None = None,
        length: int | None = None,
        seed: int = 0,
        things: Sequence[str] | None = None,
        instances: InstanceMode = "components",
        min_instance_area: int = 1,
        classes: Sequence[str] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        device: Device = None,
        **recipe: Any,
    ) -> None:
        if (checkpoint is None) == (shards is None):
            raise ValueError("name either a checkpoint or shards")
        source: NamedSource
        if checkpoint is not None:
            source = CheckpointSource(checkpoint, device=device, **recipe)
        elif recipe or device is not None or seed:
            found = ", ".join([*recipe, *(["device"] if device is not None else []), *(["seed"] if seed else [])])
            raise ValueError(f"{found} cannot be changed for shards: that was decided when they were written")
        else:
            assert shards is not None
            source = ShardSource(shards)
        self.source = choose_classes(source, classes, merge)
        end = self.source.num_samples
        self.fresh = end is None
        self.length = (end or EPOCH_LENGTH) if length is None else integer("length", length, 1, end or MAX_INDEX)
        self.seed = check_seed(seed)
        self.schema = self.source.schema
        self.rule = InstanceRule(self.schema, things=things, mode=instances, min_area=min_instance_area)
        if not self.rule.things:
            raise ValueError("instances need at least one class in `things`")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the categories 0, 1, …"""
        return self.rule.names

    @property
    def partners(self) -> Array | None:
        """For each category the one that takes its place in a mirror, int64; None if nothing has sides.

        Raises:
            ValueError: only one class of a left and a right one is among the things.
        """
        if self.rule.mode == "object" or not self.schema.flip_pairs:
            return None
        partners = np.arange(len(self.names))
        for left, right in self.schema.flip_pairs:
            present = [thing in self.rule.things for thing in (left, right)]
            if all(present):
                i, j = self.rule.things.index(left), self.rule.things.index(right)
                partners[i], partners[j] = j, i
            elif any(present):
                pair = [self.schema.classes[thing] for thing in (left, right)]
                raise ValueError(
                    f"a mirror makes {pair[0]!r} of {pair[1]!r}, but only one of them is among the things: name both, "
                    "merge them, or train with fliplr=0"
                )
        return partners if (partners != np.arange(len(partners))).any() else None

    def path(self, number: int) -> str:
        """Under which name Ultralytics knows a sample."""
        return str(SampleAddress(self.source.fingerprint[:8], "image", self.source.name, self.seed, number))

    def labels(self, numbers: Sequence[int]) -> list[tuple[Array, dict[str, Any]]]:
        """Samples that are made together: images, uint8 BGR [H, W, 3], and labels as `YOLODataset` keeps them.

        Coordinates are shares of width and height.

        Raises:
            RuntimeError: in a DataLoader worker, if the device is a GPU.
        """
        batch = self.source.batch(numbers, seed=self.seed)
        images = batch.image.flip(1).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        labels = [self._label(number, mask) for number, mask in zip(numbers, batch.mask, strict=True)]
        return list(zip(images, labels, strict=True))

    def _label(self, number: int, mask: Tensor) -> dict[str, Any]:
        masks, categories = self.rule.find(mask)
        size = np.array(mask.shape[::-1], dtype=np.float32)  # width, height
        corners = tight_boxes(masks).cpu().numpy().reshape(-1, 2, 2) / size
        outlines = [joined(mask_to_polygons(part, INSET)) for part in masks.cpu().numpy()]
        return {
            "im_file": self.path(number),
            "shape": tuple(mask.shape),
            "cls": categories.cpu().numpy().astype(np.float32)[:, None],
            "bboxes": np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], 1),
            "segments": [(outline / size).astype(np.float32) for outline in outlines],
            "keypoints": None,
            "normalized": True,
            "bbox_format": "xywh",
        }


def joined(polygons: Sequence[Array]) -> Array:
    """One polygon for several, as Ultralytics has one for an instance: lines that are walked both ways join them.

    Example:
        >>> joined([np.array([(0, 0), (1, 0), (0, 1)]), np.array([(5, 5), (6, 5), (5, 6)])]).tolist()
        [[0, 0], [1, 0], [0, 1], [0, 0], [5, 5], [6, 5], [5, 6], [5, 5]]
    """
    if len(polygons) == 1:
        return polygons[0]
    return np.concatenate([np.concatenate([polygon, polygon[:1]]) for polygon in polygons])


def resized(image: Array, side: int) -> Array:
    """The image [H, W, C] with its longer side brought to `side` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return image
    size = tuple(min(math.ceil(extent * scale), side) for extent in (width, height))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
