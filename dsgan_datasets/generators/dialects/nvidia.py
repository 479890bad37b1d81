"""Files of NVIDIA's PyTorch code and its forks: StyleGAN2, StyleGAN3 and StyleGAN-XL, network ``G_ema``.

They are snapshots, or the network alone as torch.save or pickle wrote it. Its objects are "persistent": class name,
attributes and Python source, of which the source is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dsgan_datasets.checkpoints.pickles import Foreign, Holder
from dsgan_datasets.generators.dialects.base import Dialect, Found, ImportedGenerator, Tensors, check_filter, require
from dsgan_datasets.generators.dialects.shapes import (
    mapping_shape,
    stylegan3_config,
    synthesis_shape,
    table_of_classes,
)
from dsgan_datasets.generators.dialects.states import finder, tensors_of
from dsgan_datasets.generators.layers import SLOPE, SQRT2
from dsgan_datasets.generators.stylegan2 import StyleGAN2Config
from dsgan_datasets.generators.stylegan3 import LayerConfig, StyleGAN3Config

#: Names of the averaged generator, best first; G is the one that was trained.
_ENTRIES = ("G_ema", "Gs", "G")
_EMBEDDING = "torch.nn.modules.sparse.Embedding"


def _find(content: Any) -> Found | None:
    if isinstance(content, Mapping):
        for name in _ENTRIES:
            if isinstance(content.get(name), Holder):
                return Found(content[name], name, content)
    return Found(content, "", content) if isinstance(content, Holder) else None


def _find_stylegan3(content: Any) -> Found | None:
    found = _find(content)
    synthesis = None if found is None else _child(found.network, "synthesis")
    return found if synthesis is not None and "layer_names" in synthesis.state else None


def _find_xl(content: Any) -> Found | None:
    """A StyleGAN3 whose classes are rows of a table, with or without classes."""
    found = _find_stylegan3(content)
    mapping = None if found is None else _child(found.network, "mapping")
    embed = None if mapping is None else _child(mapping, "embed")
    return found if isinstance(embed, Foreign) and embed.name == _EMBEDDING else None


def _child(network: Holder, name: str) -> Holder | None:
    """A submodule, if there is one; raises nothing."""
    modules = network.state.get("_modules")
    child = modules.get(name) if isinstance(modules, Mapping) else None
    return child if isinstance(child, Holder) else None


def _notes(found: Found) -> tuple[str, ...]:
    return ("network G, which is not averaged, as the file has no G_ema",) if found.where == "G" else ()


def _mapping(network: Holder) -> tuple[dict[str, Any], Tensors]:
    """Fields of `GeneratorConfig`, and tensors, of a mapping network."""
    mapping = network.child("mapping")
    dense = mapping.child("fc0")
    require("activation", dense.state["activation"], "lrelu")
    tensors = mapping.tensors("mapping.")
    embedding, projected = tensors.pop("mapping.embed.weight", None), "mapping.embed_proj.weight"
    if projected in tensors and embedding is not None:  # StyleGAN-XL: a table, projected; without classes left over
        weight = tensors.pop(projected)
        rows = F.linear(embedding / math.sqrt(weight.shape[1]), weight, tensors.pop("mapping.embed_proj.bias"))
        tensors |= table_of_classes(F.leaky_relu(rows, SLOPE)[: network.state["c_dim"]] * SQRT2)
    elif embedding is not None and network.state["c_dim"]:
        tensors["mapping.embed.weight"] = embedding
    shape = mapping_shape(tensors)
    for name in ("z_dim", "w_dim", "c_dim"):
        require(name, network.state[name], shape[name])
    return {
        **shape,
        "mapping_lr_multiplier": float(dense.state["bias_gain"]),
        "img_channels": network.state["img_channels"],
    }, tensors


def _stylegan2(found: Found, _: Path) -> ImportedGenerator:
    network = found.network
    synthesis = network.child("synthesis")
    blocks = {int(r): synthesis.child(f"b{r}") for r in synthesis.state["block_resolutions"]}
    fields, tensors = _mapping(network)
    for name, tensor in synthesis.tensors("synthesis.").items():
        if name.endswith("resample_filter"):
            check_filter(name, tensor, [1, 3, 3, 1])
        else:
            tensors[name] = tensor
    shape = synthesis_shape(tensors)
    clamps = []
    for r, block in blocks.items():
        for name in ("conv1",) if r == min(blocks) else ("conv0", "conv1"):
            layer = block.child(name)
            require("activation", layer.state["activation"], "lrelu")
            clamps.append(layer.state["conv_clamp"])
            if not layer.state["use_noise"]:
                height, width = (side * r // shape["img_resolution"] for side in shape["img_size"])
                tensors[f"synthesis.b{r}.{name}.noise_strength"] = torch.zeros([], device="cpu")
                tensors[f"synthesis.b{r}.{name}.noise_const"] = torch.zeros(height, width, device="cpu")
    clamp = clamps[0]
    config = StyleGAN2Config(
        **{**fields, **shape},
        conv_clamp=None if clamp is None else float(clamp),
    )
    return ImportedGenerator(config, tensors, _notes(found))


def _stylegan3(found: Found, _: Path) -> ImportedGenerator:
    network = found.network
    synthesis = network.child("synthesis")
    source = synthesis.child("input")
    names = [str(name) for name in synthesis.state["layer_names"]]
    layers = [synthesis.child(name) for name in names]
    clamp = layers[0].state["conv_clamp"]
    fields, tensors = _mapping(network)
    shapes = tuple(_stylegan3_layer(layer) for layer in layers)
    width, height = _pair(source.state["size"])
    resolution = network.state["img_resolution"]
    config = StyleGAN3Config(
        **fields,
        img_resolution=resolution,
        img_size=(resolution, resolution * width // height),
        input_channels=source.state["channels"],
        input_size=height,
        input_sampling_rate=int(source.state["sampling_rate"]),
        bandwidth=float(source.state["bandwidth"]),
        layers=shapes,
        conv_clamp=None if clamp is None else float(clamp),
        output_scale=float(synthesis.state["output_scale"]),
    )
    for i, (layer, shape) in enumerate(zip(layers, shapes, strict=True)):
        require(f"{names[i]}.is_torgb", layer.state["is_torgb"], i == len(layers) - 1)
        require(f"{names[i]}.conv_clamp", layer.state["conv_clamp"], clamp)
        require(f"columns of {names[i]}", _pair(layer.state["out_size"])[0], config.columns(shape.size))
    tensors |= source.tensors("synthesis.input.")
    for ours, layer in zip(config.layer_names, layers, strict=True):
        tensors |= layer.tensors(f"synthesis.{ours}.")
    kind = "R (rotation equivariant)" if any(len(shape.down_filter) == 2 for shape in shapes) else "T"
    note = f"configuration {kind}, {shapes[0].kernel}×{shapes[0].kernel} kernels"
    if "head_layer_names" in synthesis.state:
        note += ", with a superresolution stage"
    return ImportedGenerator(config, tensors, (note, *_notes(found)))


def _stylegan3_layer(layer: Holder) -> LayerConfig:
    state, tensors = layer.state, layer.tensors()
    return LayerConfig(
        channels=state["out_channels"],
        size=_pair(state["out_size"])[1],
        sampling_rate=int(state["out_sampling_rate"]),
        kernel=state["conv_kernel"],
        up=state["up_factor"],
        down=state["down_factor"],
        up_filter=tuple(tensors["up_filter"].shape) if "up_filter" in tensors else (),
        down_filter=tuple(tensors["down_filter"].shape) if "down_filter" in tensors else (),
        padding=tuple(state["padding"]),
    )


def _pair(size: Any) -> tuple[int, int]:
    """Columns and rows."""
    width, height = (int(n) for n in size)
    return width, height


_STYLEGAN2 = ("synthesis.b4.const", "mapping.fc0.weight")
_STYLEGAN3 = ("synthesis.input.freqs", "mapping.fc0.weight")


def _stylegan2_state(found: Found, _: Path) -> ImportedGenerator:
    theirs = tensors_of(found, *_STYLEGAN2)
    for name in [name for name in theirs if name.endswith("resample_filter")]:
        check_filter(name, theirs.pop(name), [1, 3, 3, 1])
    config = StyleGAN2Config(**{**mapping_shape(theirs), **synthesis_shape(theirs)})
    return ImportedGenerator(
        config, theirs, ("no clamp of the convolutions: a state dict does not say whether one is",)
    )


def _stylegan3_state(found: Found, _: Path) -> ImportedGenerator:
    theirs = tensors_of(found, *_STYLEGAN3)
    return ImportedGenerator(stylegan3_config(theirs), theirs, ("a state dict, taken to be of the published design",))


_READABLE = "a .pkl or .pt of stylegan2-ada-pytorch, stylegan3 or StyleGAN-XL"
STYLEGAN2 = Dialect("StyleGAN2 snapshot pickle, network G_ema", _READABLE, _find, _stylegan2)
STYLEGAN3 = Dialect("StyleGAN3 snapshot pickle, network G_ema", _READABLE, _find_stylegan3, _stylegan3)
STYLEGAN_XL = Dialect(
    "StyleGAN-XL snapshot pickle, network G_ema", _READABLE, _find_xl, _stylegan3, frozenset({_EMBEDDING})
)
STYLEGAN2_STATE = Dialect(
    "StyleGAN2 state dict (mapping.fc0, synthesis.b4)", _READABLE, finder(*_STYLEGAN2), _stylegan2_state
)
STYLEGAN3_STATE = Dialect(
    "StyleGAN3 state dict (mapping.fc0, synthesis.input)", _READABLE, finder(*_STYLEGAN3), _stylegan3_state
)
