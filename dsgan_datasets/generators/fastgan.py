"""FastGAN (Liu et al., ICLR 2021, arXiv 2101.04775) as Projected GAN uses it, returning its features.

Written from the papers: gated linear units and nearest upsampling, and gates by which early maps scale the channels of
late ones (FastGAN, section 3.1); the conditional form normalizes with a gain and bias of the class (Projected GAN,
arXiv 2111.01007). What is constant in a frozen network is stored computed: weights divided by their spectral norm, and
batch normalization as a scale and a shift. There is no space of styles: the image is made from z itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator, FeatureInfo, PyramidConfig
from dsgan_datasets.generators.layers import to_conv_layout, unit_rms
from dsgan_datasets.recipe import FeatureLayout

#: Resolution of a map -> that of the map which gates it.
GATES = {64: 4, 128: 8, 256: 16, 512: 32}


@dataclass(frozen=True, kw_only=True)
class FastGANConfig(PyramidConfig):
    """Shape of a FastGAN.

    Args:
        convs: convolutions of a block: 2, with noise, or 1 without (the "lite" form).
    """

    architecture = "fastgan"
    max_resolution = 1024
    # It has no mapping network.
    later = (*PyramidConfig.later, "mapping_layers", "mapping_lr_multiplier", "has_w_avg")

    convs: int = 2
    has_w_avg: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("convs", self.convs, 1, 2)
        if self.w_dim != self.z_dim + self.embed_dim:
            raise ValueError(f"w_dim must be z_dim + embed_dim, {self.z_dim + self.embed_dim}, not {self.w_dim}")
        if self.has_w_avg or self.img_size is not None:
            raise ValueError("a FastGAN is square, and has no average w")


class _Latents(nn.Module):
    """z and class -> what the image is made from: z normalized, then the row of the class."""

    w_avg = None

    def __init__(self, cfg: FastGANConfig) -> None:
        super().__init__()
        if cfg.c_dim:
            self.embed = nn.Parameter(torch.empty(cfg.c_dim, cfg.embed_dim))

    def forward(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Z [N, z_dim] and one-hot c [N, c_dim] -> [N, z_dim + embed_dim]."""
        return unit_rms(z) if c is None else torch.cat([unit_rms(z), c @ self.embed], dim=1)


class _Normalize(nn.Module):
    """Scale and shift of each channel; with classes another gain and bias of the class after them."""

    def __init__(self, cfg: FastGANConfig, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        if cfg.c_dim:
            self.gain = nn.Linear(cfg.embed_dim, channels)
            self.bias = nn.Linear(cfg.embed_dim, channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.scale, self.shift
        if y.shape[1]:
            gain, bias = self.gain(y) + 1, self.bias(y)
            scale, shift = gain * scale, gain * shift + bias
        return x * scale[..., None, None].to(x.dtype) + shift[..., None, None].to(x.dtype)


class _Stage(nn.Module):
    """3×3 convolution, noise, normalization, gated linear unit."""

    noise_const: Tensor

    def __init__(self, cfg: FastGANConfig, n_in: int, n_out: int, resolution: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * n_out, n_in, 3, 3))
        self.norm = _Normalize(cfg, 2 * n_out)
        self.has_noise = cfg.convs == 2
        if self.has_noise:
            self.noise_strength = nn.Parameter(torch.empty([]))
            self.register_buffer("noise_const", torch.empty(resolution, resolution))

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        x = F.conv2d(x, self.weight.to(x.dtype), padding=1)
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return F.glu(self.norm(x, y), dim=1)


class _Gate(nn.Module):
    """An early map -> a factor for each channel of a late one."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight0 = nn.Parameter(torch.empty(n_out, n_in, 4, 4))
        self.weight1 = nn.Parameter(torch.empty(n_out, n_out, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.adaptive_avg_pool2d(x, 4), self.weight0.to(x.dtype))
        return F.conv2d(F.silu(x), self.weight1.to(x.dtype)).sigmoid()


class _Block(nn.Module):
    """Twice the resolution."""

    def __init__(self, cfg: FastGANConfig, resolution: int) -> None:
        super().__init__()
        n_in, n_out = cfg.channels[resolution // 2], cfg.channels[resolution]
        for i in range(cfg.convs):
            self.add_module(f"stage{i}", _Stage(cfg, n_out if i else n_in, n_out, resolution))
        source = GATES.get(resolution)
        self.gate = None if source is None else _Gate(cfg.channels[source], n_out)

    def stages(self) -> list[_Stage]:
        """Its convolutions in order."""
        return [m for m in self.children() if isinstance(m, _Stage)]


class _Synthesis(nn.Module):
    """z and class -> image and features."""

    def __init__(self, cfg: FastGANConfig) -> None:
        super().__init__()
        self.z_dim = cfg.z_dim
        self.initial = nn.Parameter(torch.empty(cfg.z_dim, 2 * cfg.channels[4], 4, 4))
        self.scale, self.shift = (nn.Parameter(torch.empty(2 * cfg.channels[4])) for _ in range(2))
        self.resolutions = cfg.resolutions
        for resolution in cfg.resolutions[1:]:
            self.add_module(f"b{resolution}", _Block(cfg, resolution))
        self.torgb = nn.Conv2d(cfg.channels[cfg.img_resolution], cfg.img_channels, 3, padding=1)

    def blocks(self) -> list[_Block]:
        """The blocks, coarse to fine."""
        return [m for m in self.children() if isinstance(m, _Block)]

    def forward(self, latent: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        z, y = latent[:, : self.z_dim], latent[:, self.z_dim :]
        x = torch.einsum("nz,zchw->nchw", z, self.initial)
        x = to_conv_layout(F.glu(x * self.scale[:, None, None] + self.shift[:, None, None], dim=1).to(dtype))
        maps, left = {4: x}, iter(noise)
        for resolution, block in zip(self.resolutions[1:], self.blocks(), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            for stage in block.stages():
                x = stage(x, y, next(left) if stage.has_noise else None)
            if block.gate is not None:
                x = x * block.gate(maps[GATES[resolution]])
            maps[resolution] = x
        return F.conv2d(x.float(), self.torgb.weight, self.torgb.bias, padding=1), list(maps.values())


class FastGAN(FeatureGenerator):
    """A frozen FastGAN; make one with `load_generator`. It takes z itself, so that its one style vector is z.

    Args:
        config: its shape.
        features: "convs": the map of each resolution, coarse to fine.

    Raises:
        ValueError: a feature layout that FastGAN does not have.
    """

    layouts = ("convs",)
    has_w_space = False
    synthesis_network: _Synthesis

    def __init__(self, config: FastGANConfig, features: FeatureLayout | None = None) -> None:
        super().__init__(config, features)
        self.mapping_network = _Latents(config)
        self.synthesis_network = _Synthesis(config)
        self.num_ws = 1
        self.feature_info = tuple(
            FeatureInfo(config.channels[r], r, "init" if r == 4 else f"feat_{r}", r) for r in config.resolutions
        )

    def _synthesize(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        image, maps = self.synthesis_network(ws[:, 0], noise, dtype)
        return image, maps

    def _stored_noise(self) -> list[Tensor]:
        stages = [stage for block in self.synthesis_network.blocks() for stage in block.stages()]
        return [stage.noise_const for stage in stages if stage.has_noise]
