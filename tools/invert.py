"""`dsgan invert`: photos -> a folder to annotate, whose latents are the styles that the generator makes them of."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from dsgan_datasets.annotations.folder import as_targets
from dsgan_datasets.files import check_writable, exists, is_folder
from dsgan_datasets.generators import FeatureGenerator
from dsgan_datasets.inversion import Inversion, InversionSettings, Inverter
from dsgan_datasets.inversion.folder import export_photos
from dsgan_datasets.inversion.labels import read_labels
from dsgan_datasets.inversion.photos import Labels, Photos
from dsgan_datasets.inversion.pyramids import Comparison
from dsgan_datasets.inversion.reading import Align, read_photos
from dsgan_datasets.inversion.sheets import inversion_sheet
from dsgan_datasets.inversion.work import finish_work, invert_photos, read_styles
from dsgan_datasets.pictures import save_png
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.shards.manifest import MANIFEST
from dsgan_datasets.targets.base import Target
from dsgan_datasets.tools import annotate, options
from dsgan_datasets.tools.messages import counted, printable

#: What photos may be.
PHOTOS = "folder, zip archive, COCO file, or folder or URL of shards"
#: What a stopped command says.
KEPT = "OUT.inverting keeps the inversions that are done: run the same command again to continue"


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "invert",
        "find the styles that a generator makes photos of, and write the photos as a folder to annotate",
        "dsgan invert network-snapshot.pkl photos to-annotate --classes background,head,ear --labels photo-masks\n"
        "  dsgan invert my-faces photos/instances.json to-annotate     # labels of the checkpoint, from the COCO file\n"
        "  dsgan fit network-snapshot.pkl to-annotate my-parts",
        kept=KEPT,
    )
    parser.add_argument("generator", help="generator file, checkpoint directory, or built-in name such as demo-faces")
    parser.add_argument("photos", help=PHOTOS)
    parser.add_argument("out", type=Path, help="folder to write; new, or empty")
    annotate.add_targets(parser)
    add_labels(parser)
    parser.add_argument(
        "--keep-untrusted",
        action="store_true",
        help="also write photos with a score above 1 (they are left out)",
    )
    add_reading(parser.add_argument_group("reading the photos"))
    add_inversion(parser.add_argument_group("inversion"))
    options.add_recipe(parser, psi="truncation psi of samples to come (default: 0.7, or the checkpoint's)")
    parser.set_defaults(run=run)


def add_labels(parser: argparse._ActionsContainer) -> None:
    """Where labels of the photos are; see `labels_of`."""
    parser.add_argument(
        "--labels",
        "--masks",
        type=Path,
        metavar="PATH",
        help="labels of the photos: a COCO file; or a folder or zip archive of files with the names and sizes of the "
        "photos (PNG masks, maps, points), in folders masks/, keypoints/, … if there are several kinds (default: those "
        "of the COCO file or the shards of the photos, and of masks/, keypoints/, … beside images/)",
    )


def add_reading(parser: argparse._ActionsContainer) -> None:
    """How photos are read and aligned; see `reading`."""
    parser.add_argument(
        "--align",
        choices=get_args(Align),
        default="center",
        help="what of each photo to take: the largest crop in its middle, or of a COCO file a crop around each box, or "
        "each object turned and scaled by its keypoints (default: center)",
    )
    parser.add_argument(
        "--margin",
        type=options.number,
        default=0.0,
        help="boxes: what to add on each side, as a share of the longer side (default: 0)",
    )
    parser.add_argument(
        "--template",
        type=_template,
        metavar="JSON",
        help='keypoints: where they lie in the generator\'s images, in pixels: {"nose": [32, 36], …}',
    )
    parser.add_argument(
        "--align-category",
        metavar="NAME",
        help="boxes, keypoints: align by annotations of this category only (default: by all)",
    )
    parser.add_argument("--skip", action="store_true", help="leave out photos that cannot be used, with a warning")
    parser.add_argument("--photo-license", help="license of the photos, which what is made of them states")


def add_inversion(parser: argparse._ActionsContainer) -> None:
    """How photos are inverted; see `invert`."""
    default = InversionSettings()
    parser.add_argument(
        "--steps",
        type=options.integer(1, 10**6),
        default=default.steps,
        help=f"for each photo (default: {default.steps})",
    )
    parser.add_argument(
        "--starts",
        type=options.integer(1, 513),
        default=default.starts,
        help="places to start from: the average, and the draws that look most alike (default: 2)",
    )
    parser.add_argument(
        "--compare-by",
        choices=get_args(Comparison),
        default=default.compare_by,
        help="pixels of all scales, or also features of a network whose package is installed (default: pixels)",
    )
    parser.add_argument(
        "--start", type=Path, metavar="FILE", help="styles to start from, such as an encoder's: .npy or .pt, for W+"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="draw photo, reconstruction and difference of each into this file"
    )
    parser.add_argument("--seed", type=options.seed, default=0, help="of the draws to start from (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Read, invert, write."""
    check_out(args)
    generator, usual, recipe = annotate.parts(args)
    targets = as_targets(annotate.targets_of(args, usual))
    photos = photos_of(args, recipe.image_size(generator.img_size), targets)
    labels = labels_of(args, photos, targets)
    work = work_of(args.out)
    found = inverted(args, args.generator, generator, recipe, photos, work)
    print_scores(photos, found)
    exported = export_photos(
        generator,
        targets,
        args.out,
        photos,
        found,
        recipe=recipe,
        labels=labels,
        keep_untrusted=args.keep_untrusted,
        name=args.generator,
    )
    finish_work(work)
    done = sum(image.name in labels for image in exported.images)
    print(
        f"{counted(len(exported.images), 'photo')} to annotate{f', {done} with labels' if labels else ''}: "
        f"{args.out.resolve()}\nphoto, reconstruction and difference: {args.out.resolve() / 'inversions.png'}\n"
        f"what to do next: {args.out.resolve() / 'README.txt'}"
    )


