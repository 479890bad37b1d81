"""What every frozen generator offers: latents -> ws -> image and features."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dsgan_datasets._deprecation import warn_renamed
from dsgan_datasets.acceleration import keep_for_graph
from dsgan_datasets.checks import integer
from dsgan_datasets.operations import without_autocast
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
        img_resolution: side of the image, pixels; of one that is not square, the side by which its blocks are named.
        img_size: rows and columns of an image that is not square; None is img_resolution for both.
        img_channels: channels of the image as the network makes it: 1, 3 or 4.
        c_dim: classes of a conditional generator, 0 for none.
        embed_dim: length of the class embedding; 0 without classes.
        normalize: whether z and class embedding are normalized "apart" and then joined, or "joined" first.
        mapping_layers: fully connected layers between z and w.
        mapping_width: outputs of each of them but the last, which has w_dim; None is w_dim.
        mapping_lr_multiplier: learning-rate multiplier these layers were trained with; their stored weights carry it.
        has_w_avg: whether the average w is known, which truncation needs.
        w_avg_per_class: whether it is one for each class.
        centroids: how many centers of w stand in place of one average; truncation pulls to the nearest. 0 for none.

    Raises:
        ValueError: a value out of range.
    """

    #: Name in config.json.
    architecture: ClassVar[str]
    #: Fields that came later: config.json has them only where they differ, so that older fingerprints hold.
    later: ClassVar[tuple[str, ...]] = ("img_size", "normalize", "mapping_width", "w_avg_per_class", "centroids")

    z_dim: int
    w_dim: int
    img_resolution: int
    img_channels: int = 3
    c_dim: int = 0
    embed_dim: int = 0
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    has_w_avg: bool = True
    img_size: tuple[int, int] | None = None
    normalize: Literal["apart", "joined"] = "apart"
    mapping_width: int | None = None
    w_avg_per_class: bool = False
    centroids: int = 0

    def __post_init__(self) -> None:
        if self.img_size is not None:
            object.__setattr__(self, "img_size", self._checked_size(self.img_size))
        if self.mapping_width is not None:
            integer("mapping_width", self.mapping_width, 1, 8192)
        if self.normalize not in ("apart", "joined"):
            raise ValueError(f'normalize must be "apart" or "joined", not {self.normalize!r:.40}')
        if self.w_avg_per_class not in (False, bool(self.c_dim)) or not isinstance(self.w_avg_per_class, bool):
            raise ValueError(f"w_avg_per_class must be true or false, and needs classes, not {self.w_avg_per_class!r}")
        integer("centroids", self.centroids, 0, 2**16)
        if self.centroids and (self.w_avg_per_class or not self.has_w_avg):
            raise ValueError("centroids take the place of the average w: w_avg_per_class must be false, has_w_avg true")
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
                "it is not known how to make such an image RGB"
            )

    def _checked_size(self, size: Any) -> tuple[int, int] | None:
        """Rows and columns as integers; None for a square."""
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise ValueError(f"img_size must be rows and columns, not {size!r:.40}")
        height, width = (integer("img_size", side, 1, 8192) for side in size)
        return None if height == width == self.img_resolution else (height, width)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return self.img_size or (self.img_resolution, self.img_resolution)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in self.later}
        stated = dataclasses.asdict(self)
        shown = {k: v for k, v in stated.items() if k not in defaults or v != defaults[k]}
        if self.img_size is not None:
            shown["img_size"] = list(self.img_size)
        return {"architecture": self.architecture, **shown}


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(GeneratorConfig):
    """Shape of a generator that doubles its resolution from 4×4 on, a block for each (StyleGAN1 and 2).

    Args:
        channels: resolution -> channels of its block; img_resolution is a power of two, at least 8. An image that is
            not square grows from a constant of another shape than 4×4; its blocks keep the names of square ones.
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
        if not isinstance(self.channels, Mapping):
            raise ValueError(f"channels must map resolutions to numbers, not be {self.channels!r:.40}")
        object.__setattr__(self, "channels", {int(r): int(c) for r, c in self.channels.items()})
        if sorted(self.channels) != self.resolutions:
            raise ValueError(f"channels must name the resolutions {self.resolutions}, got {sorted(self.channels)}")
        for resolution, channels in self.channels.items():
            integer(f"channels of resolution {resolution}", channels, 1, 8192)
        if any(4 * side % self.img_resolution for side in self.size):
            raise ValueError(
                f"img_size {self.size} must be {self.img_resolution // 4} times the rows and columns of a constant"
            )

    def size_of(self, resolution: int) -> tuple[int, int]:
        """Rows and columns of the maps of a block."""
        height, width = self.size
        return height * resolution // self.img_resolution, width * resolution // self.img_resolution

    @property
    def resolutions(self) -> list[int]:
        """Block resolutions, coarse to fine."""
        return [2**k for k in range(2, self.img_resolution.bit_length())]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {**super().to_dict(), "channels": {str(r): c for r, c in self.channels.items()}}


def positive(name: str, value: object) -> float:
    """The value itself; ValueError unless it is a number above 0 and below 1e9, beyond which float32 is too coarse."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError(f"{name} must be a positive number, not {value!r:.40}")
    return float(value)


