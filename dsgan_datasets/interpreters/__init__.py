"""Interpreters: features of a frozen generator -> labels."""

from dsgan_datasets.interpreters.base import Frame, Interpreter, LabelingOptions, Prediction
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.interpreters.labels import Labels
from dsgan_datasets.interpreters.loading import load_interpreter
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble

__all__ = [
    "ClusterInterpreter",
    "Frame",
    "Interpreter",
    "LabelingOptions",
    "Labels",
    "PixelEnsemble",
    "Prediction",
    "load_interpreter",
]
