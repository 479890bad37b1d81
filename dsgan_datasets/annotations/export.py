"""Generator -> a folder of images to annotate, with projects for annotation tools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets._deprecation import renamed_keywords
from dsgan_datasets.annotations.folder import (
    Exported,
    ExportedImage,
    as_targets,
    generator_fingerprint,
)
from dsgan_datasets.annotations.kinds import kind_of
from dsgan_datasets.annotations.selection import diverse, pooled_features
from dsgan_datasets.annotations.shapes import shapely
from dsgan_datasets.annotations.writing import write_folder
from dsgan_datasets.checks import integer
from dsgan_datasets.files import check_writable, exists, is_folder
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.latents import Purpose, as_indices, sample_latents
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.segmentation import LabelSchema

#: More than people annotate, and less than fills the memory.
_MOST_IMAGES, _MOST_CANDIDATES = 10_000, 100_000

Selection = Literal["random", "diverse", "informative"]
#: Draws to look at for each image.
_PER_IMAGE: dict[Selection, int] = {"random": 1, "diverse": 4, "informative": 16}


class _Looked(NamedTuple):
    """Some draws: images uint8 [N, 3, H, W], pooled features [N, C], and drafted labels by field and scores, if any."""

    images: Tensor
    points: Tensor
    drafts: Mapping[str, Tensor]
    scores: Tensor | None


@renamed_keywords(schema="targets", num="num_samples")
@torch.no_grad()
def export_annotations(
    generator: FeatureGenerator,
    targets: Target | Sequence[Target],
    out: str | os.PathLike[str],
    *,
    num_samples: int = 16,
    select: Selection = "diverse",
    candidates: int | None = None,
    start: int | None = None,
    indices: Sequence[int] | None = None,
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
        targets: the labels to annotate: classes of masks (`LabelSchema`), points (`Keypoints`), maps such as depth
            (`DenseMap`), alone or several together.
        out: folder to write; new, or empty.
        num_samples: images to annotate, at most 10,000.
        select: "random" takes the first draws as they come; "diverse" takes draws unlike each other (k-center over
            pooled features); "informative" those that `interpreter` is unsure about, and unlike each other.
        candidates: draws to choose from, `num_samples` … 100,000; None is four for each image, and 16 for informative
            ones. The more candidates, the more of those that are unlike all others are flawed images.
        start: index of the first of them; None is the one after the last image of the earlier rounds, or 0.
        indices: exactly these draws, such as a person chose them in `dsgan view`, minus those of earlier rounds;
            `num_samples`, `select`, `candidates` and `start` have no effect then. None lets them decide.
        seed: of the draws, 0 … 2^64-1.
        recipe: psi, size, crop, … of the images; its filter is ignored. None is that of the earlier rounds, or the
            default recipe.
        interpreter: a first labeled checkpoint of this generator; it drafts annotations, to be corrected rather than
            drawn. Its classes and points must be among those to annotate; labels that it does not have are not drafted.
        earlier: folders of earlier rounds, which will be fitted together with this one: generator, recipe, feature
            layout and labels (names of classes and points) must be theirs, and none of their images is exported again.
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
        >>> exported = export_annotations(generator, schema, tmp / "to-annotate", num_samples=2, candidates=8)
        >>> sorted(path.name for path in (tmp / "to-annotate").glob("*.json"))
        ['annotations.json', 'classes.json']
    """
    out, name, targets = Path(out), without_folders(name), as_targets(targets)
    rounds = [(Path(folder).resolve().name, Exported.read(Path(folder))) for folder in earlier]
    if recipe is None:
        recipe = next((each.recipe for _, each in rounds), Recipe())
    # Filter and class map belong to an interpreter, and the one to be fitted does not exist yet.
    recipe = recipe.unfiltered().override(class_map=None, max_uncertainty=None)
    chosen_by = select if indices is None else "chosen by hand"
    if indices is not None:
        select, indices = "random", sorted({*as_indices(indices).tolist()})
        num_samples = len(indices)
        if not indices:
            raise ValueError("indices names no draw: give one or more, or leave it out")
    _check(generator, targets, out, recipe, interpreter, num_samples, select, candidates)
    for folder_name, each in rounds:
        _check_earlier(generator, targets, recipe, folder_name, each)
    if interpreter is not None:
        shapely()  # drafts need it: fails before any image is generated
    if start is None:
        start = 1 + max((image.index for _, each in rounds if each.seed == seed for image in each.images), default=-1)
    usual = min(_PER_IMAGE[select] * num_samples, _MOST_CANDIDATES)
    looked_at = indices or range(start, start + (usual if select == "random" or candidates is None else candidates))
    latents = sample_latents(looked_at, generator.z_dim, seed=seed, purpose=Purpose.ANNOTATION)
    known = {z.numpy().tobytes() for _, each in rounds for z in each.latents}
    fresh = [row for row, z in enumerate(latents) if z.numpy().tobytes() not in known]
    if indices is not None:
        if not fresh:
            raise ValueError(
                f"nothing is left to annotate: each draw of indices ({len(indices)}) is in an earlier round already. "
                "Choose further ones"
            )
        num_samples = len(fresh)
    if len(fresh) < num_samples:
        raise ValueError(
            f"only {len(fresh)} of the draws {looked_at[0]} … {looked_at[-1]} are not in an earlier round: choose "
            "another start, or leave it out"
        )
    rows = [fresh[i] for i in _chosen(generator, recipe, interpreter, latents[fresh], num_samples, select)]
    latents = latents[rows]
    looked = _look(generator, recipe, interpreter, latents, "drawing")
    drafts = {} if interpreter is None else _translated(looked.drafts, interpreter, targets)
    scores = [None] * num_samples if looked.scores is None else looked.scores.tolist()
    exported = Exported(
        generator=name,
        fingerprint=generator_fingerprint(generator),
        features=generator.features,
        recipe=recipe,
        seed=seed,
        size=recipe.image_size(generator.img_size),
        targets=targets,
        images=tuple(
            ExportedImage(looked_at[row], f"images/{looked_at[row]:09d}.png", uncertainty_score=score)
            for row, score in zip(rows, scores, strict=True)
        ),
        latents=latents,
    )
    to_fit = [folder_name for folder_name, _ in rounds]
    return write_folder(out, exported, looked.images, drafts, rounds=to_fit, how=f"{chosen_by} · seed {seed}")


