"""Labeled images for segmentation training, generated on the fly from a frozen GAN and its interpreter.

The flow, one module a step: latents -> generators -> interpreters -> uncertainty -> labeled_generator -> datasets.
"""

from typing import TYPE_CHECKING

from dsgan_datasets._deprecation import moved
from dsgan_datasets._lazy import lazily
from dsgan_datasets._version import __version__
from dsgan_datasets.calibration import calibrate
from dsgan_datasets.checkpoints import CheckpointError
from dsgan_datasets.checkpoints.calibration_report import Calibration
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.choosing import fit_interpreter
from dsgan_datasets.generators import FeatureGenerator, load_generator, save_generator
from dsgan_datasets.hub import push_to_hub
from dsgan_datasets.interpreters import Labels, PixelEnsemble, load_interpreter
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.labelers.joint import JointLabeler, load_joint
from dsgan_datasets.latents import sample_latents
from dsgan_datasets.recipe import (
    AreaRule,
    Filter,
    KeypointRule,
    Labeling,
    Recipe,
    RecipeOverrides,
    Rendering,
    Sampling,
    ScoreFilter,
)
from dsgan_datasets.remote import RemoteError, RemoteSource
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.shards import ShardDataset, ShardError, ShardMapDataset, verify_shards, write_shards
from dsgan_datasets.sources.datasets import DSGANDataset, DSGANIterableDataset
from dsgan_datasets.sources.mixture import Mixture
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.uncertainty import image_score, js_divergence

if TYPE_CHECKING:
    from dsgan_datasets.inversion import (
        InversionSettings,
        Inverter,
        LabeledPhotos,
        evaluate_photos,
        export_photos,
        invert_photos,
        read_labels,
        read_photos,
    )
    from dsgan_datasets.students import train_student

describe = Checkpoint.open
"""Opens a checkpoint without loading its weights; another name of `Checkpoint.open`."""
Description = Checkpoint

__getattr__ = lazily(
    {
        "dsgan_datasets.inversion": (
            "InversionSettings", "Inverter", "LabeledPhotos", "evaluate_photos", "export_photos", "invert_photos",
            "read_labels", "read_photos",
        ),
        "dsgan_datasets.students": ("train_student",),
    },
    moved(__name__, {"Annotated": "dsgan_datasets.fitting.annotated:AnnotatedImages"}),
)  # fmt: skip

__all__ = [
    "AnnotatedImages",
    "AreaRule",
    "Calibration",
    "Checkpoint",
    "CheckpointError",
    "DSGANDataset",
    "DSGANIterableDataset",
    "DenseMap",
    "FeatureGenerator",
    "Filter",
    "InterpretedLabeler",
    "InversionSettings",
    "Inverter",
    "JointLabeler",
    "KeypointRule",
    "Keypoints",
    "LabelSchema",
    "LabeledGenerator",
    "LabeledPhotos",
    "Labeling",
    "Labels",
    "Mixture",
    "PixelEnsemble",
    "Recipe",
    "RecipeOverrides",
    "RemoteError",
    "RemoteSource",
    "Rendering",
    "Sample",
    "SampleBatch",
    "Sampling",
    "ScoreFilter",
    "ShardDataset",
    "ShardError",
    "ShardMapDataset",
    "__version__",
    "calibrate",
    "describe",
    "evaluate_photos",
    "export_photos",
    "fit_interpreter",
    "image_score",
    "invert_photos",
    "js_divergence",
    "load_generator",
    "load_interpreter",
    "load_joint",
    "push_to_hub",
    "read_labels",
    "read_photos",
    "sample_latents",
    "save_generator",
    "train_student",
    "verify_shards",
    "write_shards",
]
