"""Labeled pixels -> a `PixelEnsemble`: all members are trained at once, on a handful of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.fitting.annotated import AnnotatedImages
from dsgan_datasets.fitting.pixels import BalancedDraws, LabeledPixels, moments
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.interpreters.loading import BATCH_NORM_EPS, stack_members
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class FitSettings:
    """How an ensemble is trained.

    Args:
        members: number of classifiers M.
        hidden: widths of the hidden layers; None is (128, 32) up to 31 classes and (256, 128) from 32, as published.
        pixels_per_image: pixels drawn from each image; more than an image has means all of them.
        steps: optimizer steps (Adam).
        batch_pixels: pixels per step, for each member.
        learning_rate: of Adam; at the start, if it is annealed.
        class_balance: pixels of a class of frequency p are drawn with weight p ** -class_balance: 0 draws pixels as
            they come (as published), 1 draws every class equally often. Small parts need some of it.
        standardize: bring every feature to mean 0 and variance 1 first (published: unchanged); it folds into the first
            layer afterwards.
        anneal: let the learning rate fall to 0 along a cosine; otherwise it is constant.
        dtype: in which the first layer is multiplied while training, "float32" or "bfloat16" (weights and all sums are
            float32); None takes bfloat16 where the hardware has it.
        seed: of initial weights and of all draws.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> FitSettings(members=5).steps
        1500
    """

    members: int = 10
    hidden: tuple[int, int] | None = None
    pixels_per_image: int = 4096
    steps: int = 1500
    batch_pixels: int = 256
    learning_rate: float = 1e-3
    class_balance: float = 0.5
    standardize: bool = True
    anneal: bool = False
    dtype: Literal["float32", "bfloat16"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("members", "pixels_per_image", "steps"):
            integer(name, getattr(self, name), 1)
        integer("batch_pixels", self.batch_pixels, 2)  # batch normalization needs two
        if self.hidden is not None and (len(self.hidden) != 2 or min(self.hidden) < 1):
            raise ValueError(f"hidden must be the widths of two layers, not {self.hidden}")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"dtype must be float32, bfloat16 or None, not {self.dtype!r}")
        if not 0 <= self.class_balance <= 1:
            raise ValueError(f"class_balance must lie in 0 … 1, not {self.class_balance}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")


def fit_interpreter(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    schema: LabelSchema,
    *,
    recipe: Recipe | None = None,
    settings: FitSettings | None = None,
    **changes: Any,
) -> PixelEnsemble:
    """Train an ensemble of pixel classifiers (DatasetGAN, section 3.1 and appendix).

    Each member has its own initial weights and draws its own pixels; all are trained together as batched matrices.
    The published recipe is ``FitSettings(class_balance=0, standardize=False, dtype="float32")``. The defaults differ
    from it where that won; docs/fit.md says by how much, and what else was tried.

    Args:
        generator: the frozen generator, on the device to train on.
        annotated: its annotated images.
        schema: the classes of the masks.
        recipe: how the images were made (truncation, noise, size, crop); None is the default recipe.
        settings: of the training; None for the defaults.
        changes: fields of the settings, by name: ``members=5`` is short for ``settings=FitSettings(members=5)``.

    Returns:
        the interpreter, on the generator's device, with the layout and channels of its maps. The same seed gives
        the same interpreter on the same machine.

    Raises:
        ValueError: masks and images differ in size, a mask holds a class that the schema does not name, or a setting is
            out of range.
        TypeError: a setting that does not exist.

    Example:
        >>> ensemble = fit_interpreter(generator, AnnotatedImages(z, masks), schema)  # doctest: +SKIP
    """
    recipe = recipe or Recipe()
    settings = dataclasses.replace(settings or FitSettings(), **changes)
    random = torch.Generator().manual_seed(settings.seed)
    pixels = LabeledPixels.gather(generator, annotated, schema, recipe, settings.pixels_per_image, random)
    ensemble = train_ensemble(pixels, settings, random)
    return ensemble.with_layout(generator.features, generator.feature_channels)


def train_ensemble(
    pixels: LabeledPixels,
    settings: FitSettings,
    random: torch.Generator,
    *,
    rows: Tensor | None = None,
    description: str = "training the interpreter",
) -> PixelEnsemble:
    """An ensemble for some pixels, without a layout; the part of `fit_interpreter` that cross-validation repeats.

    Args:
        pixels: gathered once.
        settings: all but `seed` and `pixels_per_image`, which are used up.
        random: of initial weights and draws.
        rows: pixels to train on, int64 on the CPU; None for all.
        description: of the progress bar.
    """
    rows = torch.arange(len(pixels.labels)) if rows is None else rows
    if not len(rows):
        raise ValueError("every pixel of these images is ignored: there is nothing to learn from")
    channels, k = pixels.features.shape[1], pixels.num_classes
    mean, std = moments(pixels.features, rows) if settings.standardize else (None, None)
    hidden = settings.hidden or ((128, 32) if k < 32 else (256, 128))
    device, widths = pixels.features.device, (channels, *hidden, k)
    # On the CPU each member is trained on a thread of its own: threads that share one small product mostly wait for
    # each other. A GPU takes all members at once.
    together = 1 if device.type == "cpu" else settings.members
    dtype = _product_dtype(device, settings)
    networks = [_Members(together, widths, random, dtype).to(device) for _ in range(settings.members // together)]
    draw = BalancedDraws(pixels.labels, rows, settings.class_balance, random)
    draws = [draw(settings.steps, together, settings.batch_pixels) for _ in networks]
    with tqdm(total=settings.steps * len(networks), desc=description, unit="step", delay=2, leave=False) as progress:

        def work(number: int) -> None:
            _train(networks[number], pixels, draws[number], mean, std, settings, progress)

        parallel_map(work, range(len(networks)), device)
    weights = stack_members([state for network in networks for state in network.state_dicts()])
    if mean is not None and std is not None:
        # The first layer sees (f − mean) / std: f · (W / std) + (b − mean · W / std).
        weights["w1"] = weights["w1"] / std[:, None, None]
        weights["b1"] = weights["b1"] - torch.tensordot(mean, weights["w1"], dims=1)
    ensemble = PixelEnsemble(weights).to(device)
    some = pixels.features[rows[:64]]
    if not ensemble.logits([some.t()[None, :, None]], (1, len(some))).isfinite().all():
        raise ValueError(
            f"the training diverged (its logits contain NaN or infinity): choose a smaller learning_rate than "
            f"{settings.learning_rate:g}; 0.001 is usual"
        )
    return ensemble


def _product_dtype(device: torch.device, settings: FitSettings) -> torch.dtype:
    """The precision asked for, or bfloat16 where the hardware multiplies in it."""
    if settings.dtype is not None:
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


class _Members(nn.Module):
    """M classifiers Linear-ReLU-BatchNorm-Linear-ReLU-BatchNorm-Linear as batched matrices [M, …].

    Args:
        members: M.
        widths: of input, hidden layers and output.
        random: of the initial weights.
        dtype: in which the first layer, nearly all of the work, is multiplied.
    """

    def __init__(
        self, members: int, widths: Sequence[int], random: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.members, self.dtype = members, dtype
        self.weights, self.biases, self.norms = nn.ParameterList(), nn.ParameterList(), nn.ModuleList()
        for n_in, n_out in pairwise(widths):
            bound = n_in**-0.5  # PyTorch's default for linear layers
            self.weights.append((torch.rand(members, n_in, n_out, generator=random) * 2 - 1) * bound)
            self.biases.append((torch.rand(members, 1, n_out, generator=random) * 2 - 1) * bound)
        for width in widths[1:-1]:
            self.norms.append(MemberNorm(members, width))

    def forward(self, x: Tensor) -> Tensor:
        """[M, P, C] -> logits [M, P, K]."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if i == 0 and self.dtype != torch.float32:
                x = torch.bmm(x.to(self.dtype), weight.to(self.dtype)).float() + bias
            else:
                x = torch.baddbmm(bias, x, weight)
            if i < len(self.norms):
                x = self.norms[i](x.relu())
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
                for member, values in zip(members, getattr(norm, name).detach(), strict=True):
                    member[f"layers.{3 * i + 2}.{name}"] = values[0]
        return members


