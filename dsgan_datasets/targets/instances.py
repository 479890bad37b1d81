"""Mask of class ids -> instances of parts: bit masks, categories and boxes, computed where the mask lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checks import integer, names
from dsgan_datasets.targets.segmentation import LabelSchema

InstanceMode = Literal["classes", "components", "object"]


class InstanceRule:
    """Which parts of a mask are instances, and what their categories are called.

    Args:
        schema: what the class ids of the masks mean.
        things: names of the classes that instances are made of; None for all but class 0, the background.
        mode: "classes" is one instance a class, "components" one a connected region of a class, "object" a single one
            of all things together.
        min_area: pixels; smaller instances are left out.

    Attributes:
        things: ids of those classes, in order.
        names: of the categories 0, 1, …

    Raises:
        ValueError: an argument out of range, or an unknown class.

    Example:
        >>> rule = InstanceRule(LabelSchema(("background", "left", "right", "hat")), things=["hat", "left"])
        >>> rule.names
        ('left', 'hat')
        >>> masks, categories = rule.find(torch.tensor([[3, 2, 1]]))
        >>> masks.int(), categories
        (tensor([[[0, 0, 1]],
        <BLANKLINE>
                [[1, 0, 0]]], dtype=torch.int32), tensor([0, 1]))
    """

    def __init__(
        self,
        schema: LabelSchema,
        *,
        things: Sequence[str] | None = None,
        mode: InstanceMode = "classes",
        min_area: int = 1,
    ) -> None:
        if mode not in get_args(InstanceMode):
            raise ValueError(f"instances must be one of {', '.join(get_args(InstanceMode))}, not {mode!r}")
        thing_names = schema.classes[1:] if things is None else [things] if isinstance(things, str) else things
        self.things = tuple(sorted({schema.index(thing) for thing in names("things", thing_names)}))
        self.mode: InstanceMode = mode
        self.min_area = integer("min_instance_area", min_area, 1)
        self.names = ("object",) if mode == "object" else tuple(schema.classes[thing] for thing in self.things)
        # By class id; -1 for what belongs to no instance. Kept on the device that asked last.
        self._categories = torch.full((256,), -1)
        for category, thing in enumerate(self.things):
            self._categories[thing] = 0 if mode == "object" else category

    def find(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Instances of a mask [H, W]: bool masks [I, H, W] and int64 categories [I], where the mask lies."""
        self._categories = self._categories.to(mask.device)
        components = self.mode == "components"
        return find_instances(mask, self._categories, components=components, min_area=self.min_area)


def find_instances(
    mask: Tensor, categories: Tensor, *, components: bool = False, min_area: int = 1
) -> tuple[Tensor, Tensor]:
    """The instances in a mask.

    Args:
        mask: class ids [H, W].
        categories: int64 [256], the category of each class id, -1 for what belongs to no instance; on the device
            of the mask.
        components: True makes an instance of each connected region of a category, False one of each category.
        min_area: pixels; smaller instances are left out.

    Returns:
        bool masks [I, H, W] and int64 categories [I]; ordered by category, components by their first pixel.

    Example:
        >>> categories = torch.full((256,), -1)
        >>> categories[3], categories[5] = 0, 1
        >>> masks, found = find_instances(torch.tensor([[3, 0, 3], [3, 0, 5]]), categories, components=True)
        >>> masks.sum((1, 2)), found
        (tensor([2, 1, 1]), tensor([0, 0, 1]))
    """
    category = categories[mask]
    region = connected_components(category) if components else category
    found, areas = region[category >= 0].unique(return_counts=True)
    found = found[areas >= min_area]
    return region == found[:, None, None], category.flatten()[found] if components else found


def connected_components(values: Tensor) -> Tensor:
    """Label regions of equal, 8-connected values by the position (row · W + column) of their first pixel.

    Every region hooks itself below the lowest label that one of its pixels sees next to it, then pointers are
    followed, until nothing changes (Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm", 1982).

    Args:
        values: integers [H, W].

    Returns:
        int64 [H, W].

    Example:
        >>> connected_components(torch.tensor([[7, 7, 0], [0, 0, 7]]))
        tensor([[0, 0, 2],
                [2, 2, 0]])
    """
    height, width = values.shape
    labels = torch.arange(height * width, device=values.device).view(height, width)
    right, left = (slice(None), slice(1, None)), (slice(None), slice(-1))
    below, above = (slice(1, None), slice(None)), (slice(-1), slice(None))
    below_right, above_left = (slice(1, None), slice(1, None)), (slice(-1), slice(-1))
    below_left, above_right = (slice(1, None), slice(-1)), (slice(-1), slice(1, None))
    pairs = [(right, left), (below, above), (below_right, above_left), (below_left, above_right)]
    joined = [(a, b, values[a] == values[b]) for a, b in pairs]
    while True:
        lowest = labels.clone()
        for a, b, same in joined:
            lowest[a] = torch.where(same, torch.minimum(lowest[a], labels[b]), lowest[a])
            lowest[b] = torch.where(same, torch.minimum(lowest[b], labels[a]), lowest[b])
        parents = labels.flatten().scatter_reduce(0, labels.flatten(), lowest.flatten(), "amin")
        followed = parents[parents].view_as(labels)
        if torch.equal(followed, labels):
            return labels
        labels = followed


def tight_boxes(masks: Tensor) -> Tensor:
    """Boxes around bool masks [I, H, W], none of them empty: float32 [I, 4], XYXY, right and lower edge exclusive.

    Example:
        >>> tight_boxes(torch.tensor([[[False, True, True], [False, False, True]]]))
        tensor([[1., 0., 3., 2.]])
    """
    height, width = masks.shape[1:]
    rows, columns = masks.any(2).byte(), masks.any(1).byte()
    left, top = columns.argmax(1), rows.argmax(1)  # the first of the largest
    right, bottom = width - columns.flip(1).argmax(1), height - rows.flip(1).argmax(1)
    return torch.stack([left, top, right, bottom], 1).float()


def tight_box(mask: np.ndarray[Any, np.dtype[Any]]) -> list[int]:
    """Box (x, y, width, height) around a bool mask [H, W] that is not empty.

    Example:
        >>> tight_box(np.array([[False, True, True], [False, False, True]]))
        [1, 0, 2, 2]
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]
