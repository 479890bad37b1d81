"""`dsgan fit`: annotated images -> a labeled, calibrated checkpoint with its model card."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from dsgan_datasets.annotations import Annotations, load_annotations
from dsgan_datasets.calibration import calibrate_with_scores, check_fractions
from dsgan_datasets.checkpoints.fit_report import FitReport
from dsgan_datasets.checks import integer
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, cross_validate
from dsgan_datasets.fitting.pixel_ensemble import Settings, fit_interpreter
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.labeled_generator import LabeledGenerator, check_recipe
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.tools import annotate, options
from dsgan_datasets.tools.calibrate import add_filter_options, report, save_with_pictures


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "fit",
        "fit an interpreter to annotated images, check it, calibrate its filter, and write the checkpoint",
        "dsgan fit network-snapshot.pkl to-annotate my-faces --license CC0-1.0\n"
        "  dsgan fit demo-faces to-annotate my-faces --members 5 --folds 0     # quicker, without the held-out check\n"
        "  dsgan fit cat.pt dataset_cat my-cats --classes background,ear,eye   # DatasetGAN's published annotations",
    )
    parser.add_argument("generator", help="the generator of the images: a file, a checkpoint directory, or demo-faces")
    parser.add_argument("annotations", type=Path, help="folder of `dsgan annotate export`, or in the published layout")
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument(
        "--license", help="of weights and samples, as it shall stand in the card (default: generator's)"
    )
    parser.add_argument("--title", help="heading of the card (default: the name of OUT)")
    parser.add_argument(
        "--description", default="", help="first paragraph of the card: what it shows, where it is from"
    )
    _add_training(parser.add_argument_group("training"))
    filtering = parser.add_argument_group("filter")
    add_filter_options(filtering)
    annotate.add_reading(parser.add_argument_group("reading the annotations"))
    options.add_recipe(parser, psi="truncation psi of the samples (default: that of the annotated images)")
    options.add_overwrite(parser)
    parser.set_defaults(run=run)


def _add_training(parser: argparse._ArgumentGroup) -> None:
    default = Settings()
    parser.add_argument("--members", type=options.count, default=default.members, help="classifiers (default: 10)")
    parser.add_argument(
        "--hidden",
        type=options.count,
        nargs=2,
        metavar=("H1", "H2"),
        help="units of the hidden layers (default: 128 32 up to 31 classes, 256 128 from 32)",
    )
    parser.add_argument("--steps", type=options.count, default=default.steps, help="optimizer steps (default: 1500)")
    parser.add_argument(
        "--pixels-per-image", type=options.count, default=default.pixels_per_image, help="pixels to use (default: 4096)"
    )
    parser.add_argument(
        "--batch-pixels", type=options.count, default=default.batch_pixels, help="a step and member (default: 256)"
    )
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate, help="of Adam (default: 0.001)")
    parser.add_argument(
        "--class-balance",
        type=float,
        default=default.class_balance,
        help="0 draws pixels as they come, 1 every class equally often (default: 0.5)",
    )
    parser.add_argument(
        "--folds", type=int, default=4, help="parts of the held-out check, from 2; 0 leaves it out (default: 4)"
    )
    parser.add_argument("--seed", type=options.seed, default=0, help="of initial weights and draws (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Read, check on held-out images, fit, calibrate, draw, write."""
    options.check_out(args)
    if given := {"threshold", "reject_fraction"} & dict(args.recipe).keys():
        raise ValueError(f"--set {given.pop()}: fit finds the threshold itself; say --reject-fraction instead")
    if args.folds < 0 or args.folds == 1:
        raise ValueError(f"--folds {args.folds} must be 2 or more, or 0 for no held-out check")
    settings = _settings(args)
    check_fractions(args.reject_fraction, args.ignore_fraction, settings.members)
    found = load_annotations(args.annotations, args.generator, **annotate.reading(args))
    for warning in found.warnings:
        print(f"warning: {warning}")
    generator, recipe = found.generator, _recipe(found, args)
    assert generator is not None  # as one was named
    check_recipe(recipe, generator, found.schema)
    integer("num_samples", args.num_samples, 20 * recipe.group_size)
    quality = _check(generator, found, settings, args.folds)
    # The images are those of the annotations' recipe, whatever samples shall be like.
    trained = dataclasses.replace(found.recipe, vote=recipe.vote, top_fraction=recipe.top_fraction)
    arguments = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    interpreter = fit_interpreter(generator, found.annotated, found.schema, recipe=trained, **arguments)
    fit = FitReport(
        title=args.title or args.out.resolve().name,
        num_images=len(found.masks),
        folds=0 if quality is None else min(args.folds, len(found.masks)),
        pixel_accuracy=None if quality is None else quality.pixel_accuracy,
        iou={} if quality is None else _iou(quality, found.schema),
        settings={**arguments, "hidden": "/".join(map(str, interpreter.config["hidden"]))},
        generator=Path(args.generator).name,
        description=args.description,
    )
    plain = dataclasses.replace(recipe, require=())  # fits always: the rules are looked at when it is calibrated
    fitted = LabeledGenerator(generator, interpreter, found.schema, plain, license=args.license, fit=fit)
    try:
        labeled, scores = calibrate_with_scores(
            fitted.with_recipe(recipe),
            args.num_samples,
            reject_fraction=args.reject_fraction,
            ignore_fraction=args.ignore_fraction,
        )
    except ValueError as error:  # rules that hardly any sample meets: no reason to lose what was fitted
        fitted.save_pretrained(args.out)
        raise ValueError(
            f"{error}\nThe interpreter is saved without filter and rules: look at it with `dsgan stats {args.out}`, "
            f"then find the threshold with `dsgan calibrate {args.out} OUT`"
        ) from error
    save_with_pictures(labeled, scores, args.out)
    for line in report(labeled.recipe, labeled.calibration):
        print(line)
    print(f"checkpoint, with its card: {args.out.resolve() / 'README.md'}")


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        members=args.members,
        hidden=tuple(args.hidden) if args.hidden else None,
        pixels_per_image=args.pixels_per_image,
        steps=args.steps,
        batch_pixels=args.batch_pixels,
        learning_rate=args.learning_rate,
        class_balance=args.class_balance,
        seed=args.seed,
    )


