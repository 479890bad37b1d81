"""`dsgan shards`: samples as WebDataset tars, written, verified and repaired."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys

from dsgan_datasets.shards import Encoding, Folder, load_generator_of, repair_shards, verify_shards, write_shards
from dsgan_datasets.shards.manifest import MANIFEST, Manifest
from dsgan_datasets.tools import options
from dsgan_datasets.tools.estimate import add_dry_run, measure, show
from dsgan_datasets.tools.messages import counted

_WRITE = """dsgan shards write demo-faces faces --num-samples 5000 --samples-per-shard 1000
  dsgan shards write my-faces faces --num-samples 1000000 --dry-run   # how long, and how much?
  dsgan shards write my-faces s3://bucket/faces --num-samples 1000000 --image-format jpg --engine ray
  dsgan shards write my-faces /nfs/faces --num-samples 1000000 \\
      --shard-range $((SLURM_ARRAY_TASK_ID * 10)):$((SLURM_ARRAY_TASK_ID * 10 + 10))

Interrupted? Run the same command again: it resumes, and ends with the same bytes."""
_VERIFY = """dsgan shards verify faces
  dsgan shards verify faces --repair                # made by a built-in checkpoint
  dsgan shards verify s3://bucket/faces --repair --checkpoint my-faces

The exit status is 0 if every byte is as it was written, 1 if not."""


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(verbs, "shards", "write samples as WebDataset tar shards, verify and repair them", _WRITE)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    kept = "finished shards are kept: run the same command again to resume"
    summary = "write tar shards of consecutive indices, or resume writing"
    _add_write(options.add_verb(actions, "write", summary, _WRITE, kept=kept))
    kept = "shards that were repaired stay so: run the same command again"
    summary = "find damaged, missing and foreign shards, and repair them"
    verify = options.add_verb(actions, "verify", summary, _VERIFY, kept=kept)
    verify.add_argument("out", help="folder or URL of the shards")
    verify.add_argument(
        "--repair",
        action="store_true",
        help="regenerate damaged and missing shards, remove copies under other names",
    )
    verify.add_argument(
        "--checkpoint", help="repair: what the shards were made with (default: the built-in one with their weights)"
    )
    verify.add_argument(
        "--strict", action="store_true", help="repair: accept the recorded bytes only, whatever machine they are from"
    )
    options.add_json(verify, "print the damage as JSON; not with --repair")
    verify.add_argument("--device", help="repair: cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    verify.set_defaults(run=run_verify)


def _add_write(write: argparse.ArgumentParser) -> None:
    options.add_checkpoint(write)
    write.add_argument("out", help="folder or URL (s3://…, gs://…, any protocol of fsspec) to write the shards to")
    options.add_seed(write)
    write.add_argument("--num-samples", type=options.count, required=True, help="samples in all")
    write.add_argument("--samples-per-shard", type=options.count, default=1000, help="(default: 1000)")
    write.add_argument("--start", type=options.index, default=0, help="index of the first sample (default: 0)")
    ranges = "write only shards A … B-1 of them; B may lie beyond the last"
    write.add_argument("--shard-range", type=_shard_range, metavar="A:B", help=ranges)
    what = write.add_argument_group("what a record holds besides image, labels and facts")
    what.add_argument("--image-format", choices=("png", "jpg"), default="png", help="(default: png, lossless)")
    what.add_argument("--quality", type=options.integer(1, 100), help="of JPEG, 1 … 100 (default: 95)")
    what.add_argument("--uncertainty", action="store_true", help="also the per-pixel uncertainty, as PNG")
    what.add_argument("--latent", action="store_true", help="also z, as .npy")
    what.add_argument("--parts", action="store_true", help="also box, area and COCO run-length code of every class")
    how = write.add_argument_group("how it is written; none of this changes a byte")
    how.add_argument(
        "--workers", type=options.integer(1, 1024), help="threads that encode (default: one a core, up to 16)"
    )
    how.add_argument("--engine", choices=("local", "ray"), default="local", help="(default: local, in this process)")
    how.add_argument(
        "--cpus-per-generator", type=options.integer(1, 10_000), help="engine ray: cores of each (default: 1)"
    )
    add_dry_run(write)
    options.add_json(write)
    write.set_defaults(run=run_write)


def _shard_range(text: str) -> tuple[int, int]:
    """First and end of A:B."""
    first, separator, end = text.partition(":")
    if not separator or not first.isdecimal() or not end.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, two shard numbers")
    return options.index(first), options.index(end)


def run_write(args: argparse.Namespace) -> None:
    """Generate and write."""
    if args.quality is not None and args.image_format != "jpg":
        raise ValueError("--quality is that of JPEG: pass --image-format jpg too, or leave it out; PNG is lossless")
    labeled = options.load(args)
    write = functools.partial(
        write_shards,
        labeled,
        seed=args.seed,
        samples_per_shard=args.samples_per_shard,
        encoding=Encoding(args.image_format, args.quality or 95, args.uncertainty, args.latent, args.parts),
        workers=args.workers,
    )
    first, end = (n * args.samples_per_shard for n in args.shard_range or (0, args.num_samples))
    written = min(end, args.num_samples) - first
    if args.dry_run:
        unit = labeled.recipe.group_size
        show(measure(written, lambda out, count: write(out, range(args.start, args.start + count)), unit=unit), args)
        return
    paths = write(
        args.out,
        range(args.start, args.start + args.num_samples),
        shard_range=args.shard_range,
        engine=args.engine,
        cpus_per_generator=args.cpus_per_generator,
    )
    folder = Folder(args.out)
    megabytes = sum(folder.size(path.rsplit("/", 1)[1]) or 0 for path in paths) / 1e6
    complete = MANIFEST in folder.names()
    if args.json:
        content = {"samples": written, "shards": len(paths), "megabytes": megabytes, "complete": complete}
        options.print_json({**content, "folder": str(folder)})
        return
    print(f"{counted(written, 'sample')} in {counted(len(paths), 'shard')} ({megabytes:.1f} MB): {folder}")
    if not complete:
        print("shards of other ranges are still missing; the writer of the last one finishes the set")


def _hashes(outdir: str) -> dict[str, str]:
    """SHA-256 of each shard, as the manifest records it; none of an unfinished set."""
    folder = Folder(outdir)
    shards = Manifest.read(folder).shards if MANIFEST in folder.names() else ()
    return {shard.name: shard.sha256 for shard in shards}


def run_verify(args: argparse.Namespace) -> int:
    """Verify, and repair if asked to."""
    for name in ("strict", "checkpoint", "device"):
        if getattr(args, name) and not args.repair:
            raise ValueError(f"--{name} says how to repair: give --repair too")
    if args.json and args.repair:
        raise ValueError("--json lists the damage, and --repair says what it did: give one of them")
    problems = verify_shards(args.out)
    if args.json:
        options.print_json([dataclasses.asdict(problem) for problem in problems])
        return 1 if problems else 0
    for problem in problems:
        print(problem)
    strangers = [problem for problem in problems if problem.kind == "foreign"]
    if len(strangers) < len(problems) and args.repair:
        labeled = load_generator_of(args.out, args.checkpoint, device=args.device)
        before = _hashes(args.out)
        strangers = repair_shards(args.out, labeled, strict=args.strict)
        after = _hashes(args.out)
        for problem in problems:
            if problem.kind != "foreign":
                print(f"{problem.name}: {'removed' if problem.kind == 'duplicate' else 'regenerated'}")
        if others := [name for name in before if before[name] != after[name]]:
            print(
                f"warning: {', '.join(others[:5])}{', …' * (len(others) > 5)}: other bytes than those written first: "
                "this machine or version computes other last digits. The labels agree, and the manifest records the "
                "new bytes; --strict refuses them"
            )
        problems = strangers
    elif len(strangers) < len(problems):
        print("--repair regenerates damaged and missing shards, and removes copies", file=sys.stderr)
    if strangers:
        print("tars that are not of this set: move them elsewhere", file=sys.stderr)
    if not problems:
        print(f"all shards are as the manifest says: {Folder(args.out)}")
    return 1 if problems else 0
