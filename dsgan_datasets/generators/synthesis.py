"""Latents -> style vectors -> images and features: what a recipe asks of a generator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.latents import Latents
from dsgan_datasets.recipe import Recipe

Rendering = TypeVar("Rendering", bound=Callable[..., Any])


@torch.no_grad()
def synthesize(generator: FeatureGenerator, recipe: Recipe, latents: Latents | Tensor) -> tuple[Tensor, list[Tensor]]:
    """Images and features of latents, as the recipe says.

    Args:
        generator: makes them.
        recipe: truncation, noise, mixing, size, crop, precision.
        latents: all that the recipe leaves to chance; if that is z alone, simply z [N, z_dim]. Or style vectors
            [N, num_ws, w_dim], to which the recipe's sampling does not apply.

    Returns:
        uint8 RGB images [N, 3, H, W], resized and cropped, and the generator's feature maps (neither).

    Raises:
        ValueError: z alone was given, but the recipe draws more.
    """
    if isinstance(latents, Tensor):
        if latents.dim() == 3:
            return render(generator, recipe, latents.to(generator.device))
        latents = Latents.of(recipe, latents)
    return render(generator, recipe, style_vectors(generator, recipe, latents))


def style_vectors(generator: FeatureGenerator, recipe: Recipe, latents: Latents) -> Tensor:
    """Truncated and mixed style vectors [N, num_ws, w_dim] of latents."""
    _check_classes(generator, latents)
    ws = _styles(generator, recipe, latents, latents.z)
    if latents.second_z is not None:
        second, layer = _styles(generator, recipe, latents, latents.second_z), recipe.mixing_layer
        coarse, fine = (ws, second) if recipe.mixing_side == "fine" else (second, ws)
        ws = torch.cat([coarse[:, :layer], fine[:, layer:]], dim=1)
    return ws


def render(generator: FeatureGenerator, recipe: Recipe, ws: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Images uint8 [N, 3, H, W] and feature maps of style vectors [N, num_ws, w_dim]."""
    image, features = frame(generator, recipe, ws)
    return _to_uint8(image, generator), features


def frame(generator: FeatureGenerator, recipe: Recipe, ws: Tensor) -> tuple[Tensor, list[Tensor]]:
    """As `render`, but images float32, nominally in the generator's `image_range`; with gradients where they are on."""
    image, features = generator.synthesis(ws, noise_mode=recipe.noise_mode, dtype=recipe.torch_dtype)
    return _to_frame(image, generator, recipe), features


def render_channels(generator: FeatureGenerator, recipe: Recipe, ws: Tensor) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, H, W], and float32 [N, extra_channels, H, W]: the channels beside the colors.

    These are resized (bilinear) and cropped as the image is, and otherwise as the network makes them.
    """
    channels, _ = generator.synthesis_channels(ws, noise_mode=recipe.noise_mode, dtype=recipe.torch_dtype)
    framed = _to_frame(channels, generator, recipe)
    return _to_uint8(generator.colors(framed), generator), framed[:, generator.color_channels :]


def compiled_if_asked(function: Rendering, recipe: Recipe) -> Rendering:
    """`render` or `render_channels`: compiled if the recipe says so, else as it is."""
    asked: Rendering = _compiled(function) if recipe.rendering.compile else function
    return asked


@cache
def _compiled(function: Callable[..., Any]) -> Any:
    # The function, not the network: other recipes that use the same network stay as they are.
    from torch._inductor import config  # slow to import

    # Its reductions would be chosen by timing; older versions of PyTorch cannot be asked not to.
    options: dict[str, Any] | None = {"deterministic": True} if hasattr(config, "deterministic") else None
    return torch.compile(function, dynamic=False, options=options)


def _to_frame(channels: Tensor, generator: FeatureGenerator, recipe: Recipe) -> Tensor:
    """Channels [N, C, h, w] resized to the frame and cropped, [N, C, H, W]."""
    size = recipe.frame_size(generator.img_size)
    if tuple(channels.shape[2:]) != size:
        channels = F.interpolate(channels, size=size, mode="bilinear", align_corners=False)
    return channels if recipe.crop is None else channels[:, :, recipe.crop[0] : recipe.crop[1]]


def _to_uint8(image: Tensor, generator: FeatureGenerator) -> Tensor:
    black, white = generator.image_range
    scale = 255 / (white - black)
    return (image * scale + (0.5 - black * scale)).clamp(0, 255).to(torch.uint8)


def _check_classes(generator: FeatureGenerator, latents: Latents) -> None:
    drawn, classes = latents.class_label, generator.c_dim
    if (drawn is None) == bool(classes) or (drawn is not None and len(drawn) and int(drawn.max()) >= classes):
        given = "None" if drawn is None else f"{int(drawn.max())}"
        allowed = "None: the generator is unconditional"
        if classes:
            allowed = f"0 … {classes - 1} (on the command line: --set class_label=0 … {classes - 1})"
        raise ValueError(f"the recipe's class_label is {given}, allowed is {allowed}")


def _styles(generator: FeatureGenerator, recipe: Recipe, latents: Latents, z: Tensor) -> Tensor:
    """Truncated style vectors [N, num_ws, w_dim] of z, with the class and psi of the draws."""
    device = generator.device
    c = None
    if latents.class_label is not None:
        c = F.one_hot(latents.class_label, generator.c_dim).to(device)
    psi = recipe.psi_range[0] if latents.psi is None else latents.psi
    return generator.mapping(z.to(device), c, truncation_psi=psi, truncation_cutoff=recipe.truncation_cutoff)
