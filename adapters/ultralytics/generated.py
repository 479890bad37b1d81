"""What a data YAML says of generated images -> sets of samples with labels as Ultralytics keeps them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import torch

from dsgan_datasets.checkpoints.directory import CHECKPOINT_IS
from dsgan_datasets.checks import integer, refuse_unused
from dsgan_datasets.device import Device
from dsgan_datasets.export.layouts import object_box
from dsgan_datasets.latents import MAX_INDEX, check_seed
from dsgan_datasets.polygons import INSET, mask_to_polygons
from dsgan_datasets.samples import Sample
from dsgan_datasets.shards.locations import SHARDS_ARE, Locations
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.addresses import SampleAddress
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.sources.local import CheckpointSource
from dsgan_datasets.sources.read_ahead import read_ahead
from dsgan_datasets.sources.relabeled import choose_classes
from dsgan_datasets.targets.base import Target, find_target
from dsgan_datasets.targets.instances import InstanceMode, InstanceRule, tight_boxes
from dsgan_datasets.targets.keypoints import keypoints_of
from dsgan_datasets.targets.segmentation import LabelSchema, schema_of

Array = np.ndarray[Any, np.dtype[Any]]

#: Samples that are made together.
_BATCH = 8
#: Samples of an epoch, and of a validation set, unless it is said.
EPOCH_LENGTH, VALIDATION_LENGTH = 1000, 200


@dataclass(frozen=True)
class Drawn:
    """A sample on its way to the process that augments it.

    Attributes:
        number: in its source.
        fields: image, uint8 RGB [3, H, W], and labels, by name.
    """

    number: int
    fields: dict[str, Array]


class Annotator(Protocol):
    """What a task of Ultralytics makes of a sample.

    Attributes:
        names: of the categories 0, 1, …
        facts: what a data YAML says besides.
        partners: for each category the one that takes its place in a mirror, int64; None if nothing has sides.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    @property
    def partners(self) -> Array | None: ...

    def of(self, sample: Sample) -> dict[str, Any]:
        """Categories "cls" [I, 1], boxes "bboxes" [I, 4] (XYXY, pixels), and "segments" (I polygons) or "keypoints"
        [I, K, 3]."""


class Parts:
    """Instances of parts, for detection and segmentation; see `Annotator`.

    Args:
        targets: the labels of the samples.
        options: see `InstanceRule`.
    """

    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, targets: Sequence[Target], **options: Any) -> None:
        self.schema = schema_of(targets)
        self.rule = InstanceRule(self.schema, **options)
        if not self.rule.things:
            raise ValueError("instances need at least one class in `things`")
        self.names = self.rule.names

    @property
    def partners(self) -> Array | None:
        """Left and right parts.

        Raises:
            ValueError: only one class of a left and a right one is among the things.
        """
        if self.rule.mode == "object":
            return None
        partners = np.arange(len(self.names))
        for pair in self.schema.flip_pairs:
            left, right = (self.schema.classes[thing] for thing in pair)
            if left in self.names and right in self.names:
                i, j = self.names.index(left), self.names.index(right)
                partners[i], partners[j] = j, i
            elif left in self.names or right in self.names:
                raise ValueError(
                    f"a mirror makes {left!r} of {right!r}, but only one of them is among the things: name both, merge "
                    "them, or train with fliplr=0"
                )
        return partners if (partners != np.arange(len(partners))).any() else None

    def of(self, sample: Sample) -> dict[str, Any]:
        """Boxes and polygons."""
        masks, categories = self.rule.find(sample.mask)
        return {
            "cls": categories.cpu().numpy()[:, None],
            "bboxes": tight_boxes(masks).cpu().numpy(),
            "segments": [joined(mask_to_polygons(mask, INSET)) for mask in masks.cpu().numpy()],
        }


class Pose:
    """One object with keypoints; its box is that of all things if there are masks, else one around its points.

    Args:
        targets: the labels of the samples.
        size: (H, W) of the images.
        things: names of the classes that belong to the object; None for all but class 0.
        category: what the object is called.
    """

    partners: ClassVar[None] = None  # `flip_idx` says which points trade places

    def __init__(
        self, targets: Sequence[Target], size: tuple[int, int], *, things: Sequence[str] | None, category: str
    ) -> None:
        self.keypoints = keypoints_of(targets)
        self.size = size
        schema = find_target(targets, LabelSchema)
        if things is not None and schema is None:
            raise ValueError("`things` choose classes of a mask, and these samples have keypoints only: leave it out")
        self.rule = None if schema is None else InstanceRule(schema, things=things, mode="object")
        self.names = (category,)

    @property
    def facts(self) -> dict[str, Any]:
        """The points."""
        return {
            "kpt_shape": [self.keypoints.num_points, 3],
            "flip_idx": list(self.keypoints.mirror_order),
            "kpt_names": {0: list(self.keypoints.names)},
            "kpt_oks_sigmas": list(self.keypoints.sigmas),
        }

    def of(self, sample: Sample) -> dict[str, Any]:
        """The object; nothing if it has neither a point nor a pixel in the image."""
        points = sample[self.keypoints.field].cpu()
        masks = None if self.rule is None else self.rule.find(sample.mask)[0].cpu().numpy()
        box = object_box(points, masks[0] if masks is not None and len(masks) else None, self.size)
        boxes = np.array([] if box is None else [box]).reshape(-1, 4)
        return {
            "cls": np.zeros((len(boxes), 1)),
            "bboxes": boxes,
            "segments": [],
            "keypoints": points.numpy()[None][: len(boxes)].copy(),
        }


