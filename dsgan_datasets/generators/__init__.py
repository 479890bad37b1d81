"""Frozen generators: latents -> ws -> image and features."""

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.loading import generator_tensors, load_generator, save_generator
from dsgan_datasets.generators.stylegan2 import StyleGAN2, StyleGAN2Config

__all__ = [
    "FeatureGenerator",
    "StyleGAN2",
    "StyleGAN2Config",
    "generator_tensors",
    "load_generator",
    "save_generator",
]
