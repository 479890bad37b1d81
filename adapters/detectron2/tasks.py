"""What a registered dataset is trained for: each task says what metadata, records and models get of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from dsgan_datasets.checks import refuse_unused
from dsgan_datasets.export.layouts import object_box
from dsgan_datasets.samples import Sample
from dsgan_datasets.sources.base import NamedSource
from dsgan_datasets.targets.base import Target, find_target
from dsgan_datasets.targets.instances import InstanceMode, InstanceRule, tight_boxes
from dsgan_datasets.targets.keypoints import keypoints_of
from dsgan_datasets.targets.segmentation import LabelSchema, schema_of

TaskName = Literal["sem_seg", "instances", "panoptic", "keypoints"]


@dataclass
class Found:
    """Instances of a sample, where its labels lie.

    Attributes:
        boxes: float32 [I, 4], XYXY.
        categories: int64 [I].
        masks: bool [I, H, W]; None if the samples have no masks.
        keypoints: float32 [I, K, 3], (x, y, v); None if the task has none.
    """

    boxes: Tensor
    categories: Tensor
    masks: Tensor | None = None
    keypoints: Tensor | None = None


class Task(Protocol):
    """A task.

    Constructed with the source and the arguments of `register` that concern instances; None is one that was not given.
    One that changes nothing in the task is refused.

    Attributes:
        semantic: whether records name a mask of class ids.
        counted: whether records have instances.
        targets: the labels that it needs, which a mirror must know.
        sided: whether a mirror that leaves class ids alone makes them wrong.
        identity: what two registrations under one name must have in common.
        metadata: attributes for MetadataCatalog, named as in Detectron2's guide "Use Custom Datasets".
    """

    semantic: ClassVar[bool]
    counted: ClassVar[bool]

    def __init__(
        self,
        source: NamedSource,
        *,
        things: Sequence[str] | None,
        instances: InstanceMode | None,
        min_instance_area: int | None,
    ) -> None: ...

    @property
    def targets(self) -> tuple[Target, ...]: ...

    @property
    def sided(self) -> bool: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def metadata(self) -> dict[str, Any]: ...

    def sem_seg(self, mask: Tensor) -> Tensor:
        """Semantic target [H, W] of a mask."""

    def instances(self, sample: Sample) -> Found:
        """Instances of a sample."""


class SemSeg:
    """Masks of class ids, for SemanticSegmentor and the like; see `Task`."""

    semantic: ClassVar[bool] = True
    counted: ClassVar[bool] = False

    def __init__(self, source: NamedSource, **of_instances: Any) -> None:
        refuse_unused("the task is sem_seg, and only instances and panoptic have instances", of_instances)
        self.schema = schema_of(source.targets)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The masks."""
        return (self.schema,)

    @property
    def sided(self) -> bool:
        """Whether classes have sides."""
        return bool(self.schema.flip_pairs)

    @property
    def identity(self) -> dict[str, Any]:
        """Nothing: the source decides all."""
        return {}

    @property
    def metadata(self) -> dict[str, Any]:
        """The classes."""
        return {"ignore_label": self.schema.ignore_index, "evaluator_type": "sem_seg", **self._stuff(self._classes())}

    def sem_seg(self, mask: Tensor) -> Tensor:
        """The mask."""
        return mask

    def instances(self, sample: Sample) -> Found:
        """There are none: a ValueError."""
        raise ValueError("a dataset of masks has no instances; register it with task='instances'")

    def _classes(self) -> list[tuple[str, list[int]]]:
        return list(zip(self.schema.classes, map(list, self.schema.palette), strict=True))

    def _stuff(self, classes: list[tuple[str, list[int]]]) -> dict[str, Any]:
        return {
            "stuff_classes": [name for name, _ in classes],
            "stuff_colors": [color for _, color in classes],
            "stuff_dataset_id_to_contiguous_id": {i: i for i in range(len(classes))},
        }


class Instances(SemSeg):
    """Boxes and masks, for Mask R-CNN and the like; see `Task`."""

    semantic: ClassVar[bool] = False
    counted: ClassVar[bool] = True

    def __init__(
        self,
        source: NamedSource,
        *,
        things: Sequence[str] | None,
        instances: InstanceMode | None,
        min_instance_area: int | None,
    ) -> None:
        super().__init__(source)
        mode: InstanceMode = "classes" if instances is None else instances
        area = 1 if min_instance_area is None else min_instance_area
        self.rule = InstanceRule(self.schema, things=things, mode=mode, min_area=area)
        if not self.rule.things:
            raise ValueError("instances need at least one class in `things`")

    @property
    def identity(self) -> dict[str, Any]:
        """The instances."""
        return {
            "things": tuple(self.schema.classes[thing] for thing in self.rule.things),
            "instances": self.rule.mode,
            "min_instance_area": self.rule.min_area,
        }

    @property
    def metadata(self) -> dict[str, Any]:
        """The classes that instances are made of."""
        return {"ignore_label": self.schema.ignore_index, "evaluator_type": "coco", **self._things()}

    def instances(self, sample: Sample) -> Found:
        """Instances in the mask."""
        masks, categories = self.rule.find(sample.mask)
        return Found(tight_boxes(masks), categories, masks)

    def _things(self) -> dict[str, Any]:
        ids = [1] if self.rule.mode == "object" else self.rule.things
        return {
            "thing_classes": list(self.rule.names),
            "thing_colors": [list(self.schema.palette[thing]) for thing in self.rule.things[: len(ids)]],
            "thing_dataset_id_to_contiguous_id": {i: category for category, i in enumerate(ids)},
        }


