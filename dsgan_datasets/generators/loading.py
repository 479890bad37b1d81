"""A file of any known kind -> a frozen generator -> the project's own files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgan_datasets.checkpoints import directory as checkpoint_directory
from dsgan_datasets.checkpoints.card import generator_card
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.tensors import assign_tensors, digest_tensors
from dsgan_datasets.device import Device, resolve_device
from dsgan_datasets.files import is_folder
from dsgan_datasets.generators.base import FeatureGenerator, GeneratorConfig, Provenance
from dsgan_datasets.generators.dialects import average_w, import_generator
from dsgan_datasets.generators.dialects.average import AVERAGED_DRAWS, centers_of_w, mean_of_mapped
from dsgan_datasets.generators.fastgan import FastGAN, FastGANConfig
from dsgan_datasets.generators.lucidrains import LucidrainsConfig, LucidrainsGAN
from dsgan_datasets.generators.semanticgan import SemanticGAN, SemanticGANConfig
from dsgan_datasets.generators.stylegan1 import StyleGAN1, StyleGAN1Config
from dsgan_datasets.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from dsgan_datasets.generators.stylegan3 import StyleGAN3, StyleGAN3Config
from dsgan_datasets.recipe import FeatureLayout

_NETWORKS: dict[type[GeneratorConfig], type[FeatureGenerator]] = {
    StyleGAN1Config: StyleGAN1,
    StyleGAN2Config: StyleGAN2,
    StyleGAN3Config: StyleGAN3,
    SemanticGANConfig: SemanticGAN,
    FastGANConfig: FastGAN,
    LucidrainsConfig: LucidrainsGAN,
}
_CONFIGS: dict[str, type[GeneratorConfig]] = {config.architecture: config for config in _NETWORKS}


def load_generator(
    path: str | os.PathLike[str],
    *,
    device: Device = None,
    features: FeatureLayout | None = None,
    avg_latent: Tensor | np.ndarray | None = None,
    centroids: Tensor | np.ndarray | None = None,
    bgr: bool = False,
) -> FeatureGenerator:
    """Load a frozen generator. No code from the file is run.

    A file of another project need not hold everything: an average w that it lacks is computed from fixed draws, and
    noise that it lacks is drawn from the hash of its weights; its provenance says so.

    Args:
        path: a checkpoint directory (or its ``generator.safetensors``), the name of a built-in checkpoint, or a file
            of another project: of NVIDIA's code in PyTorch or TensorFlow, rosinality's, DatasetGAN's, and many more;
            docs/generators.md lists them. The average w of a StyleGAN1 ``.pt`` as DatasetGAN uses it is read from
            ``<stem>_avg_latent.npy`` beside it. The masks of a SemanticGAN ``.pt`` are given by `load_joint`.
        device: where to put it; None is the current CUDA device if there is one, else the CPU.
        features: which maps `synthesis` returns, coarse to fine; None is the first that the architecture has:
            StyleGAN2: "convs" (post-activation outputs of the 3×3 layers) or "const+convs" (the learned constant
            first); StyleGAN1: "datasetgan" (of each block its output, then its raw second convolution); StyleGAN3:
            "convs" (the Fourier features, then all layers but the last, without margins); FastGAN and the networks of
            lucidrains: "convs" (the output of each block).
        avg_latent: average w, [w_dim] or equal rows [L, w_dim], that replaces the one in the file.
        centroids: [K, w_dim], centers of w that take the place of the average: truncation pulls to the nearest of them
            (multimodal truncation, StyleGAN-XL).
        bgr: whether the file's colors are blue, green, red, which files of mmgeneration do not say.

    Raises:
        CheckpointError: the file cannot be used; the message says what was expected and what was found.
        ValueError: a feature layout that this architecture does not have, or a malformed avg_latent.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> image, features = generator.synthesis(generator.mapping(torch.zeros(1, generator.z_dim)))
        >>> image.shape
        torch.Size([1, 3, 64, 64])
    """
    file = checkpoint_directory.find(path)
    if file.name == "generator.safetensors":
        file = file.parent
    if is_folder(file):
        stored = checkpoint_directory.read_config(file)
        fields, tensors = checkpoint_directory.read_part(stored, "generator", file)
        config = parse_config(fields, file)
        provenance = _provenance_of_directory(stored, file)
    else:
        imported, provenance = import_generator(file)
        config, tensors = imported.config, imported.tensors
    if avg_latent is not None and centroids is not None:
        raise ValueError("centroids take the place of avg_latent: give one of them")
    given = None if avg_latent is None else average_w(avg_latent)
    if centroids is not None:
        given = centers_of_w(centroids)
    if given is not None:
        count = 0 if centroids is None else len(given)
        tensors = {**tensors, "mapping.w_avg": given}
        config = dataclasses.replace(config, has_w_avg=True, w_avg_per_class=False, centroids=count)
        notes = [note for note in provenance.notes if "average w" not in note]
        note = f"{count} centroids in place of an average w" if count else "average w given separately"
        provenance = dataclasses.replace(provenance, notes=(*notes, note))
    elif not is_folder(file) and not config.has_w_avg and _NETWORKS[type(config)].has_w_space:
        config, tensors, note = _with_average(config, tensors, file)
        provenance = dataclasses.replace(provenance, notes=(*provenance.notes, note))
    if bgr:
        tensors = _with_colors_reversed(config, tensors)
        provenance = dataclasses.replace(provenance, notes=(*provenance.notes, "colors read as blue, green, red"))
    return build_generator(config, tensors, features=features, device=device, provenance=provenance, path=file)


def _with_average(
    config: GeneratorConfig, tensors: dict[str, Tensor], path: Path
) -> tuple[GeneratorConfig, dict[str, Tensor], str]:
    """Config and tensors with an average w, and a note about it."""
    mapping = build_generator(config, tensors, device="cpu", path=path).mapping_network
    average = mean_of_mapped(mapping, config.z_dim, config.c_dim)
    if average is None:
        return config, tensors, "no average w: it has too many classes to compute one, so that truncation_psi must be 1"
    note = f"average w computed from {AVERAGED_DRAWS} fixed draws{' a class' if config.c_dim else ''}"
    config = dataclasses.replace(config, has_w_avg=True, w_avg_per_class=bool(config.c_dim))
    return config, {**tensors, "mapping.w_avg": average}, f"{note}, as the file has none"


def _with_colors_reversed(config: GeneratorConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose images have red and blue in each other's place."""
    if config.img_channels != 3:
        raise ValueError(f"bgr is for images of three channels, not {config.img_channels}")
    last = max((int(m[1]) for name in tensors if (m := re.match(r"synthesis\.L(\d+)_", name))), default=None)
    colors = re.compile(rf"synthesis\.(.*torgb|L{last}_\d+_3)\.(weight|bias)")
    changed = {name: tensor.flip(0) for name, tensor in tensors.items() if colors.fullmatch(name)}
    if not changed:
        raise ValueError(f"bgr is not supported for {config.architecture}: it is for files of mmgeneration and mmagic")
    return {**tensors, **changed}


