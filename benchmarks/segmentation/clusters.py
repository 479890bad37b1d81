"""Masks without a classifier: k-means of generator features, as in Segmentation in Style.

Pakhomov, Hira, Wagle, Green and Navab 2021, https://arxiv.org/abs/2107.12518. There CLIP names the clusters; here each
takes the class that most of its pixels have in the annotated images. The map that is read is the one whose named
clusters fit the annotated images best.
"""

from __future__ import annotations

from dsgan_datasets import AnnotatedImages, LabeledGenerator
from dsgan_datasets.fitting.clusters import fit_clusters, named_by_masks
from dsgan_datasets.fitting.evaluation import evaluate
from dsgan_datasets.labelers.interpreted import InterpretedLabeler

CLUSTERS_PER_CLASS, MOST_CLUSTERS = 20, 255
SAMPLES, PIXELS = 256, 128  # images that are clustered, pixels of each


def clustered(labeled: LabeledGenerator, annotated: AnnotatedImages) -> LabeledGenerator:
    """The same generator with clusters instead of its interpreter, unfiltered: the best of all maps from 16 rows on."""
    generator, schema = labeled.generator, labeled.schema
    recipe = labeled.recipe.unfiltered().override(vote="majority", top_fraction=0.1, max_uncertainty=None)
    sides = generator.feature_resolutions
    candidates = []
    for number in (i for i, side in enumerate(sides) if side >= min(16, sides[-1])):
        found = fit_clusters(
            generator,
            clusters=min(CLUSTERS_PER_CLASS * schema.num_classes, MOST_CLUSTERS),
            num_samples=SAMPLES,
            map=number,
            recipe=recipe,
            pixels_per_image=PIXELS,
        )
        named = named_by_masks(generator, found, annotated, schema, recipe=recipe)
        quality = evaluate(generator, named, annotated, recipe=recipe, ignore_index=schema.ignore_index)
        candidates.append((quality.mean_iou, named))
    _, best = max(candidates, key=lambda candidate: candidate[0])
    return LabeledGenerator(InterpretedLabeler(generator, best, [schema]), recipe, license=labeled.license)