def photos_of(args: argparse.Namespace, size: tuple[int, int], targets: Sequence[Target]) -> Photos:
    """The photos that the options name; of a folder that holds their labels too, those in images/."""
    return read_photos(
        Path(args.photos, "images") if _holds_labels(args.photos, targets) else args.photos,
        size,
        align=args.align,
        margin=args.margin,
        template=args.template,
        category=args.align_category,
        skip=args.skip,
        license=args.photo_license,
        warn=_warn,
    )


def labels_of(args: argparse.Namespace, photos: Photos, targets: Sequence[Target]) -> Labels:
    """Labels of the photos: those that the options name, or that came with them."""
    place = args.labels
    if place is None and _holds_labels(args.photos, targets):
        place = Path(args.photos)
    return read_labels(photos, targets, place, warn=_warn)


def _holds_labels(photos: str, targets: Sequence[Target]) -> bool:
    """Whether a folder holds photos and labels side by side, as `dsgan export --format folder` makes it."""
    folders = [Path(photos, name) for name in ("images", *(target.folder for target in targets))]
    return is_folder(folders[0]) and any(map(is_folder, folders[1:])) and not exists(Path(photos, MANIFEST))


def _warn(warning: str) -> None:
    print(f"warning: {printable(warning)}", file=sys.stderr)


def inverted(
    args: argparse.Namespace, name: str, generator: FeatureGenerator, recipe: Recipe, photos: Photos, work: Path | None
) -> Inversion:
    """The styles of the photos, found as the options say; `work` keeps what is found until all is written.

    `name` is what the user calls the generator."""
    settings = InversionSettings(steps=args.steps, starts=args.starts, compare_by=args.compare_by, seed=args.seed)
    start = None
    if args.start is not None:
        start = read_styles(args.start, photos.names, generator.num_ws, generator.w_dim)
    found = invert_photos(Inverter(generator, recipe, settings), photos, work=work, start=start)
    if args.sheet is not None:
        save_png(inversion_sheet(photos, found, title=options.short(name)), args.sheet)
    return found


def print_scores(photos: Photos, found: Inversion) -> None:
    """How many photos can be trusted, and which cannot."""
    trusted = int(found.trusted.sum())
    print(f"{counted(len(photos), 'photo')}, {trusted} with a score of at most 1; median {found.scores.median():.2f}")
    for name, score, distance, error in zip(
        photos.names, found.scores.tolist(), found.distances.tolist(), found.errors.tolist(), strict=True
    ):
        if score > 1:
            print(printable(f"  {name}: score {score:.2f} (distance {distance:.2f}, error {error:.2f}): not trusted"))


def check_out(args: argparse.Namespace) -> None:
    """Say before any work that OUT cannot be written; see `written_whole`."""
    if exists(args.out) and not (is_folder(args.out) and not any(args.out.iterdir())):
        raise ValueError(f"{args.out} exists: choose another name, or remove it")
    if is_folder(Path(args.photos)) and args.out.resolve().is_relative_to(Path(args.photos).resolve()):
        raise ValueError(
            f"{args.out} lies in {args.photos}, and would be among its photos next time: choose another place"
        )
    check_writable(args.out)
    if args.sheet is not None:
        options.check_file(args.sheet, "--sheet", ".png")


def work_of(out: Path) -> Path:
    """Where a command keeps the inversions that are done."""
    return out.with_name(f"{out.name}.inverting")


def _template(text: str) -> dict[str, list[float]]:
    try:
        content: Any = json.loads(Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text)
        return {str(name): [float(x), float(y)] for name, (x, y) in content.items()}
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise argparse.ArgumentTypeError(
            f'{text!r:.80} must be JSON such as {{"nose": [32, 36], "chin": [32, 60]}}, or a .json file of that'
        ) from None
