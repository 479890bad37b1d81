"""What a `LabeledGenerator` schedules: latents -> image, labels and, where there is one, uncertainty."""

from dsgan_datasets.labelers.base import Labeler, Part
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.labelers.joint import JointLabeler, load_joint

__all__ = ["InterpretedLabeler", "JointLabeler", "Labeler", "Part", "load_joint"]
