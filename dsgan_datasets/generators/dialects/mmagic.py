"""Files of mmgeneration and mmagic: StyleGAN2 and StyleGAN3, network ``generator_ema``."""

from __future__ import annotations

import re
from pathlib import Path

from dsgan_datasets.generators.dialects.base import Dialect, Found, ImportedGenerator
from dsgan_datasets.generators.dialects.rosinality import read_stylegan2
from dsgan_datasets.generators.dialects.shapes import stylegan3_config
from dsgan_datasets.generators.dialects.states import finder, tensors_of
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config

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