class Panoptic(Instances):
    """Both, as PanopticFPN wants them: in the mask all things are 0, and the other classes are counted from 1."""

    semantic: ClassVar[bool] = True
    counted: ClassVar[bool] = True

    def __init__(self, source: NamedSource, **options: Any) -> None:
        super().__init__(source, **options)
        self.stuff = [i for i in range(self.schema.num_classes) if i not in self.rule.things]
        # By class id. Kept on the device that asked last.
        self._semantic = torch.arange(256)
        self._semantic[list(self.rule.things)] = 0
        self._semantic[self.stuff] = torch.arange(1, len(self.stuff) + 1)

    @property
    def metadata(self) -> dict[str, Any]:
        """Things and stuff."""
        classes = self._classes()
        stuff = self._stuff([("things", [255, 255, 255]), *(classes[i] for i in self.stuff)])
        facts = {"ignore_label": self.schema.ignore_index, "evaluator_type": "coco_panoptic_seg"}
        return {**facts, **stuff, **self._things()}

    def sem_seg(self, mask: Tensor) -> Tensor:
        """0 for things and then the stuff."""
        self._semantic = self._semantic.to(mask.device)
        return self._semantic[mask]


class ObjectKeypoints:
    """One object with points, for Keypoint R-CNN; its mask is that of all things, if the samples have masks.

    Points are as Detectron2 wants them: the center of the first pixel is (0.5, 0.5). See `Task`.
    """

    semantic: ClassVar[bool] = False
    counted: ClassVar[bool] = True
    sided: ClassVar[bool] = False  # the stock mapper exchanges points by their names

    def __init__(
        self,
        source: NamedSource,
        *,
        things: Sequence[str] | None,
        instances: InstanceMode | None,
        min_instance_area: int | None,
    ) -> None:
        refuse_unused("the task is keypoints, which are of a single object", {"instances": instances})
        self.keypoints = keypoints_of(source.targets)
        self.size = source.image_size
        schema = find_target(source.targets, LabelSchema)
        of_mask = {"things": things, "min_instance_area": min_instance_area}
        self.rule = None
        if schema is None:
            refuse_unused("these samples have keypoints only, and no mask that the object could be cut out of", of_mask)
        else:
            area = 1 if min_instance_area is None else min_instance_area
            self.rule = InstanceRule(schema, things=things, mode="object", min_area=area)
        self.targets: tuple[Target, ...] = (self.keypoints,) if schema is None else (self.keypoints, schema)

    @property
    def identity(self) -> dict[str, Any]:
        """What the object's mask is made of."""
        return {} if self.rule is None else {"things": self.rule.things, "min_instance_area": self.rule.min_area}

    @property
    def metadata(self) -> dict[str, Any]:
        """The points."""
        names, colors = self.keypoints.names, self.keypoints.tally_colors
        return {
            "evaluator_type": "coco",
            "thing_classes": ["object"],
            "thing_dataset_id_to_contiguous_id": {1: 0},
            "keypoint_names": list(names),
            "keypoint_oks_sigmas": list(self.keypoints.sigmas),  # our own; `build_evaluator` reads it
            "keypoint_flip_map": [(names[a], names[b]) for a, b in self.keypoints.flip_pairs],
            "keypoint_connection_rules": [(names[a], names[b], colors[a]) for a, b in self.keypoints.skeleton],
        }

    def sem_seg(self, mask: Tensor) -> Tensor:
        """There is none: a ValueError."""
        raise ValueError("a dataset of keypoints has no semantic target; register it with task='sem_seg'")

    def instances(self, sample: Sample) -> Found:
        """The object; none if it has neither a point nor a pixel in the image."""
        points = sample[self.keypoints.field]
        masks = None if self.rule is None else self.rule.find(sample.mask)[0]
        foreground = None if masks is None or not len(masks) else masks[0].cpu().numpy()
        box = object_box(points, foreground, self.size)
        boxes = points.new_tensor([] if box is None else [box]).view(-1, 4)
        if masks is not None and len(masks) != len(boxes):  # points without a pixel
            masks = masks.new_zeros(len(boxes), *self.size)
        categories = torch.zeros(len(boxes), dtype=torch.int64, device=points.device)
        return Found(boxes, categories, masks, points[None][: len(boxes)])


TASKS: dict[TaskName, type[Task]] = {
    "sem_seg": SemSeg,
    "instances": Instances,
    "panoptic": Panoptic,
    "keypoints": ObjectKeypoints,
}
