"""Renders with exact masks, as the students are trained and measured on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import renders
from torch import Tensor

from dsgan_datasets import LabelSchema

IGNORE = 255
TRAIN, TEST = "train-*.tar", "test-*.tar"  # shards of a domain
VALIDATION = 240  # the last training renders; 10,000 are left to train on


@dataclass(frozen=True)
class Labeled:
    """Images uint8 [N, 3, H, W] and masks uint8 [N, H, W]."""

    images: Tensor
    masks: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Labeled:
        return Labeled(self.images[rows], self.masks[rows])

    def to(self, device: str) -> Labeled:
        return Labeled(self.images.to(device), self.masks.to(device))

    @property
    def count(self) -> int:
        return len(self.images)


def read_renders(shards: list[Path], schema: LabelSchema, size: int) -> Labeled:
    """All renders of some shards, in their order, with the classes of a schema.

    Raises:
        ValueError: a shard that is not one of the domain's, or a schema or size that renders cannot have.
    """
    check_classes(shards[0].parent)
    return Labeled(*renders.read_renders(shards, schema.classes, size))


def check_classes(domain: Path) -> None:
    """Raise a ValueError if the classes.json of a domain does not list the classes of the renders, in their order."""
    try:
        names = tuple(entry["name"] for entry in json.loads((domain / "classes.json").read_text())["classes"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{domain / 'classes.json'} does not list classes with names ({error!r})") from error
    if names != renders.RENDERED:
        raise ValueError(
            f"{domain / 'classes.json'} lists {', '.join(names)}; renders have {', '.join(renders.RENDERED)}"
        )
