"""Files of mmgeneration and mmagic: StyleGAN2 and StyleGAN3, network ``generator_ema``."""

from __future__ import annotations

import math
import re
from pathlib import Path

from dsgan_datasets.generators.dialects.base import Dialect, Found, ImportedGenerator, Tensors
from dsgan_datasets.generators.dialects.rosinality import read_stylegan2
from dsgan_datasets.generators.dialects.states import finder, tensors_of
from dsgan_datasets.generators.dialects.stylegan2_shapes import mapping_shape
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config
from dsgan_datasets.generators.stylegan3 import LayerConfig, StyleGAN3Config

#: Their name -> rosinality's, whose code they follow.
_RENAMED = (
    (r"style_mapping\.(\d+)\.linear\.weight_orig", r"style.\1.weight"),
    (r"style_mapping\.(\d+)\.(?:linear\.)?bias", r"style.\1.bias"),
    (r"constant_input\.input", "input.input"),
    (r"(.*)\.conv\.weight_orig", r"\1.conv.weight"),
    (r"(.*)\.style_modulation\.linear\.weight_orig", r"\1.modulation.weight"),
    (r"(.*)\.style_modulation\.(?:linear\.)?bias", r"\1.modulation.bias"),
    (r"(.*)\.noise_injector\.weight", r"\1.noise.weight"),
    (r"injected_noise_(\d+)", r"noises.noise_\1"),
)
_STYLEGAN2 = ("constant_input.input", "conv1.conv.weight_orig")
_STYLEGAN3 = ("style_mapping.fc0.weight", "synthesis.input.freqs")
_COLORS = (
    "the file does not say the order of its colors: if red and blue are swapped, as with networks that mmgeneration "
    "itself trained, load it with bgr=True (--bgr to dsgan convert)"
)


def _read_stylegan2(found: Found, _: Path) -> ImportedGenerator:
    shape, tensors, notes = read_stylegan2(
        {_renamed(name): tensor for name, tensor in tensors_of(found, *_STYLEGAN2).items()}, None, {"torgb": "to_rgb"}
    )
    return ImportedGenerator(StyleGAN2Config(**shape), tensors, (*notes, _COLORS))


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        if match := re.fullmatch(pattern, name):
            return match.expand(new)
    return name


def _read_stylegan3(found: Found, _: Path) -> ImportedGenerator:
    tensors = {
        name.replace("style_mapping.", "mapping.", 1): tensor for name, tensor in tensors_of(found, *_STYLEGAN3).items()
    }
    config = stylegan3_config(tensors)
    return ImportedGenerator(config, tensors, (_COLORS,))


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


MMAGIC_STYLEGAN2 = Dialect(
    name="mmgeneration or mmagic StyleGAN2, network generator_ema",
    readable="an mmgeneration or mmagic .pth",
    find=finder(*_STYLEGAN2),
    read=_read_stylegan2,
)
MMAGIC_STYLEGAN3 = Dialect(
    name="mmgeneration or mmagic StyleGAN3, network generator_ema",
    readable=MMAGIC_STYLEGAN2.readable,
    find=finder(*_STYLEGAN3),
    read=_read_stylegan3,
)
