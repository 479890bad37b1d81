"""Label kinds: what a label is, how it is stored, counted, mirrored and drawn.

Importing this package registers the kinds that the library knows, see `base.KINDS`.
"""

from dsgan_datasets.targets.base import KINDS, Target, register, target_from_dict
from dsgan_datasets.targets.segmentation import LabelSchema

__all__ = ["KINDS", "LabelSchema", "Target", "register", "target_from_dict"]
