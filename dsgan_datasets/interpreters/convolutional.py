"""A convolutional interpreter: members that see a pixel's neighbors, where `PixelEnsemble` sees a pixel by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.interpreters import fusion
from dsgan_datasets.interpreters.base import (
    DEFAULT_OPTIONS,
    Frame,
    LabelingOptions,
    Prediction,
    check_channels,
    check_voting,
)
from dsgan_datasets.interpreters.fusion import FusionWeights
from dsgan_datasets.interpreters.reduce import Probabilities, Reduction, Votes
from dsgan_datasets.operations import without_autocast
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.uncertainty import image_score

#: Bytes of activations that a GPU holds at a time, about; if need be a batch is computed in equal parts.
_MAX_BYTES = 2 << 30
#: Maps, classes and members that a config may name: more than any network has.
_MOST_MAPS, _MOST_CLASSES = 1024, 255


class ConvolutionalInterpreter(nn.Module):
    """M small convolutional networks that vote, and whose disagreement is the uncertainty; an `Interpreter`.

    Maps are read at their own size; the logits of the finest are resized to the frame. On a CPU each image and each
    member is computed by itself, on a GPU all of a batch together. Operands have the precision of the feature maps,
    which is the recipe's dtype; the last layer, softmax and votes are float32. A CPU computes in float32 what it has no
    instructions for.

    Args:
        weights: the tensors of `FusionWeights` by name, "project_0" … "head_bias"; kept in float32.
        layout: the feature layout that it was fitted on.
        channels: channels of each map of that layout, in order, coarse to fine.
        levels: how many consecutive maps have the same size, for each size.

    Raises:
        ValueError: tensors, channels and levels do not fit together.

    Example:
        >>> random = {name: torch.zeros(t.shape) for name, t in interpreter.state_dict().items()}  # doctest: +SKIP
        >>> ConvolutionalInterpreter(random, layout="convs", channels=[64, 32], levels=[1, 1])  # doctest: +SKIP
    """

    architecture: ClassVar[str] = "convolutional"
    fields: ClassVar[tuple[str, ...]] = ("mask",)
    has_uncertainty: ClassVar[bool] = True
    has_probabilities: ClassVar[bool] = True
    uncertainty_unit: ClassVar[str] = "nats"

    def __init__(
        self, weights: Mapping[str, Tensor], *, layout: str | None, channels: Sequence[int], levels: Sequence[int]
    ) -> None:
        super().__init__()
        found = FusionWeights.of(weights)
        if not isinstance(layout, str):
            raise ValueError(f"layout must be the name of a feature layout, not {layout!r:.60}")
        self.layout = layout
        self.channels = _counts("channels", channels)
        self.levels = _counts("levels", levels)
        if sum(self.levels) != len(self.channels):
            raise ValueError(f"levels {list(self.levels)} count {sum(self.levels)} maps, there are {len(channels)}")
        ends = accumulate(self.levels)
        read = tuple(sum(self.channels[end - n : end]) for end, n in zip(ends, self.levels, strict=True))
        if read != found.in_channels:
            raise ValueError(
                f"channels {list(self.channels)} in levels {list(self.levels)} are {list(read)} a level, the tensors "
                f"take {list(found.in_channels)}"
            )
        if found.num_classes > _MOST_CLASSES:
            raise ValueError(f"a mask has up to {_MOST_CLASSES} classes, head has {found.num_classes}")
        for name, tensor in found.named().items():
            self.register_buffer(name, tensor.detach().float().contiguous())

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The interpreter of a config and its tensors; ValueError or KeyError if they do not fit together."""
        return cls(tensors, layout=config["layout"], channels=config["channels"], levels=config["levels"])

    def with_layout(self, layout: str, channels: Sequence[int]) -> Self:
        """The same weights for maps of this layout; ValueError if the channels do not fit."""
        return type(self)(self.weights.named(), layout=layout, channels=channels, levels=self.levels)

    @property
    def weights(self) -> FusionWeights:
        """The tensors, on the device."""
        return FusionWeights.of(dict(self.named_buffers()))

    @property
    def num_members(self) -> int:
        """Number of networks M."""
        return self.weights.num_members

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.weights.num_classes

    @property
    def device(self) -> torch.device:
        """Where labels are computed."""
        return self.weights.head.device

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about it."""
        weights = self.weights
        return {
            "architecture": self.architecture,
            "layout": self.layout,
            "channels": list(self.channels),
            "levels": list(self.levels),
            "members": weights.num_members,
            "widths": list(weights.widths),
            "convolutions": list(weights.convolutions),
            "classes": weights.num_classes,
        }

    def check_options(self, options: LabelingOptions) -> None:
        """ValueError for a vote that there is not, or a share of pixels outside (0, 1]."""
        check_voting(options)

    @without_autocast
    @torch.no_grad()
    def predict(
        self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
    ) -> Prediction:
        """Class ("mask", int64 [N, H, W]) and uncertainty of every pixel, score of every image.

        Args:
            features: maps [N, C_l, h_l, w_l] with `channels`; those of a level have one size.
            frame: size to which the logits are resized, and the rows of it that are labeled.
            options: vote of the members, share of the pixels that decides the score, probabilities or not.

        Raises:
            ValueError: maps of other channels or sizes, rows outside the frame, or unknown options.

        Example:
            >>> predicted = interpreter.predict(features, Frame((256, 256), (32, 224)))  # doctest: +SKIP
            >>> predicted.labels["mask"].shape  # doctest: +SKIP
            torch.Size([8, 192, 256])
        """
        self.check_options(options)
        check_channels(self.channels, [f.shape[1] for f in features])
        frame.check()
        dtype = _product_dtype(self.device, features[0].dtype)
        weights = self.weights.in_precision(dtype)
        if self.device.type == "cpu":
            images = [[f[n : n + 1] for f in features] for n in range(len(features[0]))]
            parts = parallel_map(lambda maps: self._alone(weights, maps, frame, options, dtype), images, self.device)
        else:
            step = _images_at_once(weights, features, frame, dtype)
            batches = [[f[n : n + step] for f in features] for n in range(0, len(features[0]), step)]
            parts = [self._together(weights, maps, frame, options, dtype) for maps in batches]
        mask, uncertainty, *soft, score = (torch.cat(of_all) for of_all in zip(*parts, strict=True))
        return Prediction({"mask": mask}, uncertainty, score, *soft)

    @without_autocast
    @torch.no_grad()
    def logits(self, features: Sequence[Tensor], frame: Frame) -> Tensor:
        """Logits of every member at every pixel, computed in float32, [M, N, K, H, W]; arguments as for `predict`."""
        check_channels(self.channels, [f.shape[1] for f in features])
        frame.check()
        levels = fusion.grouped(features, self.levels, torch.float32)
        return _kept(fusion.logits(self.weights, levels, fusion.bilinear(levels, frame.size)), frame).movedim(1, 0)

    def _alone(
        self, weights: FusionWeights, maps: Sequence[Tensor], frame: Frame, options: LabelingOptions, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        """Mask, uncertainty, if asked for probabilities, and score of one image on a CPU, member by member: how it is
        divided does not depend on the number of threads."""
        levels = fusion.grouped(maps, self.levels, dtype)
        resize = fusion.bilinear(levels, frame.size)

        def of_member(number: int) -> Tensor:
            return _kept(fusion.logits(weights.member(number), levels, resize), frame)[0]

        found = parallel_map(of_member, range(weights.num_members), self.device)
        kept: list[Tensor] = []
        for reduction in _reductions(options):
            tally = reduction.tally((weights.num_classes, *frame.shape), self.device)
            for number, logits in enumerate(found):
                tally.add(slice(number, number + 1), slice(0, frame.shape[0]), logits)
            kept += [part[None] for part in tally.result()]
        return (*kept, image_score(kept[1], options.top_fraction))

    def _together(
        self, weights: FusionWeights, maps: Sequence[Tensor], frame: Frame, options: LabelingOptions, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        """The same of a batch on a GPU; nothing in here waits for it."""
        levels = fusion.grouped(maps, self.levels, dtype)
        found = fusion.logits(weights, levels, fusion.bilinear(levels, frame.size))
        outputs = _kept(found, frame).permute(1, 0, 3, 4, 2)  # [M, N, rows, W, K]
        kept = [part for reduction in _reductions(options) for part in reduction(outputs)]
        return (*kept, image_score(kept[1], options.top_fraction))


def _reductions(options: LabelingOptions) -> list[Reduction]:
    votes = Votes(options.vote)
    return [votes, Probabilities()] if options.probabilities else [votes]


def _kept(logits: Tensor, frame: Frame) -> Tensor:
    """The labeled rows of logits [N, M, K, H, W]."""
    return logits[..., slice(*frame.kept), :]


def _product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Of the operands: that of the maps, where the device multiplies in it."""
    if device.type == "cpu":
        return dtype if dtype == torch.bfloat16 and has_fast_bfloat16(device) else torch.float32
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32


def _images_at_once(weights: FusionWeights, features: Sequence[Tensor], frame: Frame, dtype: torch.dtype) -> int:
    """Images of a batch that are computed together: a divisor of their number, so that all parts are alike."""
    count, members = len(features[0]), weights.num_members
    finest = features[-1].shape[2] * features[-1].shape[3]
    image = members * (4 * weights.widths[-1] * finest * dtype.itemsize)
    image += members * weights.num_classes * 4 * (finest + 3 * frame.size[0] * frame.size[1])
    return max((d for d in range(1, count + 1) if count % d == 0 and d * image <= _MAX_BYTES), default=1)


def _counts(name: str, values: Any) -> tuple[int, ...]:
    """A short list of positive integers, as a tuple; what a damaged config holds is refused."""
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= _MOST_MAPS:
        raise ValueError(f"{name} must be a list of 1 to {_MOST_MAPS} integers, not {values!r:.60}")
    return tuple(integer(name, value, 1, 2**20) for value in values)
