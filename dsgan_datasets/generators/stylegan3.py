"""StyleGAN3 (Karras et al., NeurIPS 2021, arXiv 2106.12423) in plain PyTorch, returning its features.

Written from the paper: Fourier features with a learned transformation (section 3.1 and appendix F), filtered
nonlinearities (section 3.2), demodulated convolutions whose gain is fixed by a moving average (section 3.2). Every map
carries a margin around the image area; features are returned without it. The filters are read, not designed: they are
stored with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.checks import integer
from dsgan_datasets.generators.base import FeatureGenerator, FeatureInfo, GeneratorConfig, Precomputed, positive
from dsgan_datasets.generators.layers import SLOPE, SQRT2, EqualizedLinear, MappingNetwork, demodulation, within
from dsgan_datasets.operations import conv2d, product, product_of_columns
from dsgan_datasets.recipe import FeatureLayout


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """Shape of one layer.

    Args:
        channels: of its output.
        size: rows of its output with the margin; columns are as many, or in proportion to the image.
        sampling_rate: rows of the image area in it.
        kernel: side of the convolution's kernel, 1 or 3.
        up, down: factors of the upsampling before and the downsampling after the nonlinearity.
        up_filter, down_filter: shapes of their filters: (n,) separable, () for none; for downsampling also (n, n).
        padding: zeros to add left, right, above and below after inserting zeros; negative values crop.

    Raises:
        ValueError: a value out of range.
    """

    channels: int
    size: int
    sampling_rate: int
    kernel: int
    up: int
    down: int
    up_filter: tuple[int, ...]
    down_filter: tuple[int, ...]
    padding: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        for name in ("up_filter", "down_filter", "padding"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        integer("channels", self.channels, 1, 8192)
        integer("size", self.size, 1, 8192)
        integer("sampling_rate", self.sampling_rate, 1, self.size)
        integer("kernel", self.kernel, 1, 7)
        for name in ("up", "down"):
            integer(name, getattr(self, name), 1, 8)
        for shape, most in ((self.up_filter, 1), (self.down_filter, 2)):
            if len(shape) > most or len(set(shape)) > 1:
                raise ValueError(f"a filter must be (), (n,) or, for downsampling, (n, n), not {shape!r:.60}")
            for taps in shape:
                integer("taps of a filter", taps, 1, 256)
        if (self.up > 1 and not self.up_filter) or (self.down > 1 and not self.down_filter):
            raise ValueError("a layer that changes the resolution needs a filter")
        if len(self.padding) != 4:
            raise ValueError("padding must be four numbers")
        for pixels in self.padding:
            integer("padding", pixels, -8192, 8192)
        if (self.size - self.sampling_rate) % 2:
            raise ValueError(f"size {self.size} does not have an even margin around {self.sampling_rate}")

    def check_input(self, given: Sequence[int], expected: Sequence[int]) -> None:
        """ValueError unless an input of `given` columns and rows gives `expected` ones."""
        for size, made, before, after in zip(given, expected, self.padding[::2], self.padding[1::2], strict=True):
            length = (size + self.kernel - 1) * self.up + before + after
            length -= sum(shape[0] - 1 for shape in (self.up_filter, self.down_filter) if shape)
            if (length + self.down - 1) // self.down != made:
                raise ValueError(f"an input of {size} pixels does not give {made}")


@dataclass(frozen=True, kw_only=True)
class StyleGAN3Config(GeneratorConfig):
    """Shape of a StyleGAN3.

    Args:
        input_channels, input_size, input_sampling_rate: of the Fourier features.
        bandwidth: frequency up to which they have full amplitude.
        layers: in order; the last makes the image.
        conv_clamp: limit of every nonlinearity's output; None for no limit.
        output_scale: factor of the image.
    """

    architecture = "stylegan3"

    input_channels: int
    input_size: int
    input_sampling_rate: int
    bandwidth: float
    layers: tuple[LayerConfig, ...]
    conv_clamp: float | None = 256.0
    output_scale: float = 0.25
    mapping_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = tuple(v if isinstance(v, LayerConfig) else _layer_config(v) for v in self.layers)
        object.__setattr__(self, "layers", layers)
        integer("img_resolution", self.img_resolution, 1, 4096)
        integer("input_channels", self.input_channels, 1, 8192)
        integer("input_size", self.input_size, 1, 8192)
        integer("input_sampling_rate", self.input_sampling_rate, 1, self.input_size)
        for name in ("bandwidth", "output_scale", *(("conv_clamp",) if self.conv_clamp is not None else ())):
            positive(name, getattr(self, name))
        if not 2 <= len(layers) <= 64:
            raise ValueError(f"StyleGAN3 has 2 to 64 layers, not {len(layers)}")
        last = (layers[-1].size, layers[-1].sampling_rate, layers[-1].channels)
        if last != (self.img_resolution, self.img_resolution, self.img_channels):
            raise ValueError(f"the last layer must make the image, {self.img_channels} × {self.img_resolution}²")
        if self.size[0] != self.img_resolution:
            raise ValueError(f"img_size {self.size} must have img_resolution {self.img_resolution} rows")
        sides = [self.input_size, *(layer.size for layer in layers)]
        for layer, before, after in zip(layers, sides, sides[1:], strict=False):
            layer.check_input((self.columns(before), before), (self.columns(after), after))

    def columns(self, rows: int) -> int:
        """Columns of a map, in proportion to those of the image; ValueError unless that is a whole number."""
        height, width = self.size
        if rows * width % height:
            raise ValueError(f"a map of {rows} rows cannot have the proportions of {height}×{width}")
        return rows * width // height

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers, as in the published files."""
        return [f"L{i}_{self.columns(layer.size)}_{layer.channels}" for i, layer in enumerate(self.layers)]


