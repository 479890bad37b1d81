"""Generator -> a folder of images to annotate, with projects for annotation tools."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.annotations.folder import (
    MANIFEST,
    Array,
    Exported,
    ExportedImage,
    generator_fingerprint,
    hash_pixels,
    write_bytes,
)
from dsgan_datasets.annotations.selection import diverse, pooled_features
from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.labeled_generator import synthesize
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.schema import LabelSchema

Selection = Literal["random", "diverse", "informative"]


@dataclass(frozen=True)
class _Candidates:
    """Draws to choose from: indices int64 [N], latents [N, z_dim], pooled features [N, C], scores [N] if known."""

    indices: Tensor
    latents: Tensor
    points: Tensor
    scores: Tensor | None


@torch.no_grad()
def export_annotations(
    generator: FeatureGenerator,
    schema: LabelSchema,
    out: str | os.PathLike[str],
    *,
    num: int = 16,
    select: Selection = "diverse",
    candidates: int = 256,
    start: int = 0,
    seed: int = 0,
    recipe: Recipe | None = None,
    interpreter: PixelEnsemble | None = None,
    name: str = "generator",
) -> Exported:
    """Write a folder of generated images for a person to annotate.

    The draws are of a family of their own: no sample of any dataset is among them.

    Args:
        generator: makes the images.
        schema: the classes to annotate.
        out: folder to write; made if needed, and empty.
        num: images to annotate.
        select: "random" takes the first draws as they come; "diverse" takes draws unlike each other (k-centre over
            pooled features); "informative" those that `interpreter` is unsure about, and unlike each other.
        candidates: draws to choose from.
        start: index of the first of them; a second round begins where the first ended.
        seed: of the draws, 0 … 2^64-1.
        recipe: psi, size, crop, … of the images, and the features that an interpreter will be fitted on; its filter
            does not count here. None is the default recipe.
        interpreter: drafts annotations, to be corrected rather than drawn.
        name: what to call the generator, so that a person finds it again.

    Returns:
        what was written, see `load_annotations` for the way back.

    Raises:
        ValueError: the folder holds an export already, the recipe draws more than z, or arguments out of range.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> schema = LabelSchema(("background", "face"))
        >>> exported = export_annotations(generator, schema, tmp / "to-annotate", num=2, candidates=8)
        >>> exported.images[0].file
        'images/000000003.png'
    """
    out = Path(out)
    integer("num", num, 1)
    if select not in get_args(Selection):
        raise ValueError(f"select must be one of {', '.join(get_args(Selection))}, not {select!r}")
    if select == "informative" and interpreter is None:
        raise ValueError("select 'informative' needs an interpreter that says what it is unsure about")
    candidates = num if select == "random" else integer("candidates", candidates, num)
    if (out / MANIFEST).exists():
        raise ValueError(f"{out} holds an export already, perhaps with annotations: choose another folder")
    recipe = recipe or Recipe(features=generator.features)
    # Filters belong to an interpreter, and its class ids: the one to be fitted has neither yet.
    recipe = dataclasses.replace(recipe, threshold=None, require=(), min_area=1, views=1)
    drawn = _draw(generator, recipe, interpreter, range(start, start + candidates), seed, wanted=select != "random")
    rows = list(range(num))
    if select != "random":
        rows = diverse(drawn.points, num, drawn.scores if select == "informative" else None)
    latents = drawn.latents[rows]
    images, _, scores = _images(generator, recipe, interpreter, latents)
    named = [f"{int(i):09d}" for i in drawn.indices[rows]]
    (out / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for i, stem in enumerate(named):
        file = f"images/{stem}.png"
        write_bytes(out / file, png(images[i]))
        entries.append(ExportedImage(int(stem), file, hash_pixels(images[i]), scores[i] if scores else None))
    size = recipe.image_size(generator.img_resolution)
    exported = Exported(name, generator_fingerprint(generator), recipe, seed, size, schema, tuple(entries), latents)
    exported.write(out)
    return exported


def _draw(
    generator: FeatureGenerator,
    recipe: Recipe,
    interpreter: PixelEnsemble | None,
    indices: Sequence[int],
    seed: int,
    *,
    wanted: bool,
) -> _Candidates:
    latents = sample_latents(indices, generator.z_dim, seed=seed, purpose=Purpose.ANNOTATION)
    points, scores = [], []
    blocks = latents.split(recipe.compute_batch) if wanted else ()
    for block in tqdm(blocks, "looking at candidates", unit="batch", delay=2, leave=False):
        _, features = synthesize(generator, recipe, block)
        points.append(pooled_features(features))
        if interpreter is not None:
            scores.append(_label(generator, recipe, interpreter, features)[1])
    return _Candidates(
        torch.tensor(list(indices)),
        latents,
        torch.cat(points) if points else torch.empty(len(latents), 0),
        torch.cat(scores) if scores else None,
    )


def _label(
    generator: FeatureGenerator, recipe: Recipe, interpreter: PixelEnsemble, features: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Masks and scores of features, on the CPU."""
    labels = interpreter.label(features, recipe.frame_size(generator.img_resolution), rows=recipe.crop)
    return labels.mask.cpu(), labels.score.cpu()


def _images(
    generator: FeatureGenerator, recipe: Recipe, interpreter: PixelEnsemble | None, latents: Tensor
) -> tuple[Array, Array | None, list[float]]:
    """uint8 RGB images [A, H, W, 3], and the interpreter's masks [A, H, W] and scores."""
    images, masks, scores = [], [], []
    for block in latents.split(recipe.compute_batch):
        image, features = synthesize(generator, recipe, block)
        images.append(image.cpu())
        if interpreter is not None:
            mask, score = _label(generator, recipe, interpreter, features)
            masks.append(mask)
            scores += score.tolist()
    return (
        torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy(),
        torch.cat(masks).numpy() if masks else None,
        scores,
    )


def png(pixels: Array, palette: Sequence[tuple[int, int, int]] | None = None) -> bytes:
    """A PNG of uint8 pixels [H, W, 3], or of class ids [H, W] with their colours as its palette."""
    picture = Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))
    if palette is not None:
        colors = [*palette, *[(128, 128, 128)] * (256 - len(palette))]
        picture.putpalette([value for color in colors for value in color])
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
