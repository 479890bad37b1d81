"""Generator -> clusters of its features -> names: Segmentation in Style (arXiv 2107.12518), with names from a person.

The paper names clusters with CLIP; here names come from a file, or from masks of a few annotated images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.contents import LONGEST_JSON, ContentError, parse_json, read_bounded
from dsgan_datasets.fitting.annotated import AnnotatedImages, check_annotated
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.clusters import ClusterInterpreter
from dsgan_datasets.latents import Purpose, draw_latents
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Starts of k-means, of which the best is kept.
_STARTS = 4


def fit_clusters(
    generator: FeatureGenerator,
    *,
    clusters: int = 12,
    num_samples: int = 50,
    seed: int = 0,
    map: int | None = None,
    recipe: Recipe | None = None,
    pixels_per_image: int = 4096,
) -> ClusterInterpreter:
    """Cluster the features of one map with k-means; nobody has to annotate anything.

    Features are standardized over the draws. The draws are those of calibration: no sample of any dataset is among
    them.

    Args:
        generator: the frozen generator.
        clusters: K, 2 … 255; the paper takes 7 to 25.
        num_samples: draws that are clustered; the paper takes 50.
        seed: of the draws and of k-means; the same seed gives the same clusters on the same machine.
        map: which feature map is read, from 0 in the order of `generator.feature_channels`; None is
            `default_map(generator)`.
        recipe: how images are made; None is the default one. The paper truncates to psi 0.2 … 0.7.
        pixels_per_image: pixels of the map that are drawn from each image; more than it has means all of them.

    Returns:
        an interpreter with K classes, one per cluster, on the generator's device. `named` gives it names.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: an argument out of range.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")  # doctest: +SKIP
        >>> fit_clusters(generator, clusters=12).num_clusters  # doctest: +SKIP
        12
    """
    recipe = recipe or Recipe()
    integer("clusters", clusters, 2, 255)
    integer("num_samples", num_samples, 1)
    integer("pixels_per_image", pixels_per_image, 1)
    number = default_map(generator) if map is None else integer("map", map, 0, len(generator.feature_channels) - 1)
    points = _gather(generator, recipe, number, num_samples, pixels_per_image, seed)
    if len(points) < clusters:
        raise ValueError(
            f"{clusters} clusters need at least as many pixels, {num_samples} draws of map {number} have "
            f"{len(points)}: raise num_samples, or choose a finer map"
        )
    mean, std = points.mean(0), points.std(0, correction=0)
    std = std.clamp_min(max(0.01 * float(std.median()), 1e-6))  # as `moments` of pixels: no channel drowns the others
    centers = k_means((points - mean) / std, clusters, seed=seed)
    return ClusterInterpreter(
        centers, mean, std, layout=generator.features, channels=generator.feature_channels, map=number
    ).to(generator.device)


def default_map(generator: FeatureGenerator) -> int:
    """The last map of the finest resolution up to 64 px, and up to a quarter of the image.

    The paper reads 64 px maps of 1024 px generators: finer ones tell colors and textures apart rather than parts. On
    the 64 px demo, 16 px separate mouth, nose, neck and clothes; 32 and 64 px split background and hair instead.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> generator.feature_resolutions[default_map(generator)]
        16
    """
    sides = generator.feature_resolutions
    finest = max((s for s in sides if s <= min(64, generator.img_size[0] // 4)), default=min(sides))
    return max(i for i, side in enumerate(sides) if side == finest)


def k_means(points: Tensor, clusters: int, *, seed: int = 0) -> Tensor:
    """Centers float32 [K, C] of points [P, C], by scikit-learn; the same for any number of threads.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError('clusters need scikit-learn: pip install "dsgan_datasets[clusters]"') from error
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    with threadpool_limits(1):  # its threads add up their parts in the order in which they finish
        found = KMeans(clusters, n_init=_STARTS, random_state=random).fit(points.float().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).float()


@torch.no_grad()
def _gather(
    generator: FeatureGenerator, recipe: Recipe, map: int, num_samples: int, pixels_per_image: int, seed: int
) -> Tensor:
    """Features of a map, float32 [P, C] on the CPU, some pixels of each draw."""
    exact = recipe.override(dtype="float32")
    latents = calibration_draws(generator, recipe, num_samples, seed)
    random = torch.Generator().manual_seed(seed & (2**63 - 1))
    height, width = generator.feature_sizes[map]
    area = height * width
    chosen = [torch.randperm(area, generator=random)[:pixels_per_image] for _ in range(num_samples)]
    with tqdm(total=num_samples, desc="reading features", unit="image", delay=2, leave=False) as progress:

        def read(number: int) -> Tensor:
            _, maps = synthesize(generator, exact, latents[number : number + 1])
            progress.update()
            return maps[map][0].flatten(1).t()[chosen[number].to(generator.device)].float().cpu()

        return torch.cat(parallel_map(read, range(num_samples), generator.device))