def _layer_config(fields: object) -> LayerConfig:
    if not isinstance(fields, Mapping):
        raise ValueError(f"a layer must be an object, not {type(fields).__name__}")
    return LayerConfig(**fields)


class _Input(nn.Module):
    """Fourier features that w moves and turns (appendix F)."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, cfg: StyleGAN3Config) -> None:
        super().__init__()
        channels = cfg.input_channels
        self.affine = EqualizedLinear(cfg.w_dim, 4)
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.register_buffer("transform", torch.empty(3, 3))
        self.register_buffer("freqs", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))
        self.size, self.width = cfg.input_size, cfg.columns(cfg.input_size)
        self.sampling_rate, self.bandwidth = cfg.input_sampling_rate, cfg.bandwidth

    def forward(self, w: Tensor) -> Tensor:
        matrix = self._transformation(w.double() if w.is_cuda else w)  # see EqualizedLinear
        phases = self.phases + torch.einsum("cd,nd->nc", self.freqs.to(matrix), matrix[:, :2, 2]).float()
        freqs = torch.einsum("cd,nde->nce", self.freqs.to(matrix), matrix[:, :2, :2]).float()
        # Frequencies that a transformation moves beyond what the sampling rate can carry fade out.
        fade = (freqs.norm(dim=2) - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitude = (1 - fade).clamp(0, 1)
        x, y = self._axis(self.width, w.device), self._axis(self.size, w.device)
        turns = freqs[:, :, :1, None] * x + freqs[:, :, 1:, None] * y[:, None] + phases[:, :, None, None]
        waves = torch.sin(2 * math.pi * turns) * amplitude[:, :, None, None]
        mixed = product_of_columns(self.weight / math.sqrt(len(self.weight)), waves.flatten(2))
        return mixed.view(len(w), -1, *waves.shape[2:])

    def _axis(self, pixels: int, device: torch.device) -> Tensor:
        """Positions of the pixels' centers along an axis; the image area has length 1 along the columns of a square."""
        return (torch.arange(pixels, device=device, dtype=torch.float32) + 0.5 - pixels / 2) / self.sampling_rate

    def _transformation(self, w: Tensor) -> Tensor:
        """Rotation · translation · the stored transformation, [N, 3, 3]."""
        t = self.affine(w)
        cos, sin, x, y = (t / t[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)
        translation = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1).view(-1, 3, 3)
        return rotation @ translation @ self.transform.to(t)


