"""Annotated images -> an ensemble that looks at each pixel: all members are trained at once, on a handful of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets.fitting.annotated import AnnotatedImages, check_annotated
from dsgan_datasets.fitting.pixels import BalancedDraws, LabeledPixels, moments
from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.fitting.tasks import TASKS, PixelTask
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.interpreters.ensemble import Ensemble
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.interpreters.loading import BATCH_NORM_EPS, stack_members
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target


@dataclass(frozen=True)
class PixelTrainer:
    """Trains ensembles on any of the annotated images, whose features are read once; a `Trainer`.

    Attributes:
        pixels: of all images.
        task: what is learned of them.
        settings: of the training.
        random: of initial weights and draws.
        layout: of the features, and channels of each map.
    """

    pixels: LabeledPixels
    task: PixelTask
    settings: FitSettings
    random: torch.Generator
    layout: tuple[str, Sequence[int]]

    @classmethod
    def of(
        cls,
        generator: FeatureGenerator,
        annotated: AnnotatedImages,
        target: Target,
        recipe: Recipe,
        settings: FitSettings,
    ) -> Self:
        """Check the labels, choose pixels, and read their features.

        Raises:
            ValueError: labels that do not fit, or of a kind that is not learned pixel by pixel.
        """
        check_annotated(generator, annotated, target, recipe)
        if target.kind not in TASKS:
            raise ValueError(f"labels of kind {target.kind!r} are not learned; those that are: {', '.join(TASKS)}")
        size = recipe.image_size(generator.img_size)
        task = TASKS[target.kind](annotated.of(target.field).cpu(), target, settings, size)
        random = torch.Generator().manual_seed(settings.seed)
        pixels = LabeledPixels.gather(generator, annotated.latents, task, recipe, settings.pixels_per_image, random)
        return cls(pixels, task, settings, random, (generator.features, generator.feature_channels))

    @property
    def ways(self) -> int:
        """One."""
        return 1

    def trials(self, images: Tensor, description: str) -> list[Any]:
        """An ensemble for some of the images, int64 numbers; ValueError if the training diverged."""
        rows = torch.isin(self.pixels.image, images).nonzero()[:, 0]
        return [self._trained(rows, description)]

    def train(self, trial: int | None = None) -> Any:
        """An ensemble for all images; ValueError if the training diverged."""
        return self._trained(torch.arange(len(self.pixels.image)), "training the interpreter")

    def reported(self, interpreter: Any, trial: int | None = None) -> dict[str, str | float | None]:
        """The settings, as a card shows them; the number of members is in the interpreter's config."""
        points = isinstance(interpreter, KeypointEnsemble)
        left_out = ("hidden", "convolutional") if points else ("hidden", "convolutional", "sigma")
        names = [field.name for field in dataclasses.fields(self.settings) if field.name not in left_out]
        hidden = "/".join(map(str, interpreter.config["hidden"]))
        return {**{name: getattr(self.settings, name) for name in names}, "hidden": hidden}

    def _trained(self, rows: Tensor, description: str) -> Ensemble:
        ensemble = train_ensemble(self.pixels, self.task, self.settings, self.random, rows, description)
        return ensemble.with_layout(*self.layout)


def train_ensemble(
    pixels: LabeledPixels,
    task: PixelTask,
    settings: FitSettings,
    random: torch.Generator,
    rows: Tensor,
    description: str,
) -> Ensemble:
    """An ensemble for some pixels, without a layout.

    Args:
        pixels: gathered once.
        task: what is learned of them.
        settings: all but `seed` and `pixels_per_image`, which are used up.
        random: of initial weights and draws.
        rows: pixels to train on, int64 on the CPU.
        description: of the progress bar.
    """
    if not len(rows):
        raise ValueError("every pixel of these images is ignored: there is nothing to learn from")
    channels = pixels.features.shape[1]
    mean, std = moments(pixels.features, rows) if settings.standardize else (None, None)
    device, widths = pixels.features.device, (channels, *(settings.hidden or task.hidden), task.outputs)
    # On the CPU each member is trained on a thread of its own: threads that share one small product mostly wait for
    # each other. A GPU takes all members at once.
    together = 1 if device.type == "cpu" else settings.members
    dtype = settings.product_dtype(device)
    learned, offset, scale = _standardized(pixels.learned, rows) if task.is_continuous else (pixels.learned, None, None)
    networks = [_Members(together, widths, random, dtype).to(device) for _ in range(settings.members // together)]
    draw = BalancedDraws(pixels.strata, rows, settings.class_balance, random)
    draws = [draw(settings.steps, together, settings.batch_pixels) for _ in networks]
    with tqdm(total=settings.steps * len(networks), desc=description, unit="step", delay=2, leave=False) as progress:

        def work(number: int) -> None:
            _train(networks[number], pixels.features, learned, task, draws[number], mean, std, settings, progress)

        parallel_map(work, range(len(networks)), device)
    weights = stack_members([state for network in networks for state in network.state_dicts()])
    if mean is not None and std is not None:
        # The first layer sees (f − mean) / std: f · (W / std) + (b − mean · W / std).
        weights["w1"] = weights["w1"] / std[:, None, None]
        weights["b1"] = weights["b1"] - torch.tensordot(mean, weights["w1"], dims=1)
    if offset is not None and scale is not None:  # the last layer gave (value − offset) / scale
        weights["w3"] = weights["w3"] * scale
        weights["b3"] = weights["b3"] * scale + offset
    # Members that saw pixels of frequency p with weight p ** -b expect them that much more often.
    expected = torch.as_tensor(task.log_prior(pixels.strata[rows])).to(weights["b3"])
    weights["b3"] = weights["b3"] + settings.prior * settings.class_balance * expected
    ensemble = task.interpreter(weights).to(device)
    some = pixels.features[rows[:64]]
    if not ensemble.outputs([some.t()[None, :, None]], (1, len(some))).isfinite().all():
        raise ValueError(
            f"the training diverged (its outputs contain NaN or infinity): choose a smaller learning_rate than "
            f"{settings.learning_rate:g}; 0.001 is usual"
        )
    return ensemble


def _standardized(learned: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [P, K] with mean 0 and variance 1 over some rows, and the mean and deviation [K] that they had; NaN is
    unknown, and of a channel that nothing is known of they are 0 and 1."""
    known = learned[rows.to(learned.device)]
    offset = known.nanmean(0).nan_to_num(0)
    scale = (known - offset).square().nanmean(0).sqrt().nan_to_num(1).clamp_min(1e-6)
    return (learned - offset) / scale, offset, scale


class _Members(nn.Module):
    """M networks Linear-ReLU-BatchNorm-Linear-ReLU-BatchNorm-Linear as batched matrices [M, …].

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
        """[M, P, C] -> outputs [M, P, K]."""
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
    features: Tensor,
    learned: Tensor,
    task: PixelTask,
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
            drawn = drawn.to(features.device)
            x = features[drawn]
            if mean is not None and std is not None:
                x.sub_(mean).div_(std)
            loss = task.loss(network(x), learned[drawn]) * network.members
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if settings.anneal:
                schedule.step()
            progress.update()
    network.eval()
