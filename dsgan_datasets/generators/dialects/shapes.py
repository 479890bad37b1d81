"""Shapes of networks, read from their tensors under our names."""

from __future__ import annotations

import math
import re
from typing import Any

from dsgan_datasets.generators.dialects.base import Tensors
from dsgan_datasets.generators.dialects.states import count
from dsgan_datasets.generators.stylegan3 import LayerConfig, StyleGAN3Config


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


def stylegan3_config(tensors: Tensors) -> StyleGAN3Config:
    """The shape of a StyleGAN3 of the published design, of which a file has only tensors.

    Layer names hold sizes and channels, filters their taps; every map has a margin of 10 pixels but the last two, and
    nonlinearities work at twice the larger of the two sampling rates (StyleGAN3, section 3.2 and appendix F).
    """
    pattern = re.compile(r"synthesis\.L(\d+)_(\d+)_(\d+)\.weight")
    found = sorted((int(m[1]), int(m[2]), int(m[3])) for name in tensors if (m := pattern.fullmatch(name)))
    if not found:
        raise ValueError("it has no layers such as synthesis.L0_36_512")
    resolution = found[-1][1]
    size = first = found[0][1]
    rate = first_rate = _rate(first, resolution)
    layers = []
    for i, side, channels in found:
        prefix = f"synthesis.L{i}_{side}_{channels}"
        kernel = tensors[f"{prefix}.weight"].shape[-1]
        filters = [tensors.get(f"{prefix}.{name}") for name in ("up_filter", "down_filter")]
        taps = [tuple(f.shape) if f is not None else () for f in filters]
        new_rate = _rate(side, resolution)
        is_last = i == len(found) - 1
        between = max(rate, new_rate) * (1 if is_last else 2)
        up, down = between // rate, between // new_rate
        # What must be added so that the output has its size, split so that centers stay on centers.
        length = (side - 1) * down + 1 + sum(shape[0] - 1 for shape in taps if shape)
        total = length - (size + kernel - 1) * up
        before = (total + up) // 2
        padding = (before, total - before, before, total - before)
        layers.append(
            LayerConfig(
                channels=channels,
                size=side,
                sampling_rate=new_rate,
                kernel=kernel,
                up=up,
                down=down,
                up_filter=taps[0],
                down_filter=taps[1],
                padding=padding,
            )
        )
        size, rate = side, new_rate
    return StyleGAN3Config(
        **mapping_shape(tensors),
        img_resolution=resolution,
        img_channels=found[-1][2],
        input_channels=tensors["synthesis.input.weight"].shape[0],
        input_size=first,
        input_sampling_rate=first_rate,
        bandwidth=2.0,
        layers=tuple(layers),
    )


def _rate(side: int, resolution: int) -> int:
    """Sampling rate of a map with that side: a power of two, with a margin of 10 pixels around the image or none."""
    for margin in (20, 0):
        if side > margin and math.log2(side - margin).is_integer() and side - margin <= resolution:
            return side - margin
    raise ValueError(f"a layer of {side} pixels is not one of a published StyleGAN3")
