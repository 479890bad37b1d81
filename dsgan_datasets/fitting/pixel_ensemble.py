"""AnnotatedImages samples -> interpreter: trains all members of the ensemble at once, on a handful of images.

Only labeled pixels are looked at: their features are read from each map at its native resolution, by bilinear
interpolation at the pixel's place. The full-resolution tensor of the published code (16 images of 512² with 5,056
channels: 80 GB in float32) is never made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.loading import BATCH_NORM_EPS, stack_members
from dsgan_datasets.interpreters.pixel_ensemble import PixelEnsemble
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema


@dataclass(frozen=True)
class AnnotatedImages:
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
    annotated: AnnotatedImages,
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
    standardize: bool = True,
    anneal: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
    seed: int = 0,
) -> PixelEnsemble:
    """Train an ensemble of pixel classifiers (DatasetGAN, section 3.1 and appendix).

    Every member has its own initial weights and draws its own pixels; they are trained together as batched matrices.
    The published recipe is ``class_balance=0, dtype="float32"``. The defaults differ from it where that won;
    docs/fit.md says by how much, and what else was tried.

    Args:
        generator: the frozen generator, on the device to train on.
        annotated: its annotated images.
        schema: the classes of the masks.
        recipe: how the images were made (truncation, noise, size, crop); None is the default recipe of the generator's
            feature layout.
        members: number of classifiers M.
        hidden: widths of the hidden layers; None is (128, 32) up to 31 classes and (256, 128) from 32, as published.
        pixels_per_image: pixels drawn from each image; more than an image has means all of them.
        steps: optimizer steps (Adam).
        batch_pixels: pixels a step, for each member.
        learning_rate: of Adam; at the start, if it is annealed.
        class_balance: pixels of a class of frequency p are drawn with weight p ** -class_balance: 0 draws pixels as
            they come (as published), 1 draws every class equally often. Small parts need some of it.
        standardize: bring every feature to mean 0 and variance 1 first (published: as it is); it folds into the first
            layer afterwards.
        anneal: let the learning rate fall to 0 along a cosine; if not, it is constant.
        dtype: in which the first layer is multiplied while training, "float32" or "bfloat16" (weights and all sums are
            float32); None takes bfloat16 where the hardware has it.
        seed: of initial weights and of all draws; the same seed gives the same interpreter on the same machine.

    Returns:
        the interpreter, on the generator's device, with the recipe's vote and top_fraction.

    Raises:
        ValueError: masks and images differ in size, or a mask holds a class that the schema does not name.

    Example:
        >>> ensemble = fit_interpreter(generator, AnnotatedImages(z, masks), schema)  # doctest: +SKIP
    """
    recipe = recipe or Recipe(features=generator.features)
    settings = Settings(
        members=members,
        hidden=hidden,
        pixels_per_image=pixels_per_image,
        steps=steps,
        batch_pixels=batch_pixels,
        learning_rate=learning_rate,
        class_balance=class_balance,
        standardize=standardize,
        anneal=anneal,
        dtype=dtype,
        seed=seed,
    )
    random = torch.Generator().manual_seed(seed)
    pixels = LabeledPixels.gather(generator, annotated, schema, recipe, pixels_per_image, random)
    return train_ensemble(pixels, recipe, settings, random)


@dataclass(frozen=True)
class Settings:
    """How an ensemble is trained; the arguments of `fit_interpreter`, which explains and defaults them.

    Raises:
        ValueError: a value out of range.
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


