"""What every frozen generator offers: latents -> ws -> image and features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dsgan_datasets.recipe import FeatureLayout, NoiseMode


class FeatureGenerator(nn.Module, ABC):
    """A frozen generator that also returns the feature maps an interpreter reads.

    Attributes:
        z_dim: length of a latent z.
        c_dim: length of the one-hot class vector; 0 for an unconditional generator.
        w_dim: length of a style vector w.
        num_ws: style vectors an image takes.
        img_resolution: side of the square image, pixels.
        img_channels: channels of the image as the network makes it.
        features: feature layout in use.
        feature_channels: channels of each map returned by `synthesis`, in order.
        feature_resolutions: side of each of these maps.
    """

    z_dim: int
    c_dim: int
    w_dim: int
    num_ws: int
    img_resolution: int
    img_channels: int
    feature_channels: list[int]
    feature_resolutions: list[int]
    features: FeatureLayout

    #: Layouts that the architecture can give.
    layouts: tuple[FeatureLayout, ...] = get_args(FeatureLayout)

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What config.json needs to build the same network again."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def _latent_to_w(self, z: Tensor, c: Tensor | None) -> Tensor:
        """The mapping network: z [N, z_dim], c [N, c_dim] -> w [N, w_dim]."""

    @property
    @abstractmethod
    def mean_w(self) -> Tensor:
        """Average w [w_dim], the point that truncation pulls towards."""

    def mapping(
        self,
        z: Tensor,
        c: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Style vectors of a latent, truncated towards the average (StyleGAN section B).

        Args:
            z: [N, z_dim].
            c: one-hot classes [N, c_dim]; only for a conditional generator.
            truncation_psi: mean + psi · (w − mean); 1 changes nothing.
            truncation_cutoff: truncate only the first so many of the num_ws vectors; None truncates all.

        Returns:
            float32 [N, num_ws, w_dim].

        Raises:
            ValueError: z or c has the wrong shape, or c is missing.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must be [N, {self.z_dim}], got {list(z.shape)}")
        given = None if c is None else tuple(c.shape)
        expected = (len(z), self.c_dim) if self.c_dim else None
        if given != expected:
            raise ValueError(f"c must be {expected or 'None: the generator is unconditional'}, got {given}")
        w = self._latent_to_w(z.float(), c if c is None else c.float())
        ws = w.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            ws[:, :truncation_cutoff] = self.mean_w.lerp(ws[:, :truncation_cutoff], truncation_psi)
        return ws

    @abstractmethod
    def synthesis(
        self,
        ws: Tensor,
        *,
        noise_mode: NoiseMode = "const",
        noise: Sequence[Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, list[Tensor]]:
        """Image and features of style vectors.

        Args:
            ws: [N, num_ws, w_dim].
            noise_mode: "const" adds the stored noise, "none" adds nothing.
            noise: tensors that replace the stored noise, one a layer, broadcastable to [N, 1, h, w].
            dtype: precision of the convolutions; the image is float32 all the same.

        Returns:
            image float32 [N, 3, H, W], nominally -1..1 (not clipped), and a list of feature maps [N, C, h, w] in
            `dtype`, ordered as `feature_channels` says.
        """

    def freeze(self) -> FeatureGenerator:
        """Evaluation mode, no gradients; returns the generator itself."""
        self.eval()
        self.requires_grad_(False)
        return self
