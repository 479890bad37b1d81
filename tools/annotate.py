"""`dsgan annotate`: images for a person to annotate, and a check of the annotations."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch
from PIL import Image

from dsgan_datasets.annotations import Annotations, export_annotations, load_annotations
from dsgan_datasets.annotations.export import Selection
from dsgan_datasets.annotations.folder import Exported, check_keys, generator_fingerprint, targets_from
from dsgan_datasets.annotations.formats import AnnotationFormat
from dsgan_datasets.annotations.kinds import kind_of
from dsgan_datasets.annotations.kinds.points import sides
from dsgan_datasets.annotations.marked import Marked
from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.contents import LONGEST_JSON, parse_json, read_bounded, shown
from dsgan_datasets.files import atomic_write, exists, is_folder
from dsgan_datasets.generators import FeatureGenerator, load_generator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.pictures import photo, sheet
from dsgan_datasets.recipe import FeatureLayout, Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema
from dsgan_datasets.tools import options
from dsgan_datasets.tools.messages import counted

#: Pixels of a row of pictures; a sheet of masks has four of them side by side.
_SHEET = 2000


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
        "  dsgan annotate export network-snapshot.pkl round-2 --after to-annotate --interpreter my-parts "
        "--select informative\n"
        "  dsgan annotate export my-parts round-2 --marked marks.json    # draws marked in `dsgan view my-parts`",
    )
    parser.add_argument("generator", help="generator file, checkpoint directory, or built-in name such as demo-faces")
    parser.add_argument("out", type=Path, help="folder to write; new, or empty")
    parser.add_argument(
        "--after",
        type=Path,
        metavar="FOLDER",
        action="append",
        default=[],
        help="folder of an earlier round, to be fitted together with this one: same recipe, features and classes, "
        "other images; may be repeated",
    )
    parser.add_argument(
        "--num-samples", type=options.integer(1, 10_000), default=16, help="images to annotate (default: 16)"
    )
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
    add_targets(parser)
    parser.add_argument(
        "--candidates",
        type=options.integer(1, 100_000),
        help="draws to choose from, unless random (default: 4 for each image, 16 for informative ones)",
    )
    parser.add_argument(
        "--start", type=options.index, help="index of the first candidate (default: behind the images of --after, or 0)"
    )
    parser.add_argument(
        "--marked",
        type=Path,
        metavar="FILE",
        help="exactly the draws that were marked in `dsgan view`, minus those of --after; its seed and recipe hold",
    )
    options.add_seed(parser)
    options.add_recipe(
        parser,
        psi="truncation psi (default: that of --after, the checkpoint or --interpreter; "
        f"{options.BARE_PSI} for a bare generator)",
    )
    parser.set_defaults(run=run_export)


def add_targets(parser: argparse._ActionsContainer) -> None:
    """What to annotate, and with which features; see `targets_of`."""
    parser.add_argument(
        "--classes",
        type=_classes,
        metavar="NAMES|JSON",
        help="masks: names with commas, the first for the background, or a classes.json",
    )
    parser.add_argument(
        "--keypoints",
        type=_keypoints,
        metavar="NAMES|JSON",
        help="points: names with commas, or a JSON file with names, skeleton and flip_pairs; names that differ in left "
        "and right alone are flip pairs",
    )
    parser.add_argument(
        "--targets",
        type=_targets,
        metavar="JSON",
        help="a targets.json: list of labels, for maps such as depth (default, without --classes and --keypoints: what "
        "--after, the checkpoint or --interpreter has)",
    )
    parser.add_argument(
        "--features",
        choices=get_args(FeatureLayout),
        help="layout to fit on, of a bare generator (default: --interpreter's, or the first of the architecture)",
    )


def targets_of(args: argparse.Namespace, usual: Sequence[Target]) -> tuple[Target, ...]:
    """The labels that these options name; those that are usual otherwise."""
    given = [*filter(None, (args.classes, args.keypoints)), *(args.targets or ())]
    if not given and not usual:
        raise ValueError(
            "nothing to annotate is named: pass --classes background,head,… for masks (the first is the background), "
            "--keypoints left_eye,right_eye,… for points, or --targets targets.json"
        )
    return tuple(given or usual)


def _add_check(actions: options.Verbs[argparse.ArgumentParser]) -> None:
    parser = options.add_verb(
        actions,
        "check",
        "read the annotations of a folder; list every mistake, or show what was read",
        "dsgan annotate check to-annotate --generator network-snapshot.pkl\n"
        "  dsgan annotate check to-annotate --files exported-by-cvat/annotations/instances_default.json",
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="+",
        help="the exported folder, or one in DatasetGAN's published layout; several rounds: oldest first, read as "
        "`dsgan fit` reads them",
    )
    parser.add_argument("--generator", help="checked to be the one exported from (default: not checked)")
    add_reading(parser)
    parser.add_argument("--out", type=Path, help="picture to write (default: check.png in the last folder)")
    options.add_recipe(parser, psi="of the published layout (default: 0.7)")
    parser.set_defaults(run=run_check)


def add_reading(parser: argparse._ActionsContainer) -> None:
    """How annotations are read; see `reading`."""
    parser.add_argument(
        "--format", choices=get_args(AnnotationFormat), help="kind of annotations (default: the kind that is there)"
    )
    parser.add_argument("--files", type=Path, help="annotations that lie elsewhere: a folder, a zip archive or a file")
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
        type=options.integer(0, 2**26),
        default=0,
        metavar="PX",
        help="smaller connected regions take the class around them; 30 at 512² (default: 0, keep all)",
    )
    parser.add_argument(
        "--min-class",
        type=options.integer(0, 2**26),
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
    marked = None if args.marked is None else _marked(args)
    interpreter = None
    if args.interpreter is not None:
        interpreter = LabeledGenerator.from_pretrained(
            args.interpreter, device=args.device, reject_fraction=0, require=()
        )
    earlier = [Exported.read(folder) for folder in args.after]
    generator, usual, recipe = parts(args, interpreter, earlier)
    if not usual and interpreter is not None:
        usual = interpreter.targets
    targets = targets_of(args, usual)
    if marked is not None:
        if generator_fingerprint(generator) != marked.fingerprint:
            raise ValueError(
                f"{args.marked} was marked for another generator ({marked.generator}, fingerprint "
                f"{marked.fingerprint[:8]}…): export from that one"
            )
        recipe = marked.recipe
    exported = export_annotations(
        generator,
        targets,
        args.out,
        num_samples=args.num_samples,
        select=args.select,
        candidates=args.candidates,
        start=args.start,
        indices=None if marked is None else marked.indices,
        seed=args.seed if marked is None else marked.seed,
        recipe=recipe,
        interpreter=interpreter,
        earlier=args.after,
        name=args.generator,
    )
    psi = exported.recipe.truncation_psi
    images = counted(len(exported.images), "image")
    labels = "\n".join(f"{target.field}: {target.summary}" for target in exported.targets)
    print(
        f"{images}, {exported.size[1]}×{exported.size[0]}, psi {psi:g}: {args.out.resolve()}\n"
        f"{labels}\n"
        f"what to do next: {args.out.resolve() / 'README.txt'}"
    )
    if marked is not None and (known := len(marked.indices) - len(exported.images)):
        marks = counted(known, "marked draw")
        print(f"dsgan: note: {marks} left out: already in an earlier round", file=sys.stderr)


def _marked(args: argparse.Namespace) -> Marked:
    """The marked draws; a usage error if other options choose draws too."""
    chosen = ("num_samples", "select", "candidates", "start", "seed", "recipe")
    if given := [name for name in chosen if getattr(args, name) != args.parser.get_default(name)]:
        names = ", ".join("--truncation-psi and --set" if n == "recipe" else f"--{n.replace('_', '-')}" for n in given)
        args.parser.error(f"--marked says which draws, of which seed and recipe: leave out {names}")
    marked = Marked.read(args.marked)
    if not marked.indices:
        raise ValueError(f"--marked {args.marked} holds no marks: mark draws with `dsgan view`, or leave out --marked")
    return marked


def parts(
    args: argparse.Namespace, interpreter: LabeledGenerator | None = None, earlier: Sequence[Exported] = ()
) -> tuple[FeatureGenerator, tuple[Target, ...], Recipe]:
    """Generator, labels and recipe: those of an earlier round, a labeled checkpoint, or the interpreter."""
    changes = args.recipe
    if earlier:
        generator = load_generator(
            args.generator, device=args.device, features=cast(FeatureLayout, earlier[0].features)
        )
        return generator, earlier[0].targets, earlier[0].recipe.override(**changes)
    path = checkpoint_directory.find(args.generator)
    if is_folder(path) and "labeler" in checkpoint_directory.read_config(path):
        found = Checkpoint.open(path, **changes)
        layout = found.parts.get("interpreter", {}).get("layout")
        return load_generator(path, device=args.device, features=layout), found.targets, found.recipe
    features = args.features or (interpreter.generator.features if interpreter else None)
    generator = load_generator(path, device=args.device, features=features)
    if interpreter is not None:
        return generator, (), interpreter.recipe.override(**changes)
    default = Recipe(truncation_psi=options.BARE_PSI if generator.mean_w is not None else 1.0)
    return generator, (), default.override(**changes)


def run_check(args: argparse.Namespace) -> None:
    """Read, print, draw."""
    out = args.out or args.folder[-1] / "check.png"
    _check_picture(out, args)
    found = load_annotations(args.folder, args.generator, **reading(args), **args.recipe)
    _print_table(found)
    for warning in found.warnings:
        print(f"warning: {warning}")
    out.parent.mkdir(parents=True, exist_ok=True)
    title = " + ".join(folder.resolve().name for folder in args.folder)
    with atomic_write(out) as file:
        _picture(found, title).save(file, format="PNG" if out.suffix.lower() == ".png" else "JPEG")
    print(f"no mistakes; the annotations that were read: {out.resolve()}")


def _check_picture(out: Path, args: argparse.Namespace) -> None:
    """ValueError if the picture would replace something, or be taken for an annotation the next time."""
    options.check_file(out, "--out", ".png", ".jpg", ".jpeg")
    usual = (args.folder[-1] / "check.png").resolve()
    if exists(out) and out.resolve() != usual:
        raise ValueError(f"--out {out} exists: choose another name; without --out it is {usual}")
    read = [folder / kind for folder in args.folder for kind in ("masks", "images")]
    if any(out.resolve().is_relative_to(place.resolve()) for place in [*read, *([args.files] if args.files else [])]):
        raise ValueError(f"--out {out} lies among the annotations: choose another folder; without --out it is {usual}")


def _print_table(found: Annotations) -> None:
    height, width = found.size
    print(f"annotated images: {len(found.latents)}, {width}×{height}")
    for target in found.targets:
        print("\n".join(kind_of(target).table(found.annotated.of(target.field), target)))


def _picture(found: Annotations, title: str) -> Image.Image:
    images = found.images
    if images is None:
        images = torch.zeros(len(found.latents), 3, *found.size, dtype=torch.uint8)
        if found.generator is not None:
            images = synthesize(found.generator, found.recipe, found.latents)[0].cpu()
    pictures, captions = [], []
    for i, (name, image) in enumerate(zip(found.names, images, strict=True)):
        its = [(kind_of(target), found.annotated.of(target.field)[i], target) for target in found.targets]
        drawn = [kind.drawn(photo(image), label, target, found.size) for kind, label, target in its]
        largest = max(drawn, key=lambda picture: picture.width).size
        pictures.append([photo(image).resize(largest, Image.Resampling.BICUBIC), *drawn])
        captions.append("   ".join([name, *(kind.caption(label, target) for kind, label, target in its)]))
    more = [entry for t in found.targets for entry in kind_of(t).legend(found.annotated.of(t.field), t)]
    shown = " | ".join(["image", *(target.field for target in found.targets)])
    width, height = len(pictures[0]) * pictures[0][0].width, pictures[0][0].height
    columns = min(max(_SHEET // width, 1), 4)
    columns = max(columns, math.ceil(math.sqrt(len(pictures) * height / (2 * width))))  # no taller than twice its width
    return sheet(pictures, captions, f"{title}   ({shown})", found.targets, columns=columns, more=more)


def _classes(text: str) -> LabelSchema:
    """Names with commas, or a JSON file."""
    return _described(text, LabelSchema, LabelSchema.from_dict)


def _keypoints(text: str) -> Keypoints:
    """Names with commas, or a JSON file; names of sides alone make flip pairs."""
    found = _described(text, Keypoints, lambda content: check_keys(Keypoints.from_dict(content), content))
    return found if text.endswith(".json") else Keypoints(found.names, flip_pairs=sides(found.names))


def _targets(text: str) -> list[Target]:
    """A JSON file with a list of labels."""
    return _described(text, None, targets_from)


Described = TypeVar("Described")


def _described(
    text: str, named: Callable[[tuple[str, ...]], Described] | None, parsed: Callable[[Any], Described]
) -> Described:
    """What names with commas mean, or what a JSON file describes; else an error that argparse shows."""
    try:
        if named is not None and not text.endswith(".json"):
            return named(tuple(name.strip() for name in text.split(",")))
        content = parse_json(read_bounded(text, LONGEST_JSON))
        if named is not None and not isinstance(content, dict):
            raise ValueError(f"it holds {shown(content)}, expected an object, as an export writes it")
        return parsed(content)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be read ({error.strerror}): give a JSON file that is there"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        lacks = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise argparse.ArgumentTypeError(f"{text!r}: {lacks}") from error
