"""What interpreters share whose members look at each pixel: weights, layout, and the choice of what computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.interpreters import batched, rowwise
from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, check_channels, check_voting
from dsgan_datasets.interpreters.reduce import Reduction
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.operations import without_autocast
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.uncertainty import image_score


class Ensemble(nn.Module):
    """M networks of two hidden layers that read the features of one pixel; a subclass says what their outputs mean.

    `rowwise` computes them on a CPU, image by image, and `batched` elsewhere. Operands of the matrix products have the
    precision of the feature maps, which is the recipe's dtype; sums and what follows the last layer are float32. A CPU
    computes in float32 what it has no instructions for: float16, and on many processors bfloat16.

    Args:
        weights: the matrices of `EnsembleWeights` by name, "w1" … "b3"; kept in float32.
        layout: the feature layout that it was fitted on; None if that is not known, as for published classifiers.
        channels: channels of each map of that layout, in order. None stands for one number, their total: then maps are
            checked against the total only.

    Raises:
        ValueError: the matrices do not fit together, or the channels do not add up to their input.
    """

    architecture: ClassVar[str]
    has_uncertainty: ClassVar[bool] = True
    has_probabilities: ClassVar[bool] = False

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], *, layout: str | None = None, channels: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        for name, matrix in EnsembleWeights.of(weights).named().items():
            self.register_buffer(name, matrix.detach().float().contiguous())
        if layout is not None and not isinstance(layout, str):
            raise ValueError(f"layout must be the name of a feature layout or None, not {layout!r:.60}")
        self.layout = layout
        self.channels = (self.in_channels,) if channels is None else _as_channels(channels)
        if sum(self.channels) != self.in_channels:
            raise ValueError(
                f"channels {list(self.channels)} add up to {sum(self.channels)}, w1 takes {self.in_channels} features"
            )
        self._prepared: dict[batched.Task, batched.Prepared] = {}
        self._rowwise: tuple[tuple[Any, ...], rowwise.Rowwise] | None = None

    @property
    def weights(self) -> EnsembleWeights:
        """The matrices, on the device."""
        return EnsembleWeights(self.w1, self.b1, self.w2, self.b2, self.w3, self.b3)

    @property
    def num_members(self) -> int:
        """Number of networks M."""
        return self.weights.num_members

    @property
    def in_channels(self) -> int:
        """Number of features C of a pixel, those of all maps together."""
        return self.weights.in_channels

    @property
    def device(self) -> torch.device:
        """Where labels are computed."""
        return self.w1.device

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about the ensemble."""
        return {
            "architecture": self.architecture,
            "layout": self.layout,
            "channels": list(self.channels),
            "members": self.num_members,
            "hidden": list(self.weights.hidden),
        }

    def with_layout(self, layout: str, channels: Sequence[int]) -> Self:
        """The same weights (shared, not copied) for maps of this layout.

        Raises:
            ValueError: the channels do not add up.
        """
        return type(self).from_parts(
            {**self.config, "layout": layout, "channels": list(channels)}, self.weights.named()
        )

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The ensemble of a config and its tensors; ValueError or KeyError if they do not fit together."""
        raise NotImplementedError

    def check_options(self, options: LabelingOptions) -> None:
        """ValueError for a vote that there is not, or a share of pixels outside (0, 1]."""
        check_voting(options)

    @without_autocast
    @torch.no_grad()
    def outputs(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Outputs of every member at every pixel, computed in float32.

        Args:
            features: maps [N, C_l, h_l, w_l] with `channels`.
            size: (H, W) of the full frame, to which every map is resized (bilinear, align_corners=False).
            rows: (top, bottom) rows of the frame to compute; None computes all.

        Returns:
            float32 [M, N, K, H, W], H counting the computed rows.

        Raises:
            ValueError: maps of other channels, or rows outside the frame.
        """
        frame = Frame(size, rows)
        self._check(features, frame)
        return rowwise.outputs(self.weights, features, frame)

    @without_autocast
    @torch.no_grad()
    def _reduce(self, features: Sequence[Tensor], frame: Frame, reduction: Reduction) -> tuple[Tensor, ...]:
        """What `reduction` keeps of the outputs, [N, ..., H, W] each."""
        self._check(features, frame)
        if self.device.type == "cpu":
            return self._on_cpu(features, frame).reduce(features, reduction)
        return batched.prepare(self.weights, features, frame, reduction, self._prepared).reduce(features)

    def _on_cpu(self, features: Sequence[Tensor], frame: Frame) -> rowwise.Rowwise:
        """What computes such maps, prepared once: in bfloat16 where maps and processor are, else in float32."""
        shapes = tuple(tuple(f.shape[1:]) for f in features)
        is_bfloat16 = features[0].dtype == torch.bfloat16 and has_fast_bfloat16(self.device)
        dtype = torch.bfloat16 if is_bfloat16 else torch.float32
        weights, held = self.weights, self._rowwise
        task = (shapes, frame, dtype, weights.version())
        if held is None or held[0] != task:
            held = self._rowwise = (task, rowwise.Rowwise(weights, shapes, frame, dtype))
        return held[1]

    def _check(self, features: Sequence[Tensor], frame: Frame) -> None:
        check_channels(self.channels, [f.shape[1] for f in features])
        frame.check()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._prepared, self._rowwise = {}, None  # they hold the tensors that are about to be replaced
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": {}, "_rowwise": None}  # kernels cannot be pickled


class RegressionEnsemble(Ensemble):
    """An `Ensemble` whose outputs are values rather than logits, so that its members do not vote."""

    def check_options(self, options: LabelingOptions) -> None:
        """ValueError for a vote or probabilities, which only classes have, or a share of pixels outside (0, 1]."""
        super().check_options(options)
        if options.probabilities:
            raise ValueError("members that regress have no classes, and no probabilities of them")
        if options.vote != DEFAULT_OPTIONS.vote:
            raise ValueError(f"members that regress do not vote: leave vote at {DEFAULT_OPTIONS.vote!r}")


def each_by_itself(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A function of N images, on a CPU of each by itself: the last bits of a sum depend on what is summed beside it."""
    if values.device.type != "cpu":
        return function(values)
    return torch.cat(parallel_map(lambda value: function(value[None]), values, values.device))


def scores(uncertainty: Tensor, top_fraction: float) -> Tensor:
    """`image_score` of [N, H, W]."""
    return each_by_itself(lambda some: image_score(some, top_fraction), uncertainty)


def _as_channels(channels: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(channels, list | tuple) or not channels or not all(type(c) is int and c > 0 for c in channels):
        raise ValueError(f"channels must be the channels of each map, such as [512, 256], not {channels!r:.60}")
    return tuple(channels)
