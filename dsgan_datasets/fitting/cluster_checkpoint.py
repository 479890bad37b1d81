"""Clusters -> a checkpoint that streams like any other, and a sheet for the person who names them.

`dsgan cluster` prints what these functions return, and does nothing more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.files import atomic_write
from dsgan_datasets.fitting.clusters import calibration_draws, cluster_schema
from dsgan_datasets.fitting.pipeline import save_with_pictures
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.pictures import photo, save_png, sheet
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Files beside the checkpoint: what to look at, and what to fill in.
SHEET, NAMES = "clusters.png", "names.json"
#: Images on the sheet, for each cluster; draws that they are chosen from.
_SHOWN, _LOOKED_AT = 5, 48
_OUTLINE = (255, 225, 0)


def save_clusters(
    generator: FeatureGenerator,
    interpreter: ClusterInterpreter,
    out: str | os.PathLike[str],
    *,
    schema: LabelSchema | None = None,
    recipe: Recipe | None = None,
    license: str | None = None,
    seed: int = 0,
) -> LabeledGenerator:
    """Write a checkpoint of clusters, with its card.

    Unnamed clusters also get a sheet that shows them (`SHEET`) and a file to write their names into (`NAMES`).

    Args:
        generator: that the clusters were fitted on.
        interpreter: from `fit_clusters`, `named` or `named_by_masks`.
        out: checkpoint directory to write; files of the same names in it are replaced.
        schema: the classes of named clusters; None for unnamed ones.
        recipe: of the samples to come; None is the default one. It cannot filter by uncertainty.
        license: of weights and samples; None is that of the generator.
        seed: of the draws on the sheet.

    Raises:
        ValueError: parts that do not fit together, or a recipe that asks for uncertainty.
        CheckpointError: the directory cannot be written.

    Example:
        >>> clusters = fit_clusters(generator)  # doctest: +SKIP
        >>> save_clusters(generator, clusters, "my-clusters")  # doctest: +SKIP
    """
    out, recipe = Path(out), recipe or Recipe()
    labeler = InterpretedLabeler(generator, interpreter, [schema or cluster_schema(interpreter.num_clusters)])
    labeled = LabeledGenerator(labeler, recipe, license=license)
    save_with_pictures(labeled, out)
    if schema is None:
        save_png(cluster_sheet(generator, interpreter, recipe, seed=seed, title=out.resolve().name), out / SHEET)
        template = {str(i): name for i, name in enumerate(labeled.schema.classes)}
        with atomic_write(out / NAMES) as file:
            file.write((json.dumps(template, indent=2) + "\n").encode())
    return labeled


@torch.no_grad()
def cluster_sheet(
    generator: FeatureGenerator, interpreter: ClusterInterpreter, recipe: Recipe, *, seed: int = 0, title: str = ""
) -> Image.Image:
    """Each cluster outlined on the draws that show most of it, everything else darkened, and its share of all pixels.

    Args:
        generator: that the clusters were fitted on.
        interpreter: its clusters.
        recipe: how images are made.
        seed: of the draws.
        title: first words of the sheet.
    """
    images, found = [], []
    frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
    latents = calibration_draws(generator, recipe, _LOOKED_AT, seed)
    for first in tqdm(range(0, _LOOKED_AT, 8), "drawing the clusters", unit="batch", delay=2, leave=False):
        image, features = synthesize(generator, recipe, latents[first : first + 8])
        images.append(image.cpu())
        found.append(interpreter.clusters(features[interpreter.map], frame).cpu())
    image, cluster = torch.cat(images), torch.cat(found)
    pictures, captions = [], []
    for number in range(interpreter.num_clusters):
        is_here = cluster == number
        most = is_here.flatten(1).sum(1).argsort(descending=True, stable=True)[:_SHOWN].tolist()
        pictures.append([_highlighted(image[i], is_here[i]) for i in most])
        captions.append(f"cluster {number}   {is_here.double().mean():.1%} of all pixels")
    return sheet(
        pictures, captions, f"{title}   (what is not in the cluster is dark; write the names into {NAMES})", columns=2
    )


def _highlighted(image: Tensor, where: Tensor) -> Image.Image:
    """The `photo`, dark and gray outside of some pixels, with a line around them."""
    pixels = np.asarray(photo(image)).astype(np.float64)
    zoom = pixels.shape[0] // where.shape[0]
    inside = where.numpy().repeat(zoom, 0).repeat(zoom, 1)
    gray = pixels.mean(2, keepdims=True) * 0.3
    pixels = np.where(inside[..., None], pixels, gray)
    padded = np.pad(inside, 1, mode="edge")
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels[inside & ~surrounded] = _OUTLINE
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
