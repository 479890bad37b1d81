"""`dsgan stats`: how often each class appears in the samples of a checkpoint, how large it is, how certain they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.charts import check_installed, histogram, tally_bars
from dsgan_datasets.pictures import save_png, stacked
from dsgan_datasets.statistics import LabelStatistics, Statistics, measure
from dsgan_datasets.tools import options
from dsgan_datasets.tools.messages import counted
from dsgan_datasets.uncertainty import score_unit


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "stats",
        "show how often each class appears, how large it is, and how certain the samples are",
        "dsgan stats demo-faces\n  dsgan stats demo-faces --num-samples 2000 --out faces.png\n"
        "  dsgan stats demo-faces --json > faces.json",
    )
    options.add_checkpoint(parser)
    options.add_seed(parser)
    parser.add_argument(
        "--num-samples", type=options.integer(1, 10**7), default=500, help="samples to look at (default: 500)"
    )
    parser.add_argument("--start", type=options.index, default=0, help="index of the first sample (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("stats.png"), help="picture to write (default: stats.png)")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, print, draw, write."""
    options.check_file(args.out, "--out", ".png")
    check_installed()
    labeled = options.load(args)
    found = measure(labeled, range(args.start, args.start + args.num_samples), seed=args.seed)
    if not args.json:
        _print_tables(found)
    title = f"{options.short(args.checkpoint)}: {found.num_samples} samples, seed {args.seed}"
    charts = [
        tally_bars(label.columns, label.target, title=f"{title} · {field}") for field, label in found.labels.items()
    ]
    if found.scores is not None:
        scores = found.scores.numpy()
        charts.append(
            histogram(
                scores, title=title, of="samples", threshold=labeled.recipe.threshold, unit=score_unit(labeled.targets)
            )
        )
    save_png(stacked(charts), args.out)
    if args.json:
        content = {"checkpoint": options.short(args.checkpoint), "fingerprint": labeled.fingerprint, "seed": args.seed}
        options.print_json({**content, "start": args.start, **found.to_dict(), "picture": str(args.out)})
    else:
        print(f"picture: {args.out.resolve()}")


def _print_tables(found: Statistics) -> None:
    print(counted(found.num_samples, "sample"))
    for field, label in found.labels.items():
        _print_table(field, label)
    if found.score_quantiles is not None:
        low, middle, high = found.score_quantiles
        unit = score_unit([label.target for label in found.labels.values()])
        half = f"{middle:.4g} {unit}".rstrip()
        print(f"score: half of the samples below {half}, 5 % below {low:.4g}, 5 % above {high:.4g}")


def _print_table(field: str, label: LabelStatistics) -> None:
    width = max(map(len, (*label.names, field)))
    print(f"{field:>{width}}  samples" + "  mean share where it appears" * label.target.tally_measures)
    for name, often, share in zip(label.names, label.frequency, label.mean_share, strict=True):
        shown = f"  {'none' if share != share else f'{share:.2%}'}" if label.target.tally_measures else ""
        print(f"{name:>{width}}  {often:>7.1%}{shown}")
    if label.ignored:
        print(f"{'(ignored)':>{width}}  {label.ignored:.2%} of all {label.target.tally_unit}")
