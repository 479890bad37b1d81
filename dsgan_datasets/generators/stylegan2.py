"""StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958) in plain PyTorch, returning its features.

Written from the papers: equalized learning rate (Progressive GAN, section 4.1), weight demodulation (StyleGAN2, section
2.2), skip and residual generators (section 4.1), clamping (StyleGAN2-ADA, appendix D). Parameters carry the names of
the files that people have, so that their tensors load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.device import why_no_triton
from dsgan_datasets.generators.base import FeatureGenerator, FeatureInfo, Precomputed, PyramidConfig, positive
from dsgan_datasets.generators.layers import (
    SLOPE,
    SQRT2,
    EqualizedLinear,
    MappingNetwork,
    blur,
    blur_kernel,
    conv_kernel,
    demodulation,
    in_place,
    scaled_by,
    to_conv_layout,
    within,
)
from dsgan_datasets.operations import conv2d, conv_transpose2d
from dsgan_datasets.recipe import FeatureLayout


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config(PyramidConfig):
    """Shape of a StyleGAN2.

    Args:
        block: "skip", "resnet" or "orig" (one ToRGB, after the last block, and no residual branches).
        conv_clamp: limit of every convolution's output; None for no limit.

    Example:
        >>> config = StyleGAN2Config(z_dim=8, w_dim=8, img_resolution=8, channels={4: 4, 8: 4}, mapping_layers=2)
        >>> StyleGAN2(config).num_ws, config.size
        (4, (8, 8))
    """

    architecture = "stylegan2"
    max_resolution = 2048

    block: Literal["skip", "resnet", "orig"] = "skip"
    conv_clamp: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conv_clamp is not None:
            positive("conv_clamp", self.conv_clamp)
        if self.block not in ("skip", "resnet", "orig"):
            raise ValueError(f'block must be "skip", "resnet" or "orig", not {self.block!r:.40}')

    @property
    def heads(self) -> Mapping[str, int]:
        """Name of each 1×1 layer that adds to the output at every resolution -> its channels."""
        return {"torgb": self.img_channels}


class _Modulation(NamedTuple):
    """Factors that stand for a layer's styled kernel: of the activations before the convolution, and of its result.

    The same product as scaling the kernel of each sample, but the whole batch shares one kernel.

    Attributes:
        before: float32 [N, I].
        after: float32 [N, O], with the demodulation.
    """

    before: Tensor
    after: Tensor


class _StyledConv(Precomputed):
    """3×3 convolution with style, noise, bias and leaky ReLU; `up` doubles the resolution."""

    noise_const: Tensor
    squared_weight: Tensor
    blur_kernel: Tensor

    def __init__(self, cfg: StyleGAN2Config, n_in: int, n_out: int, resolution: int, *, up: bool, gain: float = 1.0):
        super().__init__()
        self.affine = EqualizedLinear(cfg.w_dim, n_in)
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 3, 3))
        self.noise_strength = nn.Parameter(torch.empty([]))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.register_buffer("noise_const", torch.empty(cfg.size_of(resolution)))
        self.register_buffer("squared_weight", torch.empty(n_in, n_out), persistent=False)
        self.register_buffer("blur_kernel", torch.empty(1, 1, 4, 4), persistent=False)
        self.up = up
        self.gain = gain
        self.clamp = None if cfg.conv_clamp is None else cfg.conv_clamp * gain

    def precompute(self) -> None:
        """See `Precomputed`."""
        self.squared_weight = self.weight.square().sum((2, 3)).t().contiguous()
        self.blur_kernel = blur_kernel((1.0, 3.0, 3.0, 1.0), self.weight.device)  # gain 4, for the inserted zeros

    def modulation(self, w: Tensor) -> _Modulation:
        """What a style vector [N, w_dim] makes of the layer."""
        style = self.affine(w)
        # Scaling by the largest style and by fan-in, undone below, keeps half precision in range.
        scale = style.abs().amax(1, keepdim=True).clamp_min(1e-8) * math.sqrt(self.weight[0].numel())
        return _Modulation(style / scale, demodulation(style, self.squared_weight) * scale)

    def forward(
        self, x: Tensor, after: Tensor, noise: Tensor | None, next_before: Tensor | None, fused: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The layer of a map that is scaled already.

        Args:
            x: [N, I, H, W], scaled by `_Modulation.before`.
            after: `_Modulation.after`.
            noise: to add, or None.
            next_before: by what the next layer scales the result, or None.
            fused: whether to use `fused_epilogue`.

        Returns:
            the map, and the map scaled by `next_before`, or None.
        """
        kernel = conv_kernel(self, self.weight, x)
        if self.up:
            x = conv_transpose2d(x, kernel.transpose(0, 1), stride=2)  # [2H+1]
        else:
            x = conv2d(x, kernel, padding=1)
        if fused and (noise is None or noise.dim() == 2):
            from dsgan_datasets.generators.fused_epilogue import epilogue  # needs Triton, which is optional

            taps, gain = self.blur_kernel if self.up else None, SQRT2 * self.gain
            return epilogue(x, after, noise, self.noise_strength, self.bias, taps, next_before, gain, self.clamp)
        if self.up:
            x = blur(x, self.blur_kernel)  # [2H]
        if in_place(x):
            x = self._finish(x, within(x.dtype, after), noise)
            return x, None if next_before is None else scaled_by(x, next_before)
        x = scaled_by(x, within(x.dtype, after))
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        x = F.leaky_relu(x + self.bias[:, None, None].to(x.dtype), SLOPE) * (SQRT2 * self.gain)
        x = x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        return x, None if next_before is None else scaled_by(x, next_before)

    def _finish(self, x: Tensor, factor: Tensor, noise: Tensor | None) -> Tensor:
        """The steps after the convolution in few passes: what is positive may be multiplied before the leaky ReLU."""
        gain = SQRT2 * self.gain
        bias = (self.bias * gain)[:, None, None].to(x.dtype)
        x = torch.addcmul(bias, x, (factor * gain)[:, :, None, None].to(x.dtype), out=x)
        if noise is not None:
            x += (noise * (self.noise_strength * gain)).to(x.dtype)
        x = F.leaky_relu_(x, SLOPE)
        return x if self.clamp is None else x.clamp_(-self.clamp, self.clamp)