class _Layer(Precomputed):
    """Modulated convolution and filtered nonlinearity; the last layer only makes colors."""

    magnitude_ema: Tensor
    squared_weight: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, cfg: StyleGAN3Config, n_in: int, rows_in: int, layer: LayerConfig, *, is_torgb: bool) -> None:
        super().__init__()
        self.affine = EqualizedLinear(cfg.w_dim, n_in)
        self.weight = nn.Parameter(torch.empty(layer.channels, n_in, layer.kernel, layer.kernel))
        self.bias = nn.Parameter(torch.empty(layer.channels))
        self.register_buffer("magnitude_ema", torch.empty([]))
        self.register_buffer("up_filter", torch.empty(layer.up_filter) if layer.up_filter else None)
        self.register_buffer("down_filter", torch.empty(layer.down_filter) if layer.down_filter else None)
        self.register_buffer("squared_weight", torch.empty(n_in, layer.channels), persistent=False)
        self.up, self.down = _Resizing(), _Resizing()
        self.layer, self.is_torgb, self.clamp = layer, is_torgb, cfg.conv_clamp
        self.size_in = rows_in, cfg.columns(rows_in)

    def precompute(self) -> None:
        """See `Precomputed`."""
        self.squared_weight = self.weight.square().sum((2, 3)).t().contiguous()
        layer = self.layer
        height, width = (side + layer.kernel - 1 for side in self.size_in)
        left, right, top, bottom = layer.padding
        if self.up_filter is not None or any(layer.padding):
            taps = torch.ones(1, device=self.weight.device) if self.up_filter is None else self.up_filter
            across = _upsampling_matrix(taps, width, layer.up, left, right)
            down = _upsampling_matrix(taps, height, layer.up, top, bottom)
            self.up.set_matrices(across, down)
        if self.down_filter is not None and self.down_filter.dim() == 1:
            width = width if self.up.across is None else self.up.across.shape[1]
            height = height if self.up.down is None else self.up.down.shape[1]
            self.down.set_matrices(
                *(_downsampling_matrix(self.down_filter, side, layer.down) for side in (width, height))
            )

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w)
        fan_in = self.weight[0].numel()
        # The published code first normalizes weights and styles, which demodulation undoes: it is left out here.
        if self.is_torgb:
            gain = style.new_full((1, 1), 1 / math.sqrt(fan_in))
        else:
            gain = demodulation(style, self.squared_weight)
        gain = gain * self.magnitude_ema.rsqrt()
        # Scaling by the largest style and by fan-in, undone by the gain, keeps half precision in range.
        scale = style.abs().amax(1, keepdim=True).clamp_min(1e-8) * math.sqrt(fan_in)
        x = x * (style / scale)[:, :, None, None].to(x.dtype)
        x = conv2d(x, self.weight.to(x.dtype), padding=self.layer.kernel - 1)
        x = x * within(x.dtype, gain * scale)[:, :, None, None].to(x.dtype) + self.bias[:, None, None].to(x.dtype)
        x = self.up(x)
        if not self.is_torgb:
            x = F.leaky_relu(x, SLOPE) * SQRT2
        if self.clamp is not None:
            x = x.clamp(-self.clamp, self.clamp)
        if self.down_filter is not None and self.down_filter.dim() == 2:
            kernel = self.down_filter.flip(0, 1).to(x.dtype).expand(x.shape[1], 1, *self.down_filter.shape)
            return conv2d(x, kernel, stride=self.layer.down, groups=x.shape[1])
        resized: Tensor = self.down(x)
        return resized


