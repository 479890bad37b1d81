"""Labelled generator -> threshold: which scores belong to the most uncertain draws."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from dsgan_datasets.checks import integer
from dsgan_datasets.filtering import Acceptance
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.recipe import Calibration, Recipe


def calibrate(
    labeled: LabeledGenerator, num_samples: int = 1000, *, reject_fraction: float = 0.1, seed: int = 0
) -> LabeledGenerator:
    """Find the score above which draws are dropped (DatasetGAN section 3.2 drops the most uncertain 10 %).

    The published code computes the uncertainty from logits and drops the wrong end of the ranking; this one does
    neither.

    Args:
        labeled: its threshold, if it has one, is ignored; its content rules stay.
        num_samples: unfiltered draws to look at, at least 20 (20 groups of views), of a family of their own: no
            sample of any dataset is among them.
        reject_fraction: share to drop, in [0, 1).
        seed: of these draws.

    Returns:
        the same generator with `recipe.threshold` and `calibration` set. ``reject_fraction=0`` gives no threshold.

    Raises:
        ValueError: fewer than 20 samples, a fraction out of range, or rules that accept less than 2 % of the draws.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", psi=0.5)
        >>> calibrate(labeled, 40).calibration.num_samples
        40
    """
    num_samples = integer("num_samples", num_samples, 20 * labeled.recipe.views)  # fewer say too little of a quantile
    unfiltered = dataclasses.replace(labeled.recipe, threshold=None, reject_fraction=0.0)
    filtered = dataclasses.replace(
        unfiltered, reject_fraction=reject_fraction
    )  # says so if the fraction is out of range
    if reject_fraction == 0:
        return _with_recipe(labeled, unfiltered)
    kept = ("score", "mask") if unfiltered.require else ("score",)
    drawn = [
        {name: fields[name].cpu() for name in kept}
        for fields in labeled.unfiltered(num_samples, seed=seed, description="calibrating")
    ]
    scores = torch.cat([fields["score"] for fields in drawn])
    threshold, error = upper_quantile(scores, 1 - reject_fraction)
    recipe = dataclasses.replace(filtered, threshold=threshold)
    acceptance = Acceptance.measure(recipe, labeled.schema, drawn).check()
    calibration = Calibration(num_samples, seed, reject_fraction, threshold, error, acceptance.jointly)
    return _with_recipe(labeled, recipe, calibration)


def upper_quantile(scores: Tensor, share: float) -> tuple[float, float]:
    """The smallest observed score that at least `share` of the scores do not exceed, and its standard error.

    The number of scores below a quantile is binomial, so the observations one standard deviation of rank to either side
    bracket it (David and Nagaraja, Order Statistics, section 7.1).
    """
    ordered = scores.sort().values
    n = len(ordered)
    rank = min(max(math.ceil(share * n - 1e-9), 1), n)
    spread = math.sqrt(n * share * (1 - share))
    low, high = ordered[max(round(rank - spread), 1) - 1], ordered[min(round(rank + spread), n) - 1]
    return ordered[rank - 1].item(), ((high - low) / 2).item()


def _with_recipe(labeled: LabeledGenerator, recipe: Recipe, calibration: Calibration | None = None) -> LabeledGenerator:
    parts = (labeled.generator, labeled.interpreter, labeled.schema, recipe)
    return LabeledGenerator(*parts, calibration=calibration, license=labeled.license)
