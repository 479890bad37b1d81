"""`dsgan export`: samples as datasets of files, for those who use neither stream nor shards."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsgan_datasets.checkpoints.directory import find, is_built_in
from dsgan_datasets.export import FORMATS, ExportInput, export
from dsgan_datasets.export.writing import INSTANCES
from dsgan_datasets.files import exists, is_folder
from dsgan_datasets.shards.manifest import MANIFEST
from dsgan_datasets.shards.progress import UNFINISHED
from dsgan_datasets.tools import options
from dsgan_datasets.tools.estimate import add_dry_run, measure, show
from dsgan_datasets.tools.messages import counted


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "export",
        "write samples as a folder of images and labels, or as a dataset of COCO, MMSegmentation or YOLO",
        "dsgan export demo-faces faces --format folder --num-samples 1000 --palette\n"
        "  dsgan export s3://bucket/faces-shards faces-mmseg --format mmseg\n"
        "  dsgan export demo-faces faces-coco --format coco --num-samples 1000 --split val=0.1\n"
        "  dsgan export demo-faces faces-yolo --format yolo-seg --num-samples 1000 --instance-class hair",
    )
    options.add_checkpoint(parser, metavar="source", more="; or folder or URL of shards that `dsgan shards write` made")
    parser.add_argument("out", type=Path, help="folder to create; appears when it is complete")
    add_layout(parser, FORMATS)
    parser.add_argument("--num-samples", type=options.count, help="samples in all (default: all that the shards hold)")
    parser.add_argument(
        "--start", type=options.index, help="index of the first sample (default: 0, or the first in the shards)"
    )
    options.add_seed(parser)
    add_dry_run(parser)
    options.add_json(parser)
    parser.set_defaults(run=run, seed=None)


def add_layout(parser: argparse.ArgumentParser, formats: Iterable[str], more: str = "") -> None:
    """The format and what belongs to it, see `layout`; `more` describes further formats."""
    parser.add_argument(
        "--format",
        required=True,
        choices=tuple(formats),
        help="folder: images and labels of every kind; imagefolder: the same for Hugging Face's load_dataset; coco: "
        "instances as run lengths, keypoints; mmseg: folders and configs of MMSegmentation, for masks and depth; "
        f"yolo-seg: polygons of YOLO's instance segmentation; yolo-pose: its keypoints{more}",
    )
    parser.add_argument(
        "--label",
        dest="labels",
        metavar="FIELD",
        action="append",
        help="write this label only, such as mask; may be repeated (default: all that the samples have)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME=SHARE",
        type=split,
        action="append",
        help="keep the last samples for another split: --split val=0.1 --split test=0.1; the rest is train. "
        '"none" for no splits (default: val=0.1 for mmseg, yolo-seg and yolo-pose, else none)',
    )
    parser.add_argument(
        "--palette",
        action="store_true",
        help="write masks in colors too, into masks_color/: to look at, not to train on. The masks of folder and "
        "mmseg are 8-bit grayscale, pixel = class id, in any case",
    )
    parser.add_argument(
        "--instance-class",
        dest="things",
        metavar="CLASS",
        action="append",
        help="coco, yolo-seg: make instances of this class only; may be repeated (default: all but class 0). The box "
        "of keypoints is around all of them",
    )
    parser.add_argument(
        "--instances",
        choices=INSTANCES,
        default="classes",
        help="coco: one instance for each class, or one for each connected region of a class, as always in yolo-seg "
        "(default: classes)",
    )
    parser.add_argument(
        "--min-instance-area",
        type=options.count,
        default=1,
        help="coco, yolo-seg: pixels; smaller instances are left out (default: 1)",
    )
    parser.add_argument(
        "--category",
        default="object",
        metavar="NAME",
        help="coco, yolo-pose: what the object is called that the keypoints belong to (default: object)",
    )


def layout(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `export` that these options are."""
    names = ("labels", "palette", "things", "instances", "min_instance_area", "category")
    return {"splits": splits(args.split), **{name: getattr(args, name) for name in names}}


def run(args: argparse.Namespace) -> None:
    """Generate or read, and write."""
    input = _input(args)
    if args.dry_run:
        form = {**layout(args), "splits": {}}  # of so few samples a split may get none

        def write(out: Path, count: int) -> None:
            export(replace(input, numbers=input.numbers[:count]), out, args.format, **form)

        show(measure(input.num_samples, write), args)
        return
    counts = export(input, args.out, args.format, **layout(args))
    if args.json:
        content = {"samples": input.num_samples, "format": args.format, "counts": counts}
        options.print_json({**content, "folder": str(args.out.resolve())})
        return
    parts = ", ".join(f"{count} {name}".rstrip() for name, count in counts.items())
    print(f"{counted(input.num_samples, 'sample')} as {args.format} ({parts}): {args.out.resolve()}")


def _input(args: argparse.Namespace) -> ExportInput:
    """What SOURCE names: shards, or a checkpoint."""
    where: str = args.checkpoint
    path = Path(where)
    if is_built_in(where):
        pass  # whatever lies here under that name
    elif ("://" in where and not where.startswith("hf://")) or any(exists(path / n) for n in (MANIFEST, UNFINISHED)):
        generated = ("device", "recipe", "no_filter", "seed")
        if meant := [name for name in generated if getattr(args, name) not in (None, {}, False)]:
            words = {"recipe": "--truncation-psi and --set"}
            names = ", ".join(words.get(name, f"--{name.replace('_', '-')}") for name in meant)
            raise ValueError(f"{where} holds shards, whose samples exist already: leave out {names}")
        return ExportInput.read(where, args.num_samples, start=args.start)
    elif is_folder(path) and not exists(path / "config.json"):
        raise ValueError(f"{where} holds neither a checkpoint (config.json) nor shards ({MANIFEST})")
    elif not where.startswith("hf://"):
        find(where)  # a wrong name is the first thing to say
    if args.num_samples is None:
        raise ValueError("a checkpoint is endless: pass --num-samples")
    return ExportInput.generated(options.load(args), args.num_samples, start=args.start or 0, seed=args.seed or 0)


def split(text: str) -> tuple[str, float]:
    """Name and share of NAME=SHARE; "none" is a name without a share."""
    name, _, share = text.partition("=")
    if text == "none":
        return text, 0.0
    try:
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE, such as val=0.1, or none") from None


def splits(given: list[tuple[str, float]] | None) -> dict[str, float] | None:
    """What --split says in all; None if it was not given."""
    if given is None:
        return None
    named = dict(given)
    if len(named) != len(given) or ("none" in named and len(named) > 1):
        raise ValueError("--split: each name once, and none stands alone")
    return {} if "none" in named else named
