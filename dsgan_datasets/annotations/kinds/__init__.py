"""Kinds of labels that can be annotated: one entry for each.

How a kind is read from a format of files, and written to it, stands with the format: `labelme.READERS`,
`coco.READERS`, `formats.PICTURES`.
"""

from dsgan_datasets.annotations.kinds.base import Cleaning, Kind, Project
from dsgan_datasets.annotations.kinds.maps import Maps
from dsgan_datasets.annotations.kinds.masks import Masks
from dsgan_datasets.annotations.kinds.points import Points
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

__all__ = ["KINDS", "Cleaning", "Kind", "Maps", "Masks", "Points", "Project", "kind_of"]

#: Kind of the target -> what annotating it needs.
KINDS: dict[str, Kind] = {LabelSchema.kind: Masks(), Keypoints.kind: Points(), DenseMap.kind: Maps()}


def kind_of(target: Target) -> Kind:
    """What annotating the labels of a target needs; a ValueError if nobody can annotate them.

    Example:
        >>> kind_of(LabelSchema(("background", "eye"))).noun
        'mask'
    """
    if target.kind not in KINDS:
        raise ValueError(
            f"labels of the kind {target.kind!r} ({target.field}) cannot be annotated; these can: {', '.join(KINDS)}"
        )
    return KINDS[target.kind]