class GeneratedSet:
    """Samples of a checkpoint or of shards with labels as Ultralytics keeps them.

    The arguments are keys of ``dsgan:`` in a data YAML, but for the task.

    Args:
        checkpoint: a path, the name of a built-in checkpoint, or "hf://org/name".
        shards: in place of it, a folder or URL of shards that `dsgan shards write` made, or several.
        task: of Ultralytics: "detect", "segment" or "pose".
        length: samples of an epoch; every epoch of a checkpoint has new ones. None: 1000 of a checkpoint, all of
            shards.
        seed: 0 … 2^64-1; another seed is another dataset.
        things: names of the classes that instances are made of; None for all but class 0, the background.
        instances: not for a pose, which is of a single object. "components" is one instance a connected region of a
            class, "classes" one a class, "object" a single one of all things together. None: components.
        min_instance_area: pixels; smaller instances are left out. None: 1. Not for a pose.
        category: for a pose only: what the object is called. None: object.
        classes: names of the classes to keep, in the order of their new ids; pixels of others are ignored.
        merge: new class name -> names of the classes it replaces, before `classes` are chosen.
        device: None is the current CUDA device of the process that loads, if there is one, else the CPU.
        recipe: fields of `Recipe` to change, such as ``truncation_psi: 0.7``.

    Attributes:
        source: gives the samples.
        annotator: what the task makes of a sample.
        fresh: whether there are new samples for every epoch.

    Raises:
        CheckpointError, ShardError: there is no such thing, or it is damaged.
        OSError: shards cannot be read.
        ValueError: an argument that is unknown, out of range, or without effect in this task.

    Example:
        >>> faces = GeneratedSet("demo-faces", length=8, things=["eye", "lips"], device="cpu")
        >>> faces.length
        8
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        shards: Locations | None = None,
        task: str = "segment",
        length: int | None = None,
        seed: int = 0,
        things: Sequence[str] | None = None,
        instances: InstanceMode | None = None,
        min_instance_area: int | None = None,
        category: str | None = None,
        classes: Sequence[str] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        device: Device = None,
        **recipe: Any,
    ) -> None:
        if (checkpoint is None) == (shards is None):
            found = "has neither a checkpoint nor shards" if checkpoint is None else "has both a checkpoint and shards"
            raise ValueError(f"it {found}: name one, checkpoint ({CHECKPOINT_IS}) or shards ({SHARDS_ARE})")
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
        self.annotator: Annotator
        if task == "pose":
            of_parts = {"instances": instances, "min_instance_area": min_instance_area}
            refuse_unused("a pose is of one object", of_parts)
            name = "object" if category is None else category
            if not isinstance(name, str) or not name:
                raise ValueError(f"category must be a name such as face, not {name!r:.80}")
            self.annotator = Pose(self.source.targets, self.source.image_size, things=things, category=name)
        else:
            refuse_unused("only the object of a pose has a name of its own", {"category": category})
            mode: InstanceMode = "components" if instances is None else instances
            area = 1 if min_instance_area is None else min_instance_area
            self.annotator = Parts(self.source.targets, things=things, mode=mode, min_area=area)

    def path(self, number: int) -> str:
        """Under which name Ultralytics knows a sample."""
        return str(SampleAddress(self.source.fingerprint[:8], "image", self.source.name, self.seed, number))

    def draw(self, numbers: Iterable[int]) -> Iterator[Drawn]:
        """The samples of some numbers, in order; made ahead on a thread (and a CUDA stream) of their own."""
        numbers = list(numbers)
        samples = self.source.stream(numbers, seed=self.seed)
        left = iter(numbers)
        for batch in read_ahead(samples, _BATCH, device=self.source.device, owner=self.source):
            arrays = {field: value.cpu().numpy() for field, value in batch.items() if field in self._fields}
            for row in range(batch.num_samples):
                yield Drawn(next(left), {field: array[row] for field, array in arrays.items()})

    @property
    def _fields(self) -> tuple[str, ...]:
        return ("image", *(target.field for target in self.source.targets))

    def labeled(self, drawn: Drawn) -> tuple[Array, dict[str, Any]]:
        """Image, uint8 BGR [H, W, 3], and labels as `YOLODataset` keeps them; coordinates are shares of the size."""
        sample = Sample({field: torch.from_numpy(array.copy()) for field, array in drawn.fields.items()})
        found = self.annotator.of(sample)
        height, width = self.source.image_size
        size = np.array([width, height], dtype=np.float32)
        corners = found["bboxes"].reshape(-1, 2, 2) / size
        keypoints = found.get("keypoints")
        if keypoints is not None:
            keypoints[..., :2] /= size
        label = {
            "im_file": self.path(drawn.number),
            "shape": (height, width),
            "cls": found["cls"].astype(np.float32),
            "bboxes": np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], 1).astype(np.float32),
            "segments": [(outline / size).astype(np.float32) for outline in found["segments"]],
            "keypoints": keypoints,
            "normalized": True,
            "bbox_format": "xywh",
        }
        return np.ascontiguousarray(drawn.fields["image"][::-1].transpose(1, 2, 0)), label


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