def _provenance_of_directory(config: Mapping[str, Any], directory: Path) -> Provenance:
    """Where the generator of a checkpoint directory came from, with the license that the directory states."""
    provenance = read_provenance(config, directory)
    if provenance is None:
        digest = hashlib.sha256((directory / "generator.safetensors").read_bytes()).hexdigest()
        name = f"{directory.resolve().name}/generator.safetensors"
        provenance = Provenance(name, digest, "checkpoint of dsgan_datasets")
    stated = config.get("license")
    return dataclasses.replace(provenance, license=stated) if isinstance(stated, str) and stated else provenance


def parse_config(fields: Mapping[str, Any], path: Path) -> GeneratorConfig:
    """The shape of a generator from the section of a config.json.

    Raises:
        CheckpointError: an unknown architecture, or values that are not such a shape.
    """
    architecture = fields.get("architecture")
    if not isinstance(architecture, str) or architecture not in _CONFIGS:
        raise CheckpointError(
            f"{path}: generator architecture {architecture!r:.40} is unknown; known: {', '.join(_CONFIGS)}"
        )
    try:
        return _CONFIGS[architecture](**{k: v for k, v in fields.items() if k != "architecture"})
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: the generator's config is not usable: {error}") from error


def read_provenance(config: Mapping[str, Any], path: Path) -> Provenance | None:
    """Where the generator of a config.json came from, if it says so.

    Raises:
        CheckpointError: it says so in a form that cannot be read.
    """
    stored = config.get("provenance")
    if stored is None:
        return None
    try:
        return Provenance.from_dict(stored)
    except ValueError as error:
        raise CheckpointError(f"{path / 'config.json'}: section 'provenance' is not usable: {error}") from error


