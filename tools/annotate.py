"""`dsgan annotate`: images for a person to annotate, and a check of the annotations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import torch

from dsgan_datasets.annotations import Annotations, export_annotations, load_annotations
from dsgan_datasets.annotations.export import Selection
from dsgan_datasets.annotations.formats import AnnotationFormat
from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.files import atomic_write
from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.pictures import photo, sheet
from dsgan_datasets.recipe import FeatureLayout, Recipe
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.tools import options

#: Truncation of images to annotate, of a generator that has no recipe yet; as published.
_PSI = 0.7


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    example = (
        "dsgan annotate export network-snapshot.pkl to-annotate --classes background,head,ear,eye\n"
        "  dsgan annotate check to-annotate --generator network-snapshot.pkl"
    )
    parser = options.add_verb(verbs, "annotate", "write images for a person to annotate, and check the result", example)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_export(actions)
    _add_check(actions)


def _add_export(actions: options.Verbs[argparse.ArgumentParser]) -> None:
    parser = options.add_verb(
        actions,
        "export",
        "write a folder of images to annotate, with projects for LabelMe and CVAT",
        "dsgan annotate export network-snapshot.pkl to-annotate --classes background,head,ear,eye\n"
        "  dsgan annotate export demo-faces more --interpreter demo-faces --select informative --start 256",
    )
    parser.add_argument("generator", help="generator file, checkpoint directory, or built-in name such as demo-faces")
    parser.add_argument("out", type=Path, help="folder to write; new, or empty")
    parser.add_argument("--num", type=options.count, default=16, help="images to annotate (default: 16)")
    parser.add_argument(
        "--select",
        choices=get_args(Selection),
        default="diverse",
        help="random draws; diverse: unlike each other; informative: those the interpreter is unsure about, and unlike "
        "each other (default: diverse)",
    )
    parser.add_argument(
        "--interpreter",
        metavar="CHECKPOINT",
        help="a first labeled checkpoint of this generator: drafts annotations to correct, and finds informative ones",
    )
    parser.add_argument(
        "--classes",
        type=_classes,
        metavar="NAMES|JSON",
        help="names with commas, the first for the background, or a classes.json (default: the checkpoint's)",
    )
    parser.add_argument(
        "--features",
        choices=get_args(FeatureLayout),
        help="layout to fit on, of a bare generator (default: --interpreter's, or the first of the architecture)",
    )
    parser.add_argument(
        "--candidates",
        type=options.count,
        help="draws to choose from, unless random (default: 4 for each image, 16 for informative ones)",
    )
    parser.add_argument("--start", type=int, default=0, help="index of the first; 256 for a second round (default: 0)")
    options.add_seed(parser)
    options.add_recipe(
        parser, psi=f"truncation psi (default: the checkpoint's or --interpreter's; {_PSI} for a bare generator)"
    )
    parser.set_defaults(run=run_export)


def _add_check(actions: options.Verbs[argparse.ArgumentParser]) -> None:
    parser = options.add_verb(
        actions,
        "check",
        "read the annotations of a folder; list every mistake, or show the masks that were read",
        "dsgan annotate check to-annotate --generator network-snapshot.pkl\n"
        "  dsgan annotate check to-annotate --files exported-by-cvat/annotations/instances_default.json",
    )
    parser.add_argument("folder", type=Path, help="the exported folder, or one in DatasetGAN's published layout")
    parser.add_argument("--generator", help="checked to be the one exported from (default: not checked)")
    add_reading(parser)
    parser.add_argument("--out", type=Path, help="picture to write (default: FOLDER/check.png)")
    options.add_recipe(parser, psi="of the published layout (default: 0.7)")
    parser.set_defaults(run=run_check)


def add_reading(parser: argparse._ActionsContainer) -> None:
    """How annotations are read; see `reading`."""
    parser.add_argument(
        "--format", choices=get_args(AnnotationFormat), help="kind of annotations (default: the kind that is there)"
    )
    parser.add_argument("--files", type=Path, help="annotations that lie elsewhere: a folder, or a COCO file")
    parser.add_argument(
        "--classes", type=_classes, metavar="NAMES|JSON", help="of the published layout (default: its classes.json)"
    )
    parser.add_argument(
        "--features",
        choices=get_args(FeatureLayout),
        help="of the published layout: features to fit on (default: the first layout of the architecture)",
    )
    parser.add_argument(
        "--min-region",
        type=int,
        default=0,
        metavar="PX",
        help="smaller connected regions take the class around them; 30 at 512² (default: 0, keep all)",
    )
    parser.add_argument(
        "--min-class",
        type=int,
        default=0,
        metavar="PX",
        help="a class with fewer pixels in an image is dropped there; 30 as published (default: 0, keep all)",
    )
    parser.add_argument("--allow-missing", action="store_true", help="leave out images that are not annotated")


def reading(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load_annotations` that these options are."""
    names = ("format", "files", "classes", "features", "min_region", "min_class", "allow_missing", "device")
    return {name: getattr(args, name) for name in names}


