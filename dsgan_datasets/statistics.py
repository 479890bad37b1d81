"""Source of samples -> what they hold: how often each class appears, how large it is, how certain the labels are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.sources.base import SampleSource
from dsgan_datasets.targets.base import Target

#: Properties that statistics had when masks were the only label.
_OF_THE_LABEL = {"classes": "names", "frequency": "frequency", "mean_area": "mean_share", "ignored": "ignored"}


@dataclass(frozen=True)
class LabelStatistics:
    """What one label of some samples holds.

    Attributes:
        target: of the label.
        frequency: for each of ``target.tally_names`` (such as classes), the share of the samples in which it appears.
        mean_share: the mean share of a label (of the pixels, for a mask) that each has where it appears; NaN if it
            never does, or if the tally says only whether something is there, as of points.
        ignored: share of all labels (of all pixels, for masks) that is not counted.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> masks = measure(labeled, range(8)).labels["mask"]
        >>> dict(zip(masks.names, masks.frequency, strict=True))["skin"]
        1.0
    """

    target: Target
    frequency: tuple[float, ...]
    mean_share: tuple[float, ...]
    ignored: float

    @property
    def names(self) -> tuple[str, ...]:
        """What is counted, such as class names."""
        return self.target.tally_names

    @property
    def columns(self) -> dict[str, tuple[float, ...]]:
        """Heading -> numbers, for tables and charts."""
        shares = {"mean share where it appears": self.mean_share} if self.target.tally_measures else {}
        return {"samples in which it appears": self.frequency, **shares}

    def to_dict(self) -> dict[str, Any]:
        """JSON form; an undefined mean share becomes null."""
        rows = zip(self.names, self.frequency, self.mean_share, strict=True)
        counted = [{"name": n, "frequency": f, "mean_share": None if s != s else s} for n, f, s in rows]
        return {"counted": counted, "ignored": self.ignored}


@dataclass(frozen=True)
class Statistics:
    """What some samples hold.

    Attributes:
        num_samples: number of samples N.
        labels: field of each target -> what the labels hold.
        scores: uncertainty scores, float32 [N] on the CPU, nats; None if the source has none.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> found = measure(labeled, range(8))
        >>> found.num_samples, list(found.labels), found.scores.shape
        (8, ['mask'], torch.Size([8]))
    """

    num_samples: int
    labels: Mapping[str, LabelStatistics]
    scores: Tensor | None

    def __getattr__(self, name: str) -> Any:
        """Properties of the first label, by their old names."""
        if name not in _OF_THE_LABEL:
            raise AttributeError(f"Statistics has no {name!r}")
        new = _OF_THE_LABEL[name]
        warn_renamed(f"Statistics.{name}", f"Statistics.labels[field].{new}")
        return getattr(next(iter(self.labels.values())), new)

    @property
    def score_quantiles(self) -> tuple[float, float, float] | None:
        """Scores below which 5 %, 50 % and 95 % of the samples lie, nats; None without scores."""
        if self.scores is None:
            return None
        low, middle, high = (
            self.scores.double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64, device="cpu")).tolist()
        )
        return low, middle, high

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        score = None
        if self.scores is not None and self.score_quantiles is not None:
            low, middle, high = self.score_quantiles
            score = {"mean": self.scores.double().mean().item(), "q05": low, "median": middle, "q95": high}
        labels = {field: label.to_dict() for field, label in self.labels.items()}
        return {"num_samples": self.num_samples, "labels": labels, "uncertainty_score": score}


def measure(source: SampleSource, indices: Collection[int], *, seed: int = 0) -> Statistics:
    """Look at some samples.

    Args:
        source: a `LabeledGenerator`, shards, or another source.
        indices: which samples; at least one.
        seed: of the samples.

    Raises:
        ValueError: no indices.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> measure(labeled, range(8)).labels["mask"].frequency[0]
        1.0
    """
    if not len(indices):
        raise ValueError("no indices were given: statistics need at least one sample")
    tallies: dict[str, list[Tensor]] = {target.field: [] for target in source.targets}
    scores = []
    stream = source.stream(indices, seed=seed)
    for sample in tqdm(stream, "looking at samples", total=len(indices), unit="sample", delay=2, leave=False):
        for target in source.targets:
            tallies[target.field].append(target.tally(sample[target.field][None])[0].cpu())
        if "uncertainty_score" in sample:
            scores.append(sample["uncertainty_score"])
    labels = {t.field: _of_label(t, torch.stack(tallies[t.field]), source.image_size) for t in source.targets}
    return Statistics(len(indices), labels, torch.stack(scores) if scores else None)


def _of_label(target: Target, tallies: Tensor, image_size: tuple[int, int]) -> LabelStatistics:
    """Statistics of tallies int64 [N, T]."""
    shares = tallies.double() / target.tally_total(image_size)
    present = shares > 0
    mean_share = (
        shares.sum(0) / present.sum(0) if target.tally_measures else shares.new_full(shares.shape[1:], torch.nan)
    )
    return LabelStatistics(
        target,
        frequency=tuple(present.double().mean(0).tolist()),
        mean_share=tuple(mean_share.tolist()),
        ignored=1 - tallies.sum().item() / (len(tallies) * target.tally_total(image_size)),
    )
