"""Small networks that learn labels from a stream of samples, to see what its samples are worth on photos.

The flow: reuse (samples -> batches, each sample seen several times) -> training (a U-Net, for some minutes) -> heads
(its outputs -> labels, one class for each kind).
"""

from dsgan_datasets.students.heads import Head, segmentation_loss
from dsgan_datasets.students.reuse import reused
from dsgan_datasets.students.training import Student, train_student, warm_up_and_cosine
from dsgan_datasets.students.unet import UNet

__all__ = ["Head", "Student", "UNet", "reused", "segmentation_loss", "train_student", "warm_up_and_cosine"]
