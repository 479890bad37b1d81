"""Labeled generator -> threshold: which scores belong to the most uncertain draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dsgan_datasets.checks import integer
from dsgan_datasets.filtering import Acceptance
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.recipe import Calibration, Recipe

#: Draws that hold a class, below which the share of them that is dropped says nothing.
_FEWEST_OF_A_CLASS = 20
#: Pixels of each draw that decide about `ignore_fraction`: all of a 64×64 image, a random part of larger ones.
_PIXELS_A_DRAW = 4096


def calibrate(
    labeled: LabeledGenerator,
    num_samples: int = 1000,
    *,
    reject_fraction: float = 0.1,
    ignore_fraction: float | None = None,
    seed: int = 0,
) -> LabeledGenerator:
    """Find the score above which draws are dropped (DatasetGAN section 3.2 drops the most uncertain 10 %).

    The published code computes the uncertainty from logits and drops the wrong end of the ranking; this one does
    neither.

    Args:
        labeled: its threshold, if it has one, is ignored; its content rules stay.
        num_samples: unfiltered draws to look at, at least 20 (20 groups of views), of a family of their own: no
            sample of any dataset is among them.
        reject_fraction: share to drop, in [0, 1).
        ignore_fraction: share of the pixels, the most uncertain ones of the draws that are not dropped, to ignore: sets
            `max_uncertainty`. 0 ignores none; left out, `max_uncertainty` stays as it is.
        seed: of these draws.

    Returns:
        the same generator with `recipe.threshold` and `calibration` set. ``reject_fraction=0`` gives no threshold.

    Raises:
        ValueError: fewer than 20 samples, a fraction out of range, or rules that accept less than 2 % of the draws.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", truncation_psi=0.5)
        >>> calibrate(labeled, 40).calibration.num_samples
        40
    """
    return calibrate_with_scores(
        labeled, num_samples, reject_fraction=reject_fraction, ignore_fraction=ignore_fraction, seed=seed
    )[0]


def calibrate_with_scores(
    labeled: LabeledGenerator,
    num_samples: int = 1000,
    *,
    reject_fraction: float = 0.1,
    ignore_fraction: float | None = None,
    seed: int = 0,
) -> tuple[LabeledGenerator, Tensor]:
    """`calibrate`, and the scores float32 [num_samples] that it looked at; none of them if nothing had to be found."""
    num_samples = integer(
        "num_samples", num_samples, 20 * labeled.recipe.group_size
    )  # fewer say too little of a quantile
    check_fractions(reject_fraction, ignore_fraction, labeled.interpreter.num_members)
    unfiltered = dataclasses.replace(labeled.recipe, threshold=None, reject_fraction=0.0)
    filtered = dataclasses.replace(unfiltered, reject_fraction=reject_fraction)
    if ignore_fraction == 0:
        unfiltered = dataclasses.replace(unfiltered, max_uncertainty=None)
        filtered = dataclasses.replace(filtered, max_uncertainty=None)
    if reject_fraction == 0 and not ignore_fraction:
        return labeled.with_recipe(unfiltered), torch.empty(0)
    free = dataclasses.replace(unfiltered, require=())  # draws do not depend on the rules, which count later
    keep_masks = bool(unfiltered.require) and not ignore_fraction
    scores, js, masks, holds = _observe(
        labeled.with_recipe(free), num_samples, seed, keep_js=bool(ignore_fraction), keep_masks=keep_masks
    )
    recipe, threshold, error = filtered, None, 0.0
    if reject_fraction > 0:
        threshold, error = upper_quantile(scores, 1 - reject_fraction)
        recipe = dataclasses.replace(filtered, threshold=threshold)
    if ignore_fraction:
        certain = torch.cat(js) if threshold is None else torch.cat(js)[scores <= threshold]
        recipe = dataclasses.replace(recipe, max_uncertainty=upper_quantile(certain.flatten(), 1 - ignore_fraction)[0])
    if threshold is None:
        return labeled.with_recipe(recipe), scores
    drawn: Iterable[Mapping[str, Tensor]]
    if recipe.require and ignore_fraction:
        # What is ignored is known only now: the content rules see the draws again, with the masks that samples have.
        ignoring = dataclasses.replace(free, max_uncertainty=recipe.max_uncertainty)
        drawn = labeled.with_recipe(ignoring).unfiltered(
            num_samples, seed=seed, description="measuring the acceptance rate"
        )
    elif recipe.require:
        batches = zip(scores.split(recipe.compute_batch), masks, strict=True)
        drawn = ({"uncertainty_score": score, "mask": mask} for score, mask in batches)
    else:
        drawn = [{"uncertainty_score": scores}]
    acceptance = Acceptance.measure(recipe, labeled.schema, drawn).check()
    calibration = Calibration(
        num_samples,
        seed,
        reject_fraction,
        threshold,
        error,
        acceptance.jointly,
        ignore_fraction or None,
        {
            name: round((scores[held] > threshold).double().mean().item(), 4)
            for name, held in zip(labeled.schema.classes, holds.unbind(1), strict=True)
            if held.sum() >= _FEWEST_OF_A_CLASS
        },
    )
    return labeled.with_recipe(recipe, calibration), scores


def check_fractions(reject_fraction: float, ignore_fraction: float | None, num_members: int) -> None:
    """ValueError if a share is out of range, or asks a single classifier for disagreement."""
    Recipe(reject_fraction=reject_fraction)  # says so if it is out of range
    if ignore_fraction is not None and not 0 <= ignore_fraction < 1:
        raise ValueError(f"ignore_fraction must be a number in [0, 1), not {ignore_fraction!r}")
    if num_members == 1 and (reject_fraction or ignore_fraction):
        raise ValueError(
            "one member agrees with itself everywhere, so that nothing tells uncertain samples from certain ones: fit "
            "two members or more (ten are usual), or drop and ignore nothing (reject_fraction 0, ignore_fraction 0)"
        )


def _observe(
    labeled: LabeledGenerator, num_samples: int, seed: int, *, keep_js: bool, keep_masks: bool
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Of n unfiltered draws: scores [n]; if they will be needed, uncertainty [N, P] of some pixels and masks, by batch;
    and which classes they hold, bool [n, K]."""
    scores, js, masks, holds = [], [], [], []
    random = torch.Generator().manual_seed(seed & (2**63 - 1))
    for fields in labeled.unfiltered(num_samples, seed=seed, description="calibrating"):
        scores.append(fields["uncertainty_score"].cpu())
        mask = fields["mask"].flatten(1)
        held = torch.zeros(len(mask), 256, dtype=torch.bool, device=mask.device).scatter_(1, mask, True)
        holds.append(held[:, : labeled.schema.num_classes].cpu())
        if keep_js:
            flat = fields["uncertainty"].flatten(1).cpu()
            js.append(flat[:, torch.randperm(flat.shape[1], generator=random)[:_PIXELS_A_DRAW]])
        if keep_masks:
            masks.append(fields["mask"].to(torch.uint8).cpu())
    return torch.cat(scores), js, masks, torch.cat(holds)


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