@dataclass(frozen=True)
class Provenance:
    """Where a generator came from; kept beside the weights, outside the fingerprint.

    Attributes:
        file: name of the file that was read.
        sha256: of that file, hex.
        dialect: what kind of file it was.
        notes: what else was found or done, one sentence each.
        license: of the weights.
        more: entries that a newer version wrote and this one does not know: kept and written back.

    Example:
        >>> Provenance.from_dict({"file": "a.pkl", "sha256": "0f", "dialect": "x", "trained_on": "cats"}).more
        {'trained_on': 'cats'}
    """

    file: str
    sha256: str
    dialect: str
    notes: tuple[str, ...] = ()
    license: str = "unspecified"
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        known = {name: getattr(self, name) for name in _PROVENANCE_TEXTS}
        return {**self.more, **known, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an entry that is missing, or known but not text.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"it must be an object of settings, not {data!r:.60}")
        if missing := {"file", "sha256", "dialect"} - data.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        texts = {name: data[name] for name in _PROVENANCE_TEXTS if name in data}
        notes = data.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(text, str) for text in (*notes, *texts.values())):
            raise ValueError(f"{', '.join(_PROVENANCE_TEXTS)} must be texts, and notes a list of texts")
        more = {name: value for name, value in data.items() if name not in (*_PROVENANCE_TEXTS, "notes")}
        return cls(**texts, notes=tuple(notes), more=more)


_PROVENANCE_TEXTS = ("file", "sha256", "dialect", "license")


@dataclass(frozen=True)
class FeatureInfo:
    """One of the maps that `FeatureGenerator.synthesis` returns.

    Attributes:
        channels: of the map.
        resolution: rows of the map, pixels.
        name: of the layer that makes it, as the files name their layers: "b8.conv0", "L3_52_12".
        width: columns of the map; None is as many as rows.
    """

    channels: int
    resolution: int
    name: str
    width: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.resolution, self.resolution if self.width is None else self.width