class _Head(nn.Module):
    """ToRGB, or another such layer: 1×1 convolution to channels of the output, styled but not demodulated."""

    def __init__(self, cfg: StyleGAN2Config, n_in: int, n_out: int) -> None:
        super().__init__()
        self.affine = EqualizedLinear(cfg.w_dim, n_in)
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 1, 1))
        self.bias = nn.Parameter(torch.empty(n_out))
        self.clamp = cfg.conv_clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style: Tensor = self.affine(w) / math.sqrt(self.weight.shape[1])
        largest = style.abs().amax(1)[:, None, None, None].clamp_min(1e-8)
        y = conv2d(x * (style[:, :, None, None] / largest).to(x.dtype), self.weight.to(x.dtype))
        y = y.float() * largest + self.bias[:, None, None]
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class _Skip(nn.Module):
    """The residual branch: 1×1 convolution, then twice the resolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight * (math.sqrt(0.5) / math.sqrt(self.weight.shape[1]))
        return upsample_image(conv2d(x, kernel.to(x.dtype)))


class _Block(nn.Module):
    """The layers of one resolution."""

    def __init__(self, cfg: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        n_out = cfg.channels[resolution]
        is_first, is_last = resolution == 4, resolution == cfg.img_resolution
        residual = cfg.block == "resnet" and not is_first
        if is_first:
            self.const = nn.Parameter(torch.empty(n_out, *cfg.size_of(4)))
        else:
            n_in = cfg.channels[resolution // 2]
            self.conv0 = _StyledConv(cfg, n_in, n_out, resolution, up=True)
        self.conv1 = _StyledConv(cfg, n_out, n_out, resolution, up=False, gain=math.sqrt(0.5) if residual else 1.0)
        self.skip = _Skip(n_in, n_out) if residual else None
        self.heads = list(cfg.heads) if cfg.block == "skip" or is_last else []
        for name in self.heads:
            self.add_module(name, _Head(cfg, n_out, cfg.heads[name]))


class _Synthesis(nn.Module):
    """ws -> channels of the output and features."""

    def __init__(self, cfg: StyleGAN2Config) -> None:
        super().__init__()
        self.resolutions = cfg.resolutions
        for resolution in cfg.resolutions:
            self.add_module(f"b{resolution}", _Block(cfg, resolution))

    def layers(self) -> list[_StyledConv]:
        """The 3×3 layers in order."""
        return [m for m in self.modules() if isinstance(m, _StyledConv)]

    def forward(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        output: Tensor | None = None
        features: list[Tensor] = []
        x = ws.new_empty(0)
        scaled: Tensor | None = None  # x as the next layer wants it
        residual: Tensor | None = None
        modulations = [layer.modulation(ws[:, i]) for i, layer in enumerate(self.layers())]
        fused = _is_fused(ws, self.layers()[0].weight)

        def styled(
            layer: _StyledConv, x: Tensor, scaled: Tensor | None, is_result: bool
        ) -> tuple[Tensor, Tensor | None]:
            position = len(features) - 1  # the constant is the first entry
            before, after = modulations[position]
            next_before = modulations[position + 1].before if is_result and position + 1 < len(modulations) else None
            scaled = scaled_by(x, before) if scaled is None else scaled
            x, scaled = layer(scaled, after, noise[position], next_before, fused)
            features.append(x)
            return x, scaled

        for resolution in self.resolutions:
            block = self.get_submodule(f"b{resolution}")
            assert isinstance(block, _Block)
            if resolution == 4:
                x = to_conv_layout(block.const.to(dtype).expand(len(ws), -1, -1, -1))
                features.append(x)
            else:
                residual = None if block.skip is None else block.skip(x)
                x, scaled = styled(block.conv0, x, scaled, is_result=True)
            x, scaled = styled(block.conv1, x, scaled, is_result=residual is None)
            if residual is not None:
                x = x + residual
            if block.heads:
                # ToRGB takes the style of the layer that comes next, without using it up.
                w = ws[:, len(features) - 1]
                made = [block.get_submodule(name)(x, w) for name in block.heads]
                added = made[0] if len(made) == 1 else torch.cat(made, dim=1)
                output = added if output is None else upsample_image(output) + added
        assert output is not None
        return output, features


def _is_fused(ws: Tensor, weight: Tensor) -> bool:
    """Whether `fused_epilogue` serves; torch.compile fuses by itself, and the kernel has no gradients."""
    trains = torch.is_grad_enabled() and (ws.requires_grad or weight.requires_grad)
    return ws.is_cuda and not trains and not torch.compiler.is_compiling() and why_no_triton(ws.device) is None


class StyleGAN2(FeatureGenerator):
    """A frozen StyleGAN2; make one with `load_generator`.

    Args:
        config: its shape.
        features: "convs" (outputs of the 3×3 layers, coarse to fine) or "const+convs" (the learned constant first).

    Raises:
        ValueError: a feature layout that StyleGAN2 does not have.

    Example:
        >>> generator = load_generator("demo-faces", device="cpu")
        >>> isinstance(generator, StyleGAN2), generator.features
        (True, 'convs')
    """

    layouts = ("convs", "const+convs")
    synthesis_network: _Synthesis

    def __init__(self, config: StyleGAN2Config, features: FeatureLayout | None = None) -> None:
        super().__init__(config, features)
        self.mapping_network = MappingNetwork(config)
        self.synthesis_network = _Synthesis(config)
        convs = tuple(
            FeatureInfo(config.channels[r], height, f"b{r}.{name}", width)
            for r, (height, width) in ((r, config.size_of(r)) for r in config.resolutions)
            for name in (("conv1",) if r == 4 else ("conv0", "conv1"))
        )
        height, width = config.size_of(4)
        const = FeatureInfo(config.channels[4], height, "b4.const", width)
        self.num_ws = len(convs) + 1
        self.feature_info = (const, *convs) if self.features == "const+convs" else convs

    def _synthesize(self, ws: Tensor, noise: list[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        channels, features = self.synthesis_network(ws, noise, dtype)
        return channels, features if self.features == "const+convs" else features[1:]

    def _stored_noise(self) -> list[Tensor]:
        return [layer.noise_const for layer in self.synthesis_network.layers()]


def upsample_image(x: Tensor) -> Tensor:
    """Zero insertion and the [1, 3, 3, 1] filter: bilinear ×2 that sees zeros, not copies, beyond the border."""
    padded = F.pad(x, (1, 1, 1, 1))
    return F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)[..., 2:-2, 2:-2]
