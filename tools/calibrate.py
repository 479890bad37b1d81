"""`dsgan calibrate`: find the threshold of the filter."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from dsgan_datasets.calibration import calibrate_with_scores
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.pictures import as_png, contact_sheet, histogram
from dsgan_datasets.recipe import Calibration, Recipe
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.tools import options

#: Samples on the sheet of the model card.
_PREVIEWED = 12


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "calibrate",
        "find the score above which samples are dropped, and save the checkpoint with it",
        "dsgan calibrate demo-faces faces-psi05 --psi 0.5 --reject-fraction 0.2",
    )
    options.add_checkpoint(parser, filtered=False)
    parser.add_argument("out", type=Path, help="checkpoint directory to write")
    options.add_seed(parser)
    add_filter_options(parser)
    options.add_overwrite(parser)
    parser.set_defaults(run=run)


def add_filter_options(parser: argparse._ActionsContainer) -> None:
    """How many draws to look at, and what to drop."""
    parser.add_argument(
        "--num-samples", type=options.count, default=1000, help="draws to look at, 20 or more (default: 1000)"
    )
    parser.add_argument(
        "--reject-fraction", type=float, default=0.1, help="share of the most uncertain draws to drop (default: 0.1)"
    )
    parser.add_argument(
        "--ignore-fraction",
        type=float,
        metavar="SHARE",
        help="also mark this share of the pixels, the most uncertain ones of accepted draws, as ignored (such as 0.05; "
        "0 for none; default: as the checkpoint has it)",
    )


def run(args: argparse.Namespace) -> None:
    """Calibrate, draw, save."""
    options.check_out(args)
    if given := {"threshold", "reject_fraction"} & dict(args.recipe).keys():
        raise ValueError(f"--set {given.pop()}: calibrate finds the threshold itself; say --reject-fraction instead")
    labeled, scores = calibrate_with_scores(
        options.load(args),
        args.num_samples,
        reject_fraction=args.reject_fraction,
        ignore_fraction=args.ignore_fraction,
        seed=args.seed,
    )
    save_with_pictures(labeled, scores, args.out)
    for line in report(labeled.recipe, labeled.calibration):
        print(line)
    if len(scores):
        print(f"histogram: {(args.out / 'calibration.png').resolve()}")
    print(f"checkpoint, with its card: {(args.out / 'README.md').resolve()}")


def save_with_pictures(labeled: LabeledGenerator, scores: Tensor, out: Path) -> None:
    """Save a checkpoint whose card shows samples and, if there are any, the scores of unfiltered draws."""
    title = labeled.fit.title if labeled.fit else out.resolve().name
    samples = SampleBatch.stack(list(labeled.stream(range(_PREVIEWED), extras=("uncertainty",))))
    drawn = {"preview.png": contact_sheet(samples, labeled.schema, title=f"{title} · {labeled.fingerprint[:8]}")}
    if len(scores):
        heading = f"{title}: scores of unfiltered draws"
        drawn["calibration.png"] = histogram(scores.numpy(), threshold=labeled.recipe.threshold, title=heading)
    labeled.save_pretrained(out, pictures={name: as_png(picture) for name, picture in drawn.items()})


def report(recipe: Recipe, found: Calibration | None) -> list[str]:
    """What was found, in lines."""
    lines = []
    if found is not None:
        units = f"groups of {recipe.group_size} views" if recipe.group_size > 1 else "draws"
        threshold = f"threshold {found.threshold:.5g} ± {found.standard_error:.2g} nats"
        lines.append(f"{threshold}; {found.acceptance:.1%} of the {units} pass")
        if found.dropped_most:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in found.dropped_most.items())
            lines.append(
                f"draws with rare parts are dropped more often: {shares}; annotate more of them, or filter less"
            )
    else:
        lines.append("no filter: every draw is accepted")
    if recipe.max_uncertainty is not None:
        lines.append(f"pixels above {recipe.max_uncertainty:.4g} nats are ignored")
    return lines
