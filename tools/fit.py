"""`dsgan fit`: annotated images -> a labeled, calibrated checkpoint with its model card."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from dsgan_datasets.annotations import Annotations, load_annotations
from dsgan_datasets.annotations.folder import ANNOTATION_MANIFEST
from dsgan_datasets.checkpoints.fit_report import Figures
from dsgan_datasets.files import is_file
from dsgan_datasets.fitting.choosing import AUTO
from dsgan_datasets.fitting.evaluation import Quality
from dsgan_datasets.fitting.pipeline import fit_checkpoint, sample_recipe
from dsgan_datasets.fitting.settings import ConvolutionalSettings, FitSettings
from dsgan_datasets.generators import FeatureGenerator
from dsgan_datasets.interpreters import ConvolutionalInterpreter, PixelEnsemble
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.tools import annotate, options
from dsgan_datasets.tools.calibrate import add_filter_options, refuse_threshold, report
from dsgan_datasets.tools.estimate import add_dry_run, duration, rate, run_once, size
from dsgan_datasets.uncertainty import score_unit

_CONVOLUTIONAL = "convolutional"
#: Words of --interpreter -> architecture.
INTERPRETERS = {
    "pixels": PixelEnsemble.architecture,
    _CONVOLUTIONAL: ConvolutionalInterpreter.architecture,
    AUTO: AUTO,
}
#: Settings of the training that both kinds of interpreters have, and those that only one has; None is its default.
_OF_BOTH = ("members", "steps")
_OF_PIXELS = ("hidden", "pixels_per_image", "batch_pixels", "learning_rate", "sigma", "class_balance")


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "fit",
        "fit an interpreter to annotated images, check it, calibrate its filter, and write the checkpoint",
        "dsgan fit network-snapshot.pkl to-annotate my-faces --license CC0-1.0\n"
        "  dsgan fit network-snapshot.pkl to-annotate round-2 better-faces      # two rounds together\n"
        "  dsgan fit demo-faces to-annotate my-faces --members 5 --folds 0     # quicker, without the held-out check\n"
        "  dsgan fit cat.pt dataset_cat my-cats --classes background,ear,eye   # DatasetGAN's published annotations",
    )
    parser.add_argument("generator", help="the generator of the images: a file, a checkpoint directory, or demo-faces")
    parser.add_argument(
        "annotations",
        type=Path,
        nargs="+",
        help="folder of `dsgan annotate export`, or in the published layout; several rounds: oldest first",
    )
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    parser.add_argument(
        "--license", help="of weights and samples, as the card states it (default: that of the generator)"
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
    add_dry_run(parser)
    parser.set_defaults(run=run)


def _add_training(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--interpreter",
        choices=list(INTERPRETERS),
        default="pixels",
        help="of masks: pixels (classifiers that see one pixel, as published), convolutional (small networks that see "
        "its neighbors; of the options below it has --members and --steps), or auto, which takes what labels held-out "
        "images better (--steps are of pixels then; default: pixels)",
    )
    parser.add_argument(
        "--members", type=options.integer(1, 1000), help="classifiers, or networks (default: 10; convolutional: 5)"
    )
    parser.add_argument(
        "--hidden",
        type=options.integer(1, 65_536),
        nargs=2,
        metavar=("H1", "H2"),
        help="units of the hidden layers (default: 128 32 up to 31 classes, 256 128 from 32)",
    )
    parser.add_argument(
        "--steps",
        type=options.integer(1, 10**8),
        help="optimizer steps (default: 1500; convolutional: what held-out images prefer)",
    )
    parser.add_argument(
        "--pixels-per-image",
        type=options.integer(1, 2**26),
        help="pixels to use (default: 4096)",
    )
    parser.add_argument(
        "--batch-pixels",
        type=options.integer(1, 10**6),
        help="pixels per step and member (default: 256)",
    )
    parser.add_argument("--learning-rate", type=options.number, help="of Adam (default: 0.001)")
    parser.add_argument(
        "--sigma",
        type=options.number,
        help="standard deviation of the Gaussian around a keypoint, as a share of the longer side (default: 0.02)",
    )
    parser.add_argument(
        "--class-balance",
        type=options.number,
        help="0 draws pixels as they come, 1 every class equally often (default: 0.5)",
    )
    parser.add_argument(
        "--folds",
        type=options.integer(0, 10_000),
        default=4,
        help="parts of the held-out check, from 2; 0 leaves it out (default: 4)",
    )
    parser.add_argument("--seed", type=options.seed, default=0, help="of initial weights and draws (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Read, fit with all that belongs to it, print."""
    if is_file(args.out / ANNOTATION_MANIFEST):
        raise ValueError(f"{args.out} holds annotations: OUT, the checkpoint to write, comes last")
    options.check_out(args)
    refuse_threshold(args, "fit")
    settings = _settings(args)
    found = load_annotations(args.annotations, args.generator, **annotate.reading(args))
    _check_used(args, found.targets)
    for warning in found.warnings:
        print(f"warning: {warning}")
    if args.folds and len(found.annotated) < 2:
        print("no held-out check: it takes two annotated images or more")
    assert found.generator is not None  # as one was named

    if args.dry_run:
        _estimate(args, found, settings)
        return

    def print_quality(target: Target, architecture: str, quality: Quality, folds: int) -> None:
        name, count = _word(architecture), len(found.annotated)
        print(
            f"{target.field} ({name}): {count} images, each labeled by an ensemble fitted without it ({folds} folds):"
        )
        for line in figure_lines(quality.figures(target)):
            print(line)
        sys.stdout.flush()

    fitted = fit_checkpoint(
        found.generator,
        found,
        args.out,
        settings,
        recipe=sample_recipe(found, **args.recipe),
        folds=args.folds,
        num_samples=args.num_samples,
        reject_fraction=args.reject_fraction,
        ignore_fraction=args.ignore_fraction,
        title=args.title,
        description=args.description,
        license=args.license,
        generator_name=Path(args.generator).name,
        architectures=_architectures(args, found),
        on_quality=print_quality,
    )
    if args.interpreter == AUTO:
        taken = [each for each in getattr(fitted.labeled.labeler, "interpreters", ()) if "mask" in each.fields]
        print(f"taken, as it labels held-out images better: {', '.join(_word(each.architecture) for each in taken)}")
    labeled = fitted.labeled
    for line in report(labeled.recipe, labeled.calibration, score_unit(labeled.targets)):
        print(line)
    print(f"checkpoint, with its card: {args.out.resolve() / 'README.md'}")


