"""The shape of a StyleGAN2, read from its tensors under our names."""

from __future__ import annotations

import re
from typing import Any

from dsgan_datasets.generators.dialects.base import Tensors
from dsgan_datasets.generators.dialects.states import count


def mapping_shape(tensors: Tensors) -> dict[str, Any]:
    """Fields of `GeneratorConfig` that the tensors ``mapping.…`` tell."""
    depth = count(tensors, r"mapping\.fc\d+\.weight")
    if not depth:
        raise ValueError("it has no mapping network")
    widths = [tensors[f"mapping.fc{i}.weight"].shape[0] for i in range(depth)]
    embed, average = tensors.get("mapping.embed.weight"), tensors.get("mapping.w_avg")
    embed_dim, c_dim = (0, 0) if embed is None else embed.shape
    if len(set(widths[:-1])) > 1:
        raise ValueError(f"layers of its mapping network have {widths} outputs: all but the last must have as many")
    return {
        "z_dim": tensors["mapping.fc0.weight"].shape[1] - embed_dim,
        "w_dim": widths[-1],
        "c_dim": c_dim,
        "embed_dim": embed_dim,
        "mapping_layers": depth,
        "mapping_width": None if widths[0] == widths[-1] else widths[0],
        "has_w_avg": average is not None,
        "w_avg_per_class": average is not None and average.dim() == 2,
    }


def synthesis_shape(tensors: Tensors) -> dict[str, Any]:
    """Fields of `StyleGAN2Config` that the tensors ``synthesis.…`` tell."""
    pattern = re.compile(r"synthesis\.b(\d+)\.conv1\.weight")
    blocks = sorted(int(match[1]) for name in tensors if (match := pattern.fullmatch(name)))
    if not blocks:
        raise ValueError("it has no layers")
    const = tensors["synthesis.b4.const"]
    resolution = blocks[-1]
    if f"synthesis.b{blocks[0]}.torgb.weight" in tensors and len(blocks) > 1:
        block = "skip"
    else:
        block = "resnet" if f"synthesis.b{resolution}.skip.weight" in tensors else "orig"
    return {
        "img_resolution": resolution,
        "img_size": (resolution // 4 * const.shape[1], resolution // 4 * const.shape[2]),
        "img_channels": tensors[f"synthesis.b{resolution}.torgb.weight"].shape[0],
        "channels": {r: tensors[f"synthesis.b{r}.conv1.weight"].shape[0] for r in blocks},
        "block": block,
    }


def table_of_classes(rows: Any) -> Tensors:
    """The class embedding of a table [c_dim, embed_dim] with a row for each class, which our layer multiplies with a
    one-hot vector and divides by √c_dim."""
    return {
        "mapping.embed.weight": rows.t().contiguous() * len(rows) ** 0.5,
        "mapping.embed.bias": rows.new_zeros(rows.shape[1]),
    }