def calibration_draws(generator: FeatureGenerator, recipe: Recipe, num_samples: int, seed: int) -> Any:
    """The `Latents` of the first draws of the family that calibration uses."""
    indices = torch.arange(num_samples)
    return draw_latents(
        recipe, generator.z_dim, indices, seed=seed, attempt=torch.zeros_like(indices), purpose=Purpose.CALIBRATION
    )


def cluster_schema(clusters: int) -> LabelSchema:
    """Names of clusters that nobody has named yet: cluster_0, cluster_1, …"""
    return LabelSchema(tuple(f"cluster_{i}" for i in range(clusters)))


def names_from_json(path: str | os.PathLike[str], clusters: int) -> dict[int, str]:
    """Names of clusters from a file.

    Args:
        path: a JSON object, cluster -> class name, such as ``{"3": "background", "0": "hair", "1": "hair"}``. The order
            of the names in the file is that of the classes; what nobody is interested in comes first.
        clusters: K; each must have a name.

    Raises:
        ValueError: not such an object, or clusters that are missing or do not exist.
    """
    try:
        stored = parse_json(read_bounded(path, LONGEST_JSON))
    except ContentError as error:
        raise ValueError(f"{path} {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) and name.strip() for name in stored.values()):
        raise ValueError(f'{path} must be an object, cluster -> class name: {{"0": "background", "1": "hair", …}}')
    expected = {str(i) for i in range(clusters)}
    missing, unknown = sorted(expected - set(stored), key=int), sorted(set(stored) - expected)
    if missing or unknown:
        raise ValueError(
            f"{path} must name each of the clusters 0 … {clusters - 1}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; no such cluster: {', '.join(unknown)}" if unknown else "")
        )
    return {int(number): name.strip() for number, name in stored.items()}


def named(interpreter: ClusterInterpreter, names: Mapping[int, str]) -> tuple[ClusterInterpreter, LabelSchema]:
    """Give clusters names; those that share one become one class.

    Args:
        interpreter: of K clusters.
        names: cluster -> class name, in the order of the classes to be.

    Returns:
        the interpreter of the classes, and their schema.

    Raises:
        ValueError: a cluster without a name, or one that does not exist.

    Example:
        >>> interpreter, schema = named(interpreter, {1: "background", 0: "hair", 2: "hair"})  # doctest: +SKIP
        >>> schema.classes  # doctest: +SKIP
        ('background', 'hair')
    """
    if sorted(names) != list(range(interpreter.num_clusters)):
        raise ValueError(f"name each of the clusters 0 … {interpreter.num_clusters - 1}, got {sorted(names)}")
    schema = LabelSchema(tuple(dict.fromkeys(names.values())))
    classes = [schema.index(names[i]) for i in range(interpreter.num_clusters)]
    return interpreter.with_classes(classes, schema.num_classes), schema


@torch.no_grad()
def named_by_masks(
    generator: FeatureGenerator,
    interpreter: ClusterInterpreter,
    annotated: AnnotatedImages,
    schema: LabelSchema,
    *,
    recipe: Recipe | None = None,
) -> ClusterInterpreter:
    """Give each cluster the class that most of its pixels have in annotated images.

    A cluster that none of these images shows gets class 0. A class that is the majority of no cluster stays in the
    schema, but is never predicted: use more clusters to find small parts.

    Args:
        generator: of the annotated images.
        interpreter: its clusters.
        annotated: some images with masks; pixels of `ignore_index` do not count.
        schema: the classes of the masks.
        recipe: how these images were made; None is the default one.

    Raises:
        ValueError: masks, latents or classes that do not fit.

    Example:
        >>> found = load_annotations("to-annotate", generator)  # doctest: +SKIP
        >>> named_by_masks(generator, clusters, found.annotated, found.schema, recipe=found.recipe)  # doctest: +SKIP
    """
    recipe = (recipe or Recipe()).override(dtype="float32")
    check_annotated(generator, annotated, schema, recipe)
    frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
    counts = torch.zeros(interpreter.num_clusters, schema.num_classes, dtype=torch.int64)
    for z, mask in zip(annotated.latents, annotated.masks, strict=True):
        _, features = synthesize(generator, recipe, z[None])
        found = interpreter.clusters(features[interpreter.map], frame)[0].cpu()
        counted = mask.cpu() != schema.ignore_index
        pairs = found[counted] * schema.num_classes + mask.cpu()[counted]
        counts += torch.bincount(pairs, minlength=counts.numel()).view_as(counts)
    return interpreter.with_classes(counts.argmax(1), schema.num_classes)  # ties go to the lowest class


def unused_classes(interpreter: ClusterInterpreter, schema: LabelSchema) -> Sequence[str]:
    """Names of classes that no cluster has."""
    used = set(interpreter.classes.tolist())
    return [name for i, name in enumerate(schema.classes) if i not in used]
