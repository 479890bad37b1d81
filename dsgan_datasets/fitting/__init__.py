"""Annotated images -> an interpreter and its held-out quality; `pipeline` makes the checkpoint with its card."""

from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.clusters import fit_clusters
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, cross_validate, evaluate
from dsgan_datasets.fitting.pixel_ensemble import FitSettings, fit_interpreter

__all__ = [
    "AnnotatedImages",
    "ConfusionMatrix",
    "FitSettings",
    "cross_validate",
    "evaluate",
    "fit_clusters",
    "fit_interpreter",
]
