"""Everything after the projection in one Triton kernel: nothing of size members × hidden × H × W reaches memory.

A program computes one tile of pixels of one image. It keeps the tile's interpolation weights, and for one member after
the other interpolates the projected maps, adds the maps as large as the frame, runs the remaining layers, and adds the
member's probabilities, entropy and vote to running sums, or its outputs and their squares (`reduce.Moments`). What it
writes is the mask or the mean, and the uncertainty. See `projection` for the tables, and for the same arithmetic in
plain PyTorch.

The tile follows from the shapes and is never tuned by timing: it orders the sums, and a sample must not depend on which
run was faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dsgan_datasets.device import on_device
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.projection import SMALLEST_SIDE, Projection, Tiling, padded_side
from dsgan_datasets.interpreters.reduce import Moments, Probabilities, Reduction, Votes
from dsgan_datasets.interpreters.weights import EnsembleWeights

#: Most sources of a tile, and most outputs of a member's first layer, that fit into the registers.
#: IEEE float32 products do not run on tensor cores; Triton unrolls them, so that they fit only while small.
_MAX_SOURCES = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}
_MAX_HIDDEN = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}
#: Blocks of the projection; like a tile, they order sums.
_HALF_BLOCK = {"BLOCK_PIXELS": 128, "BLOCK_OUTPUTS": 128, "BLOCK_C": 64, "num_warps": 8, "num_stages": 3}
_PROJECTION_BLOCKS: dict[torch.dtype, dict[str, int]] = {
    torch.float16: _HALF_BLOCK,
    torch.bfloat16: _HALF_BLOCK,
    torch.float32: {"BLOCK_PIXELS": 64, "BLOCK_OUTPUTS": 64, "BLOCK_C": 16, "num_warps": 4, "num_stages": 2},
}

#: Logit of a class that there is not: its exponential is 0, and unlike that of -inf its product with 0 is too.
NEVER = -1e30
#: Without it the maximum of NaN and 0 is 0 on a GPU, and a pixel that was never computed would be the most certain one.
PROPAGATE_NAN: tl.constexpr = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def tail_kernel(  # type: ignore[no-untyped-def]
    coarse,  # [images · area, M · H1], see `Projected`
    fine,  # [images, C, height, width], strides follow
    image_stride,
    row_stride,
    column_stride,
    channel_stride,
    more,  # another such map
    more_image_stride,
    more_row_stride,
    more_column_stride,
    more_channel_stride,
    source_row,  # [tile rows, S]
    source_column,  # [tile columns, S]
    row_weight,  # [height, S]
    column_weight,  # [width, S]
    level_start,  # int64 [S]: pixels of all maps before the source's map
    level_area,  # int64 [S]
    level_width,  # int64 [S]
    w1,  # [M, C + MORE, H1], of the maps as large as the frame
    b1,  # [M, H1] float32, as the other biases
    w2,  # [M, H1, H2]
    b2,
    w3,  # [M, H2, K]
    b3,  # NEVER for the classes that only fill up K, 0 for outputs that do
    mask,  # uint8 [images, height, width]; not written if the outputs are averaged
    average,  # float32 [images, OUTPUTS, height, width]; not written if the members vote
    uncertainty,  # float32 [images, height, width]
    height,
    width,
    tile_columns,
    images,
    MEMBERS: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    MORE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    K: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    MEAN_VOTE: tl.constexpr,
    SOFTMAX: tl.constexpr,  # whether outputs are logits of classes
    OUTPUTS: tl.constexpr,  # 0 if the members vote, else how many outputs (or their probabilities) are averaged
    COUNTED: tl.constexpr,  # of these, those whose variance counts
):
    """Mask or average, and uncertainty, of one tile of pixels of one image; `FusedTail` passes what it reads."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile_row, tile_column = tile // tile_columns, tile % tile_columns
    pixel = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    row = tile_row * TILE_ROWS + pixel // TILE_COLUMNS
    column = tile_column * TILE_COLUMNS + pixel % TILE_COLUMNS
    inside = (row < height) & (column < width)
    place = (image * height + row) * width + column
    # One image of one map has less than 2^31 numbers; all of them may have more.
    fine_pixel, fine = row * row_stride + column * column_stride, fine + image * image_stride
    more_pixel, more = row * more_row_stride + column * more_column_stride, more + image * more_image_stride
    first, second, kind = tl.arange(0, H1), tl.arange(0, H2), tl.arange(0, K)
    dtype = w2.dtype.element_ty

    if S > 0:
        slot = tl.arange(0, S)
        from_row = tl.load(source_row + tile_row * S + slot)
        from_column = tl.load(source_column + tile_column * S + slot)
        is_source = (from_row >= 0) & (from_column >= 0)
        start, area = tl.load(level_start + slot), tl.load(level_area + slot)
        source = start * images + image * area + from_row * tl.load(level_width + slot) + from_column
        weight = tl.load(row_weight + row[:, None] * S + slot[None, :], mask=inside[:, None], other=0.0)
        weight *= tl.load(column_weight + column[:, None] * S + slot[None, :], mask=inside[:, None], other=0.0)
        weight = weight.to(dtype)

    mean = tl.zeros([TILE_ROWS * TILE_COLUMNS, K], tl.float32)
    # Counted in half the registers, which are what a GPU of this kernel is short of; exact up to 2048 members.
    votes = tl.zeros([TILE_ROWS * TILE_COLUMNS, K], tl.float16)
    entropy = tl.zeros([TILE_ROWS * TILE_COLUMNS], tl.float32)
    for m in range(MEMBERS):
        hidden = tl.zeros([TILE_ROWS * TILE_COLUMNS, H1], tl.float32) + tl.load(b1 + m * H1 + first)[None, :]
        if S > 0:
            outputs = m * H1 + first
            values = tl.load(
                coarse + source[:, None] * (MEMBERS * H1) + outputs[None, :], mask=is_source[:, None], other=0.0
            )
            hidden = tl.dot(weight, values, hidden, input_precision="ieee")
        weights = w1 + m * (C + MORE) * H1 + first[None, :]
        for c in range(0, C, BLOCK_C):
            channel = c + tl.arange(0, BLOCK_C)
            is_channel = channel < C
            pixels = tl.load(
                fine + (fine_pixel[:, None] + channel[None, :] * channel_stride),
                mask=inside[:, None] & is_channel[None, :],
                other=0.0,
            )
            kernel = tl.load(weights + channel[:, None] * H1, mask=is_channel[:, None], other=0.0)
            hidden = tl.dot(pixels, kernel, hidden, input_precision="ieee")
        for c in range(0, MORE, BLOCK_C):
            channel = c + tl.arange(0, BLOCK_C)
            is_channel = channel < MORE
            pixels = tl.load(
                more + (more_pixel[:, None] + channel[None, :] * more_channel_stride),
                mask=inside[:, None] & is_channel[None, :],
                other=0.0,
            )
            kernel = tl.load(weights + (C + channel)[:, None] * H1, mask=is_channel[:, None], other=0.0)
            hidden = tl.dot(pixels, kernel, hidden, input_precision="ieee")
        rectified = tl.maximum(hidden, 0.0, PROPAGATE_NAN).to(dtype)

        second_layer = tl.load(w2 + (m * H1 + first)[:, None] * H2 + second[None, :])
        deeper = tl.dot(rectified, second_layer, input_precision="ieee") + tl.load(b2 + m * H2 + second)[None, :]
        rectified_again = tl.maximum(deeper, 0.0, PROPAGATE_NAN).to(dtype)
        third_layer = tl.load(w3 + (m * H2 + second)[:, None] * K + kind[None, :])
        logits = tl.dot(rectified_again, third_layer, input_precision="ieee") + tl.load(b3 + m * K + kind)[None, :]

        if not SOFTMAX:
            mean += logits
            entropy += tl.sum(tl.where(kind[None, :] < COUNTED, logits * logits, 0.0), 1)  # of squares, rather
        else:
            # With l = logit - largest, e = exp(l) and Z = sum(e): p = e / Z, and the entropy is log Z - sum(e l) / Z.
            shifted = logits - tl.max(logits, 1)[:, None]
            exponential = tl.exp(shifted)
            total = tl.sum(exponential, 1)
            share = 1.0 / total
            mean += exponential * share[:, None]
            entropy += tl.log(total) - tl.sum(exponential * shifted, 1) * share
            if not MEAN_VOTE:
                choice = tl.min(tl.where(shifted == 0.0, kind[None, :], K), 1)  # the lowest of equals
                votes += (kind[None, :] == choice[:, None]).to(tl.float16)

    mean /= MEMBERS
    if OUTPUTS > 0:
        if not SOFTMAX:
            of_mean = tl.sum(tl.where(kind[None, :] < COUNTED, mean * mean, 0.0), 1)
            variance = tl.maximum(entropy / MEMBERS - of_mean, 0.0, PROPAGATE_NAN)
            tl.store(uncertainty + place, tl.sqrt(variance), mask=inside)
        area = height.to(tl.int64) * width
        target = (image * OUTPUTS + kind[None, :]) * area + (row * width + column)[:, None]
        tl.store(average + target, mean, mask=inside[:, None] & (kind < OUTPUTS)[None, :])
    else:
        # The smallest normal float32: 0 log 0 = 0.
        of_mean = -tl.sum(mean * tl.log(tl.maximum(mean, 1.1754943508222875e-38, PROPAGATE_NAN)), 1)
        tl.store(uncertainty + place, tl.maximum(of_mean - entropy / MEMBERS, 0.0, PROPAGATE_NAN), mask=inside)
        winner = tl.argmax(mean, 1) if MEAN_VOTE else tl.argmax(votes.to(tl.float32), 1)
        tl.store(mask + place, winner.to(tl.uint8), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def project_kernel(  # type: ignore[no-untyped-def]
    maps,  # [images, C, area], strides follow
    image_stride,
    pixel_stride,
    channel_stride,
    more,  # other maps of the same size
    more_image_stride,
    more_pixel_stride,
    more_channel_stride,
    weight,  # [C + MORE, OUTPUTS]
    projected,  # [images · area, OUTPUTS]
    pixels,
    area,
    C: tl.constexpr,
    MORE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """First layer of all members for a block of pixels of coarse maps, summed in float32, channel after channel."""
    pixel = (tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)).to(tl.int64)
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    is_pixel, is_output = pixel < pixels, output < OUTPUTS
    image, place = pixel // area, pixel % area
    first = maps + image * image_stride + place * pixel_stride
    second = more + image * more_image_stride + place * more_pixel_stride
    total = tl.zeros([BLOCK_PIXELS, BLOCK_OUTPUTS], tl.float32)
    for c in range(0, C, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        is_channel = channel < C
        values = tl.load(
            first[:, None] + channel[None, :] * channel_stride,
            mask=is_pixel[:, None] & is_channel[None, :],
            other=0.0,
        )
        kernel = tl.load(
            weight + channel[:, None] * OUTPUTS + output[None, :],
            mask=is_channel[:, None] & is_output[None, :],
            other=0.0,
        )
        total = tl.dot(values, kernel, total, input_precision="ieee")
    for c in range(0, MORE, BLOCK_C):
        channel = c + tl.arange(0, BLOCK_C)
        is_channel = channel < MORE
        values = tl.load(
            second[:, None] + channel[None, :] * more_channel_stride,
            mask=is_pixel[:, None] & is_channel[None, :],
            other=0.0,
        )
        kernel = tl.load(
            weight + (C + channel)[:, None] * OUTPUTS + output[None, :],
            mask=is_channel[:, None] & is_output[None, :],
            other=0.0,
        )
        total = tl.dot(values, kernel, total, input_precision="ieee")
    tl.store(
        projected + pixel[:, None] * OUTPUTS + output[None, :],
        total.to(projected.dtype.element_ty),
        mask=is_pixel[:, None] & is_output[None, :],
    )


class Layout(NamedTuple):
    """How a kernel is divided.

    Attributes:
        tile: (rows, columns) of a tile. It orders the sums: another one changes last bits.
        warps: of a block; orders nothing.
        stages: loads ahead of the products, in shared memory; order nothing.
    """

    tile: tuple[int, int]
    warps: int
    stages: int


#: Whether two blocks share a multiprocessor, so that one's softmax runs under the other's products. To be decided by
#: `benchmarks/gpu.py --tiles`, for all GPUs and once: it changes last bits, and so goes with a version.
TWO_BLOCKS = False


def layout(hidden: int, dtype: torch.dtype, capability: tuple[int, int], *, two_blocks: bool = TWO_BLOCKS) -> Layout:
    """As many pixels as accumulators of this width fit into the registers, on every GPU from Ampere on.

    Args:
        hidden: outputs of a member's first layer.
        dtype: of the operands.
        capability: of the GPU; decides `stages` only.
        two_blocks: see `TWO_BLOCKS`.

    Example:
        >>> layout(128, torch.float16, (9, 0)).tile
        (8, 16)
    """
    if dtype == torch.float32:
        return Layout((4, 8), 8, 1)
    if hidden > 128:
        return Layout((4, 8), 8, 2)
    if two_blocks:
        return Layout((8, 8), 4, 1)
    # A100 and H100 have shared memory for loads ahead of the products, and registers to spare.
    return Layout((8, 16), 8, 2 if capability in ((8, 0), (9, 0)) else 1)


def _channels_at_once(channels: int, dtype: torch.dtype) -> int:
    """Channels of the maps as large as the frame that are multiplied at a time: a loop, which keeps registers free."""
    if dtype == torch.float32:
        return SMALLEST_SIDE
    return 64 if channels > 64 else min(32, padded_side(channels))


def _reducing(reduction: Votes | Probabilities | Moments, outputs: int) -> dict[str, Any]:
    """The kernel's constants that say what is kept."""
    if isinstance(reduction, Votes):
        return {"MEAN_VOTE": reduction.vote == "mean", "SOFTMAX": True, "OUTPUTS": 0, "COUNTED": 0}
    if isinstance(reduction, Probabilities):
        return {"MEAN_VOTE": True, "SOFTMAX": True, "OUTPUTS": outputs, "COUNTED": 0}
    return {"MEAN_VOTE": True, "SOFTMAX": False, "OUTPUTS": outputs, "COUNTED": reduction.counted or outputs}


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


class FusedTail:
    """What is kept of the outputs for feature maps of given shapes, by the fused kernel.

    Args:
        weights: the members, on the device.
        shapes: [C_l, h_l, w_l] of every map.
        frame: size and kept rows.
        dtype: float16, bfloat16 or float32: precision of the maps and of the operands. Sums are float32.
        reduction: of their outputs: `Votes`, `Probabilities` or `Moments`.
        division: how it is divided, in tiles of powers of two, at least 16 pixels; None takes what suits shapes and
            dtype.

    Raises:
        ValueError: the shapes do not fit into a multiprocessor, there are more outputs than a byte counts, or another
            reduction.
    """

    def __init__(
        self,
        weights: EnsembleWeights,
        shapes: Sequence[Sequence[int]],
        frame: Frame,
        dtype: torch.dtype,
        reduction: Reduction,
        division: Layout | None = None,
    ) -> None:
        if weights.num_outputs > 256 or weights.num_members > 2048:
            raise ValueError(
                f"the fused tail counts up to 256 outputs and 2048 members, the ensemble has {weights.num_outputs} and "
                f"{weights.num_members}"
            )
        if not isinstance(reduction, Votes | Probabilities | Moments):
            raise ValueError(f"the fused tail votes and averages, it does not know {reduction!r:.60}")
        self.projection = projection = Projection(weights, shapes, frame, dtype)
        h1, h2, k = projection.hidden, padded_side(weights.hidden[1]), padded_side(weights.num_outputs)
        division = division or layout(h1, dtype, _capability(weights.device))
        self.tiling = tiling = Tiling.of(projection.levels, frame, division.tile)
        if tiling.num_sources > _MAX_SOURCES[dtype] or h1 > _MAX_HIDDEN[dtype]:
            raise ValueError(
                f"in {dtype} the fused tail takes up to {_MAX_HIDDEN[dtype]} outputs of a first layer and "
                f"{_MAX_SOURCES[dtype]} pixels of the coarse maps per tile; here are {h1} and {tiling.num_sources}"
            )
        self.sources = padded_side(tiling.num_sources) if tiling.num_sources else 0
        missing1, missing2, missing3 = h1 - weights.hidden[0], h2 - weights.hidden[1], k - weights.num_outputs
        self.tensors = [
            *self._tables(weights.device),
            projection.fine_weight,
            F.pad(weights.b1, (0, missing1)),
            F.pad(weights.w2, (0, missing2, 0, missing1)).to(dtype).contiguous(),
            F.pad(weights.b2, (0, missing2)),
            F.pad(weights.w3, (0, missing3, 0, missing2)).to(dtype).contiguous(),
            F.pad(weights.b3, (0, missing3), value=0.0 if isinstance(reduction, Moments) else NEVER),
        ]
        self.reduction, self.outputs = reduction, weights.num_outputs
        self._channels = [int(shape[0]) for shape in shapes]
        channels, more = _two([self._channels[i] for i in projection.fine_maps])
        self.constants: dict[str, Any] = {
            "MEMBERS": projection.members,
            "S": self.sources,
            "C": channels,
            "MORE": more,
            "BLOCK_C": _channels_at_once(max(channels, more), dtype),
            "H1": h1,
            "H2": h2,
            "K": k,
            "TILE_ROWS": tiling.tile[0],
            "TILE_COLUMNS": tiling.tile[1],
            **_reducing(reduction, weights.num_outputs),
            "num_warps": division.warps,
            "num_stages": division.stages,
        }

    def _tables(self, device: torch.device) -> list[Tensor]:
        """The tiling's tables with as many sources as the kernel counts; the added ones weigh nothing."""
        tiling, missing = self.tiling, self.sources - self.tiling.num_sources
        areas = torch.tensor([h * w for h, w in tiling.levels] or [0], device="cpu")
        widths = torch.tensor([w for _, w in tiling.levels] or [0], device="cpu")
        tables = [
            F.pad(tiling.source_row.int(), (0, missing), value=-1),
            F.pad(tiling.source_column.int(), (0, missing), value=-1),
            F.pad(tiling.row_weight, (0, missing)),
            F.pad(tiling.column_weight, (0, missing)),
            *(F.pad(x[tiling.level], (0, missing)) for x in (areas.cumsum(0) - areas, areas, widths)),
        ]
        return [table.to(device).contiguous() for table in tables]

    @torch.no_grad()
    def reduce(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the reduction keeps, [N, ..., H, W] each, of maps [N, C_l, h_l, w_l]."""
        count = len(features[0])
        at_once = self.projection.images_at_once(count)
        parts = [[f[first : first + at_once] for f in features] for first in range(0, count, at_once)]
        made = [self.finish(self.project(maps), maps) for maps in parts]
        return made[0] if len(made) == 1 else tuple(map(torch.cat, zip(*made, strict=True)))

    def finish(self, coarse: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What is kept of maps whose coarse ones are projected: all but the first product."""
        count, (top, bottom), width = len(features[0]), self.projection.rows, self.projection.size[1]
        votes, soft = isinstance(self.reduction, Votes), isinstance(self.reduction, Probabilities)
        shape = (bottom - top, width)
        uncertainty = coarse.new_empty(count, *shape, dtype=torch.float32)
        mask = coarse.new_empty(count, *shape, dtype=torch.uint8) if votes else uncertainty
        average = uncertainty if votes else coarse.new_empty(count, self.outputs, *shape, dtype=torch.float32)
        rows, columns = self.tiling.tile
        tile_rows, tile_columns = triton.cdiv(bottom - top, rows), triton.cdiv(width, columns)
        with on_device(coarse.device):  # Triton launches on the current one
            tail_kernel[(tile_rows * tile_columns, count)](
                coarse,
                *_pointers(self.projection.fine(features), 4, unused=uncertainty),
                *self.tensors,
                mask,
                average,
                uncertainty,
                bottom - top,
                width,
                tile_columns,
                count,
                **self.constants,
            )
        return (average.half(),) if soft else (mask.long() if votes else average, uncertainty)

    def project(self, features: Sequence[Tensor]) -> Tensor:
        """The coarse maps' share of the first layer, as `Projected.coarse` has it."""
        projection, count = self.projection, len(features[0])
        outputs = projection.members * projection.hidden
        coarse = features[0].new_empty(count * projection.area, outputs, dtype=projection.dtype)
        start = 0
        for level, weight in projection.coarse_weight.items():
            maps = [_flat(f) for f in projection.maps_of(features, level)]
            stop = start + count * level[0] * level[1]
            constants = self.projection_constants(level)
            rows, columns = constants["BLOCK_PIXELS"], constants["BLOCK_OUTPUTS"]
            with on_device(coarse.device):
                project_kernel[triton.cdiv(stop - start, rows), triton.cdiv(outputs, columns)](
                    *_pointers(maps, 3, unused=coarse),
                    weight,
                    coarse[start:stop],
                    stop - start,
                    level[0] * level[1],
                    **constants,
                )
            start = stop
        return coarse

    def projection_constants(self, level: tuple[int, int]) -> dict[str, Any]:
        """Constants of the kernel that projects the maps of one coarse size."""
        projection = self.projection
        channels, more = _two([self._channels[i] for i in projection.coarse_maps[level]])
        outputs = projection.members * projection.hidden
        return {"C": channels, "MORE": more, "OUTPUTS": outputs, **_PROJECTION_BLOCKS[projection.dtype]}


def _flat(maps: Tensor) -> Tensor:
    """Maps [N, C, h, w] as [N, C, h · w], without a copy where rows follow each other in memory."""
    follow = maps.stride(2) == maps.shape[3] * maps.stride(3)
    return (maps if follow else maps.contiguous()).flatten(2)


def _two(channels: Sequence[int]) -> tuple[int, int]:
    """Channels of two maps; the kernels read up to two, so that two need not be copied into one."""
    return (channels[0], channels[1]) if len(channels) == 2 else (sum(channels), 0)


def _pointers(maps: Sequence[Tensor], dimensions: int, *, unused: Tensor) -> list[Any]:
    """Two maps, each followed by its strides, that of the channels last; `unused` is passed for one that is missing."""
    if len(maps) > 2:
        maps = [torch.cat(list(maps), 1)]
    found: list[Any] = []
    for tensor in maps:
        image, channel, *pixel = tensor.stride()
        found += [tensor, image, *pixel, channel]
    return [*found, *[unused, *[0] * dimensions] * (2 - len(maps))]
