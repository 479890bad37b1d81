"""Which draws become samples: the rules of a recipe, and how often draws pass them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsgan_datasets.recipe import Filter, Recipe
from dsgan_datasets.targets.base import Target

#: Rules that accept less are refused: nearly all work would be thrown away.
MIN_ACCEPTANCE = 0.02
#: The attempt limit is set so that an index fails with less than this probability.
FAILURE_PROBABILITY = 1e-12


def apply_rules(filter: Filter | None, targets: Sequence[Target], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which draws each rule accepts.

    Args:
        filter: of the recipe.
        targets: of the labels.
        drawn: fields of N draws: "uncertainty_score" [N], and those of further labels, on the CPU where they have a
            threshold; labels anywhere.

    Returns:
        rule in words -> bool [N] on the CPU; empty if there are no rules.
    """
    if filter is None:
        return {}
    passed: dict[str, Tensor] = {}
    if filter.threshold is not None:
        passed[f"score <= {filter.threshold:.4g}"] = drawn["uncertainty_score"] <= filter.threshold
    for score in filter.scores:
        if score.threshold is not None:
            passed[f"{score.field} score <= {score.threshold:.4g}"] = drawn[score.score] <= score.threshold
    if filter.rules:  # one wait for a GPU
        results = torch.stack([rule.passes(drawn, targets) for rule in filter.rules]).cpu()
        passed |= {rule.describe(targets): result for rule, result in zip(filter.rules, results, strict=True)}
    return passed


def accepts(filter: Filter | None, targets: Sequence[Target], drawn: Mapping[str, Tensor]) -> Tensor:
    """Which draws all rules accept, bool [N] on the CPU; arguments as for `apply_rules`."""
    accepted = torch.ones(len(next(iter(drawn.values()))), dtype=torch.bool, device="cpu")
    for passed in apply_rules(filter, targets, drawn).values():
        accepted &= passed
    return accepted


@dataclass(frozen=True)
class Acceptance:
    """How often draws pass the rules.

    Attributes:
        num_draws: unfiltered draws (view groups, if the recipe has them) that it was measured on.
        jointly: share that passed all rules.
        by_rule: share that passed each rule for itself; empty if not known.
    """

    num_draws: int
    jointly: float
    by_rule: Mapping[str, float]

    @classmethod
    def measure(cls, recipe: Recipe, targets: Sequence[Target], drawn: Iterable[Mapping[str, Tensor]]) -> Acceptance:
        """Apply the rules to batches of unfiltered draws of consecutive indices; view groups pass as a whole."""
        passed: dict[str, list[Tensor]] = {}
        jointly = []
        for fields in drawn:
            jointly.append(accepts(recipe.filter, targets, fields))
            for name, rule in apply_rules(recipe.filter, targets, fields).items():
                passed.setdefault(name, []).append(rule)
        rates = {name: torch.cat(rules).double().mean().item() for name, rules in passed.items()}
        whole, group_size = torch.cat(jointly), recipe.group_size
        groups = whole[: len(whole) - len(whole) % group_size].view(-1, group_size)
        together = groups.all(1).double()
        return cls(len(together), together.mean().item(), rates)

    def check(self) -> Acceptance:
        """The rates themselves; ValueError names them if too few draws pass."""
        if self.jointly < MIN_ACCEPTANCE:
            rates = "; ".join(f"{rule}: {rate:.2%}" for rule, rate in self.by_rule.items())
            raise ValueError(
                f"the filter accepts {self.jointly:.2%} of {self.num_draws} draws, at least {MIN_ACCEPTANCE:.0%} are "
                f"needed (each rule for itself: {rates}): loosen a rule"
            )
        return self

    @property
    def attempt_limit(self) -> int:
        """Draws after which an index has failed with a probability below 1e-12.

        Computed from the lower end of the Wilson score interval, four standard deviations wide, so that a rate that was
        measured too high does no harm.
        """
        n, p, z2 = self.num_draws, self.jointly, 16.0
        spread = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
        lower = (p + z2 / (2 * n) - spread) / (1 + z2 / n)
        return math.ceil(math.log(FAILURE_PROBABILITY) / math.log1p(-lower))