class MemberNorm(nn.Module):
    """Batch normalization of every unit of every member, [M, P, h] -> [M, P, h]; statistics are those of training.

    Written out, as PyTorch's takes [P, M·h]: the transposes cost more than the rest of the small layers.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, members: int, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))
        self.register_buffer("running_mean", torch.zeros(members, 1, width))
        self.register_buffer("running_var", torch.ones(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[M, P, h] -> [M, P, h]; updates the running statistics."""
        mean = x.mean(1, keepdim=True)
        centered = x - mean
        var = centered.square().mean(1, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (x.shape[1] / (x.shape[1] - 1)), self.momentum)
        return centered * (self.weight * (var + BATCH_NORM_EPS).rsqrt()) + self.bias


def _train(
    network: _Members,
    pixels: LabeledPixels,
    draws: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    settings: FitSettings,
    progress: tqdm[NoReturn],
) -> None:
    """Train in place on the drawn pixels, int64 [steps, M, P] on the CPU."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    with torch.enable_grad():
        for drawn in draws:
            drawn = drawn.to(pixels.features.device)
            x = pixels.features[drawn]
            if mean is not None and std is not None:
                x.sub_(mean).div_(std)
            loss = F.cross_entropy(network(x).flatten(0, 1), pixels.labels[drawn].flatten()) * network.members
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if settings.anneal:
                schedule.step()
            progress.update()
    network.eval()
