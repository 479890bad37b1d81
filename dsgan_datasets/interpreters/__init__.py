"""Interpreters: features of a frozen generator -> labels."""

from dsgan_datasets.interpreters.loading import load_interpreter
from dsgan_datasets.interpreters.pixel_ensemble import Labels, PixelEnsemble

__all__ = ["Labels", "PixelEnsemble", "load_interpreter"]
