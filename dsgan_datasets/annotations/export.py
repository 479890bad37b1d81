"""Generator -> a folder of images to annotate, with projects for annotation tools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.annotations.folder import (
    Array,
    Exported,
    ExportedImage,
    check_names,
    generator_fingerprint,
    hash_pixels,
    write_bytes,
)
from dsgan_datasets.annotations.projects import write_drafts, write_projects, write_readme
from dsgan_datasets.annotations.selection import diverse, pooled_features
from dsgan_datasets.annotations.shapes import shapely
from dsgan_datasets.checks import integer
from dsgan_datasets.files import atomic_write, check_writable, written_whole
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.images import png
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.pictures import photo, sheet
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: More than people annotate, and less than fills the memory.
_MOST_IMAGES, _MOST_CANDIDATES = 10_000, 100_000

Selection = Literal["random", "diverse", "informative"]
#: Draws to look at for each image.
_PER_IMAGE: dict[Selection, int] = {"random": 1, "diverse": 4, "informative": 16}


class _Looked(NamedTuple):
    """Some draws: images uint8 [N, 3, H, W], pooled features [N, C], and drafts, if any."""

    images: Tensor
    points: Tensor
    masks: Tensor | None
    scores: Tensor | None


@torch.no_grad()
def export_annotations(
    generator: FeatureGenerator,
    schema: LabelSchema,
    out: str | os.PathLike[str],
    *,
    num: int = 16,
    select: Selection = "diverse",
    candidates: int | None = None,
    start: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    interpreter: LabeledGenerator | None = None,
    earlier: Sequence[str | os.PathLike[str]] = (),
    name: str = "generator",
) -> Exported:
    """Write a folder of generated images for a person to annotate; it appears when it is complete.

    The draws are of a family of their own: no sample of any dataset is among them.

    Args:
        generator: of the images, with the feature layout that an interpreter will be fitted on.
        schema: the classes to annotate.
        out: folder to write; new, or empty.
        num: images to annotate, at most 10,000.
        select: "random" takes the first draws as they come; "diverse" takes draws unlike each other (k-center over
            pooled features); "informative" those that `interpreter` is unsure about, and unlike each other.
        candidates: draws to choose from, `num` … 100,000; None is 4 × `num`, and 16 × `num` for informative ones. The
            more candidates, the more of those that are unlike all others are flawed images.
        start: index of the first of them; None is the one after the last image of the earlier rounds, or 0.
        seed: of the draws, 0 … 2^64-1.
        recipe: psi, size, crop, … of the images; its filter is ignored. None is that of the earlier rounds, or the
            default recipe.
        interpreter: a first labeled checkpoint of this generator; it drafts annotations, to be corrected rather than
            drawn. Its classes must be among those of the schema.
        earlier: folders of earlier rounds, which will be fitted together with this one: generator, recipe, feature
            layout and names of the classes must be theirs, and none of their images is exported again.
        name: what to call the generator, so that a person finds it again; of a path only the last part is written, as
            the folder travels.

    Returns:
        what was written, see `load_annotations` for the way back.

    Raises:
        ValueError: the folder is not empty, the recipe draws more than z, the interpreter is one of another generator,
            an earlier round does not fit, or arguments out of range.
        AnnotationError: an earlier round is not a folder of this function.
        OSError: the folder cannot be written to; raised before any image is generated.
        ImportError: an interpreter was given, and shapely is not installed.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> schema = LabelSchema(("background", "face"))
        >>> exported = export_annotations(generator, schema, tmp / "to-annotate", num=2, candidates=8)
        >>> sorted(path.name for path in (tmp / "to-annotate").glob("*.json"))
        ['annotations.json', 'classes.json']
    """
    out, name = Path(out), _without_folders(name)
    rounds = [(Path(folder).resolve().name, Exported.read(Path(folder))) for folder in earlier]
    if recipe is None:
        recipe = next((each.recipe for _, each in rounds), Recipe())
    # Filter and class map belong to an interpreter, and the one to be fitted does not exist yet.
    recipe = recipe.unfiltered().override(class_map=None, max_uncertainty=None)
    _check(generator, schema, out, recipe, interpreter, num, select, candidates)
    for folder_name, each in rounds:
        _check_earlier(generator, schema, recipe, folder_name, each)
    if interpreter is not None:
        shapely()  # drafts need it: fails before any image is generated
    if start is None:
        start = 1 + max((image.index for _, each in rounds if each.seed == seed for image in each.images), default=-1)
    usual = min(_PER_IMAGE[select] * num, _MOST_CANDIDATES)
    indices = range(start, start + (usual if select == "random" or candidates is None else candidates))
    latents = sample_latents(indices, generator.z_dim, seed=seed, purpose=Purpose.ANNOTATION)
    known = {z.numpy().tobytes() for _, each in rounds for z in each.latents}
    fresh = [row for row, z in enumerate(latents) if z.numpy().tobytes() not in known]
    if len(fresh) < num:
        raise ValueError(
            f"only {len(fresh)} of the draws {indices.start} … {indices.stop - 1} are not in an earlier round: choose "
            "another start, or leave it out"
        )
    rows = [fresh[i] for i in _chosen(generator, recipe, interpreter, latents[fresh], num, select)]
    latents = latents[rows]
    looked = _look(generator, recipe, interpreter, latents, "drawing")
    images = looked.images.permute(0, 2, 3, 1).contiguous().numpy()
    masks = None if looked.masks is None else _translated(looked.masks, interpreter, schema)
    stems = [f"{indices[row]:09d}" for row in rows]
    size = recipe.image_size(generator.img_size)
    with written_whole(out) as folder:
        (folder / "images").mkdir()
        for stem, image in zip(stems, images, strict=True):
            write_bytes(folder / "images" / f"{stem}.png", png(image))
        write_projects(folder, schema)
        drafts = [None] * num if masks is None else write_drafts(folder, stems, masks, schema)
        scores = [None] * num if looked.scores is None else looked.scores.tolist()
        to_fit = [*(folder_name for folder_name, _ in rounds), out.resolve().name]
        write_readme(folder, schema, size, name, to_fit, drafted=masks is not None)
        exported = Exported(
            generator=name,
            fingerprint=generator_fingerprint(generator),
            features=generator.features,
            recipe=recipe,
            seed=seed,
            size=size,
            schema=schema,
            images=tuple(
                ExportedImage(int(stem), f"images/{stem}.png", hash_pixels(image), score, draft)
                for stem, image, score, draft in zip(stems, images, scores, drafts, strict=True)
            ),
            latents=latents,
        )
        _write_sheet(folder / "contact_sheet.png", exported, looked.images, masks, select)
        exported.write(folder)
    return exported


def _without_folders(name: str) -> str:
    """A name that says nothing about the machine: the last part of a path, and addresses as they are."""
    return name if "://" in name else Path(name).name or "generator"


def _check_earlier(
    generator: FeatureGenerator, schema: LabelSchema, recipe: Recipe, folder: str, earlier: Exported
) -> None:
    """ValueError if a round cannot be fitted together with an earlier one."""
    if generator_fingerprint(generator) != earlier.fingerprint:
        raise ValueError(
            f"{folder} was exported from another generator ({earlier.generator}, fingerprint "
            f"{earlier.fingerprint[:8]}…): rounds are fitted together, so export from that one"
        )
    if generator.features != earlier.features:
        raise ValueError(
            f"{folder} was exported for the features {earlier.features!r}, the generator gives {generator.features!r}: "
            "load it with that layout"
        )
    if set(schema.classes) != set(earlier.schema.classes):
        raise ValueError(
            f"the classes of {folder} are {', '.join(earlier.schema.classes)}, not {', '.join(schema.classes)}: rounds "
            "are fitted together, so take the same ones; to add one, append it to classes.json there first"
        )
    if (recipe.sampling, recipe.rendering) != (earlier.recipe.sampling, earlier.recipe.rendering):
        theirs, these = (
            {**stored["sampling"], **stored["rendering"]} for stored in (earlier.recipe.to_dict(), recipe.to_dict())
        )
        fields = "; ".join(f"{n} {these[n]} instead of {theirs[n]}" for n in theirs if theirs[n] != these[n])
        raise ValueError(
            f"the recipe is not that of {folder} ({fields}): rounds are fitted together, so leave these fields alone"
        )


def _check(
    generator: FeatureGenerator,
    schema: LabelSchema,
    out: Path,
    recipe: Recipe,
    interpreter: LabeledGenerator | None,
    num: int,
    select: Selection,
    candidates: int | None,
) -> None:
    integer("num", num, 1, _MOST_IMAGES)
    if select not in get_args(Selection):
        raise ValueError(f"select must be one of {', '.join(get_args(Selection))}, not {select!r}")
    if select != "random" and candidates is not None:
        integer("candidates", candidates, 1, _MOST_CANDIDATES)
        if candidates < num:
            raise ValueError(
                f"cannot choose num={num} images among candidates={candidates}: look at {num} candidates or more, or "
                'take the draws as they come (select="random")'
            )
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another name")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty, perhaps with annotations: choose another folder")
    check_writable(out)
    check_names(schema)
    if schema.num_classes < 2:
        raise ValueError(f"at least two classes are required, got only {schema.classes[0]}")
    if interpreter is None:
        if select == "informative":
            raise ValueError("select informative needs an interpreter (--interpreter) and its uncertainty")
        return
    if generator_fingerprint(interpreter.generator) != generator_fingerprint(generator):
        raise ValueError("the interpreter was fitted to another generator: its drafts are meaningless")
    if select == "informative" and not interpreter.labeler.has_uncertainty:
        raise ValueError('the interpreter has no uncertainty, which "informative" needs: use "diverse"')
    if interpreter.generator.features != generator.features:
        raise ValueError(
            f"the interpreter reads features {interpreter.generator.features!r}, the generator gives "
            f"{generator.features!r}: load it with that layout"
        )
    if unknown := [c for c in interpreter.schema.classes if c not in schema.classes]:
        raise ValueError(
            f"the interpreter's class {', '.join(unknown)} is not among the classes to annotate "
            f"({', '.join(schema.classes)}): add it, or export without interpreter"
        )


def _chosen(
    generator: FeatureGenerator,
    recipe: Recipe,
    interpreter: LabeledGenerator | None,
    latents: Tensor,
    num: int,
    select: Selection,
) -> list[int]:
    """Rows of the draws to annotate."""
    if select == "random":
        return list(range(num))
    labeled = interpreter if select == "informative" else None
    looked = _look(generator, recipe, labeled, latents, "looking at candidates")
    return diverse(looked.points, num, looked.scores)


def _look(
    generator: FeatureGenerator, recipe: Recipe, labeled: LabeledGenerator | None, latents: Tensor, doing: str
) -> _Looked:
    """Images, pooled features and, of an interpreter, masks and scores of draws, on the CPU."""
    frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
    images, points, masks, scores = [], [], [], []
    for block in tqdm(latents.split(recipe.compute_batch), doing, unit="batch", delay=2, leave=False):
        image, features = synthesize(generator, recipe, block)
        images.append(image.cpu())
        points.append(pooled_features(features))
        if labeled is not None:
            options = LabelingOptions(labeled.recipe.vote, labeled.recipe.top_fraction)
            found = labeled.interpreter.predict(features, frame, options)
            masks.append(found.labels["mask"].cpu())
            if found.uncertainty_score is not None:
                scores.append(found.uncertainty_score.cpu())
    return _Looked(
        torch.cat(images),
        torch.cat(points),
        torch.cat(masks) if masks else None,
        torch.cat(scores) if scores else None,
    )


def _translated(masks: Tensor, labeled: LabeledGenerator | None, schema: LabelSchema) -> Array:
    """Ids that an interpreter predicts -> ids of the same names in the schema."""
    assert labeled is not None
    names = labeled.schema.classes
    coarse = labeled.recipe.class_map or range(len(names))
    translated: Array = torch.tensor([schema.index(names[i]) for i in coarse], device="cpu")[masks].numpy()
    return translated


def _write_sheet(path: Path, exported: Exported, images: Tensor, masks: Array | None, select: str) -> None:
    """A picture of what is to be annotated, with the drafts if there are some."""
    pictures, captions = [], []
    for i, image in enumerate(exported.images):
        cells = [photo(images[i])]
        if masks is not None:
            cells.append(exported.schema.draw(cells[0], torch.from_numpy(masks[i])))
        pictures.append(cells)
        score = image.uncertainty_score
        captions.append(image.name if score is None else f"{image.name}   score {score:.4f} nats")
    title = f"{exported.generator} · {len(pictures)} images to annotate, {select} · seed {exported.seed}"
    with atomic_write(path) as file:
        sheet(pictures, captions, title, exported.schema, columns=4).save(file, format="PNG")
