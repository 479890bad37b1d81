"""`dsgan label`: real photos -> labels that the checkpoint's interpreter reads from their inversions."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from dsgan_datasets.export import FORMATS, ExportInput, check_export, export
from dsgan_datasets.export.writing import option_of
from dsgan_datasets.inversion.folder import export_photos
from dsgan_datasets.inversion.inverter import Inversion
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.inversion.photos import Photos
from dsgan_datasets.inversion.work import finish_work
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.tools import invert, options
from dsgan_datasets.tools.estimate import add_dry_run, measure, show
from dsgan_datasets.tools.export import add_layout, layout
from dsgan_datasets.tools.messages import counted

#: The format that a person corrects.
DRAFTS = "drafts"


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "label",
        "label real photos: find the styles that the generator makes them of, and read their labels there",
        "dsgan label my-faces photos labeled --format folder --sheet inversions.png\n"
        "  dsgan label my-faces photos to-correct --format drafts       # for a person to correct, then `dsgan fit`\n"
        "  dsgan label my-faces photos.json labeled --format coco --align boxes --margin 0.2",
        kept=invert.KEPT,
    )
    options.add_checkpoint(parser, filtered=False)
    parser.add_argument("photos", help=invert.PHOTOS)
    parser.add_argument("out", type=Path, help="folder to create; appears when it is complete")
    add_layout(parser, (*FORMATS, DRAFTS), "; drafts: a folder of `dsgan annotate`, with drafts for LabelMe and CVAT")
    parser.add_argument(
        "--keep-untrusted",
        action="store_true",
        help="also label photos with a score above 1 (they are left out)",
    )
    invert.add_reading(parser.add_argument_group("reading the photos"))
    invert.add_inversion(parser.add_argument_group("inversion"))
    add_dry_run(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Invert, label, write."""
    invert.check_out(args)
    labeled = options.load(args)
    photos = invert.photos_of(args, labeled.image_size, labeled.targets)
    _check_layout(args, labeled, photos)
    if args.dry_run:
        args.sheet, args.keep_untrusted = None, True

        def write(out: Path, count: int) -> None:
            some = photos[:count]
            found = invert.inverted(args, args.checkpoint, labeled.generator, labeled.recipe, some, None)
            _write(args, labeled, some, found, out)

        show(measure(len(photos), write, first=1, noun="photo"), args)
        return
    work = invert.work_of(args.out)
    found = invert.inverted(args, args.checkpoint, labeled.generator, labeled.recipe, photos, work)
    invert.print_scores(photos, found)
    count = _write(args, labeled, photos, found, args.out)
    finish_work(work)
    print(f"{counted(count, 'labeled photo')} as {args.format}: {args.out.resolve()}")


def _write(args: argparse.Namespace, labeled: LabeledGenerator, photos: Photos, found: Inversion, out: Path) -> int:
    """Write the labels of inverted photos; their number."""
    source = LabeledPhotos(labeled, photos, found, keep_untrusted=args.keep_untrusted)
    if args.format == DRAFTS:
        export_photos(
            labeled.generator,
            labeled.targets,
            out,
            photos,
            found,
            recipe=labeled.recipe,
            labeled=source,
            keep_untrusted=args.keep_untrusted,
            name=args.checkpoint,
        )
    else:
        export(source.as_input(), out, args.format, **layout(args))
    return len(source)


def _check_layout(args: argparse.Namespace, labeled: LabeledGenerator, photos: Photos) -> None:
    """Say before hours of work that the photos cannot be written like this."""
    if args.format != DRAFTS:
        check_export(ExportInput.generated(labeled, len(photos)), args.format, **layout(args))
        return
    usual = inspect.signature(export).parameters
    if given := [option_of(name) for name, value in layout(args).items() if value != usual[name].default]:
        raise ValueError(f"{', '.join(given)} changes nothing in format {DRAFTS}, which holds all labels: leave it out")
