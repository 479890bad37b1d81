"""`dsgan calibrate`: find the threshold of the filter."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.calibration import calibrate
from dsgan_datasets.tools import options


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
    parser.add_argument("--num-samples", type=options.count, default=1000, help="draws to look at (default: 1000)")
    parser.add_argument(
        "--reject-fraction", type=float, default=0.1, help="share of the most uncertain draws to drop (default: 0.1)"
    )
    options.add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Calibrate and save."""
    options.check_out(args)
    if given := {"threshold", "reject_fraction"} & dict(args.recipe).keys():
        raise ValueError(f"--set {given.pop()}: calibrate finds the threshold itself; say --reject-fraction instead")
    labeled = calibrate(options.load(args), args.num_samples, reject_fraction=args.reject_fraction, seed=args.seed)
    labeled.save_pretrained(args.out)
    found = labeled.calibration
    if found is not None:
        print(
            f"threshold {found.threshold:.5g} ± {found.standard_error:.2g} nats; "
            f"{found.acceptance:.1%} of the draws pass"
        )
    print(f"checkpoint: {args.out.resolve()}")
