"""Checkpoints of SemanticGAN: a rosinality StyleGAN2 with segmentation heads ``to_seg1``, ``to_segs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsgan_datasets.generators.dialects.base import Dialect, ImportedGenerator
from dsgan_datasets.generators.dialects.containers import TORCH_FILE
from dsgan_datasets.generators.dialects.rosinality import has_g_ema, notes_of, read_stylegan2
from dsgan_datasets.generators.semanticgan import SemanticGANConfig


def _matches(content: Any) -> bool:
    return has_g_ema(content) and "to_seg1.bias" in content["g_ema"]


def _read(content: Any, _: Path) -> ImportedGenerator:
    shape, tensors = read_stylegan2(content, {"torgb": "to_rgb", "toseg": "to_seg"})
    classes = tensors["synthesis.b4.toseg.weight"].shape[0]
    return ImportedGenerator(SemanticGANConfig(**shape, label_channels=classes), tensors, notes_of(shape))


SEMANTICGAN = Dialect(
    name="SemanticGAN checkpoint, network g_ema",
    readable="a SemanticGAN .pt (g_ema with to_seg1)",
    container=TORCH_FILE,
    matches=_matches,
    read=_read,
)
