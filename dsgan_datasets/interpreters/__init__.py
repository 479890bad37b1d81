"""Interpreters: features of a frozen generator -> labels."""

from dsgan_datasets.interpreters.base import Frame, Interpreter, LabelingOptions, Prediction
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.interpreters.convolutional import ConvolutionalInterpreter
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.interpreters.labels import Labels
from dsgan_datasets.interpreters.loading import load_interpreter
from dsgan_datasets.interpreters.map_ensemble import MapEnsemble
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble

__all__ = [
    "ClusterInterpreter",
    "ConvolutionalInterpreter",
    "Frame",
    "Interpreter",
    "KeypointEnsemble",
    "LabelingOptions",
    "Labels",
    "MapEnsemble",
    "PixelEnsemble",
    "Prediction",
    "load_interpreter",
]
