"""Whole annotated images -> a `ConvolutionalInterpreter`, and how long to train it so that it does not learn them by
heart.

Sixteen images are few for a network that sees neighbors. It is kept from learning them by heart by whole channels of
features that are left out at random and by noise on the rest, by averaging its weights over the steps, and by the
number of steps: held-out images say how many are best, and as many are then made on all images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dsgan_datasets.checks import integer
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.fitting.annotated import AnnotatedImages, check_annotated
from dsgan_datasets.fitting.evaluation import ConfusionMatrix, count_pairs
from dsgan_datasets.fitting.regions import Region
from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import fusion
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.interpreters.convolutional import ConvolutionalInterpreter
from dsgan_datasets.interpreters.fusion import FusionWeights
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.segmentation import LabelSchema

#: Levels up to so many pixels have the full width, larger ones half of it.
_FULL_WIDTH = 64
#: Weights that are used are a running mean over about so many steps.
_AVERAGED = 50


@dataclass(frozen=True)
class ConvolutionalSettings:
    """How a convolutional interpreter is trained.

    Args:
        members: number of networks M.
        width: channels of a member at levels up to 64 px; larger levels have half.
        convolutions: 3×3 convolutions of a level.
        steps: optimizer steps (AdamW); None takes what held-out images prefer, up to `max_steps`.
        max_steps: most steps that are tried.
        tries: how often held-out images are looked at until then, evenly spaced.
        batch_images: images a step, for each member.
        region: pixels along each side of the part of the images that a step sees; smaller images are seen as a whole.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        channel_dropout: share of the feature channels that a step leaves out, in [0, 1).
        noise: standard deviation of noise on the features, which have 1.
        dice: weight of the soft Dice loss beside cross-entropy; it keeps small parts without drawing them larger.
        dtype: in which products are computed while training, "float32" or "bfloat16"; None takes bfloat16 where the
            hardware has it.
        seed: of initial weights and of all draws.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> ConvolutionalSettings(members=3).members
        3
    """

    members: int = 5
    width: int = 32
    convolutions: int = 1
    steps: int | None = None
    max_steps: int = 400
    tries: int = 8
    batch_images: int = 4
    region: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    channel_dropout: float = 0.2
    noise: float = 0.2
    dice: float = 1.0
    dtype: Literal["float32", "bfloat16"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("members", "max_steps", "tries", "batch_images", "region"):
            integer(name, getattr(self, name), 1)
        integer("width", self.width, 2, 4096)
        integer("convolutions", self.convolutions, 0, 64)
        if self.steps is not None:
            integer("steps", self.steps, 1)
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"dtype must be float32, bfloat16 or None, not {self.dtype!r}")
        if not 0 <= self.channel_dropout < 1:
            raise ValueError(f"channel_dropout must lie in [0, 1), not {self.channel_dropout}")
        for name in ("weight_decay", "noise", "dice"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")

    def width_of(self, side: int) -> int:
        """Channels of a level of so many pixels: large ones hold edges rather than parts."""
        return self.width if side <= _FULL_WIDTH else max(1, self.width // 2)

    @property
    def looked_at(self) -> list[int]:
        """After which steps held-out images are labeled."""
        return sorted({max(1, self.max_steps * i // self.tries) for i in range(1, self.tries + 1)})


@dataclass(frozen=True)
class HeldOut:
    """What cross-validation found.

    Attributes:
        quality: agreement with the annotated masks, each image labeled by networks that did not see it.
        steps: of the training, by which that is best.
    """

    quality: ConfusionMatrix
    steps: int


def fit_convolutional(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    schema: LabelSchema,
    *,
    recipe: Recipe | None = None,
    settings: ConvolutionalSettings | None = None,
    folds: int = 4,
    **changes: Any,
) -> ConvolutionalInterpreter:
    """Train a convolutional interpreter on whole annotated images.

    Args:
        generator: the frozen generator, on the device to train on.
        annotated: its annotated images.
        schema: the classes of the masks.
        recipe: how the images were made (truncation, noise, size, crop); None is the default recipe.
        settings: of the training; None for the defaults.
        folds: parts of the check that chooses the number of steps, where the settings do not; at most one per image. A
            single image is trained on for half of `max_steps`.
        changes: fields of the settings, by name.

    Returns:
        the interpreter, on the generator's device. The same seed gives the same interpreter on the same machine.

    Raises:
        ValueError: masks that do not fit, a setting out of range, or a training that diverged.
        TypeError: a setting that does not exist.

    Example:
        >>> fit_convolutional(generator, AnnotatedImages(z, masks), schema)  # doctest: +SKIP
    """
    settings = dataclasses.replace(settings or ConvolutionalSettings(), **changes)
    maps = AnnotatedMaps.gather(generator, annotated, schema, recipe or Recipe())
    steps = settings.steps
    if steps is None:
        folds = min(folds, len(maps.masks))
        steps = _hold_out(maps, settings, folds).steps if folds > 1 else max(1, settings.max_steps // 2)
    random = torch.Generator().manual_seed(settings.seed)
    rows = torch.arange(len(maps.masks))
    return _train(maps, rows, settings, random, [steps], "training the interpreter")[0]


def cross_validate_convolutional(
    generator: FeatureGenerator,
    annotated: AnnotatedImages,
    schema: LabelSchema,
    *,
    recipe: Recipe,
    folds: int = 4,
    settings: ConvolutionalSettings | None = None,
) -> HeldOut:
    """How well networks fitted on most of the images label the others, and after how many steps they do it best.

    Args:
        generator, annotated, schema, recipe: as for `fit_convolutional`.
        folds: parts that the images are dealt into; each is labeled by networks fitted on the other parts.
        settings: of the training; None for the defaults. Where these name the steps, no others are tried.

    Raises:
        ValueError: fewer than two folds or more than there are images, or masks that do not fit.

    Example:
        >>> cross_validate_convolutional(generator, annotated, schema, recipe=recipe).steps  # doctest: +SKIP
    """
    integer("folds", folds, 2, len(annotated.masks))
    maps = AnnotatedMaps.gather(generator, annotated, schema, recipe)
    return _hold_out(maps, settings or ConvolutionalSettings(), folds)


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

    def of(self, image: int) -> list[Tensor]:
        """The maps of one image as the generator gave them, [1, C_l, h_l, w_l]."""
        maps: list[Tensor] = []
        first = 0
        for level, count in zip(self.levels, self.counts, strict=True):
            maps += level[image : image + 1].float().split(self.channels[first : first + count], 1)
            first += count
        return maps


def _hold_out(maps: AnnotatedMaps, settings: ConvolutionalSettings, folds: int) -> HeldOut:
    """Deal the images into folds, train without each, and pool what the networks say of it after so many steps."""
    random = torch.Generator().manual_seed(settings.seed)
    shuffled = torch.randperm(len(maps.masks), generator=random)
    tried = settings.looked_at if settings.steps is None else [settings.steps]
    confusions = torch.zeros(len(tried), maps.schema.num_classes, maps.schema.num_classes, dtype=torch.int64)
    for fold in range(folds):
        held_out = shuffled[fold::folds].sort().values
        rows = shuffled[~torch.isin(shuffled, held_out)].sort().values
        title = f"held-out check {fold + 1}/{folds}"
        for i, interpreter in enumerate(_train(maps, rows, settings, random, tried, title)):
            for image in held_out.tolist():
                confusions[i] += _compare(interpreter, maps, image)
    qualities = [ConfusionMatrix(confusion) for confusion in confusions]
    best = max(range(len(tried)), key=lambda i: qualities[i].mean_iou)
    return HeldOut(qualities[best], tried[best])


def _compare(interpreter: ConvolutionalInterpreter, maps: AnnotatedMaps, image: int) -> Tensor:
    found = interpreter.predict(maps.of(image), maps.frame, LabelingOptions()).labels["mask"][0]
    return count_pairs(maps.masks[image], found, maps.schema.num_classes, maps.schema.ignore_index)


def _train(
    maps: AnnotatedMaps,
    rows: Tensor,
    settings: ConvolutionalSettings,
    random: torch.Generator,
    at: Sequence[int],
    description: str,
) -> list[ConvolutionalInterpreter]:
    """Interpreters trained on some images, as they are after each of some numbers of steps, ascending.

    Each member has its own initial weights and draws; on a CPU each is trained on a thread of its own.
    """
    masks = maps.masks[rows.to(maps.masks.device)]
    if not bool((masks != maps.schema.ignore_index).any()):
        raise ValueError("every pixel of these images is ignored: there is nothing to learn from")
    scaled = [_moments(level, rows) for level in maps.levels]
    members = [_Member.of(maps, rows, scaled, settings, random) for _ in range(settings.members)]
    with tqdm(total=at[-1] * len(members), desc=description, unit="step", delay=2, leave=False) as progress:

        def work(member: _Member) -> list[dict[str, Tensor]]:
            return member.train(at, progress)

        snapshots = parallel_map(work, members, maps.masks.device)
    interpreters = []
    for taken in zip(*snapshots, strict=True):
        stacked = {name: torch.cat([s[name] for s in taken], 1 if name.startswith("mix") else 0) for name in taken[0]}
        found = ConvolutionalInterpreter(
            _unscaled(stacked, scaled), layout=maps.layout, channels=maps.channels, levels=maps.counts
        )
        if any(not bool(tensor.isfinite().all()) for tensor in found.state_dict().values()):
            raise ValueError(
                f"the training diverged (its weights contain NaN or infinity): choose a smaller learning_rate than "
                f"{settings.learning_rate:g}; 0.002 is usual"
            )
        interpreters.append(found)
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
        maps: all images.
        draws: images of each step, int64 [steps, batch_images].
        scaled: mean and standard deviation of each level.
        settings: of the training.
        weights: its tensors, trained in place.
        random: of dropout and noise, on the device.
    """

    maps: AnnotatedMaps
    rows: Tensor
    scaled: Sequence[tuple[Tensor, Tensor]]
    settings: ConvolutionalSettings
    weights: dict[str, Tensor]
    random: torch.Generator

    @classmethod
    def of(
        cls,
        maps: AnnotatedMaps,
        rows: Tensor,
        scaled: Sequence[tuple[Tensor, Tensor]],
        settings: ConvolutionalSettings,
        random: torch.Generator,
    ) -> _Member:
        """With initial weights: He's for what a ReLU follows, and classes as frequent as in the masks."""
        device = maps.masks.device

        def normal(*shape: int, fan_in: int) -> Tensor:
            return torch.randn(shape, generator=random) * (2 / fan_in) ** 0.5

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
        return cls(maps, rows, scaled, settings, {k: v.to(device) for k, v in weights.items()}, generator)

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
        maps, schema, dtype = self.maps, self.maps.schema, _product_dtype(self.maps.masks.device, self.settings)
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


def _product_dtype(device: torch.device, settings: ConvolutionalSettings) -> torch.dtype:
    """The precision asked for, or bfloat16 where the hardware multiplies in it."""
    if settings.dtype is not None:
        return torch.float32 if settings.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