def _architectures(args: argparse.Namespace, found: Annotations) -> dict[str, str]:
    return {t.field: INTERPRETERS[args.interpreter] for t in found.targets if t.kind == LabelSchema.kind}


def _estimate(args: argparse.Namespace, found: Annotations, settings: FitSettings) -> None:
    """Print how long the command would take, from small runs of it: with more and more steps, then with more draws."""
    longest = settings.convolutional.steps or settings.convolutional.max_steps
    steps = longest if args.interpreter == _CONVOLUTIONAL else settings.steps
    folds = min(args.folds, len(found.annotated)) if len(found.annotated) > 1 else 0
    ensembles = (folds + 1) * len(found.targets) + folds * (args.interpreter == AUTO)
    recipe = sample_recipe(found, **args.recipe).unfiltered()
    group = recipe.group_size
    groups = max(1, args.num_samples // group)
    least, written = min(20, groups), [0]

    def run(share: float, groups: int) -> float:
        """Seconds of a run with a share of the steps."""
        convolutional = dataclasses.replace(settings.convolutional, steps=max(1, round(share * longest)))
        small = dataclasses.replace(settings, steps=max(1, round(share * settings.steps)), convolutional=convolutional)

        def write(out: Path, num_samples: int) -> None:
            fit_checkpoint(
                cast(FeatureGenerator, found.generator),
                found,
                out,
                small,
                recipe=recipe,
                folds=args.folds,
                num_samples=num_samples,
                reject_fraction=args.reject_fraction,
                ignore_fraction=args.ignore_fraction,
                architectures=_architectures(args, found),
            )

        seconds, written[0] = run_once(write, groups * group)
        return seconds

    print("small runs of the command, to see how fast this machine is:", file=sys.stderr, flush=True)
    few = max(1, steps // 100)
    begun, step_rate = rate(lambda count: run(count / steps, least), few, steps)
    _, group_rate = rate(lambda groups: run(few / steps, groups), least, groups)
    seconds = begun + (steps - few) / step_rate + (groups - least) / group_rate
    options.print_rows(
        {
            "training": f"{ensembles} ensembles of {steps:,} steps, {ensembles * step_rate:.1f} steps/s",
            "calibration": f"{args.num_samples:,} draws, {group * group_rate:.1f} draws/s",
            "time": duration(seconds),
            "size": size(written[0]),
        }
    )
    if args.interpreter != "pixels":
        print("at most: held-out images decide how many steps a convolutional interpreter takes")
    print("estimated from small runs on this machine; nothing was written")


def _word(architecture: str) -> str:
    """Of the command line."""
    return next((word for word, known in INTERPRETERS.items() if known == architecture), architecture)


def _settings(args: argparse.Namespace) -> FitSettings:
    given = {name: getattr(args, name) for name in (*_OF_BOTH, *_OF_PIXELS) if getattr(args, name) is not None}
    if "hidden" in given:
        given["hidden"] = tuple(given["hidden"])
    own = _OF_BOTH if args.interpreter == _CONVOLUTIONAL else ("members",)
    convolutional = ConvolutionalSettings(**{name: given[name] for name in own if name in given})
    return FitSettings(**given, convolutional=convolutional, seed=args.seed)


def _check_used(args: argparse.Namespace, targets: Sequence[Target]) -> None:
    """ValueError for an option that nothing of what is fitted has."""
    if args.interpreter == _CONVOLUTIONAL and all(target.kind == LabelSchema.kind for target in targets):
        for name in _OF_PIXELS:
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{option} is an option of pixel classifiers, and --interpreter convolutional fits none: leave "
                    f"{option} out, or fit with --interpreter pixels"
                )


def figure_lines(figures: Figures) -> list[str]:
    """A table with a line for each part, and a line with what holds for all."""
    columns = figures.by_name
    parts = list(next(iter(columns.values()), {}))
    known = {name: value for name, value in figures.summary.items() if value is not None}
    width = max(map(len, (*parts, "all")))
    lines = [f"{'':>{width}}" + "".join(f"  {name:>10}" for name in columns)] if parts else []
    for part in parts:
        values = {name: column.get(part) for name, column in columns.items()}
        cells = {name: "none" if value is None else f"{value:.3g}" for name, value in values.items()}
        lines.append(f"{part:>{width}}" + "".join(f"  {cell:>{max(10, len(name))}}" for name, cell in cells.items()))
    return [*lines, f"{'all':>{width}}  " + ", ".join(f"{name} {value:.3f}" for name, value in known.items())]
