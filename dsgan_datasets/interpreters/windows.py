"""Maps smaller than the frame: projected at their own size, then resized and summed a few rows at a time, on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsgan_datasets.interpreters.resizing import Taps, bilinear_taps
from dsgan_datasets.parallel import Workspace

#: Columns of a tile.
TILE = 16
#: Maps at least eight times smaller than the frame are merged on a grid of this spacing, pixels.
SPACING = 4


class Source(NamedTuple):
    """Some rows of the maps of one size.

    Attributes:
        first: number of the first row.
        shape: (rows, columns).
        pixels: [rows · columns, C].
    """

    first: int
    shape: tuple[int, int]
    pixels: Tensor


class Resized(NamedTuple):
    """Some rows of a projected map, laid out for `Windows`.

    Attributes:
        first: number of the first row.
        values: of each row, [tiles, taps, O].
    """

    first: int
    values: Sequence[Tensor]


class Windows:
    """Resizes maps to one grid and sums them.

    Rows first, at each map's own width, then the columns of all maps in one batched product. A tile of output columns
    reads few columns of each map, its window; windows are laid out side by side beforehand.

    Args:
        name: of its working memory.
        rows: taps of the rows, of each map.
        columns: taps of the columns, of each map.
        most: rows of a call of `rows_of`, at most.
        dtype: of the maps.
        device: of the maps.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Taps],
        columns: Sequence[Taps],
        most: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.name, self.rows, self.most = name, rows, most
        self.row_taps = [list(zip(t.lower.tolist(), t.upper.tolist(), t.fraction.tolist(), strict=True)) for t in rows]
        self.width = len(columns[0].lower)
        self.tiles = -(-self.width // TILE)
        made = [_windows(taps, self.tiles) for taps in columns]
        self.index = [index.flatten().to(device) for index, _ in made]
        self.taps = [index.shape[1] for index, _ in made]
        weights = torch.cat([weights for _, weights in made], 2).to(device, dtype)
        self.weights = weights.repeat(most, 1, 1)  # [rows · tiles, columns of a tile, taps]

    @property
    def padded_width(self) -> int:
        """Columns of whole tiles; those beyond the width are zero."""
        return self.tiles * TILE

    def lay_out(self, i: int, first: int, parts: Iterable[Tensor], rows: int) -> Resized:
        """Rows of map i, window by window.

        Args:
            i: number of the map.
            first: number of its first row.
            parts: its rows, [some rows, w, O] at a time; each is read before the next is made.
            rows: how many there are.
        """
        out, start = None, 0
        for values in parts:
            if out is None:
                shape = (rows, len(self.index[i]), values.shape[2])
                out = Workspace.take(f"{self.name} {i}", shape, values.dtype, values.device)
            end = start + len(values)
            torch.index_select(values, 1, self.index[i], out=out[start:end])
            start = end
        assert out is not None
        return Resized(first, out.unflatten(1, (self.tiles, self.taps[i])).unbind(0))

    def rows_of(self, maps: Sequence[Resized], top: int, bottom: int) -> Tensor:
        """Rows from `top` to before `bottom` of the grid, [rows, padded width, O]; the next call overwrites them."""
        values, count = maps[0].values[0], bottom - top
        dtype, device, outputs = values.dtype, values.device, values.shape[2]
        shape = (count, self.tiles, sum(self.taps), outputs)
        gathered = Workspace.take(f"{self.name} taps", shape, dtype, device)
        for (first, rows), row_taps, part in zip(maps, self.row_taps, gathered.split(self.taps, 2), strict=True):
            for (lower, upper, fraction), target in zip(row_taps[top:bottom], part.unbind(0), strict=True):
                torch.lerp(rows[lower - first], rows[upper - first], fraction, out=target)
        out = Workspace.take(f"{self.name} rows", (count * self.tiles, TILE, outputs), dtype, device)
        torch.bmm(self.weights[: count * self.tiles], gathered.flatten(0, 1), out=out)
        return out.view(count, self.padded_width, outputs)


class CoarseMaps:
    """Σ up(f_l · W_l) over maps smaller than the frame.

    A map that is r times smaller is linear between the pixels r · i + (r - 1) / 2 of the frame. If r is a multiple of
    eight, all of these lie on one grid of spacing 4, so such maps are summed there, exactly, and resized as one.

    Args:
        sizes: (h, w) of the maps.
        size: (H, W) of the frame.
        most: rows of a chunk.
        dtype: of the maps and their products.
        device: of the maps.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        size: tuple[int, int],
        most: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.sizes, self.most, self.pixels = sizes, most, most * size[1]
        small = [i for i, (h, w) in enumerate(sizes) if size[0] % (8 * h) == 0 and size[1] % (8 * w) == 0]
        self.merged = small if len(small) > 1 else []
        self.direct = [i for i in range(len(sizes)) if i not in self.merged]
        rows, columns = ([bilinear_taps(sizes[i][axis], size[axis]) for i in self.direct] for axis in range(2))
        self.grid = None
        if self.merged:
            onto = [[_onto_grid(sizes[i][axis], size[axis]) for i in self.merged] for axis in range(2)]
            self.grid = Windows("grid", onto[0], onto[1], most, dtype, device)
            rows.append(_from_grid(size[0]))
            columns.append(_from_grid(size[1]))
        self.frame = Windows("frame", rows, columns, most, dtype, device)

    def sources(self, image: Sequence[Tensor], maps: Sequence[Sequence[int]], top: int, bottom: int) -> list[Source]:
        """What rows of the frame from `top` to before `bottom` read of each size.

        Args:
            image: maps [h, w, C] of one image.
            maps: numbers of those of each size.
            top, bottom: rows.
        """
        spans = {i: taps.span(top, bottom) for i, taps in zip(self.direct, self.frame.rows, strict=False)}
        if self.grid is not None:
            rows = self.frame.rows[-1].span(top, bottom)
            spans |= {i: taps.span(*rows) for i, taps in zip(self.merged, self.grid.rows, strict=True)}
        made = []
        for i, numbers in enumerate(maps):
            first, last = spans[i]
            pixels = torch.cat([image[n][first:last] for n in numbers], 2).flatten(0, 1)
            made.append(Source(first, (last - first, self.sizes[i][1]), pixels))
        return made

    def project(
        self, sources: Sequence[Source], blocks: Sequence[Tensor], bias: Tensor, top: int, bottom: int
    ) -> list[Resized]:
        """The sources times their blocks [C, O] of the first layer, ready to be resized; the bias [O] is in there."""

        def projected(i: int) -> Iterator[Tensor]:
            (_, width), pixels, step = sources[i].shape, sources[i].pixels, -(-self.pixels // sources[i].shape[1])
            for part in pixels.split(step * width):
                out = Workspace.take("projected", (len(part), len(bias)), bias.dtype, bias.device)
                # Interpolation weights sum to one, so the bias may join one map instead of every pixel.
                if i == 0:
                    torch.addmm(bias, part, blocks[i], out=out)
                else:
                    torch.mm(part, blocks[i], out=out)
                yield out.unflatten(0, (-1, width))

        def laid_out(windows: Windows, k: int, i: int) -> Resized:
            return windows.lay_out(k, sources[i].first, projected(i), sources[i].shape[0])

        ready = [laid_out(self.frame, k, i) for k, i in enumerate(self.direct)]
        if self.grid is not None:
            grid, levels = self.grid, [laid_out(self.grid, k, i) for k, i in enumerate(self.merged)]
            first, last = self.frame.rows[-1].span(top, bottom)
            parts = (
                grid.rows_of(levels, row, min(row + self.most, last))[:, : grid.width]
                for row in range(first, last, self.most)
            )
            ready.append(self.frame.lay_out(len(self.direct), first, parts, last - first))
        return ready


def _windows(taps: Taps, tiles: int) -> tuple[Tensor, Tensor]:
    """Inputs that each tile of outputs reads, int64 [tiles, taps], and their weights, float64 [tiles, TILE, taps]."""
    lower, upper = taps.lower.split(TILE), taps.upper.split(TILE)
    length = max(int(last[-1]) + 1 - int(first[0]) for first, last in zip(lower, upper, strict=True))
    first = torch.stack([tile[0] for tile in lower]).clamp(max=taps.inputs - length)
    outputs = torch.arange(len(taps.lower), device="cpu")
    weights = torch.zeros(tiles * TILE, length, dtype=torch.float64, device="cpu")
    offset = first[outputs // TILE]
    weights[outputs, taps.lower - offset] += 1 - taps.fraction
    weights[outputs, taps.upper - offset] += taps.fraction
    return first[:, None] + torch.arange(length, device="cpu"), weights.unflatten(0, (tiles, TILE))


def _onto_grid(n_in: int, n_out: int) -> Taps:
    """From a map to the grid, whose points lie at SPACING · j - 1/2 pixels of the frame, j = 0 … n_out / SPACING."""
    points = SPACING * torch.arange(n_out // SPACING + 1, dtype=torch.float64, device="cpu")
    return Taps.at(points * (n_in / n_out) - 0.5, n_in)


def _from_grid(n_out: int) -> Taps:
    """From the grid to the frame."""
    return Taps.at((torch.arange(n_out, dtype=torch.float64, device="cpu") + 0.5) / SPACING, n_out // SPACING + 1)
