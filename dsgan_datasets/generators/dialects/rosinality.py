"""Files of rosinality's stylegan2-pytorch: StyleGAN2, network ``g_ema``. Its children share the names of the layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dsgan_datasets.generators.dialects.base import (
    Dialect,
    ImportedGenerator,
    Tensors,
    check_filter,
    check_nothing_left,
    named_tensors,
)
from dsgan_datasets.generators.dialects.containers import TORCH_FILE
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config


def has_g_ema(content: Any) -> bool:
    """Whether a file holds the averaged generator as a state dict of that name."""
    return isinstance(content, Mapping) and isinstance(content.get("g_ema"), Mapping)


def read_stylegan2(content: Mapping[str, Any], heads: Mapping[str, str]) -> tuple[dict[str, Any], Tensors]:
    """Shape and tensors of the StyleGAN2 in ``g_ema``.

    Args:
        content: of the file; ``latent_avg`` is its average w, if it has one.
        heads: our name of a 1×1 layer -> their name of it, such as "torgb" -> "to_rgb".

    Returns:
        fields of `StyleGAN2Config`, and tensors under our names.

    Raises:
        ValueError, LookupError: it is not such a network.
    """
    theirs, average = named_tensors(content["g_ema"]), content.get("latent_avg")
    count = len([name for name in theirs if re.fullmatch(r"convs\.\d+\.conv\.weight", name)])
    layers = {"b4.conv1": "conv1", **{f"b{8 << i // 2}.conv{i % 2}": f"convs.{i}" for i in range(count)}}
    one_by_one = {}
    for head, source in heads.items():
        one_by_one[f"b4.{head}"] = f"{source}1"
        one_by_one |= {f"b{8 << i}.{head}": f"{source}s.{i}" for i in range(count // 2)}
    ours: Tensors = {"synthesis.b4.const": theirs.pop("input.input")[0]}
    for i, (name, source) in enumerate(layers.items()):
        kernel = theirs.pop(f"{source}.conv.weight")[0]
        # Kernels [1, O, I, k, k] get the equalized gain that our layers leave to demodulation.
        ours[f"synthesis.{name}.weight"] = kernel / math.sqrt(kernel[0].numel())
        ours[f"synthesis.{name}.bias"] = theirs.pop(f"{source}.activate.bias")
        ours[f"synthesis.{name}.noise_strength"] = theirs.pop(f"{source}.noise.weight").reshape([])
        ours[f"synthesis.{name}.noise_const"] = theirs.pop(f"noises.noise_{i}")[0, 0]
    for name, source in one_by_one.items():
        ours[f"synthesis.{name}.weight"] = theirs.pop(f"{source}.conv.weight")[0]
        ours[f"synthesis.{name}.bias"] = theirs.pop(f"{source}.bias").flatten()
    for name, source in {**layers, **one_by_one}.items():
        for part in ("weight", "bias"):
            ours[f"synthesis.{name}.affine.{part}"] = theirs.pop(f"{source}.conv.modulation.{part}")
    depth = len([name for name in theirs if re.fullmatch(r"style\.\d+\.weight", name)])
    for i in range(depth):
        for part in ("weight", "bias"):
            ours[f"mapping.fc{i}.{part}"] = theirs.pop(f"style.{i + 1}.{part}")
    if isinstance(average, Tensor):
        ours["mapping.w_avg"] = average.flatten()
    for name in [name for name in theirs if name.endswith(".kernel")]:
        check_filter(name, theirs.pop(name), [1, 3, 3, 1], gain=4)
    check_nothing_left(theirs)
    shape = {
        "z_dim": ours["mapping.fc0.weight"].shape[1],
        "w_dim": ours["mapping.fc0.weight"].shape[0],
        "mapping_layers": depth,
        "img_resolution": 4 << count // 2,
        "img_channels": ours["synthesis.b4.torgb.weight"].shape[0],
        "channels": {4 << i: ours[f"synthesis.b{4 << i}.conv1.weight"].shape[0] for i in range(count // 2 + 1)},
        "has_w_avg": isinstance(average, Tensor),
    }
    return shape, ours


def notes_of(shape: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say of a network of that shape."""
    return () if shape["has_w_avg"] else ("no average w in the file: truncation is not possible without avg_latent",)


def _read(content: Any, _: Path) -> ImportedGenerator:
    shape, tensors = read_stylegan2(content, {"torgb": "to_rgb"})
    return ImportedGenerator(StyleGAN2Config(**shape), tensors, notes_of(shape))


ROSINALITY = Dialect(
    name="rosinality StyleGAN2, network g_ema",
    readable="a rosinality StyleGAN2 .pt (g_ema)",
    container=TORCH_FILE,
    matches=has_g_ema,
    read=_read,
)
