"""Interpreter and annotated images -> how well the labels agree; k-fold cross-validation over images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.quality import QUALITIES, ConfusionMatrix, MapErrors, PointErrors, Quality, count_pairs
from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.fitting.trainers import Trainer, trainer_for
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame, Interpreter, LabelingOptions
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema

__all__ = [
    "ConfusionMatrix",
    "MapErrors",
    "PointErrors",
    "Quality",
    "count_pairs",
    "cross_validate",
    "evaluate",
]


def evaluate(
    generator: FeatureGenerator,
    interpreter: Interpreter,
    annotated: AnnotatedImages,
    *,
    recipe: Recipe,
    target: Target | None = None,
    ignore_index: int = 255,
    description: str = "labeling held-out images",
) -> Any:
    """Compare the interpreter's labels with annotated ones, at the size of the images.

    Args:
        generator: of the images.
        interpreter: fitted on it.
        annotated: images that the interpreter was not fitted on.
        recipe: how the images were made.
        target: the labels to compare; None for masks.
        ignore_index: id of pixels that do not count, of masks without a target.
        description: of the progress bar.

    Returns:
        a `ConfusionMatrix` of masks, `PointErrors` of keypoints, `MapErrors` of a dense map.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", reject_fraction=0)
        >>> held_out = labeled.generate([0, 1], extras=["latent"])
        >>> annotated = AnnotatedImages(held_out.latent, {"mask": held_out.mask})
        >>> found = evaluate(labeled.generator, labeled.interpreter, annotated, recipe=labeled.recipe)
        >>> found.pixel_accuracy  # of its own labels
        1.0
    """
    if target is None:
        count = interpreter.config["classes"]
        target = LabelSchema(tuple(f"class_{i}" for i in range(count)), ignore_index=ignore_index)
    compared = _compared(generator, interpreter, annotated, target, recipe, description)
    return QUALITIES[target.kind].pooled(compared, target)


@torch.no_grad()
def _compared(
    generator: FeatureGenerator,
    interpreter: Interpreter,
    annotated: AnnotatedImages,
    target: Target,
    recipe: Recipe,
    description: str,
) -> Tensor:
    """What each of the images adds to the measure of the target, [A, ...]."""
    frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
    # What has no use for the recipe's vote does not take it.
    options = LabelingOptions(recipe.vote, recipe.top_fraction) if "mask" in interpreter.fields else LabelingOptions()
    quality, field = QUALITIES[target.kind], target.field
    with tqdm(total=len(annotated), desc=description, unit="image", delay=2, leave=False) as progress:

        def compare(pair: tuple[Tensor, Tensor]) -> Tensor:
            z, truth = pair
            _, features = synthesize(generator, recipe, z[None])
            found = interpreter.predict(features, frame, options).labels[field][0]
            progress.update()
            return quality.compare(truth.to(found.device), found, target)

        return torch.stack(
            parallel_map(compare, zip(annotated.latents, annotated.of(field), strict=True), generator.device)
        )


def cross_validate(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    target: Target,
    *,
    recipe: Recipe,
    folds: int = 4,
    settings: FitSettings | None = None,
    architecture: str | None = None,
) -> Any:
    """How well an interpreter fitted on most of the images labels the others: k-fold cross-validation over images.

    Args:
        generator, annotated, target, recipe: as for `fit_interpreter`.
        folds: parts that the images are dealt into; each is labeled by an interpreter fitted on the other parts.
        settings: of the training; None for the defaults.
        architecture: of the interpreters; None for the usual one of that kind of label.

    Returns:
        agreement over all images, each labeled by the interpreter that did not see it, as from `evaluate`. With few
        images it is a pessimistic estimate: the interpreter that is fitted on all of them has seen more.

    Raises:
        ValueError: fewer than two folds or more than there are images, or labels that do not fit.

    Example:
        >>> cross_validate(generator, annotated, schema, recipe=recipe).mean_iou  # doctest: +SKIP
    """
    integer("folds", folds, 2, len(annotated))
    trainer = trainer_for(target, architecture)(generator, annotated, target, recipe, settings or FitSettings())
    return hold_out(trainer, generator, annotated, target, recipe, folds)[0]


def hold_out(
    trainer: Trainer,
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    target: Target,
    recipe: Recipe,
    folds: int,
) -> tuple[Any, int]:
    """`cross_validate` by a trainer of these images: the best quality of its ways to train, and the number of that."""
    shuffled = torch.randperm(len(annotated), generator=trainer.random)
    exact = recipe.override(dtype="float32")
    everyone, compared = torch.arange(len(annotated)), list[list[Tensor]]()
    for fold in range(folds):
        held_out = shuffled[fold::folds].sort().values
        others = everyone[~torch.isin(everyone, held_out)]
        some = annotated[held_out]
        compared.append(
            [
                _compared(generator, interpreter, some, target, exact, "labeling held-out images")
                for interpreter in trainer.trials(others, f"held-out check {fold + 1}/{folds}")
            ]
        )
    qualities = [QUALITIES[target.kind].pooled(torch.cat(parts), target) for parts in zip(*compared, strict=True)]
    best = max(range(len(qualities)), key=lambda i: qualities[i].score)
    return qualities[best], best