def build_generator(
    config: GeneratorConfig,
    tensors: Mapping[str, Tensor],
    *,
    features: FeatureLayout | None = None,
    device: Device = None,
    provenance: Provenance | None = None,
    path: object = "generator",
) -> FeatureGenerator:
    """A frozen generator from its shape and its tensors; `path` names them in errors."""
    average = tensors.get("mapping.w_avg")
    one = not config.w_avg_per_class and not config.centroids
    if average is not None and (average.shape[-1:] != (config.w_dim,) or (one and average.dim() != 1)):
        raise CheckpointError(f"{path}: the average w has {list(average.shape)} numbers, w has {config.w_dim}")
    with torch.device("meta"):
        generator = _NETWORKS[type(config)](config, features)
    assign_tensors(generator, {_inside(name): tensor for name, tensor in tensors.items()}, path)
    generator.provenance = provenance
    return generator.freeze().to(resolve_device(device))


def generator_tensors(generator: FeatureGenerator) -> dict[str, Tensor]:
    """The tensors of a generator, under the names that its file has.

    Example:
        >>> tensors = generator_tensors(load_generator("demo-faces", device="cpu"))
        >>> tensors["mapping.w_avg"].shape
        torch.Size([128])
    """
    return {name.replace("_network.", ".", 1): tensor for name, tensor in generator.state_dict().items()}


def _inside(name: str) -> str:
    """Name in the file -> name in the module, where `mapping` and `synthesis` are methods."""
    head, _, rest = name.partition(".")
    return f"{head}_network.{rest}" if head in ("mapping", "synthesis") else name


def save_generator(generator: FeatureGenerator, path: str | os.PathLike[str], *, license: str | None = None) -> None:
    """Write a generator as a checkpoint directory without interpreter; `load_generator` reads it.

    Args:
        generator: its weights and its feature maps come back bit for bit.
        path: the directory; files of the same names in it are replaced.
        license: of the weights; None keeps what its provenance says.

    Raises:
        CheckpointError: the directory cannot be written.

    Example:
        >>> save_generator(load_generator("demo-faces", device="cpu"), tmp / "faces", license="CC0-1.0")
        >>> load_generator(tmp / "faces", device="cpu").img_resolution
        64
    """
    if license is not None and not isinstance(license, str):
        raise ValueError(f"license must be a text, not {type(license).__name__}")
    provenance = generator.provenance
    if provenance is not None and license:
        provenance = dataclasses.replace(provenance, license=license)
    tensors = generator_tensors(generator)
    config = _generator_config(generator, tensors, provenance, license)
    checkpoint_directory.write(Path(path), config, {"generator": tensors}, generator_card(config))


def _generator_config(
    generator: FeatureGenerator, tensors: Mapping[str, Tensor], provenance: Provenance | None, license: str | None
) -> dict[str, Any]:
    """Content of the config.json of a generator without labels."""
    return {
        "license": license or (provenance.license if provenance else "unspecified"),
        "parts": {"generator": {"config": generator.config, "sha256": digest_tensors(tensors)}},
        "provenance": provenance.to_dict() if provenance else None,
    }
