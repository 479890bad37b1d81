"""`dsgan calibrate`: find the threshold of the filter."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.checkpoints.calibration_report import Calibration
from dsgan_datasets.fitting.pipeline import calibrate_checkpoint
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.tools import options
from dsgan_datasets.uncertainty import score_unit


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "calibrate",
        "find the score above which samples are dropped, and save the checkpoint with it",
        "dsgan calibrate demo-faces faces-psi05 --truncation-psi 0.5 --reject-fraction 0.2",
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
        "--num-samples",
        type=options.integer(1, 1_000_000),
        default=1000,
        help="draws to look at, 20 or more (default: 1000)",
    )
    parser.add_argument(
        "--reject-fraction",
        type=options.shares,
        default=0.1,
        metavar="SHARE",
        help="share of the most uncertain draws to drop (default: 0.1); of several labels, mask=0.1,keypoints=0.05",
    )
    parser.add_argument(
        "--ignore-fraction",
        type=options.number,
        metavar="SHARE",
        help="also mark this share of the pixels, the most uncertain ones of accepted draws, as ignored (such as 0.05; "
        "0 for none; default: as the checkpoint has it)",
    )


def run(args: argparse.Namespace) -> None:
    """Load, calibrate, print."""
    options.check_out(args)
    refuse_threshold(args, "calibrate")
    done = calibrate_checkpoint(
        options.load(args),
        args.out,
        args.num_samples,
        reject_fraction=args.reject_fraction,
        ignore_fraction=args.ignore_fraction,
        seed=args.seed,
    )
    labeled = done.labeled
    for line in report(labeled.recipe, labeled.calibration, score_unit(labeled.targets)):
        print(line)
    if len(done.scores):
        print(f"histogram: {(args.out / 'calibration.png').resolve()}")
    print(f"checkpoint, with its card: {(args.out / 'README.md').resolve()}")


def refuse_threshold(args: argparse.Namespace, verb: str) -> None:
    """ValueError if --set gives what the command itself finds."""
    if given := {"threshold", "reject_fraction"} & args.recipe.keys():
        raise ValueError(f"--set {given.pop()}: {verb} finds the threshold itself; pass --reject-fraction instead")


def report(recipe: Recipe, found: Calibration | None, unit: str = "nats") -> list[str]:
    """What was found, in lines."""
    lines = []
    if found is not None:
        units = f"groups of {recipe.group_size} views" if recipe.group_size > 1 else "draws"
        error = "" if found.standard_error is None else f" ± {found.standard_error:.2g}"
        threshold = (
            "no threshold" if recipe.threshold is None else f"threshold {recipe.threshold:.5g}{error} {unit}".rstrip()
        )
        for score in recipe.scores:
            more = (found.standard_errors or {}).get(score.field)
            threshold += f", {score.field} {score.threshold:.5g}" + ("" if more is None else f" ± {more:.2g}")
        lines.append(f"{threshold}; {found.acceptance:.1%} of the {units} pass")
        if dropped := found.dropped_most(recipe.reject_fraction):
            shares = ", ".join(f"{name} {share:.0%}" for name, share in dropped.items())
            lines.append(
                f"draws with rare parts are dropped more often: {shares}; annotate more of them, or filter less"
            )
    else:
        lines.append("no filter: every draw is accepted")
    if recipe.max_uncertainty is not None:
        lines.append(f"pixels above {recipe.max_uncertainty:.4g} {unit}".rstrip() + " are ignored")
    return lines
