"""Annotated images -> an interpreter: of the usual architecture, of a named one, or of the one that folds prefer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.evaluation import hold_out
from dsgan_datasets.fitting.quality import Quality
from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.fitting.trainers import architectures, trainer_for
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target

#: Takes the place of an architecture: whichever labels held-out images best.
AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """How an interpreter is to be trained.

    Attributes:
        architecture: of the interpreter; None for the usual one.
        quality: held out; None if it was not measured.
        trial: number of the way to train that held-out images prefer, see `Trainer.trials`; None likewise.
    """

    architecture: str | None
    quality: Quality | None = None
    trial: int | None = None


def fit_interpreter(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    target: Target,
    *,
    recipe: Recipe | None = None,
    settings: FitSettings | None = None,
    architecture: str | None = None,
    folds: int = 4,
    **changes: Any,
) -> Any:
    """Train an interpreter on annotated images.

    The usual one is an ensemble whose members look at each pixel (DatasetGAN, sections 3.1 and 4, and appendix). Each
    member has its own initial weights and draws its own pixels; all are trained together as batched matrices. The
    published recipe is ``FitSettings(class_balance=0, standardize=False, dtype="float32")``. The defaults differ from
    it where that won; docs/fit.md says by how much, and what else was tried.

    Args:
        generator: the frozen generator, on the device to train on.
        annotated: its annotated images.
        target: what is to be learned from them: a `LabelSchema`, `Keypoints` or a `DenseMap`.
        recipe: how the images were made (truncation, noise, size, crop); None is the default recipe.
        settings: of the training; None for the defaults.
        architecture: of the interpreter, such as "convolutional" for masks; None is the usual one, and "auto" the one
            that labels held-out images best.
        folds: parts that the images are dealt into where held-out images have to choose, at most one for each image: an
            architecture, or how long a convolutional interpreter is trained.
        changes: fields of the settings, by name: ``members=5`` is short for ``settings=FitSettings(members=5)``.

    Returns:
        the interpreter, such as a `PixelEnsemble`, on the generator's device, with the layout and channels of its maps.
        The same seed gives the same interpreter on the same machine.

    Raises:
        ValueError: labels and images that do not fit, labels of another kind, an unknown architecture, or a setting
            that is out of range.
        TypeError: a setting that does not exist.

    Example:
        >>> ensemble = fit_interpreter(generator, AnnotatedImages(z, masks), schema)  # doctest: +SKIP
    """
    settings = dataclasses.replace(settings or FitSettings(), **changes)
    recipe = recipe or Recipe()
    folds = min(folds, len(annotated)) if len(annotated) > 1 else 0
    made = generator, annotated, target, recipe, settings
    if architecture == AUTO:
        choice = choose(*made, architecture, folds)
        return trainer_for(target, choice.architecture)(*made).train(choice.trial)
    trainer = trainer_for(target, architecture)(*made)
    if trainer.ways == 1 or not folds:
        return trainer.train()
    _, trial = hold_out(trainer, generator, annotated, target, recipe, folds)
    return trainer.train(trial)


def choose(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    target: Target,
    recipe: Recipe,
    settings: FitSettings,
    architecture: str | None,
    folds: int,
    on_quality: Callable[[str, Quality], None] | None = None,
) -> Choice:
    """What labels held-out images best.

    Args:
        generator, annotated, target, recipe, settings, architecture: as for `fit_interpreter`.
        folds: parts that the images are dealt into; 0 for no check.
        on_quality: called with each architecture and its held-out quality as soon as it is known.

    Raises:
        ValueError: as `fit_interpreter`; "auto" without a check.
    """
    check_choice(target, architecture, folds)
    if not folds:
        return Choice(architecture)
    names = architectures(target) if architecture == AUTO else [architecture or architectures(target)[0]]
    found = []
    for name in names:
        trainer = trainer_for(target, name)(generator, annotated, target, recipe, settings)
        quality, trial = hold_out(trainer, generator, annotated, target, recipe, folds)
        if on_quality is not None:
            on_quality(name, quality)
        found.append(Choice(name, quality, trial))
    return max(found, key=lambda choice: choice.quality.score if choice.quality is not None else 0.0)


def check_choice(target: Target, architecture: str | None, folds: int) -> None:
    """ValueError for labels that are not learned, an architecture that there is not, or "auto" without a check."""
    trainer_for(target, None if architecture == AUTO else architecture)
    if architecture == AUTO and not folds:
        raise ValueError(
            f"{AUTO!r} takes the interpreter of {target.field} that labels held-out images best: it needs two "
            "annotated images or more, and folds that are not 0"
        )
