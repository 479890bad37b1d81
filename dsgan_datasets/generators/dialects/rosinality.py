"""Files of rosinality's stylegan2-pytorch and its descendants: StyleGAN2, averaged network ``g_ema``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dsgan_datasets.generators.dialects.average import average_w
from dsgan_datasets.generators.dialects.base import (
    Dialect,
    Found,
    ImportedGenerator,
    Tensors,
    check_filter,
    check_nothing_left,
    take,
)
from dsgan_datasets.generators.dialects.noise import check_doubling, drawn, fixed_noise, seed_of
from dsgan_datasets.generators.dialects.shapes import mapping_shape, synthesis_shape
from dsgan_datasets.generators.dialects.states import CONTAINERS, count, finder, tensors_of
from dsgan_datasets.generators.semanticgan import SemanticGANConfig
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config

_MARKS = ("input.input", "conv1.conv.modulation.weight")
#: Modules of the network, in whatever package a descendant has them.
CLASSES = CONTAINERS | {
    f"*.{name}"
    for name in (
        *("Generator", "PixelNorm", "EqualLinear", "ConstantInput", "StyledConv", "ModulatedConv2d", "ToRGB"),
        *("NoiseInjection", "FusedLeakyReLU", "ScaledLeakyReLU", "Blur", "Upsample", "ToSEG"),
    )
}


def read_stylegan2(
    theirs: Tensors, average: Any, heads: Mapping[str, str]
) -> tuple[dict[str, Any], Tensors, tuple[str, ...]]:
    """Shape and tensors of a StyleGAN2 under rosinality's names.

    Args:
        theirs: its tensors; all must be known.
        average: its average w if it has one: [w_dim], or a row for each layer.
        heads: our name of a 1×1 layer -> their name of it, such as "torgb" -> "to_rgb".

    Returns:
        fields of `StyleGAN2Config`, tensors under our names, notes.

    Raises:
        ValueError: it is not such a network.
    """
    seed = seed_of(theirs)
    convs = count(theirs, r"convs\.\d+\.conv\.weight")
    layers = {"b4.conv1": "conv1", **{f"b{8 << i // 2}.conv{i % 2}": f"convs.{i}" for i in range(convs)}}
    one_by_one = {}
    for head, source in heads.items():
        one_by_one[f"b4.{head}"] = f"{source}1"
        one_by_one |= {f"b{8 << i}.{head}": f"{source}s.{i}" for i in range(convs // 2)}
    const = take(theirs, "input.input")[0]
    ours: Tensors = {"synthesis.b4.const": const}
    check_doubling([(const.shape[1] << i, const.shape[2] << i) for i in range(min(convs // 2, 40) + 1)])
    notes = [] if any(name.startswith("noises.") for name in theirs) else [drawn(seed)]
    for i, (name, source) in enumerate(layers.items()):
        kernel = take(theirs, f"{source}.conv.weight")[0]
        # Kernels [1, O, I, k, k] get the equalized gain that our layers leave to demodulation.
        ours[f"synthesis.{name}.weight"] = kernel / math.sqrt(kernel[0].numel())
        ours[f"synthesis.{name}.bias"] = take(theirs, f"{source}.activate.bias").flatten()
        ours[f"synthesis.{name}.noise_strength"] = take(theirs, f"{source}.noise.weight").reshape([])
        if notes:
            rows, columns = (side << (i + 1) // 2 for side in const.shape[1:])
            ours[f"synthesis.{name}.noise_const"] = fixed_noise(seed, i, (rows, columns))
        else:
            ours[f"synthesis.{name}.noise_const"] = take(theirs, f"noises.noise_{i}")[0, 0]
    for name, source in one_by_one.items():
        ours[f"synthesis.{name}.weight"] = take(theirs, f"{source}.conv.weight")[0]
        ours[f"synthesis.{name}.bias"] = take(theirs, f"{source}.bias").flatten()
    for name, source in {**layers, **one_by_one}.items():
        for part in ("weight", "bias"):
            ours[f"synthesis.{name}.affine.{part}"] = take(theirs, f"{source}.conv.modulation.{part}")
    for i in range(count(theirs, r"style\.\d+\.weight")):
        for part in ("weight", "bias"):
            ours[f"mapping.fc{i}.{part}"] = take(theirs, f"style.{i + 1}.{part}")
    if isinstance(average, Tensor | np.ndarray):
        ours["mapping.w_avg"] = average_w(average)  # encoders (pSp, e4e) store one row for each layer
    for name in [name for name in theirs if name.endswith(".kernel")]:
        check_filter(name, theirs.pop(name), [1, 3, 3, 1], gain=4)
    check_nothing_left(theirs)
    return {**mapping_shape(ours), **synthesis_shape(ours)}, ours, tuple(notes)


def _average(found: Found) -> Any:
    return next((value for name in TAKES if (value := found.beside(name)) is not None), None)


def _read(found: Found, _: Path) -> ImportedGenerator:
    theirs = tensors_of(found, *_MARKS)
    if any(name.startswith("to_seg") for name in theirs):
        raise ValueError("its heads to_seg are not those of SemanticGAN")
    shape, tensors, notes = read_stylegan2(theirs, _average(found), {"torgb": "to_rgb"})
    return ImportedGenerator(StyleGAN2Config(**shape), tensors, notes)


def _read_semanticgan(found: Found, _: Path) -> ImportedGenerator:
    theirs = tensors_of(found, *_MARKS)
    shape, tensors, notes = read_stylegan2(theirs, _average(found), {"torgb": "to_rgb", "toseg": "to_seg"})
    classes = tensors["synthesis.b4.toseg.weight"].shape[0]
    return ImportedGenerator(SemanticGANConfig(**shape, label_channels=classes), tensors, notes)


TAKES = ("latent_avg", "w_avg", "mean_latent")
ROSINALITY = Dialect(
    name="rosinality StyleGAN2, network g_ema",
    readable="a rosinality StyleGAN2 .pt",
    find=finder(*_MARKS, classes=CLASSES),
    read=_read,
    classes=CLASSES,
    takes=TAKES,
)
SEMANTICGAN = Dialect(
    name="SemanticGAN checkpoint, network g_ema",
    readable="a SemanticGAN .pt",
    find=finder(*_MARKS, "to_seg1.bias", classes=CLASSES),
    read=_read_semanticgan,
    classes=CLASSES,
    takes=TAKES,
)