@dataclass(frozen=True)
class LabeledPixels:
    """What an ensemble is trained on.

    Attributes:
        features: float32 [P, C], as the generator gives them.
        labels: class ids int64 [P].
        image: number of the annotated image that each pixel is of, int64 [P] on the CPU.
        num_classes: K.
    """

    features: Tensor
    labels: Tensor
    image: Tensor
    num_classes: int

    @classmethod
    @torch.no_grad()
    def gather(
        cls,
        generator: FeatureGenerator,
        annotated: AnnotatedImages,
        schema: LabelSchema,
        recipe: Recipe,
        pixels_per_image: int,
        random: torch.Generator,
    ) -> LabeledPixels:
        """Draw pixels evenly from all images and read their features; ValueError if masks or latents do not fit."""
        num_classes = len(schema.class_map or schema.classes)
        check_annotated(generator, annotated, schema, recipe)
        frame = recipe.frame_size(generator.img_resolution)
        top, width = (recipe.crop or (0, 0))[0], frame[1]
        chosen = [_choose(mask, schema.ignore_index, pixels_per_image, random) for mask in annotated.masks]
        counts = torch.tensor([len(places) for places in chosen])
        # Filled image by image: gathered pieces and their concatenation would take the memory twice.
        features = torch.empty(int(counts.sum()), sum(generator.feature_channels), device=generator.device)
        slots = features.split(counts.tolist())
        with tqdm(total=len(slots), desc="reading features", unit="image", delay=2, leave=False) as progress:

            def read(number: int) -> None:
                z, places = annotated.latents[number], chosen[number]
                _, maps = synthesize(generator, dataclasses.replace(recipe, dtype="float32"), z[None])
                slots[number].copy_(gather_features(maps, places // width + top, places % width, frame))
                progress.update()

            parallel_map(read, range(len(slots)), generator.device)
        labels = [mask.flatten()[places] for mask, places in zip(annotated.masks, chosen, strict=True)]
        image = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return cls(features, torch.cat(labels).to(generator.device), image, num_classes)


def train_ensemble(
    pixels: LabeledPixels,
    recipe: Recipe,
    settings: Settings,
    random: torch.Generator,
    *,
    rows: Tensor | None = None,
    description: str = "training the interpreter",
) -> PixelEnsemble:
    """An ensemble for some pixels; the part of `fit_interpreter` that cross-validation repeats.

    Args:
        pixels: gathered once.
        recipe: gives vote and top_fraction.
        settings: all but `seed` and `pixels_per_image`, which are used up.
        random: of initial weights and draws.
        rows: pixels to train on, int64 on the CPU; None for all.
        description: of the progress bar.
    """
    rows = torch.arange(len(pixels.labels)) if rows is None else rows
    if not len(rows):
        raise ValueError("every pixel of these images is ignored: there is nothing to learn from")
    channels, k = pixels.features.shape[1], pixels.num_classes
    mean, std = _moments(pixels.features, rows) if settings.standardize else (None, None)
    hidden = settings.hidden or ((128, 32) if k < 32 else (256, 128))
    device, widths = pixels.features.device, (channels, *hidden, k)
    # On the CPU each member is trained on a thread of its own: threads that share one small product mostly wait for
    # each other. A GPU takes all members at once.
    together = 1 if device.type == "cpu" else settings.members
    dtype = _product_dtype(device, settings)
    networks = [_Members(together, widths, random, dtype).to(device) for _ in range(settings.members // together)]
    draw = _BalancedDraws(pixels.labels, rows, settings.class_balance, random)
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
    ensemble = PixelEnsemble(weights, vote=recipe.vote, top_fraction=recipe.top_fraction).to(device)
    some = pixels.features[rows[:64]]
    if not ensemble.logits([some.t()[None, :, None]], (1, len(some))).isfinite().all():
        raise ValueError(
            f"the training diverged, what it gives are no numbers: choose a smaller learning_rate than "
            f"{settings.learning_rate:g}; 0.001 is usual"
        )
    return ensemble


def _product_dtype(device: torch.device, settings: Settings) -> torch.dtype:
    """The precision asked for, or bfloat16 where the hardware multiplies in it."""
    if settings.dtype is not None:
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def check_annotated(
    generator: FeatureGenerator, annotated: AnnotatedImages, schema: LabelSchema, recipe: Recipe
) -> None:
    """ValueError if latents, sizes or classes do not fit the generator, the recipe or the schema."""
    if annotated.latents.shape[1] != generator.z_dim:
        raise ValueError(f"latents have {annotated.latents.shape[1]} numbers, the generator's z has {generator.z_dim}")
    _check_masks(annotated.masks, len(schema.class_map or schema.classes), schema.ignore_index)
    size = recipe.image_size(generator.img_resolution)
    if tuple(annotated.masks.shape[1:]) != size:
        raise ValueError(f"a mask is {tuple(annotated.masks.shape[1:])} pixels, the images are {size}")


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


def _choose(mask: Tensor, ignore_index: int, count: int, random: torch.Generator) -> Tensor:
    """Places of up to `count` pixels in the flattened mask, none of them ignored."""
    usable = (mask.flatten() != ignore_index).nonzero()[:, 0]
    return usable[torch.randperm(len(usable), generator=random)[:count]]


@torch.no_grad()
def _moments(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over some rows, without a copy of them.

    No deviation is less than a hundredth of the median one: a channel that hardly varies in the few annotated images
    would drown all others in an image where it does.
    """
    blocks = [block.to(features.device) for block in rows.split(4096)]
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for block in blocks:
        total += features[block].sum(0)
    mean = (total / len(rows)).float()
    squares = torch.zeros_like(total)
    for block in blocks:
        squares += (features[block] - mean).square_().sum(0)
    std = (squares / len(rows)).sqrt().float()
    return mean, std.clamp_min(max(0.01 * float(std.median()), 1e-6))


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
            self.norms.append(_MemberNorm(members, width))

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


class _MemberNorm(nn.Module):
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
        mean = x.mean(1, keepdim=True)
        centered = x - mean
        var = centered.square().mean(1, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (x.shape[1] / (x.shape[1] - 1)), self.momentum)
        return centered * (self.weight * (var + BATCH_NORM_EPS).rsqrt()) + self.bias


class _BalancedDraws:
    """Draws some of the pixels, those of rare classes more often than they occur."""

    def __init__(self, labels: Tensor, rows: Tensor, balance: float, random: torch.Generator) -> None:
        drawn_from = labels.cpu()[rows]
        weights = torch.bincount(drawn_from).double().clamp(min=1) ** -balance
        self.cumulative = weights[drawn_from].cumsum(0)
        self.rows = rows
        self.random = random

    def __call__(self, *shape: int) -> Tensor:
        """Positions of drawn pixels, int64 of that shape, on the CPU."""
        uniform = torch.rand(shape, generator=self.random, dtype=torch.float64)
        drawn = torch.searchsorted(self.cumulative, uniform * self.cumulative[-1], right=True)
        return self.rows[drawn.clamp(max=len(self.cumulative) - 1)]


def _train(
    network: _Members,
    pixels: LabeledPixels,
    draws: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    settings: Settings,
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