def _recipe(found: Annotations, args: argparse.Namespace) -> Recipe:
    """That of the samples to come: as the annotated images, without the filter of what they were exported from."""
    changes = options.recipe_changes(args)
    if "features" in changes:
        raise ValueError(
            "--set features: the features are those of the annotated images; export them anew to change it"
        )
    plain = dataclasses.replace(found.recipe, reject_fraction=0.0, threshold=None, require=(), max_uncertainty=None)
    if isinstance(names := changes.get("require"), list):
        changes["require"] = [found.schema.index(n) if isinstance(n, str) else n for n in names]
    return plain.override(**changes)


def _check(generator: FeatureGenerator, found: Annotations, settings: Settings, folds: int) -> ConfusionMatrix | None:
    """Held-out agreement, printed; None if it was not asked for or there is one image."""
    if not folds:
        return None
    if len(found.masks) < 2:
        print("no held-out check: it takes two annotated images or more")
        return None
    folds = min(folds, len(found.masks))
    quality = cross_validate(
        generator, found.annotated, found.schema, recipe=found.recipe, folds=folds, settings=settings
    )
    print(f"{len(found.masks)} images, each labeled by an ensemble fitted without it ({folds} folds):")
    _print_quality(quality, found.schema)
    return quality


def _iou(quality: ConfusionMatrix, schema: LabelSchema) -> dict[str, float | None]:
    """IoU by class name; None for a class that occurs nowhere."""
    values = zip(schema.classes, quality.iou.tolist(), strict=True)
    return {name: None if value != value else round(value, 4) for name, value in values}


def _print_quality(quality: ConfusionMatrix, schema: LabelSchema) -> None:
    width = max(map(len, schema.classes))
    print(f"{'class':>{width}}   IoU")
    for name, value in zip(schema.classes, quality.iou.tolist(), strict=True):
        print(f"{name:>{width}}  {'none' if value != value else f'{value:.2f}'}")
    print(f"{'mean':>{width}}  {quality.mean_iou:.3f}   pixel accuracy {quality.pixel_accuracy:.3f}", flush=True)
