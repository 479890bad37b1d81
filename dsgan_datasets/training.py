"""Annotated samples -> interpreter: trains all members of the ensemble at once, on a handful of images.

Only labelled pixels are looked at: their features are read from each map at its native resolution, by bilinear
interpolation at the pixel's place. The full-resolution tensor of the published code (16 images of 512² with 5,056
channels: 80 GB in float32) is never made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.interpreters.loading import BATCH_NORM_EPS, stack_members
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.labeled_generator import synthesize
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.schema import LabelSchema


@dataclass(frozen=True)
class Annotated:
    """Images of a generator that a person has annotated.

    Args:
        latents: z of each image, float32 [A, z_dim].
        masks: integer class ids [A, H, W], of the interpreter's classes; pixels of `ignore_index` are not learned from.
            H and W are those of the images that the recipe makes, after a crop if it has one.

    Raises:
        ValueError: the two do not fit together.
    """

    latents: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        masks = torch.as_tensor(self.masks)
        if masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
            raise ValueError(f"masks must hold integer class ids, not {masks.dtype}")
        object.__setattr__(self, "masks", masks.long())
        object.__setattr__(self, "latents", torch.as_tensor(self.latents).float())
        if not bool(self.latents.isfinite().all()):
            raise ValueError("latents hold values that are no finite numbers")
        if self.latents.dim() != 2 or self.masks.dim() != 3 or len(self.latents) != len(self.masks):
            raise ValueError(
                f"latents must be [A, z_dim] and masks [A, H, W], "
                f"got {list(self.latents.shape)} and {list(self.masks.shape)}"
            )


def fit_interpreter(
    generator: FeatureGenerator,
    annotated: Annotated,
    schema: LabelSchema,
    *,
    recipe: Recipe | None = None,
    members: int = 10,
    hidden: tuple[int, int] | None = None,
    pixels_per_image: int = 4096,
    steps: int = 1500,
    batch_pixels: int = 256,
    learning_rate: float = 1e-3,
    class_balance: float = 0.5,
    seed: int = 0,
) -> PixelEnsemble:
    """Train an ensemble of pixel classifiers (DatasetGAN, section 3.1 and appendix).

    Every member has its own initial weights and draws its own pixels; they are trained together as batched matrices.
    Features are standardised, which folds into the first layer afterwards.

    Args:
        generator: the frozen generator, on the device to train on.
        annotated: its annotated images.
        schema: the classes of the masks.
        recipe: how the images were made (truncation, noise, size, crop); None is the default recipe of the generator's
            feature layout.
        members: number of classifiers M.
        hidden: widths of the hidden layers; None is (128, 32) up to 31 classes and (256, 128) from 32, as published.
        pixels_per_image: pixels drawn from each image; more than an image has means all of them.
        steps: optimiser steps (Adam, cosine schedule).
        batch_pixels: pixels a step, for each member.
        learning_rate: at the start.
        class_balance: pixels of a class of frequency p are drawn with weight p ** -class_balance: 0 draws pixels as
            they come (as published), 1 draws every class equally often. Small parts need some of it.
        seed: of initial weights and of all draws; the same seed gives the same interpreter.

    Returns:
        the interpreter, on the generator's device, with the recipe's vote and top_fraction.

    Raises:
        ValueError: masks and images differ in size, or a mask holds a class that the schema does not name.

    Example:
        >>> ensemble = fit_interpreter(generator, Annotated(z, masks), schema)  # doctest: +SKIP
    """
    recipe = recipe or Recipe(features=generator.features)
    num_classes = len(schema.class_map or schema.classes)
    if annotated.latents.shape[1] != generator.z_dim:
        raise ValueError(f"latents have {annotated.latents.shape[1]} numbers, the generator's z has {generator.z_dim}")
    for name, value in (("members", members), ("pixels_per_image", pixels_per_image), ("steps", steps)):
        integer(name, value, 1)
    integer("batch_pixels", batch_pixels, 2)  # batch normalisation needs two
    if hidden is not None and len(hidden) != 2:
        raise ValueError(f"hidden must be the widths of two layers, not {hidden}")
    if not 0 <= class_balance <= 1 or not learning_rate > 0:
        raise ValueError(f"class_balance {class_balance} must lie in 0 … 1 and learning_rate {learning_rate} above 0")
    _check_masks(annotated.masks, num_classes, schema.ignore_index)
    random = torch.Generator().manual_seed(seed)
    features, labels = _labelled_pixels(generator, annotated, schema, recipe, pixels_per_image, random)
    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    features = (features - mean) / std
    widths = (features.shape[1], *(hidden or ((128, 32) if num_classes < 32 else (256, 128))), num_classes)
    network = _Members(members, widths, random).to(features.device)
    draw = _BalancedDraws(labels, class_balance, random)
    _train(network, features, labels, draw, steps, batch_pixels, learning_rate)
    weights = stack_members(network.state_dicts())
    # The first layer sees (f − mean) / std: f · (W / std) + (b − mean · W / std).
    weights["w1"] = weights["w1"] / std[:, None, None]
    weights["b1"] = weights["b1"] - torch.tensordot(mean, weights["w1"], dims=1)
    ensemble = PixelEnsemble(weights, vote=recipe.vote, top_fraction=recipe.top_fraction)
    return ensemble.to(generator.device)


def _check_masks(masks: Tensor, num_classes: int, ignore_index: int) -> None:
    found = set(masks.unique().tolist()) - {ignore_index}
    unknown = sorted(i for i in found if not 0 <= i < num_classes)
    if unknown:
        raise ValueError(
            f"the masks hold class {unknown}, but the schema has {num_classes} classes (0-{num_classes - 1}): "
            "add the class to the schema, or remap it"
        )
    if not found:
        raise ValueError(f"every pixel of the masks is {ignore_index} (ignored): there is nothing to learn from")


@torch.no_grad()
def _labelled_pixels(
    generator: FeatureGenerator,
    annotated: Annotated,
    schema: LabelSchema,
    recipe: Recipe,
    pixels_per_image: int,
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Features [P, C] and classes [P] of pixels drawn evenly from all images."""
    frame = recipe.frame_size(generator.img_resolution)
    top, bottom = recipe.crop or (0, frame[0])
    features, labels = [], []
    pairs = zip(annotated.latents, annotated.masks, strict=True)
    for z, mask in tqdm(pairs, "reading features", unit="image", total=len(annotated.masks), delay=2, leave=False):
        if tuple(mask.shape) != (bottom - top, frame[1]):
            raise ValueError(f"a mask is {tuple(mask.shape)} pixels, the images are {(bottom - top, frame[1])}")
        _, maps = synthesize(generator, dataclasses.replace(recipe, dtype="float32"), z[None])
        flat = mask.flatten()
        usable = (flat != schema.ignore_index).nonzero()[:, 0]
        chosen = usable[torch.randperm(len(usable), generator=random)[:pixels_per_image]]
        rows, columns = chosen // mask.shape[1] + top, chosen % mask.shape[1]
        features.append(gather_features(maps, rows, columns, frame))
        labels.append(flat[chosen].to(generator.device))
    return torch.cat(features), torch.cat(labels)