class _Synthesis(nn.Module):
    """ws -> image and features with their margins."""

    def __init__(self, cfg: StyleGAN3Config) -> None:
        super().__init__()
        self.input = _Input(cfg)
        n_in, size_in = cfg.input_channels, cfg.input_size
        for i, (name, layer) in enumerate(zip(cfg.layer_names, cfg.layers, strict=True)):
            self.add_module(name, _Layer(cfg, n_in, size_in, layer, is_torgb=i == len(cfg.layers) - 1))
            n_in, size_in = layer.channels, layer.size
        self.output_scale = cfg.output_scale

    def layers(self) -> list[_Layer]:
        """The layers in order."""
        return [m for m in self.children() if isinstance(m, _Layer)]

    def forward(self, ws: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        maps = [self.input(ws[:, 0]).to(dtype)]
        for i, layer in enumerate(self.layers()):
            maps.append(layer(maps[-1], ws[:, i + 1]))
        return maps[-1].float() * self.output_scale, maps[:-1]


class StyleGAN3(FeatureGenerator):
    """A frozen StyleGAN3, of configuration T or R; make one with `load_generator`.

    Args:
        config: its shape.
        features: "convs": the Fourier features and the outputs of all layers but the last, each without its margin.

    Raises:
        ValueError: a feature layout that StyleGAN3 does not have.
    """

    layouts = ("convs",)
    synthesis_network: _Synthesis

    def __init__(self, config: StyleGAN3Config, features: FeatureLayout | None = None) -> None:
        super().__init__(config, features)
        self.mapping_network = MappingNetwork(config)
        self.synthesis_network = _Synthesis(config)
        self.num_ws = len(config.layers) + 1
        self.feature_info = (
            FeatureInfo(
                config.input_channels, config.input_sampling_rate, "input", config.columns(config.input_sampling_rate)
            ),
            *(
                FeatureInfo(layer.channels, layer.sampling_rate, name, config.columns(layer.sampling_rate))
                for name, layer in zip(config.layer_names[:-1], config.layers[:-1], strict=True)
            ),
        )

    def _synthesize(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        image, maps = self.synthesis_network(ws, dtype)
        return image, [_center(f, size) for f, size in zip(maps, self.feature_sizes, strict=True)]

    def _stored_noise(self) -> list[Tensor]:
        return []


def _center(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The image area of a map with margins."""
    top, left = ((x.shape[axis] - side) // 2 for axis, side in zip((2, 3), size, strict=True))
    return x[:, :, top : top + size[0], left : left + size[1]]


class _Resizing(nn.Module):
    """A separable filter with its change of resolution, along both axes; the identity until it is given matrices.

    Filtering a line is a product with a banded matrix. In blocks of columns that leave out the zeros this is several
    times faster than a grouped convolution, on processors whose matrix products are their best operation.
    """

    across: Tensor | None
    down: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("across", None, persistent=False)
        self.register_buffer("down", None, persistent=False)

    def set_matrices(self, across: Tensor, down: Tensor) -> None:
        """Take the matrices [size, new size] for lines (along the width) and columns (along the height)."""
        self.across, self.down = across, down
        self.blocks_across, self.blocks_down = _blocks(across), _blocks(down)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, new H, new W]."""
        if self.across is None or self.down is None:
            return x
        across, down = self.across.to(x.dtype), self.down.t().to(x.dtype)
        lines = x.flatten(0, 2)
        lines = torch.cat([product(lines[:, used], across[used, made]) for used, made in self.blocks_across], dim=1)
        x = lines.view(*x.shape[:3], -1)
        return torch.cat(
            [product_of_columns(down[made, used], x[:, :, used]) for used, made in self.blocks_down], dim=2
        )


def _upsampling_matrix(taps: Tensor, size: int, factor: int, before: int, after: int) -> Tensor:
    """Insert zeros, pad (or crop), filter; the gain makes up for the zeros. [size, new size]."""
    # A transposed convolution inserts the zeros and filters in one go. It starts with the filter's first overlap and
    # ends with its last, so that padding is counted from there.
    impulses = torch.eye(size, device=taps.device)[:, None]
    responses = F.conv_transpose1d(impulses, (taps * factor)[None, None], stride=factor)
    return F.pad(responses, (before - (len(taps) - 1), after - (len(taps) - factor)))[:, 0]


def _downsampling_matrix(taps: Tensor, size: int, factor: int) -> Tensor:
    """Filter, then keep every `factor`-th value, from the first on. [size, new size]."""
    impulses = torch.eye(size, device=taps.device)[:, None]
    return F.conv1d(impulses, taps.flip(0)[None, None], stride=factor)[:, 0]


def _blocks(matrix: Tensor, columns: int = 64) -> list[tuple[slice, slice]]:
    """A banded matrix as blocks of columns: (rows that are not zero, columns)."""
    blocks = []
    for start in range(0, matrix.shape[1], columns):
        made = slice(start, min(start + columns, matrix.shape[1]))
        rows = matrix[:, made].any(1).nonzero()[:, 0].tolist() or [0]
        blocks.append((slice(rows[0], rows[-1] + 1), made))
    return blocks
