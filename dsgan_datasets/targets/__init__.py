"""Label kinds: what a label is, how it is stored, counted, mirrored and drawn.

Importing this package registers the kinds that the library knows, see `base.KINDS`.
"""

from dsgan_datasets.targets.base import KINDS, Target, register, target_from_dict
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints, keypoints_of
from dsgan_datasets.targets.segmentation import LabelSchema, schema_of

__all__ = [
    "KINDS",
    "DenseMap",
    "Keypoints",
    "LabelSchema",
    "Target",
    "keypoints_of",
    "register",
    "schema_of",
    "target_from_dict",
]
