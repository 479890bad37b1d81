"""Everything after the projection in one Triton kernel: nothing of size members × hidden × H × W reaches memory.

A program computes one tile of pixels of one image. It keeps the tile's interpolation weights, and for one member after
the other interpolates the projected maps, adds the maps as large as the frame, runs the remaining layers, and adds the
member's probabilities, entropy and vote to running sums. What it writes is the mask and the uncertainty. See
`projection` for the tables, and for the same arithmetic in plain PyTorch.

The tile follows from the shapes and is never tuned by timing: it orders the sums, and a sample must not depend on which
run was faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.projection import SMALLEST_SIDE, Projection, Tiling, padded_side
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.recipe import Vote

#: Most sources of a tile, and most outputs of a member's first layer, that fit into the registers.
#: IEEE float32 products do not run on tensor cores; Triton unrolls them, so that they fit only while small.
_MAX_SOURCES = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}
_MAX_HIDDEN = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}
#: Channels of the maps as large as the frame that are multiplied at a time.
_CHANNELS = {torch.float16: 64, torch.bfloat16: 64, torch.float32: 16}


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def tail_kernel(  # type: ignore[no-untyped-def]
    coarse,  # [images · area, M · H1], see `Projected`
    fine,  # [images, height, width, C]
    source_row,  # [tile rows, S]
    source_column,  # [tile columns, S]
    row_weight,  # [height, S]
    column_weight,  # [width, S]
    level_start,  # int64 [S]: pixels of all maps before the source's map
    level_area,  # int64 [S]
    level_width,  # int64 [S]
    w1,  # [M, C, H1], of the maps as large as the frame
    b1,  # [M, H1] float32, as the other biases
    w2,  # [M, H1, H2]
    b2,
    w3,  # [M, H2, K]
    b3,  # -inf for the classes that only fill up K
    mask,  # uint8 [images, height, width]
    uncertainty,  # float32 [images, height, width]
    height,
    width,
    tile_columns,
    images,
    MEMBERS: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    K: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    MEAN_VOTE: tl.constexpr,
):
    """Mask and uncertainty of one tile of pixels of one image; `FusedTail` passes what it reads."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile_row, tile_column = tile // tile_columns, tile % tile_columns
    pixel = tl.arange(0, TILE_ROWS * TILE_COLUMNS)
    row = tile_row * TILE_ROWS + pixel // TILE_COLUMNS
    column = tile_column * TILE_COLUMNS + pixel % TILE_COLUMNS
    inside = (row < height) & (column < width)
    place = (image * height + row) * width + column
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
    votes = tl.zeros([TILE_ROWS * TILE_COLUMNS, K], tl.float32)
    entropy = tl.zeros([TILE_ROWS * TILE_COLUMNS], tl.float32)
    for m in range(MEMBERS):
        hidden = tl.zeros([TILE_ROWS * TILE_COLUMNS, H1], tl.float32) + tl.load(b1 + m * H1 + first)[None, :]
        if S > 0:
            outputs = m * H1 + first
            values = tl.load(
                coarse + source[:, None] * (MEMBERS * H1) + outputs[None, :], mask=is_source[:, None], other=0.0
            )
            hidden = tl.dot(weight, values, hidden, input_precision="ieee")
        for c in range(0, C, BLOCK_C):
            channel = c + tl.arange(0, BLOCK_C)
            is_channel = channel < C
            pixels = tl.load(
                fine + place[:, None] * C + channel[None, :], mask=inside[:, None] & is_channel[None, :], other=0.0
            )
            kernel = tl.load(w1 + (m * C + channel)[:, None] * H1 + first[None, :], mask=is_channel[:, None], other=0.0)
            hidden = tl.dot(pixels, kernel, hidden, input_precision="ieee")
        rectified = tl.maximum(hidden, 0.0).to(dtype)

        second_layer = tl.load(w2 + (m * H1 + first)[:, None] * H2 + second[None, :])
        deeper = tl.dot(rectified, second_layer, input_precision="ieee") + tl.load(b2 + m * H2 + second)[None, :]
        rectified_again = tl.maximum(deeper, 0.0).to(dtype)
        third_layer = tl.load(w3 + (m * H2 + second)[:, None] * K + kind[None, :])
        logits = tl.dot(rectified_again, third_layer, input_precision="ieee") + tl.load(b3 + m * K + kind)[None, :]

        exponential = tl.exp(logits - tl.max(logits, 1)[:, None])
        probability = exponential / tl.sum(exponential, 1)[:, None]
        mean += probability
        # The smallest normal float32: 0 log 0 = 0.
        entropy -= tl.sum(probability * tl.log(tl.maximum(probability, 1.1754943508222875e-38)), 1)
        if not MEAN_VOTE:
            choice = tl.argmax(logits, 1)  # the lowest of equals
            votes += (kind[None, :] == choice[:, None]).to(tl.float32)

    mean /= MEMBERS
    of_mean = -tl.sum(mean * tl.log(tl.maximum(mean, 1.1754943508222875e-38)), 1)
    tl.store(uncertainty + place, tl.maximum(of_mean - entropy / MEMBERS, 0.0), mask=inside)
    winner = tl.argmax(mean, 1) if MEAN_VOTE else tl.argmax(votes, 1)
    tl.store(mask + place, winner.to(tl.uint8), mask=inside)