def run_export(args: argparse.Namespace) -> None:
    """Choose, generate, write."""
    interpreter = None
    if args.interpreter is not None:
        interpreter = LabeledGenerator.from_pretrained(
            args.interpreter, device=args.device, reject_fraction=0, require=()
        )
    generator, schema, recipe = _parts(args, interpreter)
    if args.classes is not None:
        schema = args.classes
    elif schema is None and interpreter is not None:
        schema = interpreter.schema
    if schema is None:
        raise ValueError(
            "no classes given: pass --classes background,head,… (the first is the background), or a classes.json"
        )
    exported = export_annotations(
        generator,
        schema,
        args.out,
        num=args.num,
        select=args.select,
        candidates=args.candidates,
        start=args.start,
        seed=args.seed,
        recipe=recipe,
        interpreter=interpreter,
        name=args.generator,
    )
    psi = exported.recipe.truncation_psi
    print(
        f"{len(exported.images)} images, {exported.size[1]}×{exported.size[0]}, psi {psi:g}: {args.out.resolve()}\n"
        f"classes: {', '.join(exported.schema.classes)}\n"
        f"what to do next: {args.out.resolve() / 'README.txt'}"
    )


def _parts(
    args: argparse.Namespace, interpreter: LabeledGenerator | None
) -> tuple[FeatureGenerator, LabelSchema | None, Recipe]:
    """Generator, schema of a labeled checkpoint, and a recipe: that of the checkpoint, or else the interpreter's."""
    changes = options.recipe_changes(args)
    path = checkpoint_directory.find(args.generator)
    if path.is_dir() and "interpreter" in checkpoint_directory.read_config(path):
        found = Checkpoint.open(path, **changes)
        layout = found.parts["interpreter"]["layout"]
        return load_generator(path, device=args.device, features=layout), found.schema, found.recipe
    features = args.features or (interpreter.generator.features if interpreter else None)
    generator = load_generator(path, device=args.device, features=features)
    if interpreter is not None:
        return generator, None, interpreter.recipe.override(**changes)
    default = Recipe(truncation_psi=_PSI if generator.mean_w is not None else 1.0)
    return generator, None, default.override(**changes)


def run_check(args: argparse.Namespace) -> None:
    """Read, print, draw."""
    out = args.out or args.folder / "check.png"
    _check_picture(out, args)
    found = load_annotations(
        args.folder,
        args.generator,
        **reading(args),
        **options.recipe_changes(args),
    )
    _print_table(found)
    for warning in found.warnings:
        print(f"warning: {warning}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        _picture(found, str(args.folder)).save(file, format="PNG" if out.suffix.lower() == ".png" else "JPEG")
    print(f"no mistakes; the masks that were read: {out.resolve()}")


def _check_picture(out: Path, args: argparse.Namespace) -> None:
    """ValueError if the picture would replace something, or be taken for an annotation the next time."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"--out {out}: a picture file must end in .png or .jpg")
    usual = (args.folder / "check.png").resolve()
    if out.exists() and out.resolve() != usual:
        raise ValueError(f"--out {out} exists: choose another name; without --out it is {usual}")
    read = [args.folder / "masks", args.folder / "images", *([args.files] if args.files else [])]
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in read):
        raise ValueError(f"--out {out} lies among the annotations: choose another folder; without --out it is {usual}")


def _print_table(found: Annotations) -> None:
    masks, schema = found.masks, found.schema
    ids = [*range(schema.num_classes), schema.ignore_index]
    width = max(map(len, (*schema.classes, "(ignored)")))
    print(f"annotated images: {len(masks)}, {masks.shape[2]}×{masks.shape[1]}")
    print(f"{'id':>4}  {'class':<{width}}  images     pixels   share")
    for i, name in zip(ids, (*schema.classes, "(ignored)"), strict=True):
        is_class = masks == i
        images, pixels = int(is_class.any(2).any(1).sum()), int(is_class.sum())
        if pixels or i != schema.ignore_index:
            print(f"{i:>4}  {name:<{width}}  {images:>6}  {pixels:>9,}  {pixels / masks.numel():>6.2%}")


def _picture(found: Annotations, title: str) -> Any:
    images = found.images
    if images is None:
        images = torch.zeros(len(found.masks), 3, *found.masks.shape[1:], dtype=torch.uint8)
        if found.generator is not None:
            images = synthesize(found.generator, found.recipe, found.latents)[0].cpu()
    pictures, captions = [], []
    for name, image, mask in zip(found.names, images, found.masks, strict=True):
        pictures.append([photo(image), found.schema.draw(photo(image), mask)])
        captions.append(f"{name}   {len(mask.unique())} classes")
    return sheet(pictures, captions, f"{title}   (image | annotation)", found.schema, columns=4)


def _classes(text: str) -> LabelSchema:
    """Names with commas, or a JSON file."""
    try:
        if text.endswith(".json"):
            return LabelSchema.from_dict(json.loads(Path(text).read_text(encoding="utf-8")))
        return LabelSchema(tuple(name.strip() for name in text.split(",")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
