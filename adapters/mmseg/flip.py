"""A mirrored left eye is a right eye: a flip for MMSegmentation that knows, and a warning about those that do not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import RandomFlip
from mmseg.registry import TRANSFORMS

from dsgan_datasets.checkpoints.labeled import Checkpoint
from dsgan_datasets.shards.locations import Locations
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.sources.relabeled import chosen
from dsgan_datasets.targets.segmentation import LabelSchema


@TRANSFORMS.register_module()
class DSGANRandomFlip(RandomFlip):
    """RandomFlip that exchanges left and right parts, as a mirrored left eye is a right eye.

    Args:
        checkpoint: whose classes the masks have (real ones too); its schema says which trade places.
        prob: probability of a flip, or a list of one for each direction.
        direction: "horizontal", "vertical" or "diagonal" (half a turn, which mirrors nothing), or a list.
        shards: instead of a checkpoint, shards that one has made.
        classes, merge: what the dataset's ``metainfo["classes"]`` and ``merge`` say, if it has them.

    Raises:
        CheckpointError: there is no such checkpoint, or its config.json is damaged.
        ShardError, OSError: see `DSGANShardSegDataset`.
        ValueError: not one of checkpoint and shards.

    Example:
        >>> flip = DSGANRandomFlip("demo-faces", prob=1.0)  # in a config: dict(type="DSGANRandomFlip", …)
        >>> flip({"img": np.zeros((1, 2, 3), np.uint8), "gt_seg_map": np.uint8([[0, 1]])})["gt_seg_map"]
        array([[1, 0]], dtype=uint8)
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        prob: float | list[float] = 0.5,
        direction: str | list[str] = "horizontal",
        *,
        shards: Locations | None = None,
        classes: Sequence[str] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(prob=prob, direction=direction)
        if checkpoint is not None and shards is None:
            schema = Checkpoint.open(checkpoint).schema
        elif shards is not None and checkpoint is None:
            schema = ShardSource(shards).schema
        else:
            raise ValueError("DSGANRandomFlip needs either checkpoint or shards, whose schema says what trades places")
        self.schema = chosen(schema, classes, merge)

    def _flip_seg_map(self, seg_map: np.ndarray, direction: str) -> np.ndarray:
        flipped = np.ascontiguousarray(super()._flip_seg_map(seg_map, direction))
        if direction == "diagonal":
            return flipped
        swapped: np.ndarray = self.schema.swap_sides(torch.from_numpy(flipped)).numpy()
        return swapped


def steps_of(step: Any) -> Iterator[Any]:
    """All transforms of a pipeline, those inside of others too (RandomApply, RandomChoice)."""
    if isinstance(step, list | tuple):
        for inner in step:
            yield from steps_of(inner)
    elif step is not None:
        yield step
        yield from steps_of(getattr(step, "transforms", None))


def warn_about_flips(pipeline: Any, schema: LabelSchema) -> None:
    """UserWarning if a stock flip would leave the label of a left part on what is a right part now.

    Raises:
        ValueError: a `DSGANRandomFlip` that exchanges the ids of other classes than those of the dataset.
    """
    for step in steps_of(pipeline):
        if isinstance(step, DSGANRandomFlip) and step.schema.flip_pairs and step.schema.classes != schema.classes:
            raise ValueError(
                f"DSGANRandomFlip exchanges sides of the classes {', '.join(step.schema.classes)}, but the dataset has "
                f"{', '.join(schema.classes)}: give it the same checkpoint (or shards), classes and merge"
            )
        if not isinstance(step, RandomFlip) or isinstance(step, DSGANRandomFlip):
            continue
        swapped = {frozenset(pair) for pair in step.swap_seg_labels or ()}
        pairs = [pair for pair in schema.flip_pairs if frozenset(pair) not in swapped]
        if pairs:
            names = ", ".join(f"{schema.classes[a]}/{schema.classes[b]}" for a, b in pairs)
            warnings.warn(
                f"RandomFlip mirrors the image, but leaves the labels of {names} on the wrong side. Use "
                f"dict(type='DSGANRandomFlip', checkpoint=…, prob=0.5) (or shards=…) instead, or give RandomFlip "
                f"swap_seg_labels={[tuple(pair) for pair in schema.flip_pairs]}",
                stacklevel=4,
            )
