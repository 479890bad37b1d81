"""What every frozen generator offers: latents -> ws -> image and features."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.recipe import FeatureLayout, NoiseMode

#: Channels that a generator's images may have -> what is done to make them RGB.
IMAGE_CHANNELS = {
    1: "1 channel, repeated to three",
    3: "RGB",
    4: "4 channels, of which the first three are kept as RGB",
}


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What the shapes of all generators have in common.

    Args:
        z_dim, w_dim: lengths of z and w.
        img_resolution: side of the image, pixels.
        img_channels: channels of the image as the network makes it: 1, 3 or 4.
        c_dim: classes of a conditional generator, 0 for none.
        embed_dim: length of the class embedding; 0 without classes.
        mapping_layers: fully connected layers between z and w.
        mapping_lr_multiplier: learning-rate multiplier these layers were trained with; their stored weights carry it.
        has_w_avg: whether the average w is known, which truncation needs.

    Raises:
        ValueError: a value out of range.
    """

    #: Name in config.json.
    architecture: ClassVar[str]

    z_dim: int
    w_dim: int
    img_resolution: int
    img_channels: int = 3
    c_dim: int = 0
    embed_dim: int = 0
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    has_w_avg: bool = True

    def __post_init__(self) -> None:
        for name in ("z_dim", "w_dim", "mapping_layers"):
            integer(name, getattr(self, name), 1, 8192)
        for name in ("c_dim", "embed_dim"):
            integer(name, getattr(self, name), 0, 2**20)
        if bool(self.c_dim) != bool(self.embed_dim):
            raise ValueError(f"c_dim {self.c_dim} and embed_dim {self.embed_dim} must both be 0, or neither")
        positive("mapping_lr_multiplier", self.mapping_lr_multiplier)
        if not isinstance(self.has_w_avg, bool):
            raise ValueError(f"has_w_avg must be true or false, not {self.has_w_avg!r}")
        if self.img_channels not in IMAGE_CHANNELS:
            raise ValueError(
                f"img_channels must be {', '.join(map(str, IMAGE_CHANNELS))}, not {self.img_channels!r}: "
                "there is no rule for making such an image RGB"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {"architecture": self.architecture, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(GeneratorConfig):
    """Shape of a generator that doubles its resolution from 4×4 on, a block for each (StyleGAN1 and 2).

    Args:
        channels: resolution -> channels of its block; img_resolution is a power of two, at least 8.
    """

    #: Largest side that such networks have.
    max_resolution: ClassVar[int]

    channels: Mapping[int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = [2**k for k in range(3, self.max_resolution.bit_length())]
        if isinstance(self.img_resolution, bool) or self.img_resolution not in sides:
            allowed = f"a power of two from 8 to {self.max_resolution}"
            raise ValueError(f"img_resolution must be {allowed}, not {self.img_resolution!r:.40}")
        object.__setattr__(self, "channels", {int(r): int(c) for r, c in self.channels.items()})
        if sorted(self.channels) != self.resolutions:
            raise ValueError(f"channels must name the resolutions {self.resolutions}, got {sorted(self.channels)}")
        for resolution, channels in self.channels.items():
            integer(f"channels of resolution {resolution}", channels, 1, 8192)

    @property
    def resolutions(self) -> list[int]:
        """Block resolutions, coarse to fine."""
        return [2**k for k in range(2, self.img_resolution.bit_length())]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {**super().to_dict(), "channels": {str(r): c for r, c in self.channels.items()}}


def positive(name: str, value: object) -> float:
    """The value itself; ValueError unless it is a number above 0 (and below 1e9, where float32 ends to make sense)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"{name} must be a positive number, not {value!r:.40}")
    return float(value)


@dataclass(frozen=True)
class Source:
    """Where a generator came from; kept beside the weights, outside the fingerprint.

    Attributes:
        file: name of the file that was read.
        sha256: of that file, hex.
        dialect: what kind of file it was.
        notes: what else was found or done, one sentence each.
        license: of the weights.
    """

    file: str
    sha256: str
    dialect: str
    notes: tuple[str, ...] = ()
    license: str = "unspecified"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Source:
        """Inverse of `to_dict`; ValueError if it is none."""
        fields = {**data, "notes": data.get("notes", [])}
        if not isinstance(fields["notes"], list):
            raise ValueError(f"notes must be a list, not {type(fields['notes']).__name__}")
        texts = [*fields["notes"], *(v for k, v in fields.items() if k != "notes")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("source must hold texts only")
        return cls(**{**fields, "notes": tuple(fields["notes"])})


class Precomputed(nn.Module):
    """A layer that keeps what depends on its weights alone."""

    def precompute(self) -> None:
        """Compute that anew."""
        raise NotImplementedError


class FeatureGenerator(nn.Module, ABC):
    """A frozen generator that also returns the feature maps an interpreter reads.

    Attributes:
        z_dim: length of a latent z.
        c_dim: length of the one-hot class vector; 0 for an unconditional generator.
        w_dim: length of a style vector w.
        num_ws: style vectors an image takes.
        img_resolution: side of the square image, pixels.
        img_channels: channels of the image as the network makes it; `synthesis` always returns three.
        features: feature layout in use.
        feature_channels: channels of each map returned by `synthesis`, in order.
        feature_resolutions: side of each of these maps.
        source: where it came from; None if that is not known.
    """

    #: Feature layouts that the architecture can give; the first is its default.
    layouts: ClassVar[tuple[FeatureLayout, ...]] = get_args(FeatureLayout)

    num_ws: int
    feature_channels: list[int]
    feature_resolutions: list[int]
    mapping_network: nn.Module
    synthesis_network: nn.Module

    def __init__(self, config: GeneratorConfig, features: FeatureLayout | None) -> None:
        super().__init__()
        self.features: FeatureLayout = features or self.layouts[0]
        if self.features not in self.layouts:
            raise ValueError(
                f"{type(self).__name__} has the feature layouts {', '.join(self.layouts)}, not {features!r}"
            )
        self.z_dim, self.c_dim, self.w_dim = config.z_dim, config.c_dim, config.w_dim
        self.img_resolution, self.img_channels = config.img_resolution, config.img_channels
        self.source: Source | None = None
        self._config = config

    @property
    def config(self) -> dict[str, Any]:
        """What config.json needs to build the same network again."""
        return self._config.to_dict()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def mean_w(self) -> Tensor | None:
        """Average w [w_dim], the point that truncation pulls towards; None if the file did not have it."""
        w_avg = self.mapping_network.w_avg
        assert w_avg is None or isinstance(w_avg, Tensor)
        return w_avg

    def mapping(
        self,
        z: Tensor,
        c: Tensor | None = None,
        *,
        truncation_psi: float | Tensor = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Style vectors of a latent, truncated towards the average (StyleGAN section B).

        Args:
            z: [N, z_dim].
            c: one-hot classes [N, c_dim]; only for a conditional generator.
            truncation_psi: mean + psi · (w − mean); 1 changes nothing. A number, or one a latent [N].
            truncation_cutoff: truncate only the first so many of the num_ws vectors; None truncates all.

        Returns:
            float32 [N, num_ws, w_dim].

        Raises:
            ValueError: z, c or psi has the wrong shape, c is missing, or psi is not 1 and the average w is not known.
        """
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must be [N, {self.z_dim}], got {list(z.shape)}")
        given = None if c is None else tuple(c.shape)
        expected = (len(z), self.c_dim) if self.c_dim else None
        if given != expected:
            raise ValueError(f"c must be {expected or 'None: the generator is unconditional'}, got {given}")
        w = self.mapping_network(z.float(), c if c is None else c.float())
        ws: Tensor = w.unsqueeze(1).repeat(1, self.num_ws, 1)
        if isinstance(truncation_psi, Tensor):
            if truncation_psi.shape != z.shape[:1]:
                raise ValueError(f"truncation_psi must be [{len(z)}], got {list(truncation_psi.shape)}")
            truncation_psi = truncation_psi.to(ws)[:, None, None]
        elif truncation_psi == 1:
            return ws
        if self.mean_w is None:
            raise ValueError(
                "truncation needs the average w, which this generator's file does not have: give avg_latent=… to "
                "load_generator (`--avg-latent` to dsgan convert), or use psi 1"
            )
        mean, truncated = self.mean_w, ws[:, :truncation_cutoff]
        ws[:, :truncation_cutoff] = (
            torch.lerp(mean.expand_as(truncated), truncated, truncation_psi)
            if isinstance(truncation_psi, Tensor)
            else mean.lerp(truncated, truncation_psi)
        )
        return ws

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
            noise_mode: "const" adds the stored noise, "none" adds nothing. StyleGAN3 has no noise.
            noise: tensors that replace the stored noise, one a layer, broadcastable to [N, 1, h, w].
            dtype: precision of the convolutions; the image is float32 all the same.

        Returns:
            image float32 RGB [N, 3, H, W], nominally -1..1 (not clipped), and a list of feature maps [N, C, h, w] in
            `dtype`, ordered as `feature_channels` says. A gray image is repeated to three channels, and of four the
            first three are kept.

        Raises:
            ValueError: ws or noise has the wrong shape or length, or an unknown noise mode.
        """
        if ws.dim() != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must be [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}")
        image, features = self._synthesize(ws, self._noise(noise_mode, noise), dtype)
        return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image[:, :3], features

    @abstractmethod
    def _synthesize(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Image [N, img_channels, H, W] and feature maps; `noise` has one entry for each of `_stored_noise`."""

    @abstractmethod
    def _stored_noise(self) -> list[Tensor]:
        """The noise of each layer that has some."""

    def _noise(self, mode: NoiseMode, given: Sequence[Tensor] | None) -> list[Tensor | None]:
        stored = self._stored_noise()
        if given is not None:
            if len(given) != len(stored):
                raise ValueError(f"noise must have one tensor for each of the {len(stored)} layers, got {len(given)}")
            return list(given)
        if mode not in ("const", "none"):
            raise ValueError(f'noise_mode must be "const" or "none", not {mode!r}')
        return [*stored] if mode == "const" else [None] * len(stored)

    def freeze(self) -> FeatureGenerator:
        """Evaluation mode, no gradients; call again after changing weights. Returns the generator itself."""
        self.eval()
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Precomputed):
                module.precompute()
        return self
