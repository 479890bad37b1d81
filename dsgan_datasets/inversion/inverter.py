"""Images -> the style vectors that a frozen generator makes them of, by optimization in W+."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator, positive
from dsgan_datasets.generators.synthesis import frame
from dsgan_datasets.inversion.domain import Domain, image_statistics
from dsgan_datasets.inversion.pyramids import Comparison, Difference, Spread, load_pyramid
from dsgan_datasets.inversion.styles import StyleSpace
from dsgan_datasets.latents import check_seed
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Recipe

#: Draws that show what the generator makes, and longer sides of the thumbnails that are kept of them.
_DRAWS, _THUMBNAIL = 512, 64
#: Beyond this error an inversion is no better than a picture of something else.
_ERROR_LIMIT = 0.75
#: Share of the steps in which a start is one style for all layers (W), before each layer has its own (W+).
_IN_W = 0.4
#: Shares of the steps in which the learning rate rises and falls.
_RISE, _FALL = 0.1, 0.7


@dataclass(frozen=True)
class InversionSettings:
    """How photos are inverted.

    Args:
        steps: of Adam, for each photo.
        starts: where it starts: 1 at the average style, and the others at the styles of the draws that look most like
            the photo. The best after two fifths of the steps is taken on.
        learning_rate: largest step, in standard deviations of the generator's styles.
        prior: weight of the squared distance of styles from their average, in standard deviations, beside the error.
            More keeps styles where labels can be trusted, less reconstructs better.
        invert_foreign: invert photos too that are unlike all that the generator makes (see `Domain`). Otherwise the
            average image is kept for them, with an error of 1, which takes no time.
        compare_by: what photo and reconstruction are compared by: "pixels" of all scales, which needs nothing else; or
            "lpips" or "efficientnet", the features of pretrained networks, whose packages must be installed.
        seed: of the draws to start from, 0 … 2^64-1.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> InversionSettings(steps=200, compare_by="lpips").starts
        2
    """

    steps: int = 100
    starts: int = 2
    learning_rate: float = 0.1
    prior: float = 0.003
    invert_foreign: bool = False
    compare_by: Comparison = "pixels"
    seed: int = 0

    def __post_init__(self) -> None:
        integer("steps", self.steps, 1, 10**6)
        integer("starts", self.starts, 1, _DRAWS + 1)
        positive("learning_rate", self.learning_rate)
        if not 0 <= self.prior < 1e9:
            raise ValueError(f"prior must be a number of at least 0, not {self.prior!r:.40}")
        if self.compare_by not in get_args(Comparison):
            raise ValueError(
                f"compare_by must be one of {', '.join(get_args(Comparison))}, not {self.compare_by!r:.40}"
            )
        check_seed(self.seed)


@dataclass(frozen=True)
class Inversion:
    """What N photos became; all on the CPU.

    Attributes:
        styles: float32 [N, num_ws, w_dim].
        images: reconstructions, uint8 [N, 3, H, W].
        errors: how unlike photo and reconstruction are, float32 [N]: 0 is equal, 1 no better than the average image.
        distances: how unlike a photo is to the generator's images, float32 [N]; see `Domain`.
        scores: the larger of error and distance, each divided by its limit, float32 [N]: above 1 a photo is not to be
            trusted with labels.

    Example:
        >>> styles, images = torch.zeros(2, 10, 8), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        >>> scores = torch.tensor([0.4, 1.7])
        >>> Inversion(styles, images, errors=scores / 2, distances=scores, scores=scores).trusted
        tensor([ True, False])
    """

    styles: Tensor
    images: Tensor
    errors: Tensor
    distances: Tensor
    scores: Tensor

    @property
    def trusted(self) -> Tensor:
        """Photos whose score is at most 1, bool [N]."""
        return self.scores <= 1


class _Found(NamedTuple):
    """What the optimization of N images gave."""

    styles: Tensor
    images: Tensor
    errors: Tensor


class _Goal:
    """Images float32 [N, 3, H, W] from -1 to 1 that are to be reconstructed."""

    def __init__(self, target: Tensor, difference: Difference) -> None:
        self._difference = difference
        self._maps = [m.detach() for m in difference.pyramid(target)]
        # Where a photo is black or white, a generator may be blacker or whiter: it is clipped.
        self._low = torch.where(target <= -1, target, -torch.inf)
        self._high = torch.where(target >= 1, target, torch.inf)

    def errors(self, images: Tensor) -> Tensor:
        """How unlike reconstructions are, [N]; differentiable."""
        return self._difference(self._difference.pyramid(images.clamp(self._low, self._high)), self._maps)


class Inverter:
    """Finds the style vectors of photos.

    Measures first what the generator makes: where its styles lie, and what its images look like.

    Args:
        generator: frozen.
        recipe: noise, size and crop of its images; photos must have that size. The noise stays what it is: labels are
            read from features that contain it.
        settings: of the optimization; None for the defaults.

    Raises:
        ImportError: the package that `compare_by` needs is not installed.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> inverter = Inverter(labeled.generator, labeled.recipe, InversionSettings(steps=2))  # doctest: +SKIP
        >>> inverter.invert(labeled.generate([0]).image).styles.shape  # doctest: +SKIP
        torch.Size([1, 10, 128])
    """

    def __init__(
        self,
        generator: FeatureGenerator,
        recipe: Recipe | None = None,
        settings: InversionSettings | None = None,
    ) -> None:
        self.generator = generator
        self.recipe = (Recipe() if recipe is None else recipe).override(dtype="float32", compile=False)
        self.settings = settings or InversionSettings()
        self.image_size = self.recipe.image_size(generator.img_size)
        self._space = StyleSpace.of(generator, self.settings.seed)
        pyramid = load_pyramid(self.settings.compare_by, self.device)
        spread, thumbnails = Spread(), []
        for images in self._draws():
            spread.add(pyramid(images))
            thumbnails.append(_thumbnails(images))
        self._difference = Difference(pyramid, spread.scales)
        self._drawn = torch.cat(thumbnails)
        self.domain = Domain.of(image_statistics(self._drawn))

    @torch.no_grad()
    def _draws(self) -> Iterator[Tensor]:
        """Images of the first draws, a few at a time; on a CPU each by itself, so that bits depend on no other."""
        size = 1 if self.generator.device.type == "cpu" else self.recipe.compute_batch
        blocks = self._space.draws[:_DRAWS].split(size)
        for at in range(0, len(blocks), 16):
            made = parallel_map(lambda w: self._image(self._every_layer(w[:, None])), blocks[at : at + 16], self.device)
            yield torch.cat(made)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.generator.device

    def invert(self, photos: Tensor, start: Tensor | None = None) -> Inversion:
        """The styles of photos.

        Photos are optimized together, as many as the recipe's `compute_batch`; the last bits of a result depend on how
        many those were. The same call gives the same styles.

        Args:
            photos: uint8 RGB [N, 3, H, W], of the recipe's size.
            start: styles to start from instead, such as an encoder's, float32 [N, num_ws, w_dim].

        Raises:
            ValueError: another size or type.
        """
        self._check(photos, start)
        distances = self.domain.distances(_thumbnails(_from_bytes(photos)))
        wanted = (distances <= self.domain.limit) | self.settings.invert_foreign
        found = self._average(len(photos))
        blocks = wanted.nonzero()[:, 0].split(self.recipe.compute_batch)
        jobs = [(photos[rows], None if start is None else start[rows]) for rows in blocks if len(rows)]
        for rows, one in zip(blocks, parallel_map(lambda job: self._optimize(*job), jobs, self.device), strict=False):
            for whole, part in zip(found, one, strict=True):
                whole[rows] = part.cpu()
        styles, images, errors = found
        scores = torch.maximum(errors / _ERROR_LIMIT, distances / self.domain.limit)
        return Inversion(styles, images, errors, distances, scores)

    def _check(self, photos: Tensor, start: Tensor | None) -> None:
        if photos.dtype != torch.uint8 or photos.dim() != 4 or tuple(photos.shape[1:]) != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(
                f"photos must be uint8 [N, 3, {height}, {width}], the size of the generator's images; got "
                f"{photos.dtype} {list(photos.shape)}: align them first, see read_photos"
            )
        expected = (len(photos), self.generator.num_ws, self.generator.w_dim)
        if start is not None and tuple(start.shape) != expected:
            raise ValueError(f"start must be styles {list(expected)}, one for each photo; got {list(start.shape)}")

    @torch.no_grad()
    def _average(self, count: int) -> _Found:
        """What is kept of photos that are not inverted: the average image."""
        styles = self._space.mean.expand(1, self.generator.num_ws, -1)
        image = _to_bytes(self._image(styles))
        return _Found(styles.cpu().repeat(count, 1, 1), image.cpu().repeat(count, 1, 1, 1), torch.ones(count))

    @torch.enable_grad()
    def _optimize(self, photos: Tensor, start: Tensor | None) -> _Found:
        """Styles of N photos, which do not influence each other."""
        target, steps = _from_bytes(photos.to(self.device)), self.settings.steps
        if start is None:
            starts = self._starts(target)  # [N, S, 1, w_dim]
            count, tried = starts.shape[:2]
            in_w = math.ceil(steps * _IN_W) if steps > 1 else 0
            coordinates, losses = self._descend(starts.flatten(0, 1), target.repeat_interleave(tried, 0), in_w)
            best = losses.reshape(count, tried).argmin(1)
            coordinates = coordinates.reshape(starts.shape)[torch.arange(count, device=self.device), best]
            coordinates, steps = coordinates.expand(-1, self.generator.num_ws, -1), steps - in_w
        else:
            coordinates = self._space.coordinates(start.to(self.device))
        coordinates, _ = self._descend(coordinates, target, steps)
        with torch.no_grad():
            styles = self._space.styles(coordinates)
            image = self._image(styles)
            return _Found(styles, _to_bytes(image), _Goal(target, self._difference).errors(image))

    def _starts(self, target: Tensor) -> Tensor:
        """Coordinates to start from, [N, S, 1, w_dim]: the average, and those of the draws that look most alike."""
        average = torch.zeros(len(target), 1, self.generator.w_dim, device=self.device)
        others = self.settings.starts - 1
        apart = torch.cdist(_thumbnails(target).flatten(1), self._drawn.flatten(1))
        nearest = apart.topk(others, largest=False).indices
        return torch.cat([average, self._space.coordinates(self._space.draws[nearest])], 1).unsqueeze(2)

    def _descend(self, coordinates: Tensor, target: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Coordinates [N, 1 or num_ws, w_dim] after some steps of Adam, and the last losses [N]."""
        variable = coordinates.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([variable], betas=(0.9, 0.99))
        losses, goal = coordinates.new_zeros(len(coordinates)), _Goal(target, self._difference)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = self.settings.learning_rate * _schedule((step + 1) / steps)
            image = self._image(self._every_layer(self._space.styles(variable)))
            losses = goal.errors(image) + self.settings.prior * variable.square().mean((1, 2))
            (variable.grad,) = torch.autograd.grad(losses.sum(), variable)
            optimizer.step()
        return variable.detach(), losses.detach()

    def _every_layer(self, styles: Tensor) -> Tensor:
        return styles.expand(-1, self.generator.num_ws, -1)

    def _image(self, styles: Tensor) -> Tensor:
        """Images [N, 3, H, W] from -1 to 1, not clipped."""
        image, _ = frame(self.generator, self.recipe, styles)
        black, white = self.generator.image_range
        return (image - black) * (2 / (white - black)) - 1


def _schedule(progress: float) -> float:
    """Factor of the learning rate, by the share of the steps that are done (Karras et al., StyleGAN2, section 5)."""
    falling = max(0.0, (progress - 1 + _FALL) / _FALL)
    return min(1.0, progress / _RISE) * (0.5 + 0.5 * math.cos(math.pi * falling))


def _from_bytes(photos: Tensor) -> Tensor:
    return photos.float() / 127.5 - 1


def _to_bytes(images: Tensor) -> Tensor:
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def _thumbnails(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] from -1 to 1, clipped, with sides of at most 64."""
    images = images.clamp(-1, 1)
    factor = -(-max(images.shape[2:]) // _THUMBNAIL)
    return images if factor == 1 else F.avg_pool2d(images, factor, ceil_mode=True)
