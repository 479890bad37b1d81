"""Annotations -> checkpoint with its card: check, cross-validate, fit, calibrate, draw, write.

`dsgan fit` and `dsgan calibrate` print what these functions return, and do nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dsgan_datasets.annotations.loading import Annotations
from dsgan_datasets.calibration import CalibrationRun, Shares, check_names, check_shares, run_calibration
from dsgan_datasets.charts import histogram
from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.checks import integer
from dsgan_datasets.compatibility import check_recipe, class_ids
from dsgan_datasets.fitting.choosing import check_choice, choose
from dsgan_datasets.fitting.quality import Quality
from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.fitting.trainers import trainer_for
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.pictures import as_png, contact_sheet
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.targets.base import Target
from dsgan_datasets.uncertainty import score_unit

__all__ = ["FitRun", "calibrate_checkpoint", "fit_checkpoint"]

#: Samples on the sheet of the model card.
_PREVIEWED = 12


@dataclass(frozen=True)
class FitRun:
    """What `fit_checkpoint` gave.

    Attributes:
        labeled: what the checkpoint holds.
        scores: uncertainty scores of unfiltered draws, float32 [num_samples]; empty if none had to be measured.
        quality: field of a label -> held-out agreement; empty if it was not measured.
        folds: of the held-out check; 0 if there was none.

    Example:
        >>> found = fit_checkpoint("network-snapshot.pkl", "to-annotate", "my-parts")  # doctest: +SKIP
        >>> found.labeled.generate([0]).mask.shape  # doctest: +SKIP
        torch.Size([1, 256, 256])
    """

    labeled: LabeledGenerator
    scores: Tensor
    quality: Mapping[str, Quality]
    folds: int


def fit_checkpoint(
    generator: FeatureGenerator,
    annotations: Annotations,
    out: str | os.PathLike[str],
    settings: FitSettings | None = None,
    *,
    recipe: Recipe | None = None,
    folds: int = 4,
    num_samples: int = 1000,
    reject_fraction: Shares = 0.1,
    ignore_fraction: float | None = None,
    title: str | None = None,
    description: str = "",
    license: str | None = None,
    generator_name: str | None = None,
    architectures: Mapping[str, str] | None = None,
    on_quality: Callable[[Target, str, Quality, int], None] | None = None,
) -> FitRun:
    """Fit an interpreter to each label of annotated images, check it on held-out ones, calibrate the filter, and write
    the checkpoint.

    All arguments are checked before anything is computed.

    Args:
        generator: of the annotated images, on the device to train on.
        annotations: what `load_annotations` read.
        out: checkpoint directory to write; files of the same names in it are replaced.
        settings: of the training; None for the defaults.
        recipe: of the samples to come; None is `sample_recipe(annotations)`.
        folds: parts of the held-out check, at most one per image; 0 leaves it out, and so does a single image.
        num_samples: draws that the filter is calibrated on, at least 20 (20 view groups).
        reject_fraction: share of the most uncertain draws to drop, in [0, 1), or a table of shares; see `calibrate`.
        ignore_fraction: share of the pixels to mark as ignored; see `calibrate`.
        title: heading of the card; None is the name of `out`.
        description: first paragraph of the card.
        license: of weights and samples; None is that of the generator.
        generator_name: what the card calls the generator; None is the file that it was read from.
        architectures: field of a label -> architecture of its interpreter, or "auto" for the one that labels held-out
            images best; those left out have the usual one.
        on_quality: called with a target, an architecture, its held-out agreement and folds as soon as they are known,
            long before all is done.

    Returns:
        what was written, and what was measured on the way.

    Raises:
        ValueError: parts or arguments that do not fit together; or rules of the recipe that hardly any draw meets. In
            the latter case the interpreter is saved without filter and rules.
        CheckpointError: the directory cannot be written.

    Example:
        >>> found = load_annotations("to-annotate", "network-snapshot.pkl")  # doctest: +SKIP
        >>> fit_checkpoint(found.generator, found, "my-faces").quality["mask"].mean_iou  # doctest: +SKIP
    """
    out, settings = Path(out), settings or FitSettings()
    recipe = sample_recipe(annotations) if recipe is None else recipe
    annotated, targets = annotations.annotated, annotations.targets
    chosen = dict.fromkeys((target.field for target in targets), None) | dict(architectures or {})
    if folds != 0:
        folds = integer("folds (or 0 for no held-out check)", folds, 2)
    folds = min(folds, len(annotated)) if len(annotated) > 1 else 0
    check_shares(reject_fraction, ignore_fraction, settings.members)
    check_names(reject_fraction, [target.field for target in targets])  # now, not after hours of fitting
    check_recipe(recipe, generator, targets)
    for target in targets:
        check_choice(target, chosen[target.field], folds)
    integer("num_samples", num_samples, 20 * recipe.group_size)

    quality: dict[str, Quality] = {}
    interpreters, reported = [], list[Mapping[str, Any]]()
    for target in targets:

        def tell(architecture: str, found: Quality, target: Target = target) -> None:
            if on_quality is not None:
                on_quality(target, architecture, found, folds)

        # The images are those of the annotations' recipe, whatever samples are to look like.
        made = generator, annotated, target, annotations.recipe, settings
        choice = choose(*made, chosen[target.field], folds, tell)
        if choice.quality is not None:
            quality[target.field] = choice.quality
        trainer = trainer_for(target, choice.architecture)(*made)
        interpreters.append(trainer.train(choice.trial))
        reported.append(trainer.reported(interpreters[-1], choice.trial))
    fit = FitReport(
        title=title or out.resolve().name,
        num_images=len(annotated),
        folds=folds,
        quality={target.field: quality[target.field].figures(target) for target in targets if quality},
        settings=_together(reported) | _photos(annotations),
        generator=generator_name or name_of(generator),
        description=description,
    )
    labeler = InterpretedLabeler(generator, interpreters, targets)
    # Rules are looked at when the filter is calibrated.
    fitted = LabeledGenerator(labeler, recipe.unfiltered(), license=license, fit=fit)
    try:
        run = run_calibration(
            fitted.with_recipe(recipe),
            num_samples,
            reject_fraction=reject_fraction,
            ignore_fraction=ignore_fraction,
        )
    except ValueError as error:  # rules that hardly any sample meets: not a reason to lose what was fitted
        fitted.save_pretrained(out)
        raise ValueError(
            f"{error}\nThe interpreter is saved without filter and rules: look at it with `dsgan stats {out}`, "
            f"then find the threshold with `dsgan calibrate {out} OUT`"
        ) from error
    save_with_pictures(run.labeled, out, run.scores)
    return FitRun(run.labeled, run.scores, quality, folds)


def calibrate_checkpoint(
    labeled: LabeledGenerator,
    out: str | os.PathLike[str],
    num_samples: int = 1000,
    *,
    reject_fraction: Shares = 0.1,
    ignore_fraction: float | None = None,
    seed: int = 0,
) -> CalibrationRun:
    """Find the threshold of the filter, and write the checkpoint with it, its card and its pictures.

    Args:
        labeled, num_samples, reject_fraction, ignore_fraction, seed: as for `calibrate`.
        out: checkpoint directory to write.

    Raises:
        ValueError: as `calibrate`; nothing is written then.
        CheckpointError: the directory cannot be written.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", truncation_psi=0.5)  # doctest: +SKIP
        >>> calibrate_checkpoint(labeled, "faces-psi05", reject_fraction=0.2)  # doctest: +SKIP
    """
    run = run_calibration(
        labeled, num_samples, reject_fraction=reject_fraction, ignore_fraction=ignore_fraction, seed=seed
    )
    save_with_pictures(run.labeled, out, run.scores)
    return run


def save_with_pictures(labeled: LabeledGenerator, out: str | os.PathLike[str], scores: Tensor | None = None) -> None:
    """Write a checkpoint whose card shows samples and, if there are any, the scores of unfiltered draws.

    Args:
        labeled: to write.
        out: checkpoint directory.
        scores: float32 [N], nats; None or empty for no picture of them.
    """
    out = Path(out)
    title = labeled.fit.title if labeled.fit else out.resolve().name
    extras = ("uncertainty",) if labeled.labeler.has_uncertainty else ()
    samples = SampleBatch.stack(list(labeled.stream(range(_PREVIEWED), extras=extras)))
    drawn = {"preview.png": contact_sheet(samples, labeled.targets, title=f"{title} · {labeled.fingerprint[:8]}")}
    if scores is not None and len(scores):
        heading = f"{title}: scores of unfiltered draws"
        unit = score_unit(labeled.targets)
        drawn["calibration.png"] = histogram(
            scores.numpy(), threshold=labeled.recipe.threshold, title=heading, unit=unit
        )
    labeled.save_pretrained(out, pictures={name: as_png(picture) for name, picture in drawn.items()})


def sample_recipe(annotations: Annotations, **changes: Any) -> Recipe:
    """Recipe of the samples to come: that of the annotated images, without the filter of what they were exported from.

    Args:
        annotations: what `load_annotations` read.
        changes: fields to change, as for `Recipe.override`; `require` may name classes.

    Raises:
        ValueError: a change that is unknown or out of range, or a class that the schema does not have.

    Example:
        >>> sample_recipe(found, truncation_psi=0.5, require=["ear"])  # doctest: +SKIP
    """
    if "features" in changes:
        raise ValueError("features: the layout is that of the annotated images; export them again to change it")
    plain = annotations.recipe.unfiltered().override(max_uncertainty=None)
    return plain.override(**class_ids(changes, annotations.targets))


def _together(reported: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of several interpreters in one table: where they differ, one after the other."""
    names = dict.fromkeys(name for settings in reported for name in settings)
    values = {name: list(dict.fromkeys(settings[name] for settings in reported if name in settings)) for name in names}
    return {name: found[0] if len(found) == 1 else ", ".join(map(str, found)) for name, found in values.items()}


def _photos(annotations: Annotations) -> dict[str, str]:
    """What the card says of photos among the annotated images; none of them is stored."""
    licenses = annotations.photo_licenses
    return {"license of the photos among them": ", ".join(licenses)} if licenses else {}


def name_of(generator: FeatureGenerator) -> str:
    """What a card calls a generator: the file that it was read from, or its class."""
    return generator.provenance.file if generator.provenance else type(generator).__name__
