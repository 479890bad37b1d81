"""What the deprecated `PixelEnsemble.label` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsgan_datasets._deprecation import warn_renamed


@dataclass(frozen=True)
class Labels:
    """Labels of N images; `Interpreter.predict` returns a `base.Prediction` instead.

    Attributes:
        mask: int64 class ids [N, H, W].
        uncertainty: float32 [N, H, W], disagreement of the members in nats.
        uncertainty_score: float32 [N], mean of the most uncertain pixels of each image, in nats.

    Example:
        >>> flat = torch.zeros(1, 4, 4)
        >>> Labels(mask=flat.long(), uncertainty=flat, uncertainty_score=flat.mean((1, 2))).mask.shape
        torch.Size([1, 4, 4])
    """

    mask: Tensor
    uncertainty: Tensor
    uncertainty_score: Tensor

    @property
    def js(self) -> Tensor:
        """Deprecated name of `uncertainty`."""
        warn_renamed("Labels.js", "Labels.uncertainty")
        return self.uncertainty

    @property
    def score(self) -> Tensor:
        """Deprecated name of `uncertainty_score`."""
        warn_renamed("Labels.score", "Labels.uncertainty_score")
        return self.uncertainty_score
