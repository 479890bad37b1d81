"""Snapshot pickles of stylegan2-ada-pytorch and stylegan3: StyleGAN2 and StyleGAN3, network ``G_ema``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsgan_datasets.checkpoints.snapshot import PersistentObject
from dsgan_datasets.generators.dialects.base import Dialect, ImportedGenerator, check_filter, require
from dsgan_datasets.generators.dialects.containers import SNAPSHOT
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config
from dsgan_datasets.generators.stylegan3 import LayerConfig, StyleGAN3Config


def _is_network(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("G_ema"), PersistentObject)


def _is_stylegan3(content: Any) -> bool:
    if not _is_network(content):
        return False
    modules = content["G_ema"].state.get("_modules")
    synthesis = modules.get("synthesis") if isinstance(modules, Mapping) else None
    return isinstance(synthesis, PersistentObject) and "layer_names" in synthesis.state


def _common_fields(network: PersistentObject) -> dict[str, Any]:
    mapping = network.child("mapping")
    dense = mapping.child("fc0")
    require("activation", dense.state["activation"], "lrelu")
    c_dim = network.state["c_dim"]
    return {
        "z_dim": network.state["z_dim"],
        "w_dim": network.state["w_dim"],
        "c_dim": c_dim,
        "embed_dim": mapping.child("embed").tensors()["weight"].shape[0] if c_dim else 0,
        "mapping_layers": mapping.state["num_layers"],
        "mapping_lr_multiplier": float(dense.state["bias_gain"]),
        "img_resolution": network.state["img_resolution"],
        "img_channels": network.state["img_channels"],
    }


def _stylegan2(content: Any, _: Path) -> ImportedGenerator:
    network = content["G_ema"]
    synthesis = network.child("synthesis")
    blocks = {r: synthesis.child(f"b{r}") for r in synthesis.state["block_resolutions"]}
    layers = [block.child(f"conv{i}") for r, block in blocks.items() for i in ((0, 1) if r > 4 else (1,))]
    for layer in layers:
        require("activation", layer.state["activation"], "lrelu")
        require("use_noise", layer.state["use_noise"], True)
    clamp = layers[0].state["conv_clamp"]
    config = StyleGAN2Config(
        **_common_fields(network),
        channels={r: block.child("conv1").tensors()["weight"].shape[0] for r, block in blocks.items()},
        block=blocks[4].state["architecture"],
        conv_clamp=None if clamp is None else float(clamp),
    )
    tensors = network.child("mapping").tensors("mapping.")
    for name, tensor in synthesis.tensors("synthesis.").items():
        if name.endswith("resample_filter"):
            check_filter(name, tensor, [1, 3, 3, 1])
        else:
            tensors[name] = tensor
    return ImportedGenerator(config, tensors)


def _stylegan3(content: Any, _: Path) -> ImportedGenerator:
    network = content["G_ema"]
    synthesis = network.child("synthesis")
    source = synthesis.child("input")
    names = [str(name) for name in synthesis.state["layer_names"]]
    layers = [synthesis.child(name) for name in names]
    clamp = layers[0].state["conv_clamp"]
    shapes = tuple(_stylegan3_layer(name, layer) for name, layer in zip(names, layers, strict=True))
    config = StyleGAN3Config(
        **_common_fields(network),
        input_channels=source.state["channels"],
        input_size=_square(source.state["size"]),
        input_sampling_rate=int(source.state["sampling_rate"]),
        bandwidth=float(source.state["bandwidth"]),
        layers=shapes,
        conv_clamp=None if clamp is None else float(clamp),
        output_scale=float(synthesis.state["output_scale"]),
    )
    for i, layer in enumerate(layers):
        require(f"{names[i]}.is_torgb", layer.state["is_torgb"], i == len(layers) - 1)
        require(f"{names[i]}.conv_clamp", layer.state["conv_clamp"], clamp)
    for ours, theirs in zip(config.layer_names, names, strict=True):
        require("name of a layer", theirs, ours)
    tensors = {**network.child("mapping").tensors("mapping."), **synthesis.tensors("synthesis.")}
    kind = "R (rotation equivariant)" if any(len(shape.down_filter) == 2 for shape in shapes) else "T"
    note = f"configuration {kind}, {shapes[0].kernel}×{shapes[0].kernel} kernels"
    return ImportedGenerator(config, tensors, (note,))


def _stylegan3_layer(name: str, layer: PersistentObject) -> LayerConfig:
    state, tensors = layer.state, layer.tensors()
    return LayerConfig(
        channels=state["out_channels"],
        size=int(name.split("_")[1]),
        sampling_rate=int(state["out_sampling_rate"]),
        kernel=state["conv_kernel"],
        up=state["up_factor"],
        down=state["down_factor"],
        up_filter=tuple(tensors["up_filter"].shape) if "up_filter" in tensors else (),
        down_filter=tuple(tensors["down_filter"].shape) if "down_filter" in tensors else (),
        padding=tuple(state["padding"]),
    )


def _square(size: Any) -> int:
    """The side of a (width, height)."""
    width, height = (int(n) for n in size)
    require("width of the input", width, height)
    return width


_READABLE = "a .pkl snapshot of stylegan2-ada-pytorch or stylegan3"
STYLEGAN2 = Dialect("StyleGAN2 snapshot pickle, network G_ema", _READABLE, SNAPSHOT, _is_network, _stylegan2)
STYLEGAN3 = Dialect("StyleGAN3 snapshot pickle, network G_ema", _READABLE, SNAPSHOT, _is_stylegan3, _stylegan3)
