"""`dsgan stats`: what a checkpoint makes: how often each part appears, how large it is, how certain samples are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dsgan_datasets.files import atomic_write
from dsgan_datasets.pictures import class_bars, histogram, save_png, stacked
from dsgan_datasets.statistics import Statistics, measure
from dsgan_datasets.tools import options


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "stats",
        "tell how often each part appears, how large it is, and how certain the samples are",
        "dsgan stats demo-faces\n  dsgan stats demo-faces --num-samples 2000 --out faces.png --json faces.json",
    )
    options.add_checkpoint(parser)
    options.add_seed(parser)
    parser.add_argument("--num-samples", type=options.count, default=500, help="samples to look at (default: 500)")
    parser.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("stats.png"), help="picture to write (default: stats.png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a JSON file too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print, draw, write."""
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out {args.out}: the picture file must end in .png")
    labeled = options.load(args)
    found = measure(labeled, range(args.start, args.start + args.num_samples), seed=args.seed)
    _print_table(found)
    title = f"{args.checkpoint}: {found.num_samples} samples, seed {args.seed}"
    bars = class_bars(
        {"images with this part": found.frequency, "mean area where it appears": found.mean_area},
        labeled.schema,
        title=title,
    )
    scores = histogram(
        found.scores.numpy(), title="scores of the samples", of="samples", threshold=labeled.recipe.threshold
    )
    save_png(stacked([bars, scores]), args.out)
    print(f"picture: {args.out.resolve()}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"checkpoint": args.checkpoint, "fingerprint": labeled.fingerprint, "seed": args.seed}
        with atomic_write(args.json) as file:
            file.write((json.dumps({**content, "start": args.start, **found.to_dict()}, indent=1) + "\n").encode())
        print(f"numbers: {args.json.resolve()}")


def _print_table(found: Statistics) -> None:
    width = max(map(len, (*found.classes, "class")))
    print(f"{found.num_samples} samples\n{'class':>{width}}  images  mean area where it appears")
    for name, often, area in zip(found.classes, found.frequency, found.mean_area, strict=True):
        print(f"{name:>{width}}  {often:>6.1%}  {'none' if area != area else f'{area:.2%}'}")
    if found.ignored:
        print(f"{'(ignored)':>{width}}  {found.ignored:.2%} of all pixels")
    low, middle, high = found.score_quantiles
    print(f"score: half of the samples below {middle:.4g} nats, 5 % below {low:.4g}, 5 % above {high:.4g}")