def default_tile(hidden: int, dtype: torch.dtype) -> tuple[int, int]:
    """(rows, columns) of a tile: as many pixels as accumulators of this width fit into the registers."""
    if dtype == torch.float32:
        return 4, 8
    return (8, 16) if hidden <= 128 else (8, 8)


def _has_large_blocks(device: torch.device) -> bool:
    """Whether a block may use the shared memory of a data-center GPU (A100, H100 and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in ((8, 0), (9, 0), (10, 0), (10, 3))


class FusedTail:
    """Labels of feature maps of given shapes, by the fused kernel.

    Args:
        weights: the classifiers, on the device.
        shapes: [C_l, h_l, w_l] of every map.
        frame: size and kept rows.
        dtype: float16, bfloat16 or float32: precision of the maps and of the operands. Sums are float32.
        vote: of the members.
        tile: (rows, columns) of a tile, powers of two, at least 16 pixels; None takes what suits shapes and dtype.

    Raises:
        ValueError: the shapes do not fit into a multiprocessor, or there are more classes than a byte counts.
    """

    def __init__(
        self,
        weights: EnsembleWeights,
        shapes: Sequence[Sequence[int]],
        frame: Frame,
        dtype: torch.dtype,
        vote: Vote,
        tile: tuple[int, int] | None = None,
    ) -> None:
        if weights.num_classes > 256:
            raise ValueError(f"the fused tail counts up to 256 classes, the ensemble has {weights.num_classes}")
        self.projection = projection = Projection(weights, shapes, frame, dtype)
        h1, h2, k = projection.hidden, padded_side(weights.hidden[1]), padded_side(weights.num_classes)
        self.tiling = tiling = Tiling.of(projection.levels, frame, tile or default_tile(h1, dtype))
        if tiling.num_sources > _MAX_SOURCES[dtype] or h1 > _MAX_HIDDEN[dtype]:
            raise ValueError(
                f"in {dtype} the fused tail takes up to {_MAX_HIDDEN[dtype]} outputs of a first layer and "
                f"{_MAX_SOURCES[dtype]} pixels of the coarse maps per tile; here are {h1} and {tiling.num_sources}"
            )
        self.sources = padded_side(tiling.num_sources) if tiling.num_sources else 0
        missing1, missing2, missing3 = h1 - weights.hidden[0], h2 - weights.hidden[1], k - weights.num_classes
        self.tensors = [
            *self._tables(weights.device),
            projection.fine_weight,
            F.pad(weights.b1, (0, missing1)),
            F.pad(weights.w2, (0, missing2, 0, missing1)).to(dtype).contiguous(),
            F.pad(weights.b2, (0, missing2)),
            F.pad(weights.w3, (0, missing3, 0, missing2)).to(dtype).contiguous(),
            F.pad(weights.b3, (0, missing3), value=float("-inf")),
        ]
        channels = projection.fine_weight.shape[1]
        self.constants: dict[str, Any] = {
            "MEMBERS": projection.members,
            "S": self.sources,
            "C": channels,
            "BLOCK_C": min(_CHANNELS[dtype], padded_side(max(channels, SMALLEST_SIDE))),
            "H1": h1,
            "H2": h2,
            "K": k,
            "TILE_ROWS": tiling.tile[0],
            "TILE_COLUMNS": tiling.tile[1],
            "MEAN_VOTE": vote == "mean",
            "num_warps": 8,
            # Loads ahead of the products, where shared memory has room for them.
            "num_stages": 2 if dtype != torch.float32 and h1 <= 128 and _has_large_blocks(weights.device) else 1,
        }

    def _tables(self, device: torch.device) -> list[Tensor]:
        """The tiling's tables with as many sources as the kernel counts; the added ones weigh nothing."""
        tiling, missing = self.tiling, self.sources - self.tiling.num_sources
        areas = torch.tensor([h * w for h, w in tiling.levels] or [0])
        widths = torch.tensor([w for _, w in tiling.levels] or [0])
        tables = [
            F.pad(tiling.source_row.int(), (0, missing), value=-1),
            F.pad(tiling.source_column.int(), (0, missing), value=-1),
            F.pad(tiling.row_weight, (0, missing)),
            F.pad(tiling.column_weight, (0, missing)),
            *(F.pad(x[tiling.level], (0, missing)) for x in (areas.cumsum(0) - areas, areas, widths)),
        ]
        return [table.to(device).contiguous() for table in tables]

    @torch.no_grad()
    def label(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mask uint8 and uncertainty float32 [N, H, W] of maps [N, C_l, h_l, w_l]."""
        count, width = len(features[0]), self.projection.size[1]
        height = self.projection.rows[1] - self.projection.rows[0]
        mask = features[0].new_empty(count, height, width, dtype=torch.uint8)
        uncertainty = features[0].new_empty(count, height, width, dtype=torch.float32)
        at_once = self.projection.images_at_once(count)
        rows, columns = self.tiling.tile
        tile_rows, tile_columns = triton.cdiv(height, rows), triton.cdiv(width, columns)
        for first in range(0, count, at_once):
            images = slice(first, first + at_once)
            projected = self.projection([f[images] for f in features])
            tail_kernel[(tile_rows * tile_columns, at_once)](
                projected.coarse,
                projected.fine,
                *self.tensors,
                mask[images],
                uncertainty[images],
                height,
                width,
                tile_columns,
                at_once,
                **self.constants,
            )
        return mask, uncertainty
