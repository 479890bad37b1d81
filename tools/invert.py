"""`dsgan invert`: photos -> a folder to annotate, whose latents are the styles that the generator makes them of."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from dsgan_datasets.annotations.folder import as_targets
from dsgan_datasets.files import check_writable
from dsgan_datasets.generators import FeatureGenerator
from dsgan_datasets.inversion import Inversion, InversionSettings, Inverter
from dsgan_datasets.inversion.folder import export_photos
from dsgan_datasets.inversion.photos import Align, Photos, read_masks, read_photos
from dsgan_datasets.inversion.pyramids import Comparison
from dsgan_datasets.inversion.sheets import inversion_sheet
from dsgan_datasets.inversion.work import finish_work, invert_photos, read_styles
from dsgan_datasets.pictures import save_png
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import schema_of
from dsgan_datasets.tools import annotate, options
from dsgan_datasets.tools.messages import counted, printable

#: What a stopped command says.
KEPT = "OUT.inverting keeps the inversions that are done: run the same command again to go on from there"


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "invert",
        "find the styles that a generator makes photos of, and write the photos as a folder to annotate",
        "dsgan invert my-faces photos to-annotate     # with drafts by the checkpoint's interpreter\n"
        "  dsgan invert network-snapshot.pkl photos to-annotate --classes background,head,ear --masks photo-masks\n"
        "  dsgan fit network-snapshot.pkl to-annotate my-parts",
        kept=KEPT,
    )
    parser.add_argument("generator", help="generator file, checkpoint directory, or built-in name such as demo-faces")
    parser.add_argument("photos", help="folder, zip archive, COCO file, or folder or URL of shards")
    parser.add_argument("out", type=Path, help="folder to write; new, or empty")
    annotate.add_targets(parser)
    parser.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="masks of the photos, PNG files of their names and sizes: such photos are annotated already",
    )
    parser.add_argument(
        "--keep-untrusted", action="store_true", help="write photos with a score above 1 too, which are left out else"
    )
    add_reading(parser.add_argument_group("reading the photos"))
    add_inversion(parser.add_argument_group("inversion"))
    options.add_recipe(parser, psi="truncation psi of samples to come (default: 0.7, or the checkpoint's)")
    parser.set_defaults(run=run)


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
    photos, masks = photos_of(args, recipe.image_size(generator.img_size)), {}
    if args.masks is not None:
        masks = read_masks(args.masks, photos, schema_of(targets))
    work = work_of(args.out)
    found = inverted(args, generator, recipe, photos, work)
    print_scores(photos, found)
    exported = export_photos(
        generator,
        targets,
        args.out,
        photos,
        found,
        recipe=recipe,
        masks=masks,
        keep_untrusted=args.keep_untrusted,
        name=args.generator,
    )
    finish_work(work)
    painted = sum(image.name in masks for image in exported.images)
    print(
        f"{counted(len(exported.images), 'photo')} to annotate{f', {painted} with masks' if masks else ''}: "
        f"{args.out.resolve()}\nphoto, reconstruction and difference: {args.out.resolve() / 'inversions.png'}\n"
        f"what to do next: {args.out.resolve() / 'README.txt'}"
    )


def photos_of(args: argparse.Namespace, size: tuple[int, int]) -> Photos:
    """The photos that the options name."""
    return read_photos(
        args.photos,
        size,
        align=args.align,
        margin=args.margin,
        template=args.template,
        skip=args.skip,
        license=args.photo_license,
        warn=lambda warning: print(f"warning: {printable(warning)}", file=sys.stderr),
    )


def inverted(
    args: argparse.Namespace, generator: FeatureGenerator, recipe: Recipe, photos: Photos, work: Path
) -> Inversion:
    """The styles of the photos, found as the options say; `work` keeps what is found until all is written."""
    settings = InversionSettings(steps=args.steps, starts=args.starts, compare_by=args.compare_by, seed=args.seed)
    start = None
    if args.start is not None:
        start = read_styles(args.start, photos.names, generator.num_ws, generator.w_dim)
    found = invert_photos(Inverter(generator, recipe, settings), photos, work=work, start=start)
    if args.sheet is not None:
        save_png(inversion_sheet(photos, found), args.sheet)
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
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise ValueError(f"{args.out} exists: choose another name, or remove it")
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
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither a JSON file nor JSON such as {{"nose": [32, 36]}}: {error}'
        ) from None
