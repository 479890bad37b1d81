"""Interpreter and annotated images -> how well the masks agree: confusion, pixel accuracy, IoU; k-fold over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.pixel_ensemble import FitSettings, train_ensemble
from dsgan_datasets.fitting.pixels import LabeledPixels
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame, Interpreter, LabelingOptions
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class ConfusionMatrix:
    """Agreement of predicted masks with annotated ones, pixels of all images pooled.

    Args:
        confusion: number of pixels, int64 [K, K] on the CPU; rows are annotated classes, columns predicted ones.

    Example:
        >>> ConfusionMatrix(torch.tensor([[6, 2], [0, 2]])).iou
        tensor([0.7500, 0.5000], dtype=torch.float64)
    """

    confusion: Tensor

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that have the annotated class."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).item()

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class, float64 [K]; NaN for a class that occurs in neither."""
        counts = self.confusion.double()
        both = counts.diagonal()
        return both / (counts.sum(0) + counts.sum(1) - both)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur."""
        return self.iou.nanmean().item()


def count_pairs(annotated: Tensor, predicted: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Confusion matrix int64 [K, K], rows annotated, columns predicted; pixels ignored in either do not count.

    Args:
        annotated, predicted: class ids of equal shape.
    """
    counted = (annotated != ignore_index) & (predicted != ignore_index)
    pairs = annotated[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu()


@torch.no_grad()
def evaluate(
    generator: FeatureGenerator,
    interpreter: Interpreter,
    annotated: AnnotatedImages,
    *,
    recipe: Recipe,
    ignore_index: int = 255,
    description: str = "labeling held-out images",
) -> ConfusionMatrix:
    """Compare the interpreter's masks with annotated ones, at the size of the images.

    Args:
        generator: of the images.
        interpreter: fitted on it.
        annotated: images that the interpreter was not fitted on.
        recipe: how the images were made.
        ignore_index: id of pixels that do not count.
        description: of the progress bar.
    """
    k = interpreter.config["classes"]
    frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
    options = LabelingOptions(recipe.vote, recipe.top_fraction)
    with tqdm(total=len(annotated.masks), desc=description, unit="image", delay=2, leave=False) as progress:

        def compare(pair: tuple[Tensor, Tensor]) -> Tensor:
            z, truth = pair
            _, features = synthesize(generator, recipe, z[None])
            mask = interpreter.predict(features, frame, options).labels["mask"][0]
            progress.update()
            return count_pairs(truth.to(mask.device), mask, k, ignore_index)

        pairs = zip(annotated.latents, annotated.masks, strict=True)
        counted = parallel_map(compare, pairs, generator.device)
    return ConfusionMatrix(torch.stack(counted).sum(0))


def cross_validate(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    schema: LabelSchema,
    *,
    recipe: Recipe,
    folds: int = 4,
    settings: FitSettings | None = None,
) -> ConfusionMatrix:
    """How well an interpreter fitted on most of the images labels the others: k-fold cross-validation over images.

    Args:
        generator, annotated, schema, recipe: as for `fit_interpreter`.
        folds: parts that the images are dealt into; each is labeled by an ensemble fitted on the other parts.
        settings: of the training; None for the defaults.

    Returns:
        agreement over all images, each labeled by the ensemble that did not see it. With few images it is a
        pessimistic estimate: the interpreter that is fitted on all of them has seen more.

    Raises:
        ValueError: fewer than two folds or more than there are images, or masks that do not fit.

    Example:
        >>> cross_validate(generator, annotated, schema, recipe=recipe).mean_iou  # doctest: +SKIP
    """
    integer("folds", folds, 2, len(annotated.masks))
    settings = settings or FitSettings()
    random = torch.Generator().manual_seed(settings.seed)
    pixels = LabeledPixels.gather(generator, annotated, schema, recipe, settings.pixels_per_image, random)
    shuffled = torch.randperm(len(annotated.masks), generator=random)
    confusion = torch.zeros(pixels.num_classes, pixels.num_classes, dtype=torch.int64, device="cpu")
    for fold in range(folds):
        held_out = shuffled[fold::folds].sort().values
        rows = (~torch.isin(pixels.image, held_out)).nonzero()[:, 0]
        ensemble = train_ensemble(pixels, settings, random, rows=rows, description=f"held-out check {fold + 1}/{folds}")
        rest = AnnotatedImages(annotated.latents[held_out], annotated.masks[held_out])
        confusion += evaluate(
            generator,
            ensemble,
            rest,
            recipe=recipe.override(dtype="float32"),
            ignore_index=schema.ignore_index,
        ).confusion
    return ConfusionMatrix(confusion)
