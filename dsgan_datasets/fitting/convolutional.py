"""Whole annotated images -> a `ConvolutionalInterpreter` that has not learned them by heart.

Sixteen images are few for a network that sees neighbors. It is kept from learning them by heart by whole channels of
features that are left out at random and by noise on the rest, by averaging its weights over the steps, and by the
number of steps: held-out images say how many are best, and as many are then made on all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.fitting.annotated import AnnotatedImages, check_annotated
from dsgan_datasets.fitting.regions import Region
from dsgan_datasets.fitting.settings import ConvolutionalSettings, FitSettings
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import fusion
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.convolutional import ConvolutionalInterpreter
from dsgan_datasets.interpreters.fusion import FusionWeights
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Weights that are used are a running mean over about so many steps.
_AVERAGED = 50


@dataclass(frozen=True)
class AnnotatedMaps:
    """Feature maps of whole images with their masks: made once, read in every step.

    Attributes:
        levels: of each size, coarse to fine, [A, C, h, w]; in bfloat16, which keeps sixteen images of 512² in 2 GB.
        masks: int64 [A, H, W] on the same device, the labeled rows of the frame.
        frame: size and rows.
        schema: classes of the masks.
        layout: of the features.
        channels: of each map.
        counts: maps of each level.
    """

    levels: list[Tensor]
    masks: Tensor
    frame: Frame
    schema: LabelSchema
    layout: str
    channels: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def gather(
        cls, generator: FeatureGenerator, annotated: AnnotatedImages, schema: LabelSchema, recipe: Recipe
    ) -> AnnotatedMaps:
        """Compute the maps of all images; ValueError if masks or latents do not fit."""
        check_annotated(generator, annotated, schema, recipe)
        channels = tuple(generator.feature_channels)
        counts = tuple(len(list(same)) for _, same in groupby(generator.feature_sizes))
        exact = recipe.override(dtype="float32")
        number, ends = len(annotated), list(accumulate(counts, initial=0))
        shapes = [(number, sum(channels[a:b]), *generator.feature_sizes[a]) for a, b in pairwise(ends)]
        # Filled image by image: gathered images and their concatenation would take the memory twice.
        levels = [torch.empty(shape, dtype=torch.bfloat16, device=generator.device) for shape in shapes]
        with tqdm(total=number, desc="reading features", unit="image", delay=2, leave=False) as progress:

            def read(image: int) -> None:
                maps = synthesize(generator, exact, annotated.latents[image : image + 1])[1]
                for level, values in zip(levels, fusion.grouped(maps, counts, torch.bfloat16), strict=True):
                    level[image] = values[0]
                progress.update()

            parallel_map(read, range(number), generator.device)
        frame = Frame(recipe.frame_size(generator.img_size), recipe.crop)
        masks = annotated.masks.to(generator.device)
        return cls(levels, masks, frame, schema, generator.features, channels, counts)


@dataclass(frozen=True)
class ConvolutionalTrainer:
    """Trains networks on any of the annotated images, whose maps are made once; a `Trainer`.

    Attributes:
        maps: of all images.
        settings: of the training.
        random: of initial weights and draws.
    """

    maps: AnnotatedMaps
    settings: FitSettings
    random: torch.Generator

    @classmethod
    def of(
        cls,
        generator: FeatureGenerator,
        annotated: AnnotatedImages,
        target: LabelSchema,
        recipe: Recipe,
        settings: FitSettings,
    ) -> Self:
        """Check the masks and compute the maps; ValueError if masks or latents do not fit."""
        maps = AnnotatedMaps.gather(generator, annotated, target, recipe)
        return cls(maps, settings, torch.Generator().manual_seed(settings.seed))

    @property
    def lengths(self) -> list[int]:
        """Steps of the trainings that held-out images choose from."""
        settings = self.settings.convolutional
        return settings.looked_at if settings.steps is None else [settings.steps]

    @property
    def ways(self) -> int:
        """One for each number of steps."""
        return len(self.lengths)

    def trials(self, images: Tensor, description: str) -> list[ConvolutionalInterpreter]:
        """Interpreters for some of the images, int64 numbers: one after each of `lengths` steps."""
        return self._trained(images, self.random, self.lengths, description)

    def train(self, trial: int | None = None) -> ConvolutionalInterpreter:
        """An interpreter for all images, after as many steps as in a trial; half of the most if there was none."""
        # Of its own, so that the weights do not depend on what was held out before.
        random = torch.Generator().manual_seed(self.settings.seed)
        images = torch.arange(len(self.maps.masks))
        return self._trained(images, random, [self._steps(trial)], "training the interpreter")[0]

    def reported(self, interpreter: Any, trial: int | None = None) -> dict[str, str | float | None]:
        """The settings of `train`, as a card shows them."""
        settings = self.settings.convolutional
        names = ("batch_images", "region", "learning_rate", "weight_decay", "channel_dropout", "noise", "dice")
        own = {name: getattr(settings, name) for name in names}
        return {"steps": self._steps(trial), **own, "seed": self.settings.seed}

    def _steps(self, trial: int | None) -> int:
        return self.lengths[(self.ways - 1) // 2 if trial is None else trial]

    def _trained(
        self, images: Tensor, random: torch.Generator, at: Sequence[int], description: str
    ) -> list[ConvolutionalInterpreter]:
        """Interpreters for some images, as they are after each of some numbers of steps, ascending.

        Each member has its own initial weights and draws; on a CPU each is trained on a thread of its own.
        """
        maps, settings = self.maps, self.settings.convolutional
        device = maps.masks.device
        if not bool((maps.masks[images.to(device)] != maps.schema.ignore_index).any()):
            raise ValueError("every pixel of these images is ignored: there is nothing to learn from")
        scaled, dtype = [_moments(level, images) for level in maps.levels], self.settings.product_dtype(device)
        members = [_Member.of(maps, images, scaled, settings, dtype, random) for _ in range(settings.members)]
        with tqdm(total=at[-1] * len(members), desc=description, unit="step", delay=2, leave=False) as progress:

            def work(member: _Member) -> list[dict[str, Tensor]]:
                return member.train(at, progress)

            snapshots = parallel_map(work, members, device)
        interpreters = []
        for taken in zip(*snapshots, strict=True):
            stacked = {k: torch.cat([s[k] for s in taken], 1 if k.startswith("mix") else 0) for k in taken[0]}
            weights = _unscaled(stacked, scaled)
            if any(not bool(tensor.isfinite().all()) for tensor in weights.values()):
                raise ValueError(
                    "the training diverged (its weights contain NaN or infinity): choose a smaller learning_rate than "
                    f"{settings.learning_rate:g}; {ConvolutionalSettings().learning_rate:g} is usual"
                )
            interpreters.append(
                ConvolutionalInterpreter(weights, layout=maps.layout, channels=maps.channels, levels=maps.counts)
            )
        return interpreters


@torch.no_grad()
def _moments(level: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of each channel over some images of [A, C, h, w], image by image.

    As in `pixels.moments` no deviation is nearly 0.
    """
    images = rows.tolist()
    mean = torch.stack([level[i].float().mean((1, 2)) for i in images]).mean(0)
    squares = [(level[i].float() - mean[:, None, None]).square_().mean((1, 2)) for i in images]
    std = torch.stack(squares).mean(0).sqrt()
    return mean, std.clamp_min(max(0.01 * float(std.median()), 1e-6))