def without_folders(name: str) -> str:
    """A name that says nothing about the machine: the last part of a path, and addresses as they are."""
    return name if "://" in name else Path(name).name or "generator"


def _check_earlier(
    generator: FeatureGenerator, targets: Sequence[Target], recipe: Recipe, folder: str, earlier: Exported
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
    theirs, these = ({target.field: target for target in each} for each in (earlier.targets, targets))
    if theirs.keys() != these.keys():
        raise ValueError(
            f"{folder} has the labels {', '.join(theirs)}, not {', '.join(these)}: rounds are fitted together, so take "
            "the same ones"
        )
    for field, target in these.items():
        if wrong := kind_of(target).disagreements(theirs[field], target, (folder, "the new folder")):
            raise ValueError(f"{'; '.join(wrong)} (rounds are fitted together)")
    if (recipe.sampling, recipe.rendering) != (earlier.recipe.sampling, earlier.recipe.rendering):
        there, here = (
            {**stored["sampling"], **stored["rendering"]} for stored in (earlier.recipe.to_dict(), recipe.to_dict())
        )
        fields = "; ".join(f"{n} {here[n]} instead of {there[n]}" for n in there if there[n] != here[n])
        raise ValueError(
            f"the recipe is not that of {folder} ({fields}): rounds are fitted together, so leave these fields alone"
        )


def _check(
    generator: FeatureGenerator,
    targets: Sequence[Target],
    out: Path,
    recipe: Recipe,
    interpreter: LabeledGenerator | None,
    num_samples: int,
    select: Selection,
    candidates: int | None,
) -> None:
    integer("num_samples", num_samples, 1, _MOST_IMAGES)
    if select not in get_args(Selection):
        raise ValueError(f"select must be one of {', '.join(get_args(Selection))}, not {select!r}")
    if select != "random" and candidates is not None:
        integer("candidates", candidates, 1, _MOST_CANDIDATES)
        if candidates < num_samples:
            raise ValueError(
                f"cannot choose num_samples={num_samples} images among candidates={candidates}: look at {num_samples} "
                'candidates or more, or take the draws as they come (select="random")'
            )
    if exists(out) and not is_folder(out):
        raise ValueError(f"{out} is a file: choose another name")
    if is_folder(out) and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty, perhaps with annotations: choose another folder")
    check_writable(out)
    for target in targets:
        kind_of(target)
        if isinstance(target, LabelSchema) and target.num_classes < 2:
            raise ValueError(f"at least two classes are required, got only {target.classes[0]}")
    if interpreter is None:
        if select == "informative":
            raise ValueError("select informative needs an interpreter (--interpreter) and its uncertainty")
        return
    if not isinstance(interpreter.labeler, InterpretedLabeler):
        raise ValueError("the labels of this checkpoint come from its generator: it has no interpreter to draft others")
    if generator_fingerprint(interpreter.generator) != generator_fingerprint(generator):
        raise ValueError("the interpreter was fitted to another generator: its drafts are meaningless")
    if select == "informative" and not interpreter.labeler.has_uncertainty:
        raise ValueError('the interpreter has no uncertainty, which "informative" needs: use "diverse"')
    if interpreter.generator.features != generator.features:
        raise ValueError(
            f"the interpreter reads features {interpreter.generator.features!r}, the generator gives "
            f"{generator.features!r}: load it with that layout"
        )
    by_field = {target.field: target for target in targets}
    for predicted in interpreter.targets:
        if predicted.field in by_field:
            kind_of(predicted).check_drafts(predicted, by_field[predicted.field])
    if by_field.keys().isdisjoint(target.field for target in interpreter.targets):
        raise ValueError(
            f"the interpreter predicts {', '.join(target.field for target in interpreter.targets)}, and nothing of "
            f"what is to be annotated ({', '.join(by_field)}): export without interpreter"
        )


def _chosen(
    generator: FeatureGenerator,
    recipe: Recipe,
    interpreter: LabeledGenerator | None,
    latents: Tensor,
    num_samples: int,
    select: Selection,
) -> list[int]:
    """Rows of the draws to annotate."""
    if select == "random":
        return list(range(num_samples))
    labeled = interpreter if select == "informative" else None
    looked = _look(generator, recipe, labeled, latents, "looking at candidates")
    return diverse(looked.points, num_samples, looked.scores)


def _look(
    generator: FeatureGenerator, recipe: Recipe, labeled: LabeledGenerator | None, latents: Tensor, doing: str
) -> _Looked:
    """Images, pooled features and, of an interpreter, masks and scores of draws, on the CPU."""
    frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
    images, points, scores = [], [], []
    drafts: dict[str, list[Tensor]] = {}
    for block in tqdm(latents.split(recipe.compute_batch), doing, unit="batch", delay=2, leave=False):
        image, features = synthesize(generator, recipe, block)
        images.append(image.cpu())
        points.append(pooled_features(features))
        if labeled is not None:
            options = LabelingOptions(labeled.recipe.vote, labeled.recipe.top_fraction)
            assert isinstance(labeled.labeler, InterpretedLabeler)
            predictions = [each.predict(features, frame, options) for each in labeled.labeler.interpreters]
            for found in predictions:
                for field, labels in found.labels.items():
                    drafts.setdefault(field, []).append(labels.cpu())
            if predictions[0].uncertainty_score is not None:
                scores.append(predictions[0].uncertainty_score.cpu())
    return _Looked(
        torch.cat(images),
        torch.cat(points),
        {field: torch.cat(labels) for field, labels in drafts.items()},
        torch.cat(scores) if scores else None,
    )


def _translated(
    drafts: Mapping[str, Tensor], labeled: LabeledGenerator, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """What an interpreter predicts -> labels of the same names in the targets, of those that they have."""
    predicted = {target.field: target for target in labeled.targets}
    translated = {}
    for target in targets:
        if target.field in predicted:
            labels, own = drafts[target.field], predicted[target.field]
            if isinstance(own, LabelSchema) and labeled.recipe.class_map:
                labels = torch.tensor(labeled.recipe.class_map)[labels]
            translated[target.field] = kind_of(own).translated(labels, own, target)
    return translated
