"""Labeled images for segmentation training, generated on the fly from a frozen GAN and its interpreter.

The flow, one module a step: latents -> generators -> interpreters -> uncertainty -> labeled_generator -> datasets.
"""

from dsgan_datasets._version import __version__
from dsgan_datasets.calibration import calibrate
from dsgan_datasets.checkpoints import CheckpointError
from dsgan_datasets.checkpoints.description import Description, describe
from dsgan_datasets.fitting.pixel_ensemble import AnnotatedImages, fit_interpreter
from dsgan_datasets.generators import FeatureGenerator, load_generator, save_generator
from dsgan_datasets.interpreters import Labels, PixelEnsemble, load_interpreter
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import sample_latents
from dsgan_datasets.recipe import Calibration, Recipe
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.shards import ShardDataset, ShardError, ShardMapDataset, verify_shards, write_shards
from dsgan_datasets.sources.datasets import DSGANDataset, DSGANIterableDataset
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.uncertainty import image_score, js_divergence

__all__ = [
    "AnnotatedImages",
    "Calibration",
    "CheckpointError",
    "DSGANDataset",
    "DSGANIterableDataset",
    "Description",
    "FeatureGenerator",
    "LabelSchema",
    "LabeledGenerator",
    "Labels",
    "PixelEnsemble",
    "Recipe",
    "Sample",
    "SampleBatch",
    "ShardDataset",
    "ShardError",
    "ShardMapDataset",
    "__version__",
    "calibrate",
    "describe",
    "fit_interpreter",
    "image_score",
    "js_divergence",
    "load_generator",
    "load_interpreter",
    "sample_latents",
    "save_generator",
    "verify_shards",
    "write_shards",
]