def gather_features(maps: Sequence[Tensor], rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """Concatenated features of some pixels of one image, as if every map were resized to `size` (bilinear).

    Args:
        maps: [1, C_l, h_l, w_l].
        rows, columns: places of P pixels in the frame.
        size: (H, W) of the frame.

    Returns:
        float32 [P, C].
    """
    # grid_sample's coordinates run from -1 to 1 over the outer edges of a map, whatever its size; clamping at the
    # border is what bilinear resizing does.
    x = (columns.to(maps[0].device) + 0.5) * (2 / size[1]) - 1
    y = (rows.to(maps[0].device) + 0.5) * (2 / size[0]) - 1
    grid = torch.stack([x, y], dim=-1)[None, None]
    picked = [
        F.grid_sample(f.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0]
        for f in maps
    ]
    return torch.cat(picked).t()


class _Members(nn.Module):
    """M classifiers Linear-ReLU-BatchNorm-Linear-ReLU-BatchNorm-Linear as batched matrices [M, …]."""

    def __init__(self, members: int, widths: Sequence[int], random: torch.Generator) -> None:
        super().__init__()
        self.members = members
        self.weights, self.biases, self.norms = nn.ParameterList(), nn.ParameterList(), nn.ModuleList()
        for n_in, n_out in pairwise(widths):
            bound = n_in**-0.5  # PyTorch's default for linear layers
            self.weights.append((torch.rand(members, n_in, n_out, generator=random) * 2 - 1) * bound)
            self.biases.append((torch.rand(members, 1, n_out, generator=random) * 2 - 1) * bound)
        for width in widths[1:-1]:
            self.norms.append(nn.BatchNorm1d(members * width, eps=BATCH_NORM_EPS))

    def forward(self, x: Tensor) -> Tensor:
        """[M, P, C] -> logits [M, P, K]."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < len(self.norms):
                stacked = x.relu().transpose(0, 1).flatten(1)  # [P, M·h]: each member's units have their own statistics
                x = self.norms[i](stacked).unflatten(1, (self.members, -1)).transpose(0, 1)
        return x

    def state_dicts(self) -> list[dict[str, Tensor]]:
        """Each member in the published layout, see `stack_members`."""
        members: list[dict[str, Tensor]] = [{} for _ in range(self.members)]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            for m, member in enumerate(members):
                member[f"layers.{3 * i}.weight"] = weight[m].detach().t()
                member[f"layers.{3 * i}.bias"] = bias[m, 0].detach()
        for i, norm in enumerate(self.norms):
            for name in ("weight", "bias", "running_mean", "running_var"):
                for member, values in zip(members, getattr(norm, name).detach().chunk(self.members), strict=True):
                    member[f"layers.{3 * i + 2}.{name}"] = values
        return members


class _BalancedDraws:
    """Draws pixels, those of rare classes more often than they occur."""

    def __init__(self, labels: Tensor, balance: float, random: torch.Generator) -> None:
        weights = torch.bincount(labels.cpu()).double().clamp(min=1) ** -balance
        self.cumulative = weights[labels.cpu()].cumsum(0)
        self.random = random

    def __call__(self, *shape: int) -> Tensor:
        """Positions of drawn pixels, int64 of that shape, on the CPU."""
        uniform = torch.rand(shape, generator=self.random, dtype=torch.float64)
        drawn = torch.searchsorted(self.cumulative, uniform * self.cumulative[-1], right=True)
        return drawn.clamp(max=len(self.cumulative) - 1)


def _train(
    network: _Members,
    features: Tensor,
    labels: Tensor,
    draw: _BalancedDraws,
    steps: int,
    batch_pixels: int,
    learning_rate: float,
) -> None:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in tqdm(range(steps), "training the interpreter", unit="step", delay=2, leave=False):
            drawn = draw(network.members, batch_pixels).to(features.device)
            logits = network(features[drawn])
            loss = F.cross_entropy(logits.flatten(0, 1), labels[drawn].flatten()) * network.members
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
