"""`dsgan shards`: samples as WebDataset tars."""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.shards import write_shards
from dsgan_datasets.tools import options


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    example = "dsgan shards write demo-faces faces --num-samples 5000 --samples-per-shard 1000"
    parser = options.add_verb(verbs, "shards", "write samples as WebDataset tar shards", example)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    write = options.add_verb(actions, "write", "write tar shards of consecutive indices", example)
    options.add_checkpoint(write)
    write.add_argument("out", type=Path, help="folder to write the shards to")
    options.add_seed(write)
    write.add_argument("--num-samples", type=options.count, required=True, help="samples in all")
    write.add_argument("--samples-per-shard", type=options.count, default=1000, help="(default: 1000)")
    write.add_argument("--start", type=int, default=0, help="index of the first sample (default: 0)")
    write.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Generate and write."""
    indices = range(args.start, args.start + args.num_samples)
    paths = write_shards(
        options.load(args), args.out, indices, seed=args.seed, samples_per_shard=args.samples_per_shard
    )
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{len(indices)} samples in {len(paths)} shards ({megabytes:.1f} MB): {args.out.resolve()}")
