"""The DatasetGAN interpreter (arXiv 2104.06490, section 3.1): an ensemble of small classifiers of pixels.

What it computes stands on one screen in `reference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.interpreters.base import DEFAULT_OPTIONS, Frame, LabelingOptions, Prediction
from dsgan_datasets.interpreters.ensemble import Ensemble, scores
from dsgan_datasets.interpreters.labels import Labels
from dsgan_datasets.interpreters.reduce import Probabilities, Votes


class PixelEnsemble(Ensemble):
    """M pixel classifiers that vote, and whose disagreement is the uncertainty; an `Interpreter`.

    On a CPU images are labeled one by one, on a GPU in batches. Operands of the matrix products have the precision of
    the feature maps, which is the recipe's dtype; sums, softmax and votes are float32. A CPU computes in float32 what
    it has no instructions for: float16, and on many processors bfloat16.

    Args:
        weights: the matrices of `EnsembleWeights` by name, "w1" … "b3"; kept in float32.
        layout: the feature layout that it was fitted on; None if that is not known, as for published classifiers.
        channels: channels of each map of that layout, in order. None stands for one number, their total: then maps are
            checked against the total only.

    Raises:
        ValueError: the matrices do not fit together, or the channels do not add up to their input.

    Example:
        >>> ensemble = load_interpreter("demo-faces", device="cpu")
        >>> ensemble.num_members, ensemble.num_classes, ensemble.layout
        (10, 12, 'convs')
    """

    architecture: ClassVar[str] = "pixel_ensemble"
    fields: ClassVar[tuple[str, ...]] = ("mask",)
    has_probabilities: ClassVar[bool] = True
    uncertainty_unit: ClassVar[str] = "nats"
    #: Options of the deprecated `label`.
    label_options = DEFAULT_OPTIONS

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The ensemble of a config and its tensors; ValueError or KeyError if they do not fit together."""
        return cls(tensors, layout=config.get("layout"), channels=config.get("channels"))

    def with_layout(self, layout: str, channels: Sequence[int]) -> Self:
        """The same weights (shared, not copied) for maps of this layout, once the generator of published classifiers is
        known.

        Raises:
            ValueError: the channels do not add up.
        """
        known = super().with_layout(layout, channels)
        known.label_options = self.label_options
        return known

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.weights.num_outputs

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says about the ensemble."""
        return {**super().config, "classes": self.num_classes}

    def predict(
        self, features: Sequence[Tensor], frame: Frame, options: LabelingOptions = DEFAULT_OPTIONS
    ) -> Prediction:
        """Class ("mask", int64 [N, H, W]) and uncertainty of every pixel, score of every image.

        Args:
            features: maps [N, C_l, h_l, w_l] with `channels`.
            frame: size to which every map is resized, and its labeled rows.
            options: vote of the members, share of the pixels that decides the score, and whether the probabilities of
                the classes are computed too, which takes as long again.

        Raises:
            ValueError: maps of other channels, rows outside the frame, or unknown options.

        Example:
            >>> predicted = ensemble.predict(features, Frame((256, 256), (32, 224)))  # doctest: +SKIP
            >>> predicted.labels["mask"].shape  # doctest: +SKIP
            torch.Size([8, 192, 256])
        """
        self.check_options(options)
        mask, uncertainty = self._reduce(features, frame, Votes(options.vote))
        # A pass of its own: last bits of the mask must not depend on whether somebody asks for more.
        soft = self._reduce(features, frame, Probabilities())[0] if options.probabilities else None
        return Prediction({"mask": mask}, uncertainty, scores(uncertainty, options.top_fraction), soft)

    def logits(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Logits of every member at every pixel, float32 [M, N, K, H, W]; arguments and errors as for `outputs`."""
        return self.outputs(features, size, rows=rows)

    def probabilities(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Class probabilities of every member at every pixel, [M, N, K, H, W]; arguments as for `outputs`."""
        return self.outputs(features, size, rows=rows).softmax(2)

    def label(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Labels:
        """Deprecated: `predict` takes a `Frame` and the options that used to be attributes of the ensemble."""
        warn_renamed("PixelEnsemble.label(features, size, rows=…)", "predict(features, Frame(size, rows), options)")
        found = self.predict(features, Frame(size, rows), self.label_options)
        assert found.uncertainty is not None and found.uncertainty_score is not None
        return Labels(found.labels["mask"], found.uncertainty, found.uncertainty_score)
