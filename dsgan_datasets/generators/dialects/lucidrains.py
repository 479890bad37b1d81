"""Files of lucidrains' stylegan2-pytorch: ``model_N.pt``, averaged networks ``SE`` and ``GE``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from dsgan_datasets.generators.dialects.base import (
    Dialect,
    Found,
    ImportedGenerator,
    Tensors,
    check_filter,
    check_nothing_left,
    take,
)
from dsgan_datasets.generators.dialects.noise import check_doubling, fixed_uniform, seed_of
from dsgan_datasets.generators.dialects.shapes import mapping_shape
from dsgan_datasets.generators.dialects.states import count, finder, tensors_of
from dsgan_datasets.generators.lucidrains import LucidrainsConfig

_MARKS = ("SE.net.0.weight", "GE.initial_conv.weight")
#: Our name of a part of a block -> theirs.
_BLOCK = {
    **{
        f"conv{i}.{ours}.{part}": f"to_{ours}{i + 1}.{part}"
        for i in (0, 1)
        for ours in ("style", "noise")
        for part in ("weight", "bias")
    },
    **{f"conv{i}.weight": f"conv{i + 1}.weight" for i in (0, 1)},
    **{f"torgb.style.{part}": f"to_rgb.to_style.{part}" for part in ("weight", "bias")},
    "torgb.weight": "to_rgb.conv.weight",
}
_ATTENTION = {
    "to_q.weight": "0.fn.fn.to_q.weight",
    "depthwise.weight": "0.fn.fn.to_kv.net.0.weight",
    "to_kv.weight": "0.fn.fn.to_kv.net.1.weight",
    **{f"to_out.{part}": f"0.fn.fn.to_out.{part}" for part in ("weight", "bias")},
    **{f"expand.{part}": f"1.fn.fn.0.{part}" for part in ("weight", "bias")},
    **{f"reduce.{part}": f"1.fn.fn.2.{part}" for part in ("weight", "bias")},
    **{f"norm{i}.{ours}": f"{i}.fn.norm.{theirs}" for i in (0, 1) for ours, theirs in (("gain", "g"), ("bias", "b"))},
}


def _read(found: Found, path: Path) -> ImportedGenerator:
    theirs = {name: t for name, t in tensors_of(found, *_MARKS).items() if name.startswith(("SE.", "GE."))}
    if any(".to_vq." in name or ".quantize" in name or ".fq" in name for name in theirs):
        raise ValueError("it quantizes its features (fq_layers), which is not supported")
    seed, ours = seed_of(theirs), Tensors()
    for i in range(count(theirs, r"SE\.net\.\d+\.weight")):
        for part in ("weight", "bias"):
            ours[f"mapping.fc{i}.{part}"] = take(theirs, f"SE.net.{2 * i}.{part}")
    learned = "GE.initial_block" in theirs
    if learned:
        ours["synthesis.const"] = take(theirs, "GE.initial_block")[0]
    else:
        ours["synthesis.from_style"] = take(theirs, "GE.to_initial_block.weight")
    for part in ("weight", "bias"):
        ours[f"synthesis.initial.{part}"] = take(theirs, f"GE.initial_conv.{part}")
    blocks, attention = count(theirs, r"GE\.blocks\.\d+\.conv1\.weight"), []
    for i in range(blocks):
        block = f"synthesis.b{4 << i}"
        ours |= {f"{block}.{name}": take(theirs, f"GE.blocks.{i}.{source}") for name, source in _BLOCK.items()}
        if f"GE.attns.{i}.0.fn.fn.to_q.weight" in theirs:
            attention.append(4 << i)
            parts = {name: take(theirs, f"GE.attns.{i}.{source}") for name, source in _ATTENTION.items()}
            ours |= {f"{block}.attention.{n}": t.flatten() if n.startswith("norm") else t for n, t in parts.items()}
    for name in [name for name in theirs if re.fullmatch(r"GE\..*\.upsample\.1\.f", name)]:
        line = theirs.pop(name)
        check_filter(name, torch.outer(line, line) / line.sum().square(), [1, 2, 1])
    check_nothing_left(theirs)
    check_doubling([(4 << i, 4 << i) for i in range(min(blocks, 40))])
    resolution = 4 << (blocks - 1)
    ours["synthesis.noise_const"] = fixed_uniform(seed, 0, (resolution, resolution))
    rate, note = _learning_rate(path)
    config = LucidrainsConfig(
        **mapping_shape(ours),
        mapping_lr_multiplier=rate,
        img_resolution=resolution,
        img_channels=ours["synthesis.b4.torgb.weight"].shape[0],
        channels={4 << i: ours[f"synthesis.b{4 << i}.conv1.weight"].shape[0] for i in range(blocks)},
        const_channels=ours["synthesis.initial.bias"].shape[0],
        learned_const=learned,
        attention=tuple(attention),
        attention_dim=_attention_dim(ours),
    )
    return ImportedGenerator(config, ours, (note, f"noise drawn from the weights' hash (seed {seed}): one image, kept"))


def _attention_dim(tensors: dict[str, Tensor]) -> int:
    return next((t.shape[0] for name, t in tensors.items() if name.endswith(".attention.to_q.weight")), 0)


def _learning_rate(path: Path) -> tuple[float, str]:
    """Learning-rate multiplier of the mapping, which is in a file beside the weights, and a note about it."""
    settings = path.with_name(".config.json")
    try:
        stated = json.loads(settings.read_bytes()[:100_000])["lr_mlp"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0.1, "no .config.json beside the file: lr_mlp 0.1 is assumed, the default"
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not 0 < stated < 1e3:
        raise ValueError(f"lr_mlp is {stated!r:.40} in .config.json beside the file, not a positive number")
    return float(stated), f"lr_mlp {stated:g} from .config.json beside the file"


LUCIDRAINS = Dialect(
    name="lucidrains stylegan2-pytorch, networks SE and GE",
    readable="a model_*.pt of lucidrains' stylegan2-pytorch",
    find=finder(*_MARKS),
    read=_read,
)
