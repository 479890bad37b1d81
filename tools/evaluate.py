"""`dsgan evaluate`: does a checkpoint know what is in photos that somebody has labeled?"""

from __future__ import annotations

import argparse
from pathlib import Path

from dsgan_datasets.files import write_json, written_whole
from dsgan_datasets.inversion.evaluation import compare_masks, comparison_sheet
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.inversion.photos import read_masks
from dsgan_datasets.inversion.work import finish_work
from dsgan_datasets.pictures import save_png
from dsgan_datasets.tools import invert, options
from dsgan_datasets.tools.fit import figure_lines

#: Below this IoU a class is named as one that the checkpoint does not know well.
_POOR = 0.5


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "evaluate",
        "compare the labels that a checkpoint gives photos with masks of your own",
        "dsgan evaluate my-faces photos evaluation --masks photo-masks",
        kept=invert.KEPT,
    )
    options.add_checkpoint(parser, filtered=False)
    parser.add_argument("photos", help="folder, zip archive, COCO file, or folder or URL of shards")
    parser.add_argument("out", type=Path, help="folder to create, for evaluation.json and the picture evaluation.png")
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        required=True,
        help="masks of the photos in the checkpoint's classes, PNG files of the names and sizes of the photos",
    )
    invert.add_reading(parser.add_argument_group("reading the photos"))
    invert.add_inversion(parser.add_argument_group("inversion"))
    parser.set_defaults(run=run, keep_untrusted=False)


def run(args: argparse.Namespace) -> None:
    """Invert, label, compare."""
    invert.check_out(args)
    labeled = options.load(args)
    photos = invert.photos_of(args, labeled.image_size)
    masks = read_masks(args.masks, photos, labeled.schema)
    work = invert.work_of(args.out)
    found = invert.inverted(args, labeled.generator, labeled.recipe, photos, work)
    invert.print_scores(photos, found)
    source = LabeledPhotos(labeled, photos, found)
    quality = compare_masks(source, masks)
    figures = quality.figures(labeled.schema)
    compared = sum(name in masks for name in source.names)
    facts = {"photos": len(photos), "trusted": len(source), "compared": compared, "fingerprint": labeled.fingerprint}
    with written_whole(args.out) as folder:
        save_png(comparison_sheet(source, masks, title=options.short(args.checkpoint)), folder / "evaluation.png")
        write_json(folder / "evaluation.json", {**facts, **figures.to_dict()})
    finish_work(work)
    iou = figures.by_name["IoU"]
    print("\n".join(figure_lines(figures)))
    poor = [name for name, value in iou.items() if value is not None and value < _POOR]
    weak = f"; it does not know {', '.join(poor)} well (IoU below {_POOR})" if poor else ""
    print(
        f"{compared} of {len(photos)} photos were compared. Labels by inversion agree with yours on "
        f"{quality.pixel_accuracy:.0%} of the pixels, with a mean IoU of {quality.mean_iou:.2f}{weak}.\n"
        f"{_expectation(len(source) / len(photos), quality.mean_iou)}\n"
        f"photo, your mask, and by inversion: {(args.out / 'evaluation.png').resolve()}"
    )


def _expectation(trusted: float, mean_iou: float) -> str:
    """What the figures mean for somebody with such photos."""
    if trusted < 0.5:
        return (
            "Most of your photos are unlike what the generator makes: align them as it was trained, or train a "
            "generator on photos like yours."
        )
    if mean_iou < _POOR:
        return (
            "The generator knows your photos, but their labels are read poorly: annotate more of its samples, or fit "
            "with your labeled photos too (`dsgan invert`, `dsgan fit`)."
        )
    return (
        "The generator knows photos like yours, and reads their labels well: train a student on its samples, and keep "
        "these photos to measure it on."
    )
