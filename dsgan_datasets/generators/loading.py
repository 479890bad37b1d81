"""A file of whatever kind -> a frozen generator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.snapshot import PersistentObject, read_snapshot
from dsgan_datasets.checkpoints.tensors import assign_tensors
from dsgan_datasets.device import Device, resolve_device
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from dsgan_datasets.recipe import FeatureLayout


def load_generator(
    path: str | os.PathLike[str],
    *,
    device: Device = None,
    features: FeatureLayout = "convs",
    avg_latent: Tensor | None = None,
) -> FeatureGenerator:
    """Load a frozen generator. No code from the file is run.

    Args:
        path: a checkpoint directory (or its ``generator.safetensors``), the name of a built-in checkpoint, or a
            ``.pkl`` snapshot of stylegan2-ada-pytorch or stylegan3 (StyleGAN2 networks; ``G_ema`` is used).
        device: where to put it; None is the current CUDA device if there is one, else the CPU.
        features: which maps `synthesis` returns: "convs", the post-activation outputs of the 3×3 layers, coarse to
            fine; "const+convs", the learned constant before them.
        avg_latent: average w [w_dim] that replaces the one in the file.

    Raises:
        CheckpointError: the file cannot be used; the message says what was expected and what was found.
        ValueError: a feature layout that this architecture does not have.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> image, features = generator.synthesis(generator.mapping(torch.zeros(1, generator.z_dim)))
        >>> image.shape
        torch.Size([1, 3, 64, 64])
    """
    source = checkpoint_directory.find(path)
    if source.name == "generator.safetensors":
        source = source.parent
    if source.is_dir():
        config = checkpoint_directory.section(checkpoint_directory.read_config(source), "generator", source)
        tensors = checkpoint_directory.read_tensors(source / "generator.safetensors")
    elif source.suffix == ".pkl":
        config, tensors = generator_of_snapshot(source)
    else:
        raise CheckpointError(
            f"{source} is no generator file: expected a checkpoint directory, or a .pkl snapshot of "
            "stylegan2-ada-pytorch or stylegan3"
        )
    if avg_latent is not None:
        tensors = {**tensors, "mapping.w_avg": avg_latent}
    return build_generator(config, tensors, features=features, device=device, source=source)


def build_generator(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    features: FeatureLayout = "convs",
    device: Device = None,
    source: object = "generator",
) -> FeatureGenerator:
    """A frozen generator from its config and tensors; `source` names them in errors."""
    fields = dict(config)
    architecture = fields.pop("architecture", None)
    if architecture != "stylegan2":
        raise CheckpointError(f"{source}: generator architecture {architecture!r} is unknown; known: stylegan2")
    try:
        shape = StyleGAN2Config(**fields)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{source}: the generator's config is not usable: {error}") from error
    with torch.device("meta"):
        generator = StyleGAN2(shape, features)
    assign_tensors(generator, {_inside(name): tensor for name, tensor in tensors.items()}, source)
    return generator.freeze().to(resolve_device(device))


def generator_tensors(generator: FeatureGenerator) -> dict[str, Tensor]:
    """The tensors of a generator, under the names that its file has."""
    return {name.replace("_network.", ".", 1): tensor for name, tensor in generator.state_dict().items()}


def _inside(name: str) -> str:
    """Name in the file -> name in the module, where `mapping` and `synthesis` are methods."""
    head, _, rest = name.partition(".")
    return f"{head}_network.{rest}" if head in ("mapping", "synthesis") else name


def generator_of_snapshot(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of the averaged generator (``G_ema``) in a snapshot pickle.

    Raises:
        CheckpointError: there is none, it is no StyleGAN2, or it uses a setting that StyleGAN2 as published has not.
    """
    snapshot = read_snapshot(path)
    network = snapshot.get("G_ema")
    if not isinstance(network, PersistentObject):
        raise CheckpointError(f"{path} has no generator G_ema; it holds: {', '.join(map(str, snapshot))}")
    synthesis, mapping = network.child("synthesis"), network.child("mapping")
    if "layer_names" in synthesis.state:
        raise CheckpointError(f"{path} holds a StyleGAN3 generator; only StyleGAN2 can be loaded so far")
    try:
        config = _stylegan2_config(network, synthesis, mapping)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path}: {network.class_name} is no StyleGAN2 as published: {error!r}") from error
    tensors = {f"mapping.{name}": tensor for name, tensor in mapping.tensors().items()}
    for name, tensor in synthesis.tensors("synthesis.").items():
        if not name.endswith("resample_filter"):
            tensors[name] = tensor
        elif not torch.allclose(tensor.float(), _RESAMPLE_FILTER):
            raise CheckpointError(f"{path}: {name} is not the filter [1, 3, 3, 1]; other filters are not supported")
    return config, tensors


_RESAMPLE_FILTER = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def _stylegan2_config(
    network: PersistentObject, synthesis: PersistentObject, mapping: PersistentObject
) -> dict[str, Any]:
    blocks = {r: synthesis.child(f"b{r}") for r in synthesis.state["block_resolutions"]}
    layers = [block.child(f"conv{i}") for r, block in blocks.items() for i in ((0, 1) if r > 4 else (1,))]
    dense = mapping.child("fc0")
    for name, layer, allowed in [
        *(("activation", layer, "lrelu") for layer in (*layers, dense)),
        *(("use_noise", layer, True) for layer in layers),
    ]:
        if layer.state[name] != allowed:
            raise ValueError(f"{name} is {layer.state[name]!r}, only {allowed!r} is supported")
    c_dim = network.state["c_dim"]
    clamp = layers[0].state["conv_clamp"]
    return {
        "architecture": "stylegan2",
        "z_dim": network.state["z_dim"],
        "w_dim": network.state["w_dim"],
        "c_dim": c_dim,
        "embed_dim": mapping.child("embed").tensors()["weight"].shape[0] if c_dim else 0,
        "mapping_layers": mapping.state["num_layers"],
        "mapping_lr_multiplier": float(dense.state["bias_gain"]),
        "img_resolution": network.state["img_resolution"],
        "img_channels": network.state["img_channels"],
        "channels": {str(r): block.child("conv1").tensors()["weight"].shape[0] for r, block in blocks.items()},
        "block": blocks[4].state["architecture"],
        "conv_clamp": None if clamp is None else float(clamp),
    }
