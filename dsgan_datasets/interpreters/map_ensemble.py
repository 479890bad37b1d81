"""Values for every pixel, such as depth, from an ensemble of pixel regressors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from dsgan_datasets.checks import is_number
from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, Prediction
from dsgan_datasets.interpreters.ensemble import RegressionEnsemble, scores
from dsgan_datasets.interpreters.reduce import Moments


class MapEnsemble(RegressionEnsemble):
    """M members that regress C values of every pixel, averaged over the members; an `Interpreter`.

    Members compute shares of the range, which lie in 0 … 1, so that the sums are of one order whatever the unit is. The
    uncertainty of a pixel is the disagreement of the members: the root mean square distance between a member's C values
    and their mean, as a share of the range. The score of an image is that of `image_score`.

    Args:
        weights: the matrices of `EnsembleWeights` by name; C outputs.
        field: of its target, such as "depth".
        low, high: the range; values beyond it are cut.
        layout: the feature layout that it was fitted on; None if that is not known.
        channels: channels of each map of that layout, in order.

    Raises:
        ValueError: the matrices do not fit together, or a range that is empty.

    Example:
        >>> LabeledGenerator.from_pretrained("my-faces").labeler.interpreters[1].fields  # doctest: +SKIP
        ('depth',)
    """

    architecture: ClassVar[str] = "map_ensemble"
    uncertainty_unit: ClassVar[str] = "of the range"

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        field: str,
        low: float,
        high: float,
        layout: str | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weights, layout=layout, channels=channels)
        if not isinstance(field, str) or not field:
            raise ValueError(f"field must be the name of a label, such as 'depth', not {field!r:.40}")
        if not is_number(low) or not is_number(high) or not low < high:
            raise ValueError(f"low and high must be numbers, low below high, not {low!r:.40} and {high!r:.40}")
        self.field, self.low, self.high = field, float(low), float(high)

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The ensemble of a config and its tensors; ValueError or KeyError if they do not fit together."""
        names = ("field", "low", "high", "layout", "channels")
        return cls(tensors, **{name: config[name] for name in names})

    @property
    def fields(self) -> tuple[str, ...]:
        """Of the label that it predicts."""
        return (self.field,)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about the ensemble."""
        own = {"field": self.field, "maps": self.weights.num_outputs, "low": self.low, "high": self.high}
        return {**super().config, **own}

    def predict(
        self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
    ) -> Prediction:
        """Values (`field`, float32 [N, C, H, W]), uncertainty of every pixel, score of every image.

        Args:
            features: maps [N, C_l, h_l, w_l] with `channels`.
            frame: size to which every map is resized, and its labeled rows.
            options: share of the pixels that decides the score; `vote` must be as it is by default.

        Raises:
            ValueError: maps of other channels, rows outside the frame, or unknown options.
        """
        self.check_options(options)
        shares, uncertainty = self._reduce(features, frame, Moments())
        values = (self.low + shares * (self.high - self.low)).clamp(self.low, self.high)
        return Prediction({self.field: values}, uncertainty, scores(uncertainty, options.top_fraction))
