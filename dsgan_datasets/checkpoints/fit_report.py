"""How an interpreter was fitted and how good it was found to be: kept in config.json, shown in the model card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsgan_datasets.checkpoints.informational import split_known
from dsgan_datasets.checks import integer


@dataclass(frozen=True)
class FitReport:
    """How an interpreter was fitted.

    Attributes:
        title: heading of the card, one line.
        num_images: annotated images.
        folds: of the held-out check; 0 if there was none.
        pixel_accuracy: held out, 0 … 1; None without the check.
        iou: held out, of each class by its name; None for a class that occurs nowhere. Empty without the check.
        settings: of the training, name -> number, text or None.
        generator: name of what it was fitted to.
        description: what the card says first, one paragraph; may be empty.
        more: entries of a newer version, kept as they are.

    Raises:
        ValueError: a value of another kind or range, as a damaged file may give.

    Example:
        >>> FitReport("faces", 16, 4, 0.95, {"skin": 0.9, "hat": None}, {"members": 10}, "faces.pkl").mean_iou
        0.9
    """

    title: str
    num_images: int
    folds: int
    pixel_accuracy: float | None
    iou: Mapping[str, float | None]
    settings: Mapping[str, str | float | None]
    generator: str
    description: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("title", "generator", "description"):
            if not isinstance(text := getattr(self, name), str):
                raise ValueError(f"fit {name} must be a text, not {text!r:.60}")
            object.__setattr__(self, name, " ".join(text.split()))
        integer("fit num_images", self.num_images, 1)
        integer("fit folds", self.folds, 0)
        for name in ("iou", "settings"):
            if not isinstance(table := getattr(self, name), Mapping) or not all(isinstance(key, str) for key in table):
                raise ValueError(f"fit {name} must be a table by name, not {table!r:.60}")
        for share in (self.pixel_accuracy, *self.iou.values()):
            if share is not None and not (type(share) in (int, float) and 0 <= share <= 1):
                raise ValueError(f"fit pixel_accuracy and iou must be numbers in 0 … 1 or null, not {share!r:.60}")
        for name, value in self.settings.items():
            if not isinstance(value, str | int | float | None):
                raise ValueError(f"fit setting {name!r:.60} must be a number, a text or null, not {value!r:.60}")

    @property
    def mean_iou(self) -> float | None:
        """Over the classes that occur; None without the check."""
        known = [value for value in self.iou.values() if value is not None]
        return sum(known) / len(known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "more"}
        return {**{k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}, **self.more}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FitReport:
        """Inverse of `to_dict`; ValueError or TypeError for anything else."""
        known, more = split_known(cls, data)
        return cls(**known, more=more)
