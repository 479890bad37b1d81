"""Labeled generator -> what its samples hold: how often each part appears, how large it is, how certain they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.labeled_generator import LabeledGenerator


@dataclass(frozen=True)
class Statistics:
    """What some samples hold.

    Attributes:
        classes: names.
        frequency: share of the samples in which each class appears.
        mean_area: mean share of the image that each class covers where it appears; NaN if it never does.
        ignored: share of all pixels that are ignored.
        scores: float32 [N] on the CPU, nats.
    """

    classes: tuple[str, ...]
    frequency: tuple[float, ...]
    mean_area: tuple[float, ...]
    ignored: float
    scores: Tensor

    @property
    def num_samples(self) -> int:
        """Number of samples N."""
        return len(self.scores)

    @property
    def score_quantiles(self) -> tuple[float, float, float]:
        """Scores below which 5 %, 50 % and 95 % of the samples lie, nats."""
        low, middle, high = self.scores.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        return low, middle, high

    def to_dict(self) -> dict[str, Any]:
        """JSON form; a mean area that there is none of is null."""
        parts = zip(self.classes, self.frequency, self.mean_area, strict=True)
        low, middle, high = self.score_quantiles
        return {
            "num_samples": self.num_samples,
            "classes": [{"name": n, "frequency": f, "mean_area": None if a != a else a} for n, f, a in parts],
            "ignored": self.ignored,
            "score": {"mean": self.scores.double().mean().item(), "q05": low, "median": middle, "q95": high},
        }


def measure(labeled: LabeledGenerator, indices: Collection[int], *, seed: int = 0) -> Statistics:
    """Look at some samples.

    Args:
        labeled: makes them.
        indices: which; at least one.
        seed: of the samples.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> measure(labeled, range(8)).frequency[0]
        1.0
    """
    if not len(indices):
        raise ValueError("no indices were given: statistics need at least one sample")
    schema = labeled.schema
    areas, scores = [], []
    stream = labeled.stream(indices, seed=seed)
    for sample in tqdm(stream, "looking at samples", total=len(indices), unit="sample", delay=2, leave=False):
        areas.append(torch.bincount(sample.mask.flatten(), minlength=256).cpu())
        scores.append(sample.uncertainty_score)
    share = torch.stack(areas).double() / sample.mask.numel()
    of_classes = share[:, : schema.num_classes]
    present = of_classes > 0
    mean_area = of_classes.sum(0) / present.sum(0)
    return Statistics(
        classes=schema.classes,
        frequency=tuple(present.double().mean(0).tolist()),
        mean_area=tuple(mean_area.tolist()),
        ignored=share[:, schema.ignore_index].mean().item(),
        scores=torch.stack(scores),
    )