class Deriving(nn.Module):
    """A layer that keeps what it makes of its weights for a GPU: that takes as long as a small layer does."""

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[object, tuple[object, Tensor]] = {}

    def derived(self, name: object, source: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives for a weight: kept until that is moved or written to, never while it is trained."""
        if source.requires_grad or torch.compiler.is_compiling():
            return make(source)
        version = source.data_ptr(), 0 if source.is_inference() else source._version
        kept = self._derived.get(name)
        if kept is None or kept[0] != version:
            kept = self._derived[name] = version, make(source)
            if source.is_cuda:  # complete before any other stream reads it
                torch.cuda.current_stream(source.device).synchronize()
        keep_for_graph(kept)
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}


class Precomputed(Deriving):
    """A layer that keeps what depends on its weights alone."""

    def precompute(self) -> None:
        """Compute that from the current weights."""
        raise NotImplementedError


class FeatureGenerator(nn.Module, ABC):
    """A frozen generator that also returns the feature maps an interpreter reads.

    Attributes:
        z_dim: length of a latent z.
        c_dim: length of the one-hot class vector; 0 for an unconditional generator.
        w_dim: length of a style vector w.
        num_ws: style vectors an image takes.
        img_resolution: side of the image, pixels; of one that is not square, see `img_size`.
        img_size: rows and columns of the image.
        img_channels: channels of the image as the network makes it; `synthesis` always returns three.
        color_channels: how many of the channels that `synthesis_channels` returns are colors, 1 or 3; they come first.
        extra_channels: how many channels follow them: a fourth image channel, or logits of a mask.
        features: feature layout in use.
        feature_info: each map that `synthesis` returns, in order.
        provenance: where it came from; None if that is not known.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> z = sample_latents([0], generator.z_dim, seed=0)
        >>> image, features = generator.synthesis(generator.mapping(z))
        >>> image.shape, len(features) == len(generator.feature_channels)
        (torch.Size([1, 3, 64, 64]), True)
    """

    #: Feature layouts that the architecture can give; the first is its default.
    layouts: ClassVar[tuple[FeatureLayout, ...]] = get_args(FeatureLayout)
    #: Values of black and white in the images.
    image_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    #: Whether there are styles between z and the image, which truncation and mixing need.
    has_w_space: ClassVar[bool] = True

    num_ws: int
    feature_info: tuple[FeatureInfo, ...]
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
        self.img_resolution, self.img_size = config.img_resolution, config.size
        self.img_channels = config.img_channels
        self.color_channels = min(config.img_channels, 3)
        self.extra_channels = config.img_channels - self.color_channels
        self.provenance: Provenance | None = None
        self._config = config

    @property
    def config(self) -> dict[str, Any]:
        """What config.json needs to build the same network again."""
        return self._config.to_dict()

    @property
    def extra_are_logits(self) -> bool:
        """Whether the extra channels are known to be logits of a mask; a fourth image channel may be transparency."""
        return self.extra_channels > 0 and self.img_channels == self.color_channels

    @property
    def feature_channels(self) -> list[int]:
        """Channels of each map that `synthesis` returns, in order."""
        return [info.channels for info in self.feature_info]

    @property
    def feature_resolutions(self) -> list[int]:
        """Rows of each of these maps, pixels."""
        return [info.resolution for info in self.feature_info]

    @property
    def feature_sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of each of these maps, pixels."""
        return [info.size for info in self.feature_info]

    @property
    def source(self) -> Provenance | None:
        """Deprecated name of `provenance`."""
        warn_renamed("FeatureGenerator.source", "FeatureGenerator.provenance")
        return self.provenance

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def mean_w(self) -> Tensor | None:
        """Average w, the point that truncation pulls towards: [w_dim], one for each class [c_dim, w_dim], or centroids.

        None if it is not known, or if the network has no such space.
        """
        w_avg = self.mapping_network.w_avg
        assert w_avg is None or isinstance(w_avg, Tensor)
        return w_avg

    @without_autocast
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
            truncation_cutoff: truncate only the first `truncation_cutoff` of the num_ws vectors; None truncates all.

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
        if (mean := self.mean_w) is None:
            raise ValueError(self.without_average)
        if self._config.centroids:
            mean = mean[torch.cdist(w, mean).argmin(1)][:, None]
        elif self._config.w_avg_per_class and c is not None:
            mean = mean[c.argmax(1)][:, None]
        truncated = ws[:, :truncation_cutoff]
        ws[:, :truncation_cutoff] = (
            torch.lerp(mean.expand_as(truncated), truncated, truncation_psi)
            if isinstance(truncation_psi, Tensor)
            else mean.lerp(truncated, truncation_psi)
        )
        return ws

    @property
    def without_average(self) -> str:
        """Why truncation is not possible where `mean_w` is None, and what to do."""
        if not self.has_w_space:
            return (
                f"{type(self).__name__} has no space of styles (w): it takes z itself, so that truncation and style "
                "mixing do not apply: use truncation_psi 1 and no mixing_layer"
            )
        return (
            "truncation needs the average w, which is not known here: convert the generator anew, which computes it, "
            "pass avg_latent=… to load_generator (`--avg-latent` to dsgan convert), or use truncation_psi 1"
        )

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
            image float32 RGB [N, 3, H, W], nominally in `image_range` (not clipped), and a list of feature maps
            [N, C, h, w] in `dtype`, ordered as `feature_channels` says. A gray image is repeated to three channels, and
            of four the first three are kept.

        Raises:
            ValueError: ws or noise has the wrong shape or length, or the noise mode is unknown.
        """
        channels, features = self.synthesis_channels(ws, noise_mode=noise_mode, noise=noise, dtype=dtype)
        return self.colors(channels), features

    @without_autocast
    def synthesis_channels(
        self,
        ws: Tensor,
        *,
        noise_mode: NoiseMode = "const",
        noise: Sequence[Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, list[Tensor]]:
        """All channels that the network makes, and features; arguments and errors are those of `synthesis`.

        Returns:
            float32 [N, color_channels + extra_channels, H, W]: colors, nominally in `image_range` (not clipped), then
            the extra channels as they are; and the feature maps.

        Example:
            >>> generator = load_generator("demo-faces", device="cpu")
            >>> generator.synthesis_channels(generator.mapping(torch.zeros(1, generator.z_dim)))[0].shape
            torch.Size([1, 3, 64, 64])
        """
        if ws.dim() != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must be [N, {self.num_ws}, {self.w_dim}], got {list(ws.shape)}")
        return self._synthesize(ws, self._noise(noise_mode, noise), dtype)

    def colors(self, channels: Tensor) -> Tensor:
        """The RGB image [N, 3, H, W] of what `synthesis_channels` returned."""
        image = channels[:, : self.color_channels]
        return image.expand(-1, 3, -1, -1) if self.color_channels == 1 else image

    @abstractmethod
    def _synthesize(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """All channels [N, color_channels + extra_channels, H, W] and feature maps.

        `noise` has one entry for each of `_stored_noise`.
        """

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
        self.precompute()
        return self

    def precompute(self) -> None:
        """Recompute what layers derive from their weights, with gradients where weights have them (for training)."""
        for module in self.modules():
            if isinstance(module, Precomputed):
                module.precompute()
