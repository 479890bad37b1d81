"""What `calibrate` measured: kept in config.json beside the recipe, which holds the threshold itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsgan_datasets.checkpoints.informational import split_known
from dsgan_datasets.checks import integer


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` measured for a recipe.

    Attributes:
        num_samples: unfiltered draws that were looked at.
        seed: their seed.
        standard_error: of the threshold, nats, from the order statistics around the quantile; None without a threshold.
        acceptance: share of these draws (with a group size: of their view groups) that all rules of the recipe accept.
        ignore_fraction: share of the pixels of accepted draws that `max_uncertainty` was set to ignore; None if it was
            given otherwise or is off.
        dropped_by_class: of the draws that hold a class, the share whose score is above the threshold; classes that
            fewer than 20 of the draws hold are left out. None if it was not looked at.
        standard_errors: likewise of the thresholds of further labels, by field; None without any.
        more: entries of a newer version, kept as they are.

    Raises:
        ValueError: a value of another kind or range, as a damaged file may give.

    Example:
        >>> measured = LabeledGenerator.from_pretrained("demo-faces", device="cpu").calibration
        >>> measured.num_samples, round(measured.acceptance, 2)
        (1000, 0.9)
    """

    num_samples: int
    seed: int
    standard_error: float | None
    acceptance: float
    ignore_fraction: float | None = None
    dropped_by_class: Mapping[str, float] | None = None
    standard_errors: Mapping[str, float] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        integer("calibration num_samples", self.num_samples, 1)
        integer("calibration seed", self.seed, 0)
        if self.standard_error is not None and not _is_number(self.standard_error):
            raise ValueError(f"calibration standard_error is {self.standard_error!r:.60}")
        for name in ("acceptance", "ignore_fraction"):
            value = getattr(self, name)
            if not (_is_share(value) or (value is None and name == "ignore_fraction")):
                raise ValueError(f"calibration {name} is {value!r:.60}")
        dropped = self.dropped_by_class
        if dropped is not None and not (isinstance(dropped, Mapping) and all(map(_is_share, dropped.values()))):
            raise ValueError(f"calibration dropped_by_class is {dropped!r:.60}")
        errors = self.standard_errors
        if errors is not None and not (isinstance(errors, Mapping) and all(map(_is_number, errors.values()))):
            raise ValueError(f"calibration standard_errors is {errors!r:.60}")

    def dropped_most(self, reject_fraction: float) -> dict[str, float]:
        """Classes whose draws are dropped at least twice as often as all draws are, the worst first."""
        shares = sorted((self.dropped_by_class or {}).items(), key=lambda item: -item[1])
        return {name: share for name, share in shares if share >= 2 * reject_fraction}

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "more"}
        return {**{name: value for name, value in fields.items() if value is not None}, **self.more}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`; ValueError or TypeError for anything else."""
        known, more = split_known(cls, data)
        return cls(**{"standard_error": None, **known}, more=more)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1
