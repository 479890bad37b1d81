"""Frozen generators: latents -> ws -> image and features."""

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import load_generator, save_generator

__all__ = ["FeatureGenerator", "load_generator", "save_generator"]
