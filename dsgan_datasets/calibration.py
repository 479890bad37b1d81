"""Labeled generator -> threshold: which scores belong to the most uncertain draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.checkpoints.calibration_report import Calibration
from dsgan_datasets.checks import integer, is_number
from dsgan_datasets.filtering import Acceptance
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.recipe import Filter, Recipe, Rule, ScoreFilter
from dsgan_datasets.targets.base import Target

#: A share of draws, or one for each field of a label.
Shares = float | Mapping[str, float]

#: Draws that hold a class, below which the share of them that is dropped says nothing.
_FEWEST_OF_A_CLASS = 20
#: Pixels of each draw that decide about `ignore_fraction`: all of a 64×64 image, a random part of larger ones.
_PIXELS_A_DRAW = 4096


@dataclass(frozen=True)
class CalibrationRun:
    """What a calibration gave.

    Attributes:
        labeled: the generator with its filter, and what was measured for it.
        scores: float32 [num_samples], uncertainty scores of the unfiltered draws; empty if nothing had to be found.
    """

    labeled: LabeledGenerator
    scores: Tensor


def calibrate(
    labeled: LabeledGenerator,
    num_samples: int = 1000,
    *,
    reject_fraction: Shares = 0.1,
    ignore_fraction: float | None = None,
    seed: int = 0,
) -> LabeledGenerator:
    """Find the score above which draws are dropped (DatasetGAN section 3.2 drops the most uncertain 10 %).

    The published code computes the uncertainty from logits and drops the wrong end of the ranking; this one does
    neither.

    Args:
        labeled: its threshold, if it has one, is ignored; its content rules stay.
        num_samples: unfiltered draws to look at, at least 20 (20 view groups), of a family of their own: no sample of
            any dataset is among them.
        reject_fraction: share to drop, in [0, 1). Of several labels with an uncertainty, a number is the share of the
            first one's score; a table by field, such as ``{"mask": 0.1, "keypoints": 0.05}``, names any of them. Each
            score gets a threshold of its own, as if it were alone, and a draw must stay below all: together they drop
            at most the sum of their shares, which `calibration.acceptance` tells. Labels that are not named keep their
            share; the number 0 drops nothing for any.
        ignore_fraction: share of the pixels, the most uncertain ones of the draws that are not dropped, to ignore: sets
            `max_uncertainty`. 0 ignores none; left out, `max_uncertainty` stays as it is.
        seed: of these draws.

    Returns:
        the same generator with the recipe's thresholds and `calibration` set. ``reject_fraction=0`` gives none.

    Raises:
        ValueError: fewer than 20 samples, a fraction out of range, rules that accept less than 2 % of the draws, or a
            labeler without uncertainty.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", truncation_psi=0.5)
        >>> calibrate(labeled, 40).calibration.num_samples
        40
    """
    return run_calibration(
        labeled, num_samples, reject_fraction=reject_fraction, ignore_fraction=ignore_fraction, seed=seed
    ).labeled


def run_calibration(
    labeled: LabeledGenerator,
    num_samples: int = 1000,
    *,
    reject_fraction: Shares = 0.1,
    ignore_fraction: float | None = None,
    seed: int = 0,
) -> CalibrationRun:
    """`calibrate`, with the scores that it looked at."""
    # Fewer say too little of a quantile.
    num_samples = integer("num_samples", num_samples, 20 * labeled.recipe.group_size)
    first, others = _shares(reject_fraction, labeled)
    check_fractions(reject_fraction, ignore_fraction, labeled)
    rules = labeled.recipe.filter.rules if labeled.recipe.filter else ()
    plain = labeled.recipe.unfiltered()
    if ignore_fraction == 0:
        plain = plain.replace(max_uncertainty=None)
    if not first and not others and not ignore_fraction and not rules:
        return CalibrationRun(labeled.with_recipe(plain), torch.empty(0, device="cpu"))
    seen = _observe(labeled.with_recipe(plain), num_samples, seed, keep_uncertainty=bool(ignore_fraction), rules=rules)
    threshold, error = upper_quantile(seen.scores, 1 - first) if first else (None, None)
    found_others = {field: upper_quantile(seen.others[field], 1 - share) for field, share in others.items()}
    if ignore_fraction:
        level = _ignore_level(seen, threshold, ignore_fraction)
        plain = plain.replace(max_uncertainty=level)
    scores = [ScoreFilter(field, share, found_others[field][0]) for field, share in others.items()]
    recipe = plain.replace(filter=Filter(first, threshold, rules, tuple(scores)))
    if threshold is None and not scores and not rules:
        return CalibrationRun(labeled.with_recipe(recipe), seen.scores)
    drawn: Iterable[Mapping[str, Tensor]] = seen.batches(recipe)
    if rules and ignore_fraction:
        # What is ignored is known only now: the content rules see the draws again, with the masks that samples have.
        drawn = labeled.with_recipe(plain).unfiltered(
            num_samples, seed=seed, description="measuring the acceptance rate"
        )
    acceptance = Acceptance.measure(recipe, labeled.targets, drawn).check()
    found = Calibration(
        num_samples=num_samples,
        seed=seed,
        standard_error=error,
        acceptance=acceptance.jointly,
        ignore_fraction=ignore_fraction or None,
        dropped_by_class=None if threshold is None else _dropped_by_class(seen, threshold, labeled.targets),
        standard_errors={field: error for field, (_, error) in found_others.items()} or None,
    )
    return CalibrationRun(labeled.with_recipe(recipe, found), seen.scores)


def _shares(reject_fraction: Shares, labeled: LabeledGenerator) -> tuple[float, dict[str, float]]:
    """Share of the first label's score, and of each further one's that is to be dropped by.

    Raises:
        ValueError: a label that has no score.
    """
    names = [field for field, score in labeled.labeler.scores.items() if score != "uncertainty_score"]
    kept = {score.field: score.reject_fraction for score in labeled.recipe.scores}
    if not isinstance(reject_fraction, Mapping):
        return reject_fraction, kept if reject_fraction else {}
    check_names(reject_fraction, labeled.labeler.scores)
    first = next((share for field, share in reject_fraction.items() if field not in names), None)
    others = {field: share for field, share in {**kept, **reject_fraction}.items() if field in names and share}
    return labeled.recipe.reject_fraction if first is None else first, others


def calibrate_with_scores(*args: Any, **kwargs: Any) -> tuple[LabeledGenerator, Tensor]:
    """Old name of `run_calibration`."""
    warn_renamed("calibrate_with_scores", "run_calibration")
    run = run_calibration(*args, **kwargs)
    return run.labeled, run.scores


def check_fractions(reject_fraction: Shares, ignore_fraction: float | None, labeled: LabeledGenerator) -> None:
    """ValueError if a share is out of range, or asks a labeler for an uncertainty that it does not have."""
    check_shares(reject_fraction, ignore_fraction)
    by_number = not isinstance(reject_fraction, Mapping) and reject_fraction
    if (by_number or ignore_fraction) and not labeled.labeler.has_uncertainty:
        raise ValueError(
            "this source of labels does not know how certain it is, so nothing tells uncertain samples from certain "
            "ones: drop and ignore nothing (reject_fraction=0, ignore_fraction=0)"
        )


def check_shares(reject_fraction: Shares, ignore_fraction: float | None, num_members: int = 2) -> None:
    """ValueError if a share is out of range, or asks a single classifier for disagreement."""
    shares = reject_fraction.values() if isinstance(reject_fraction, Mapping) else [reject_fraction]
    for share in shares:
        Filter(reject_fraction=share)  # says so if it is out of range
    if ignore_fraction is not None and not (is_number(ignore_fraction) and 0 <= ignore_fraction < 1):
        raise ValueError(f"ignore_fraction must be a number in [0, 1), not {ignore_fraction!r}")
    if num_members == 1 and (any(shares) or ignore_fraction):
        raise ValueError(
            "one member agrees with itself everywhere, so that nothing tells uncertain samples from certain ones: fit "
            "two members or more (ten are usual), or drop and ignore nothing (reject_fraction=0, ignore_fraction=0)"
        )


def check_names(reject_fraction: Shares, fields: Collection[str]) -> None:
    """ValueError if a share is of none of the labels that have an uncertainty."""
    named = set(reject_fraction) if isinstance(reject_fraction, Mapping) else set()
    if unknown := sorted(named - set(fields)):
        raise ValueError(
            f"reject_fraction names {', '.join(map(repr, unknown))}; the labels with an uncertainty are: "
            f"{', '.join(fields) or 'none'}"
        )


@dataclass(frozen=True)
class _Seen:
    """What n unfiltered draws showed; lists have an entry for each compute batch.

    `scores` are those of the first label, `others` of each further one. `uncertainty` and `labels` are empty unless
    they were asked for; `holds` says which classes a draw holds, [n, T].
    """

    scores: Tensor
    others: dict[str, Tensor]
    uncertainty: list[Tensor]
    labels: list[dict[str, Tensor]]
    holds: Tensor

    def batches(self, recipe: Recipe) -> Iterable[dict[str, Tensor]]:
        """The draws as a filter wants to see them."""
        scores = {ScoreFilter(field).score: values for field, values in self.others.items()}
        if len(self.scores):
            scores["uncertainty_score"] = self.scores
        if not self.labels:
            return [scores]
        starts = range(0, recipe.compute_batch * len(self.labels), recipe.compute_batch)
        return (
            {**fields, **{name: values[start : start + recipe.compute_batch] for name, values in scores.items()}}
            for start, fields in zip(starts, self.labels, strict=True)
        )


def _observe(
    labeled: LabeledGenerator, num_samples: int, seed: int, *, keep_uncertainty: bool, rules: Sequence[Rule]
) -> _Seen:
    """Look at n unfiltered draws; some random pixels' uncertainty and what the rules look at are kept if needed."""
    seen = _Seen(torch.empty(0, device="cpu"), {}, [], [], torch.empty(0, device="cpu"))
    scores: dict[str, list[Tensor]] = {name: [] for name in labeled.labeler.scores.values()}
    holds = []
    random = torch.Generator().manual_seed(seed & (2**63 - 1))
    target = labeled.targets[0]
    for fields in labeled.unfiltered(num_samples, seed=seed, description="calibrating"):
        holds.append(target.tally(fields[target.field]).cpu() > 0)
        for name, values in scores.items():
            values.append(fields[name].cpu())
        if keep_uncertainty:
            flat = fields["uncertainty"].flatten(1).cpu()
            seen.uncertainty.append(flat[:, torch.randperm(flat.shape[1], generator=random)[:_PIXELS_A_DRAW]])
        if rules and not keep_uncertainty:
            labels = {field: fields[field].cpu() for field in {rule.field for rule in rules}}
            # A byte holds any class id: 1,000 masks of 1024² take 1 GB.
            seen.labels.append({k: v.to(torch.uint8) if k == "mask" else v for k, v in labels.items()})
    whole = {field: torch.cat(scores[name]) for field, name in labeled.labeler.scores.items()}
    first = {field: values for field, values in whole.items() if labeled.labeler.scores[field] == "uncertainty_score"}
    others = {field: values for field, values in whole.items() if field not in first}
    return dataclasses.replace(
        seen, scores=next(iter(first.values()), seen.scores), others=others, holds=torch.cat(holds)
    )


def _ignore_level(seen: _Seen, threshold: float | None, ignore_fraction: float) -> float:
    """The uncertainty that this share of the pixels of accepted draws exceeds."""
    pixels = torch.cat(seen.uncertainty)
    certain = pixels if threshold is None else pixels[seen.scores <= threshold]
    return upper_quantile(certain.flatten(), 1 - ignore_fraction)[0]


def _dropped_by_class(seen: _Seen, threshold: float, targets: Sequence[Target]) -> dict[str, float]:
    """Of the draws that hold a class, the share that is dropped; rare classes are left out."""
    return {
        name: round((seen.scores[held] > threshold).double().mean().item(), 4)
        for name, held in zip(targets[0].tally_names, seen.holds.unbind(1), strict=True)
        if held.sum() >= _FEWEST_OF_A_CLASS
    }


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
