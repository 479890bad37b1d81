"""Snapshots of Projected GAN with a FastGAN generator, network ``G_ema``. Its modules are named, not persistent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints.pickles import Foreign, Holder
from dsgan_datasets.generators.dialects.base import Dialect, Found, ImportedGenerator, Tensors
from dsgan_datasets.generators.dialects.noise import check_doubling, drawn, fixed_noise, seed_of
from dsgan_datasets.generators.dialects.states import CONTAINERS
from dsgan_datasets.generators.fastgan import GATES, FastGANConfig

_CLASSES = CONTAINERS | {
    *(f"pg_modules.networks_fastgan.{name}" for name in ("Generator", "DummyMapping")),
    *(f"pg_modules.networks_fastgan.{name}" for name in ("FastganSynthesis", "FastganSynthesisCond")),
    *(f"pg_modules.blocks.{name}" for name in ("GLU", "InitLayer", "NoiseInjection", "SEBlock", "Swish", "CCBN")),
    *(f"pg_modules.blocks.{name}" for name in ("UpBlockSmallCond", "UpBlockBigCond")),
    *(f"torch.nn.modules.conv.{name}" for name in ("Conv2d", "ConvTranspose2d")),
    *(f"torch.nn.modules.activation.{name}" for name in ("Sigmoid", "SiLU")),
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.pooling.AdaptiveAvgPool2d",
    "torch.nn.modules.sparse.Embedding",
    "torch.nn.modules.upsampling.Upsample",
}


def _find(content: Any) -> Found | None:
    entries = {name: content.get(name) for name in ("G_ema", "G")} if isinstance(content, Mapping) else {"": content}
    for where, network in entries.items():
        if isinstance(network, Foreign) and network.name.endswith("networks_fastgan.Generator"):
            return Found(network, where, content)
    return None


def _read(found: Found, _: Path) -> ImportedGenerator:
    network = found.network
    synthesis = network.child("synthesis")
    seed = seed_of(synthesis.tensors())
    layers = {name: _layers(part) for name, part in synthesis.children().items() if name.startswith("feat_")}
    resolutions = sorted(int(match[1]) for name in layers if (match := re.fullmatch(r"feat_(\d{1,5})", name)))
    check_doubling([(r, r) for r in (4, *resolutions)])
    initial = _layers(synthesis.child("init"))
    first = _weight(initial[0], 1)
    ours: Tensors = {"synthesis.initial": first}
    ours["synthesis.scale"], ours["synthesis.shift"] = _scale_and_shift(initial[1])
    channels, noises = {4: first.shape[1] // 2}, 0
    for r in resolutions:
        convs = [part for part in layers[f"feat_{r}"] if _kind(part) == "Conv2d"]
        norms = [part for part in layers[f"feat_{r}"] if _kind(part) in ("BatchNorm2d", "CCBN")]
        noise = [part for part in layers[f"feat_{r}"] if _kind(part) == "NoiseInjection"]
        for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
            stage = f"synthesis.b{r}.stage{i}"
            ours[f"{stage}.weight"] = _weight(conv)
            ours[f"{stage}.norm.scale"], ours[f"{stage}.norm.shift"] = _scale_and_shift(norm)
            for name in ("gain", "bias") if _kind(norm) == "CCBN" else ():
                linear = norm.child(name)
                ours[f"{stage}.norm.{name}.weight"] = _weight(linear)
                ours[f"{stage}.norm.{name}.bias"] = linear.own_tensors()["bias"]
            if noise:
                ours[f"{stage}.noise_strength"] = noise[i].own_tensors()["weight"].reshape([])
                ours[f"{stage}.noise_const"] = fixed_noise(seed, noises, (r, r))
                noises += 1
        channels[r] = ours[f"synthesis.b{r}.stage0.weight"].shape[0] // 2
        if r in GATES:
            gate = [part for part in _layers(synthesis.child(f"se_{r}")) if _kind(part) == "Conv2d"]
            for i, conv in enumerate(gate):
                ours[f"synthesis.b{r}.gate.weight{i}"] = _weight(conv)
    last = synthesis.child("to_big")
    ours["synthesis.torgb.weight"], ours["synthesis.torgb.bias"] = _weight(last), last.own_tensors()["bias"]
    c_dim = embed_dim = 0
    if isinstance(embedding := synthesis.children().get("embed"), Holder):
        ours["mapping.embed"] = embedding.own_tensors()["weight"]
        c_dim, embed_dim = ours["mapping.embed"].shape
    z_dim = first.shape[0]
    config = FastGANConfig(
        z_dim=z_dim,
        w_dim=z_dim + embed_dim,
        c_dim=c_dim,
        embed_dim=embed_dim,
        img_resolution=resolutions[-1],
        img_channels=last.own_tensors()["bias"].shape[0],
        channels=channels,
        convs=len([name for name in ours if re.fullmatch(r"synthesis\.b8\.stage\d\.weight", name)]),
    )
    notes = ["no space of styles (w): truncation and style mixing do not apply", *([drawn(seed)] if noises else [])]
    return ImportedGenerator(config, ours, tuple(notes))


def _kind(part: Holder) -> str:
    """Its class, without the module."""
    return part.name.rpartition(".")[2]


def _layers(part: Holder) -> list[Holder]:
    """The modules without children, and conditional normalizations, in order."""
    if _kind(part) == "CCBN" or not part.children():
        return [part]
    return [layer for child in part.children().values() for layer in _layers(child)]


def _weight(layer: Holder, output_axis: int = 0) -> Tensor:
    """A layer's weight divided by its spectral norm, of which the file holds both vectors (arXiv 1802.05957)."""
    tensors = layer.own_tensors()
    if "weight_orig" not in tensors:
        return tensors["weight"]
    weight = tensors["weight_orig"]
    matrix = weight.transpose(0, output_axis).reshape(weight.shape[output_axis], -1)
    return weight / torch.dot(tensors["weight_u"], matrix @ tensors["weight_v"])


def _scale_and_shift(norm: Holder) -> tuple[Tensor, Tensor]:
    """Batch normalization with its running statistics."""
    tensors = norm.own_tensors()
    if "stored_var" in tensors:
        scale = (tensors["stored_var"] + 1e-5).rsqrt()
        return scale, -tensors["stored_mean"] * scale
    scale = tensors["weight"] * (tensors["running_var"] + 1e-5).rsqrt()
    return scale, tensors["bias"] - tensors["running_mean"] * scale


FASTGAN = Dialect(
    name="Projected GAN snapshot with FastGAN, network G_ema",
    readable="a .pkl of projected-gan",
    find=_find,
    read=_read,
    classes=_CLASSES,
)
