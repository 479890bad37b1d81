"""Everything between two convolutions of a StyleGAN2 in one Triton kernel: each map is read once and written twice.

In plain PyTorch demodulation, noise, bias, activation and clamp pass the memory fourteen times, which takes longer than
the convolutions. Here a program takes a block of pixels and channels through all of them, filters what an upsampling
convolution made, and also writes the map as the next layer wants it, scaled by its styles. Sums are float32 and in one
order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsgan_datasets.device import on_device

#: Pixels times channels of a block, and its warps: sixteen numbers a thread.
_BLOCK, _WARPS = 2048, 4


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def epilogue_kernel(  # type: ignore[no-untyped-def]
    x,  # [images, C, height, width]; one row and column more if FILTER
    x_image_stride,
    x_row_stride,
    x_column_stride,
    x_channel_stride,
    factor,  # float32 [images, C]
    noise,  # float32 [height, width]
    strength,  # float32, of the noise
    bias,  # float32 [C]
    taps,  # float32 [4, 4]
    next_factor,  # float32 [images, C]
    made,  # [images, C, height, width]
    scaled,  # the same, times next_factor
    image_stride,
    row_stride,
    column_stride,
    channel_stride,
    height,
    width,
    gain,
    clamp,
    C: tl.constexpr,
    FILTER: tl.constexpr,
    NOISE: tl.constexpr,
    CLAMP: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A block of pixels and channels of one image; `epilogue` passes what it reads."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, column = pixel // width, pixel % width
    is_pixel, is_channel = pixel < height * width, channel < C
    inside = is_pixel[:, None] & is_channel[None, :]
    x += image * x_image_stride
    if FILTER:
        value = tl.zeros([BLOCK_PIXELS, BLOCK_C], tl.float32)
        for down in tl.static_range(4):
            for across in tl.static_range(4):
                r, c = row + down - 1, column + across - 1
                there = is_pixel & (r >= 0) & (r <= height) & (c >= 0) & (c <= width)
                place = (r * x_row_stride + c * x_column_stride)[:, None] + channel[None, :] * x_channel_stride
                read = tl.load(x + place, mask=there[:, None] & is_channel[None, :], other=0.0)
                value += read.to(tl.float32) * tl.load(taps + down * 4 + across)
    else:
        place = (row * x_row_stride + column * x_column_stride)[:, None] + channel[None, :] * x_channel_stride
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(factor + image * C + channel, mask=is_channel, other=0.0)[None, :]
    if NOISE:
        value += (tl.load(noise + pixel, mask=is_pixel, other=0.0) * tl.load(strength))[:, None]
    value += tl.load(bias + channel, mask=is_channel, other=0.0)[None, :]
    value = tl.where(value < 0, value * 0.2, value) * gain
    if CLAMP:  # written so that NaN stays
        value = tl.where(value > clamp, clamp, tl.where(value < -clamp, -clamp, value))
    value = value.to(made.dtype.element_ty)
    place = image * image_stride + (row * row_stride + column * column_stride)[:, None]
    place += channel[None, :] * channel_stride
    tl.store(made + place, value, mask=inside)
    if SCALE:
        following = tl.load(next_factor + image * C + channel, mask=is_channel, other=0.0)[None, :]
        tl.store(scaled + place, (value.to(tl.float32) * following).to(made.dtype.element_ty), mask=inside)


def epilogue(
    x: Tensor,
    factor: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    bias: Tensor,
    taps: Tensor | None,
    next_factor: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor | None]:
    """leaky_relu(filtered(x) · factor + noise · strength + bias) · gain, clamped.

    Args:
        x: result of a convolution, [N, C, H, W]; [N, C, H + 1, W + 1] if it is to be filtered.
        factor: [N, C].
        noise: [H, W], or None.
        strength: of the noise, a number.
        bias: [C].
        taps: the filter, [1, 1, 4, 4], with zeros beyond the border; None for no filter.
        next_factor: [N, C] by which the next layer scales its input; None if there is none.
        gain: after the activation.
        clamp: limit of the result, or None.

    Returns:
        the map [N, C, H, W] in the precision and memory format of `x`, and the same times `next_factor`, or None.
    """
    # An operator returns tensors only: an empty one for what there is not.
    made, scaled = _epilogue(x, factor, noise, strength, bias, taps, next_factor, gain, clamp)
    return made, None if next_factor is None else scaled


def constants(channels: int, *, filtered: bool, noise: bool, clamp: bool, scale: bool) -> dict[str, int]:
    """Constants of the kernel for maps of a number of channels."""
    block = min(64, triton.next_power_of_2(channels))
    flags = {"FILTER": filtered, "NOISE": noise, "CLAMP": clamp, "SCALE": scale}
    return {"C": channels, **flags, "BLOCK_PIXELS": _BLOCK // block, "BLOCK_C": block, "num_warps": _WARPS}


# A custom operator: it says what shapes it returns without being run.
@torch.library.custom_op("dsgan_datasets::epilogue", mutates_args=())
def _epilogue(
    x: Tensor,
    factor: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    bias: Tensor,
    taps: Tensor | None,
    next_factor: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    made, scaled = _empty(x, taps, next_factor)
    count, channels, height, width = made.shape
    given = constants(
        channels,
        filtered=taps is not None,
        noise=noise is not None,
        clamp=clamp is not None,
        scale=next_factor is not None,
    )
    image, channel, row, column = x.stride()
    made_image, made_channel, made_row, made_column = made.stride()
    grid = triton.cdiv(height * width, given["BLOCK_PIXELS"]), triton.cdiv(channels, given["BLOCK_C"]), count
    with on_device(x.device):
        epilogue_kernel[grid](
            x,
            *(image, row, column, channel),
            factor.float().contiguous(),
            bias if noise is None else noise.float().contiguous(),
            strength,
            bias,
            bias if taps is None else taps,
            factor if next_factor is None else next_factor.float().contiguous(),
            made,
            scaled,
            *(made_image, made_row, made_column, made_channel),
            height,
            width,
            gain,
            0.0 if clamp is None else clamp,
            **given,
        )
    return made, scaled


@_epilogue.register_fake
def _(
    x: Tensor,
    factor: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    bias: Tensor,
    taps: Tensor | None,
    next_factor: Tensor | None,
    gain: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    return _empty(x, taps, next_factor)


def _empty(x: Tensor, taps: Tensor | None, next_factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is filled: the map, and the scaled one or nothing."""
    less = 0 if taps is None else 1
    size = (*x.shape[:2], x.shape[2] - less, x.shape[3] - less)
    last = x.stride(1) == 1 and x.shape[1] > 1
    form = torch.channels_last if last else torch.contiguous_format
    made = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=form)
    return made, x.new_empty(0) if next_factor is None else torch.empty_like(made)
