"""Annotated images -> interpreters and their held-out quality; `pipeline` makes the checkpoint with its card."""

from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.choosing import fit_interpreter
from dsgan_datasets.fitting.clusters import fit_clusters
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, MapErrors, PointErrors, cross_validate, evaluate
from dsgan_datasets.fitting.settings import ConvolutionalSettings, FitSettings

__all__ = [
    "AnnotatedImages",
    "ConfusionMatrix",
    "ConvolutionalSettings",
    "FitSettings",
    "MapErrors",
    "PointErrors",
    "cross_validate",
    "evaluate",
    "fit_clusters",
    "fit_interpreter",
]
