"""How often each part is seen, and how large: what a student is shown, beside the renders that it is measured on."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from .data import IGNORE
from .rows import ANNOTATED, Sources, resized_masks

BATCH = 50


def count_parts(sources: Sources, images: int, seed: int = 0) -> dict[str, Any]:
    """Shares of images that show a class, and of pixels that have it, by whose masks say so.

    Args:
        sources: what rows are made of.
        images: of each kind that are looked at; of renders the first ones.
        seed: of the generated ones.

    Returns:
        {name: {"title", "images", "present": [K], "area": [K]}}
    """
    schema, size = sources.schema, sources.size

    def counted(masks: Tensor) -> Tensor:
        return resized_masks(torch.where(masks == schema.ignore_index, IGNORE, masks), size).cpu()

    masks: dict[str, tuple[str, list[Tensor]]] = {
        "renders": ("renders, exact masks", [sources.training[:images].masks.cpu()]),
        "annotated": (f"the {ANNOTATED} annotated samples", [sources.annotated_images.masks.cpu()]),
        "by-annotator": ("generated images, masks of who annotates", []),
        "by-interpreter": ("the same images, masks of the interpreter", []),
        "stream": ("the stream: filter on", []),
    }
    for name, labeled in (("by-interpreter", sources.unfiltered), ("stream", sources.filtered)):
        samples = iter(labeled.stream(range(images), seed=seed))
        while batch := list(itertools.islice(samples, BATCH)):
            masks[name][1].append(counted(torch.stack([sample.mask for sample in batch])))
            if name == "by-interpreter":
                drawn = torch.stack([sample.image for sample in batch])
                masks["by-annotator"][1].append(counted(sources.annotator_network.annotate(drawn)))
    k = schema.num_classes
    return {name: {"title": title, **shares(torch.cat(parts), k)} for name, (title, parts) in masks.items()}


def shares(masks: Tensor, num_classes: int) -> dict[str, Any]:
    """Of masks [N, H, W]; ignored pixels belong to no class.

    Example:
        >>> shares(torch.tensor([[[0, 1]], [[0, 0]]]), 2)
        {'images': 2, 'present': [1.0, 0.5], 'area': [0.75, 0.25]}
    """
    counts = torch.stack([torch.bincount(m[m != IGNORE].long(), minlength=num_classes) for m in masks.flatten(1)])
    return {
        "images": len(masks),
        "present": [round(value, 5) for value in (counts > 0).double().mean(0).tolist()],
        "area": [round(value, 6) for value in (counts.sum(0) / counts.sum()).double().tolist()],
    }
