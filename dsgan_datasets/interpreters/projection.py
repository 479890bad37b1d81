"""The first layer of an ensemble for a whole batch, and the rest of it in plain PyTorch: what a GPU runs.

The same arithmetic as in `rowwise`, divided differently. There, rows of one image stay in a core's cache; here, a batch
is projected in a few large products, and the pixels of the frame are divided into tiles. A tile of pixels reads few
pixels of each coarse map, its *sources*, so that interpolation is one small product as well:

    hidden [P, h1] = weights [P, S] · projected [S, h1] + fine [P, C] · W1 [C, h1] + b1

where weights[p, s] = (share of source s's row in pixel p's row) · (share of its column): bilinear resizing, exactly.
`fused_tail` computes this and everything after it in one kernel; `Tiling` holds the tables that it reads, and
`PlainForm` is the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import Reduction
from dsgan_datasets.interpreters.resizing import bilinear_matrix
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.operations import product, product_of_columns

#: Smallest side of an operand of a tensor core.
SMALLEST_SIDE = 16
#: Bytes of projected maps that are held at a time; if need be a batch is computed in equal parts.
MAX_PROJECTED_BYTES = 2 << 30
#: Hidden activations that the plain form holds at a time.
MAX_HIDDEN_NUMBERS = 1 << 26


@dataclass(frozen=True)
class Tiling:
    """Which pixels of the coarse maps each tile of the frame is interpolated from, and with what weights.

    Attributes:
        tile: (rows, columns) of a tile; the last ones may reach beyond the kept rows and columns.
        rows: (top, bottom) kept rows of the frame.
        levels: (h, w) of the coarse maps.
        source_row: int32 [tile rows, S], row of each source in its level; -1 where there is none.
        source_column: int32 [tile columns, S].
        row_weight: float32 [kept rows, S], share of the source's row in a row of output.
        column_weight: float32 [W, S].
        level: int64 [S], the level of each source.
    """

    tile: tuple[int, int]
    rows: tuple[int, int]
    levels: tuple[tuple[int, int], ...]
    source_row: Tensor
    source_column: Tensor
    row_weight: Tensor
    column_weight: Tensor
    level: Tensor

    @classmethod
    def of(cls, levels: Sequence[tuple[int, int]], frame: Frame, tile: tuple[int, int]) -> Tiling:
        """Tables of coarse maps of these sizes, for the kept rows of a frame."""
        size, rows = frame.size, frame.kept
        row_axes = [_Axis.of(h, size[0], rows, tile[0]) for h, _ in levels]
        column_axes = [_Axis.of(w, size[1], (0, size[1]), tile[1]) for _, w in levels]
        slots = [(i, r, c) for i in range(len(levels)) for r in row_axes[i].slots for c in column_axes[i].slots]
        level = torch.tensor([i for i, _, _ in slots], dtype=torch.int64, device="cpu")

        def table(axes: list[_Axis], part: int, name: str, length: int) -> Tensor:
            columns = [getattr(axes[slot[0]], name)[:, slot[part]] for slot in slots]
            if not columns:
                return torch.zeros(length, 0, device="cpu")
            return torch.stack(columns, 1).contiguous()

        kept, width = rows[1] - rows[0], size[1]
        return cls(
            tile,
            rows,
            tuple(levels),
            table(row_axes, 1, "source", -(-kept // tile[0])),
            table(column_axes, 2, "source", -(-width // tile[1])),
            table(row_axes, 1, "weight", kept),
            table(column_axes, 2, "weight", width),
            level,
        )

    @property
    def num_sources(self) -> int:
        """S, sources of a tile."""
        return len(self.level)


@dataclass(frozen=True)
class _Axis:
    """One axis of one level: the sources of each tile [tiles, slots], and their weights [outputs, slots]."""

    source: Tensor
    weight: Tensor

    @property
    def slots(self) -> range:
        return range(self.source.shape[1])

    @classmethod
    def of(cls, n_in: int, n_out: int, kept: tuple[int, int], tile: int) -> _Axis:
        matrix = bilinear_matrix(n_in, n_out)[kept[0] : kept[1]]
        spans = []  # first and one past the last source that a tile reads
        for rows in matrix.split(tile):
            used = rows.ne(0).any(0).nonzero().flatten()
            spans.append((int(used[0]), int(used[-1]) + 1))
        slots = max(last - first for first, last in spans)
        first = torch.tensor([first for first, _ in spans], device="cpu")
        source = first[:, None] + torch.arange(slots, device="cpu")
        last = torch.tensor([last for _, last in spans], device="cpu")
        inside = source < last[:, None]
        outputs = torch.arange(len(matrix), device="cpu") // tile
        weight = matrix.gather(1, source.clamp(max=n_in - 1)[outputs]) * inside[outputs]
        return cls(source.where(inside, -1).int(), weight)


@dataclass(frozen=True)
class Projected:
    """What the tiles of some images are computed from.

    Attributes:
        coarse: the coarse maps' share of the first layer, one map after the other, [images · Σ h·w, M·h1]; a pixel is
            in row `images · area of the maps before + image · area of its map + pixel`.
        fine: pixels as large as the frame's, channels last, [images, kept rows, W, C].
    """

    coarse: Tensor
    fine: Tensor


class Projection:
    """The first layer of an ensemble, for maps of given shapes, in the precision of these maps.

    Args:
        weights: of the ensemble.
        shapes: [C_l, h_l, w_l] of every map.
        frame: size and kept rows.
        dtype: precision of the operands; products are summed in float32.
        max_bytes: bytes of projected maps that are held at a time, see `images_at_once`.
    """

    def __init__(
        self,
        weights: EnsembleWeights,
        shapes: Sequence[Sequence[int]],
        frame: Frame,
        dtype: torch.dtype,
        max_bytes: int = MAX_PROJECTED_BYTES,
    ) -> None:
        size = frame.size
        self.size, self.rows, self.dtype, self.max_bytes = size, frame.kept, dtype, max_bytes
        self.members, self.hidden = weights.num_members, padded_side(weights.hidden[0])
        w1 = F.pad(weights.w1, (0, self.hidden - weights.hidden[0])).to(dtype)
        blocks = w1.split([int(shape[0]) for shape in shapes])
        self.fine_maps = [i for i, (_, h, w) in enumerate(shapes) if h >= size[0] and w >= size[1]]
        self.coarse_maps: dict[tuple[int, int], list[int]] = {}
        for i, (_, h, w) in enumerate(shapes):
            if i not in self.fine_maps:
                self.coarse_maps.setdefault((int(h), int(w)), []).append(i)
        self.coarse_weight = {
            level: torch.cat([blocks[i] for i in maps]).flatten(1) for level, maps in self.coarse_maps.items()
        }
        #: [M, C, h1] of the maps as large as the frame.
        self.fine_weight = (
            torch.cat([blocks[i] for i in self.fine_maps]).movedim(1, 0).contiguous()
            if self.fine_maps
            else w1.new_zeros(self.members, 0, self.hidden)
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of the coarse maps, in order."""
        return tuple(self.coarse_maps)

    @property
    def area(self) -> int:
        """Pixels of all coarse maps together."""
        return sum(h * w for h, w in self.levels)

    def images_at_once(self, count: int) -> int:
        """Images of a batch whose projections are held at a time: a divisor of `count`, so that all parts are alike."""
        image = self.area * self.members * self.hidden * self.dtype.itemsize
        fitting = [d for d in range(1, count + 1) if count % d == 0 and d * image <= self.max_bytes]
        return max(fitting, default=1)

    def __call__(self, features: Sequence[Tensor]) -> Projected:
        """Project maps [N, C_l, h_l, w_l]."""
        coarse = [
            product(_channels_last(self.maps_of(features, level), self.dtype).flatten(0, 2), weight)
            for level, weight in self.coarse_weight.items()
        ]
        fine = self.fine(features)
        empty = features[0].new_empty
        return Projected(
            torch.cat(coarse) if coarse else empty(0, self.members * self.hidden, dtype=self.dtype),
            _channels_last(fine, self.dtype)
            if fine
            else empty(len(features[0]), self.rows[1] - self.rows[0], self.size[1], 0, dtype=self.dtype),
        )

    def maps_of(self, features: Sequence[Tensor], level: tuple[int, int]) -> list[Tensor]:
        """The maps of one coarse size."""
        return [features[i] for i in self.coarse_maps[level]]

    def fine(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps as large as the frame, or resized to it, [N, C_l, kept rows, W]."""
        return [_resized(features[i], self.size)[:, :, slice(*self.rows)] for i in self.fine_maps]


def padded_side(n: int) -> int:
    """The next power of two from 16 on: what a block of a tensor-core kernel can be."""
    return max(SMALLEST_SIDE, 1 << (n - 1).bit_length())


def _channels_last(maps: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Maps [N, C, h, w] of one size as [N, h, w, ΣC]."""
    return torch.cat([f.to(dtype).permute(0, 2, 3, 1) for f in maps], dim=3)


def _resized(f: Tensor, size: tuple[int, int]) -> Tensor:
    return f if f.shape[2:] == size else F.interpolate(f, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def reduce(
    weights: EnsembleWeights,
    features: Sequence[Tensor],
    frame: Frame,
    reduction: Reduction,
    *,
    max_bytes: int = MAX_PROJECTED_BYTES,
    max_hidden: int = MAX_HIDDEN_NUMBERS,
) -> tuple[Tensor, ...]:
    """`PlainForm.reduce` of maps [N, C_l, h_l, w_l] of one dtype; the arguments are those of `PlainForm`."""
    shapes, dtype = [f.shape[1:] for f in features], features[0].dtype
    form = PlainForm(weights, shapes, frame, dtype, reduction, max_bytes=max_bytes, max_hidden=max_hidden)
    return form.reduce(features)


class PlainForm:
    """What is kept of the outputs for whole batches, in plain PyTorch.

    Operands are rounded to the precision of the features where `fused_tail` rounds them, and multiplied in float32: the
    numbers differ from the kernel's by the order of summation only. Used where there is no Triton, and as the measure
    of what half precision does to labels. Whatever it needs from the host it has copied to the device before.

    Args:
        weights: the members.
        shapes: [C_l, h_l, w_l] of every map.
        frame: size and kept rows.
        dtype: of the maps.
        reduction: of the members' outputs.
        max_bytes: bytes of projected maps that are held at a time.
        max_hidden: activations of a layer that are held at a time.
    """

    def __init__(
        self,
        weights: EnsembleWeights,
        shapes: Sequence[Sequence[int]],
        frame: Frame,
        dtype: torch.dtype,
        reduction: Reduction,
        *,
        max_bytes: int = MAX_PROJECTED_BYTES,
        max_hidden: int = MAX_HIDDEN_NUMBERS,
    ) -> None:
        self.weights, self.frame, self.dtype = weights, frame, dtype
        self.reduction, self.max_hidden = reduction, max_hidden
        self.projection = Projection(weights, shapes, frame, dtype, max_bytes)
        (height, width), device = frame.size, weights.device
        levels = self.projection.levels
        self._row_weights = [bilinear_matrix(h, height)[slice(*frame.kept)].to(device) for h, _ in levels]
        self._column_weights = [bilinear_matrix(w, width).to(device) for _, w in levels]

    @torch.no_grad()
    def reduce(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What `reduction` keeps, [N, ..., H, W] each, of maps [N, C_l, h_l, w_l]."""
        count, (height, width), projection = len(features[0]), self.frame.shape, self.projection
        outputs = self.weights.num_outputs
        kept = self.reduction.empty(outputs, count, (height, width), self.weights.device)
        at_once = projection.images_at_once(count)
        widest = max(projection.hidden, projection.members * outputs)
        step = max(1, self.max_hidden // (at_once * width * widest))
        for first in range(0, count, at_once):
            images = slice(first, first + at_once)
            projected = projection([f[images] for f in features])
            for top in range(0, height, step):
                chunk = slice(top, min(top + step, height))
                made = torch.stack([self._outputs(projected, m, chunk) for m in range(projection.members)])
                for whole, part in zip(kept, self.reduction(made), strict=True):
                    whole[images][..., chunk, :] = part
        return kept

    def _outputs(self, projected: Projected, member: int, chunk: slice) -> Tensor:
        """Outputs of one member for some kept rows, [N, rows, W, K]."""
        weights = self.weights
        hidden = self._hidden(projected, member, chunk).relu_()
        second = product(self._rounded(hidden), self._rounded(weights.w2[member])) + weights.b2[member]
        return product(self._rounded(second.relu_()), self._rounded(weights.w3[member])) + weights.b3[member]

    def _hidden(self, projected: Projected, member: int, chunk: slice) -> Tensor:
        """First layer of one member for some kept rows, [N, rows, W, h1]."""
        projection, width = self.projection, self.weights.hidden[0]
        outputs = slice(member * projection.hidden, member * projection.hidden + width)
        fine = projected.fine[:, chunk].float()
        total = product(fine, projection.fine_weight[member, :, :width].float()) + self.weights.b1[member]
        start = 0
        for (h, w), rows, columns in zip(projection.levels, self._row_weights, self._column_weights, strict=True):
            stop = start + len(fine) * h * w
            level = projected.coarse[start:stop, outputs].float().reshape(len(fine), h, w * width)
            total += product_of_columns(columns, product_of_columns(rows[chunk], level).unflatten(2, (w, width)))
            start = stop
        return total

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).float()
