"""Labels image by image, in chunks of rows that stay in a core's cache: what a CPU runs, always in float32.

DatasetGAN (arXiv 2104.06490, section 3.1) upsamples every feature map to the output size, concatenates thousands of
channels, and runs M three-layer classifiers on every pixel (`reference` does just that). The first layer is linear and
bilinear resizing is linear, so they commute: up(f) · W = up(f · W), and concat(f_l) · W = Σ f_l · W_l. Here each map is
multiplied by its own block of the stacked first layers *before* it is resized, and only these projections are resized
and summed. The numbers are the same up to rounding, at 1/18 to 1/31 of the multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import reduce_members
from dsgan_datasets.interpreters.resizing import bilinear_matrix, column_tiles, shrink, source_rows
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Vote


@dataclass(frozen=True)
class Chunks:
    """How the rows of the output are divided. Other numbers change speed and memory, and the last bits of results.

    Attributes:
        band_rows: rows of a band. Bands are computed in parallel, each with the projections that it needs.
        pixels: pixels of a chunk of a band, about: its activations fit into the processor's cache.
        rows: rows of a chunk, at least: rows of a chunk share the source rows that they are interpolated from.
    """

    band_rows: int = 64
    pixels: int = 1024
    rows: int = 4

    def rows_of(self, width: int, device: torch.device) -> int:
        """Rows of a chunk of an output that has this many columns."""
        return max(self.rows, self.pixels // width) if device.type == "cpu" else self.band_rows


DEFAULT_CHUNKS = Chunks()


@torch.no_grad()
def logits(
    weights: EnsembleWeights, features: Sequence[Tensor], frame: Frame, chunks: Chunks = DEFAULT_CHUNKS
) -> Tensor:
    """Logits of every member at every pixel, float32 [M, N, K, H, W].

    Args:
        weights: the classifiers.
        features: maps [N, C_l, h_l, w_l]; their channels, in this order, are the classifiers' input.
        frame: its labeled rows are the H of the result.
        chunks: how the work is divided.
    """
    shape = (weights.num_members, len(features[0]), weights.num_classes, *frame.shape)
    result = weights.w1.new_empty(shape)

    def keep(n: int, rows: slice, values: Tensor) -> None:
        result[:, n, :, rows] = values

    each_chunk(weights, features, frame, keep, chunks)
    return result


@torch.no_grad()
def label(
    weights: EnsembleWeights, features: Sequence[Tensor], frame: Frame, vote: Vote, chunks: Chunks = DEFAULT_CHUNKS
) -> tuple[Tensor, Tensor]:
    """Mask int64 and uncertainty float32 [N, H, W]; arguments as for `logits`, and the vote of the members."""
    shape = (len(features[0]), *frame.shape)
    mask = weights.w1.new_empty(shape, dtype=torch.int64)
    uncertainty = weights.w1.new_empty(shape)

    def keep(n: int, rows: slice, values: Tensor) -> None:
        mask[n, rows], uncertainty[n, rows] = reduce_members(values, 1, vote)

    each_chunk(weights, features, frame, keep, chunks)
    return mask, uncertainty


def each_chunk(
    weights: EnsembleWeights,
    features: Sequence[Tensor],
    frame: Frame,
    keep: Callable[[int, slice, Tensor], None],
    chunks: Chunks = DEFAULT_CHUNKS,
) -> None:
    """Call ``keep(n, rows of the result, logits [M, K, rows, W])`` for every image n and every chunk of rows.

    On the CPU bands are computed on several threads; the calls of one band are made in order.
    """
    top, bottom = frame.kept
    first_layer = FirstLayer(
        weights, [f.shape for f in features], frame.size, chunks.rows_of(frame.size[1], weights.device)
    )
    maps = [shrink(f.to(weights.w1), frame.size) for f in features]
    bands = [
        (n, t, min(t + chunks.band_rows, bottom))
        for n in range(len(maps[0]))
        for t in range(top, bottom, chunks.band_rows)
    ]

    def work(band: tuple[int, int, int]) -> None:
        n, band_top, band_bottom = band
        row = band_top - top
        for hidden in first_layer.row_chunks([f[n] for f in maps], band_top, band_bottom):
            values = further_layers(weights, hidden.relu_()).unflatten(2, (-1, frame.size[1]))
            keep(n, slice(row, row + values.shape[2]), values)
            row += values.shape[2]

    parallel_map(work, bands, weights.device)


def further_layers(weights: EnsembleWeights, hidden: Tensor) -> Tensor:
    """Second and third layer: [P, M·h1] -> logits [M, K, P]."""
    width = weights.hidden[0]
    result = hidden.new_empty(weights.num_members, weights.num_classes, len(hidden))
    for m in range(weights.num_members):
        second = torch.addmm(weights.b2[m], hidden[:, m * width : (m + 1) * width], weights.w2[m]).relu_()
        torch.addmm(weights.b3[m][:, None], weights.w3[m].t(), second.t(), out=result[m])
    return result


class FirstLayer:
    """concat(up(f_l)) · w1 + b1, a chunk of rows at a time.

    Maps smaller than the frame are projected first and then resized; the others are as large as the frame.
    Several threads share it: it does not change after construction.

    Args:
        weights: of the ensemble; the first layers of all members count as one of O = M·h1 outputs.
        shapes: [N, C_l, h_l, w_l] of every map.
        size: (H, W) of the frame.
        rows: rows of a chunk.
    """

    def __init__(
        self, weights: EnsembleWeights, shapes: Sequence[Sequence[int]], size: tuple[int, int], rows: int
    ) -> None:
        self.size, self.rows = size, rows
        self.bias = weights.b1.flatten()
        blocks = weights.w1.flatten(1).split([shape[1] for shape in shapes])
        fine: list[int] = []  # numbers of the maps at least as large as the frame
        coarse: dict[tuple[int, int], list[int]] = {}  # numbers of the others, by size
        for i, (_, _, h, w) in enumerate(shapes):
            if h >= size[0] and w >= size[1]:
                fine.append(i)
            else:
                coarse.setdefault((h, w), []).append(i)
        self.fine = Group(fine, [blocks[i] for i in fine]) if fine else None
        self.coarse = {shape: Group(maps, [blocks[i] for i in maps]) for shape, maps in coarse.items()}
        self.row_weights = {shape: bilinear_matrix(shape[0], size[0]).to(self.bias) for shape in coarse}
        if coarse:
            index, tiles = column_tiles(tuple(w for _, w in coarse), size[1])
            self.columns = index.flatten().to(self.bias.device)
            self.tiles = tiles.to(self.bias).repeat(rows, 1, 1)

    def row_chunks(self, maps: Sequence[Tensor], top: int, bottom: int) -> Iterator[Tensor]:
        """Values [rows · W, O] of the rows from `top` to `bottom` of one image; each is overwritten by the next."""
        levels = [self._project(maps, shape, top, bottom) for shape in self.coarse]
        interpolation = Interpolation(self) if self.coarse else None
        for chunk_top in range(top, bottom, self.rows):
            chunk_bottom = min(chunk_top + self.rows, bottom)
            hidden = None if interpolation is None else interpolation.rows(levels, chunk_top, chunk_bottom)
            if self.fine is not None:
                pixels = self.fine.pixels(maps, chunk_top, chunk_bottom)
                if hidden is None:
                    hidden = torch.addmm(self.bias, pixels, self.fine.block)
                else:
                    hidden.addmm_(pixels, self.fine.block)
            assert hidden is not None
            yield hidden

    def _project(self, maps: Sequence[Tensor], shape: tuple[int, int], top: int, bottom: int) -> tuple[int, Tensor]:
        """The source rows that output rows top…bottom need, projected: (first source row, [h, w, O])."""
        first, last = source_rows(shape[0], self.size[0], top, bottom)
        group = self.coarse[shape]
        pixels = group.pixels(maps, first, last)
        # Interpolation weights sum to one, so the bias may join one coarse map instead of every pixel.
        takes_bias = shape == next(iter(self.coarse))
        projected = torch.addmm(self.bias, pixels, group.block) if takes_bias else pixels @ group.block
        return first, projected.unflatten(0, (last - first, shape[1]))


class Group:
    """Maps of one size, and the rows of the first layer that belong to their channels."""

    def __init__(self, maps: list[int], blocks: list[Tensor]) -> None:
        self.maps = maps
        self.block = torch.cat(blocks)

    def pixels(self, maps: Sequence[Tensor], top: int, bottom: int) -> Tensor:
        """Some rows of these maps of one image, pixel by pixel: [rows · w, C]."""
        return torch.cat([maps[i][:, top:bottom].flatten(1) for i in self.maps]).t()


class Interpolation:
    """Σ up(projection) over the coarse levels, for a few rows of output; owns the working memory of one thread.

    Rows first, at each level's own width, then all levels' columns in one batched product: for a tile of output columns
    only a few source columns matter, and these are gathered.
    """

    def __init__(self, layer: FirstLayer) -> None:
        self.layer = layer
        new, outputs = layer.bias.new_empty, len(layer.bias)
        self.by_row = new(layer.rows, sum(w for _, w in layer.coarse), outputs)
        self.gathered = new(layer.rows, len(layer.columns), outputs)
        self.result = new(len(layer.tiles), layer.tiles.shape[1], outputs)

    def rows(self, levels: Sequence[tuple[int, Tensor]], top: int, bottom: int) -> Tensor:
        """[(bottom - top) · W, O]; valid until the next call."""
        layer, n, column = self.layer, bottom - top, 0
        for (shape, weights), (offset, projected) in zip(layer.row_weights.items(), levels, strict=True):
            first, last = source_rows(shape[0], layer.size[0], top, bottom)
            target = self.by_row[:n, column : column + shape[1]].flatten(1)
            torch.mm(weights[top:bottom, first:last], projected[first - offset : last - offset].flatten(1), out=target)
            column += shape[1]
        gathered = torch.index_select(self.by_row[:n], 1, layer.columns, out=self.gathered[:n])
        tiles = n * (len(layer.tiles) // layer.rows)
        sources = gathered.view(tiles, layer.tiles.shape[2], -1)
        return torch.bmm(layer.tiles[:tiles], sources, out=self.result[:tiles]).flatten(0, 1)
