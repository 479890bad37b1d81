"""How interpreters were fitted and how good they were found to be: kept in config.json, shown in the model card."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsgan_datasets.checkpoints.informational import split_known
from dsgan_datasets.checks import integer

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class Figures:
    """How good labels of one kind were found to be.

    Attributes:
        summary: name of a measure -> its value over all; None where nothing was measured.
        by_name: name of a measure -> name of a class, point or channel -> its value.

    Raises:
        ValueError: something else, as a damaged file may give.

    Example:
        >>> Figures.of({"mean IoU": 0.91234}, {"IoU": {"skin": 0.91234, "hat": math.nan}}).by_name
        {'IoU': {'skin': 0.9123, 'hat': None}}
    """

    summary: Numbers
    by_name: Mapping[str, Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.by_name, Mapping):
            raise ValueError(f"fit quality must hold tables by name, not {self.by_name!r:.60}")
        for numbers in (self.summary, *self.by_name.values()):
            if not isinstance(numbers, Mapping) or not all(map(_is_entry, numbers.items())):
                raise ValueError(f"fit quality must be numbers by name, or null, not {numbers!r:.60}")

    @classmethod
    def of(cls, summary: Mapping[str, float], by_name: Mapping[str, Mapping[str, float]]) -> Figures:
        """To four digits, NaN as None."""

        def rounded(numbers: Mapping[str, float]) -> Numbers:
            return {name: round(value, 4) if math.isfinite(value) else None for name, value in numbers.items()}

        return cls(rounded(summary), {name: rounded(numbers) for name, numbers in by_name.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"summary": dict(self.summary), "by_name": {name: dict(n) for name, n in self.by_name.items()}}


@dataclass(frozen=True)
class FitReport:
    """How the interpreters of a checkpoint were fitted.

    Attributes:
        title: heading of the card, one line.
        num_images: annotated images.
        folds: of the held-out check; 0 if there was none.
        quality: field of a label -> how good it was found to be on held-out images. Empty without the check.
        settings: of the training, name -> number, text or None.
        generator: name of what it was fitted to.
        description: what the card says first, one paragraph; may be empty.
        more: entries of a newer version, kept as they are.

    Raises:
        ValueError: a value of another kind or range, as a damaged file may give.

    Example:
        >>> found = {"mask": Figures({"mean IoU": 0.9})}
        >>> FitReport("faces", 16, 4, found, {"members": 10}, "faces.pkl").quality["mask"].summary
        {'mean IoU': 0.9}
    """

    title: str
    num_images: int
    folds: int
    quality: Mapping[str, Figures]
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
        for name in ("quality", "settings"):
            if not isinstance(table := getattr(self, name), Mapping) or not all(isinstance(key, str) for key in table):
                raise ValueError(f"fit {name} must be a table by name, not {table!r:.60}")
        for name, value in self.settings.items():
            if not isinstance(value, str | int | float | None):
                raise ValueError(f"fit setting {name!r:.60} must be a number, a text or null, not {value!r:.60}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "more"}
        quality = {name: figures.to_dict() for name, figures in self.quality.items()}
        return {**fields, "quality": quality, "settings": dict(self.settings), **self.more}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FitReport:
        """Inverse of `to_dict`; ValueError or TypeError for anything else.

        Also reads reports from before 0.2, which hold "pixel_accuracy" and "iou" of masks instead of "quality".
        """
        known, more = split_known(cls, data)
        accuracy, iou = more.pop("pixel_accuracy", None), more.pop("iou", {})
        stored = known.get("quality", {})
        if not isinstance(stored, Mapping) or not isinstance(iou, Mapping):
            raise ValueError(f"fit quality must be a table by name, not {stored!r:.60} and {iou!r:.60}")
        quality = {name: Figures(**figures) for name, figures in stored.items()}
        if iou or accuracy is not None:
            of_masks = Figures({"mean IoU": None, "pixel accuracy": accuracy}, {"IoU": iou})
            values = [value for value in iou.values() if value is not None]
            mean = round(sum(values) / len(values), 4) if values else None
            quality["mask"] = dataclasses.replace(of_masks, summary={**of_masks.summary, "mean IoU": mean})
        return cls(**{**known, "quality": quality}, more=more)


def _is_entry(entry: tuple[Any, Any]) -> bool:
    name, value = entry
    return isinstance(name, str) and (value is None or (type(value) in (int, float) and abs(value) < 1e300))