def _unscaled(weights: dict[str, Tensor], scaled: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Networks for features as the generator gives them: P (f − mean) / std + b = (P / std) f + (b − P mean / std)."""
    for i, (mean, std) in enumerate(scaled):
        weights[f"project_{i}"] = weights[f"project_{i}"] / std
        weights[f"bias_{i}"] = weights[f"bias_{i}"] - weights[f"project_{i}"] @ mean
    return weights


@dataclass
class _Member:
    """One network in training.

    Attributes:
        maps: of all images.
        rows: numbers of the images that it learns from, int64.
        scaled: mean and standard deviation of each level.
        settings: of the training.
        dtype: of products.
        weights: its tensors, trained in place.
        random: of dropout and noise, on the device.
    """

    maps: AnnotatedMaps
    rows: Tensor
    scaled: Sequence[tuple[Tensor, Tensor]]
    settings: ConvolutionalSettings
    dtype: torch.dtype
    weights: dict[str, Tensor]
    random: torch.Generator

    @classmethod
    def of(
        cls,
        maps: AnnotatedMaps,
        rows: Tensor,
        scaled: Sequence[tuple[Tensor, Tensor]],
        settings: ConvolutionalSettings,
        dtype: torch.dtype,
        random: torch.Generator,
    ) -> _Member:
        """With initial weights: He's for what a ReLU follows, and classes as frequent as in the masks."""
        device = maps.masks.device

        def normal(*shape: int, fan_in: int) -> Tensor:
            return torch.randn(shape, generator=random) * math.sqrt(2 / fan_in)

        weights: dict[str, Tensor] = {}
        below = 0
        for i, level in enumerate(maps.levels):
            channels, height, wide = level.shape[1:]
            width = settings.width_of(max(height, wide))
            weights[f"project_{i}"] = normal(1, width, channels, fan_in=channels + below)
            weights[f"bias_{i}"] = torch.zeros(1, width)
            if i:
                weights[f"carry_{i}"] = normal(1, width, below, fan_in=channels + below)
            depth = settings.convolutions
            # What is added to x is small at first.
            weights[f"mix_{i}"] = 0.3 * normal(depth, 1, width, width, 3, 3, fan_in=9 * width)
            weights[f"mix_bias_{i}"] = torch.zeros(depth, 1, width)
            below = width
        classes = maps.schema.num_classes
        known = maps.masks[rows.to(device)]
        known = known[known != maps.schema.ignore_index]
        frequency = torch.bincount(known, minlength=classes).cpu() / len(known)
        weights["head"] = 0.3 * normal(1, classes, below, fan_in=below)
        weights["head_bias"] = (frequency + 1e-4).log()[None]
        seed = int(torch.randint(2**62, (), generator=random))
        generator = torch.Generator(device).manual_seed(seed)
        return cls(maps, rows, scaled, settings, dtype, {k: v.to(device) for k, v in weights.items()}, generator)

    def train(self, at: Sequence[int], progress: tqdm[Any]) -> list[dict[str, Tensor]]:
        """Train in place; the averaged weights after each of these numbers of steps."""
        settings, trained = self.settings, {k: v.requires_grad_() for k, v in self.weights.items()}
        fused = self.maps.masks.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(
            trained.values(), settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
        )
        averaged = {name: tensor.detach().clone() for name, tensor in trained.items()}
        snapshots = []
        order: list[int] = []
        for step in range(1, at[-1] + 1):
            while len(order) < settings.batch_images:  # each image as often as any other
                order += self.rows[self._permutation(len(self.rows))].tolist()
            drawn, order = order[: settings.batch_images], order[settings.batch_images :]
            with torch.enable_grad():
                loss = self._loss(FusionWeights.of(trained), torch.tensor(drawn, device=self.maps.masks.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            optimizer.step()
            share = max(1 / _AVERAGED, 1 / step)
            with torch.no_grad():
                for name, tensor in trained.items():
                    averaged[name].lerp_(tensor, share)
            if step in at:
                snapshots.append({name: tensor.clone() for name, tensor in averaged.items()})
            progress.update()
        return snapshots

    def _permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.random, device=self.random.device).cpu()

    def _loss(self, weights: FusionWeights, drawn: Tensor) -> Tensor:
        """Cross-entropy and Dice of a batch of images."""
        maps, schema, dtype = self.maps, self.maps.schema, self.dtype
        region = self._region(weights.convolutions)
        levels = [
            self._disturbed((region.cut(level, i)[drawn].float() - mean[:, None, None]) / std[:, None, None]).to(dtype)
            for i, (level, (mean, std)) in enumerate(zip(maps.levels, self.scaled, strict=True))
        ]
        logits = fusion.logits(weights.in_precision(dtype), levels, region.resize)[:, 0]
        top = maps.frame.kept[0]
        rows, columns = slice(region.rows[0] - top, region.rows[1] - top), slice(*region.columns)
        return _segmentation_loss(logits, maps.masks[drawn][:, rows, columns], schema.ignore_index, self.settings.dice)

    def _region(self, convolutions: Sequence[int]) -> Region:
        """A random part of the frame, up to `region` pixels long and wide; a small frame as a whole."""
        frame, most = self.maps.frame, self.settings.region
        spans: list[tuple[int, int]] = []
        for first, last in (frame.kept, (0, frame.size[1])):
            length = min(most, last - first)
            offset = torch.randint(last - first - length + 1, (), generator=self.random, device=self.random.device)
            spans.append((first + int(offset), first + int(offset) + length))
        sizes = [(level.shape[2], level.shape[3]) for level in self.maps.levels]
        return Region.of(spans[0], spans[1], frame.size, sizes, convolutions)

    def _disturbed(self, level: Tensor) -> Tensor:
        """Features [B, C, h, w] with noise, and without some channels."""
        share, noise = self.settings.channel_dropout, self.settings.noise
        if noise:
            level = level + noise * torch.randn(level.shape, generator=self.random, device=level.device)
        if share:
            kept = torch.rand(level.shape[:2], generator=self.random, device=level.device) >= share
            level = level * (kept / (1 - share))[:, :, None, None]
        return level


def _segmentation_loss(logits: Tensor, masks: Tensor, ignore_index: int, dice: float) -> Tensor:
    """Cross-entropy plus `dice` times the soft Dice loss (Milletari et al. 2016) over the classes of the batch.

    Args:
        logits: [B, K, H, W].
        masks: class ids int64 [B, H, W].
        ignore_index: of pixels that count in neither.
        dice: weight of the second.
    """
    counted = masks != ignore_index
    entropy = F.cross_entropy(logits, masks, ignore_index=ignore_index, reduction="sum") / counted.sum().clamp_min(1)
    if not dice:
        return entropy
    truth = F.one_hot(masks * counted, logits.shape[1]).permute(0, 3, 1, 2) * counted[:, None]
    p = logits.softmax(1) * counted[:, None]
    area = truth.sum((0, 2, 3))
    overlap = 2 * (p * truth).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + area).clamp_min(1)
    present = area > 0
    return entropy + dice * (1 - overlap)[present].sum() / present.sum().clamp_min(1)
