"""The DatasetGAN interpreter: an ensemble of small pixel classifiers, evaluated at native resolution.

DatasetGAN (arXiv 2104.06490, section 3.1) upsamples every feature map to the output size, concatenates thousands of
channels, and runs M three-layer classifiers on every pixel. The first layer is linear and bilinear resizing is linear,
so they commute: up(f) · W = up(f · W), and concat(f_l) · W = Σ f_l · W_l. Here each map is multiplied by its own block
of the stacked first layers *before* it is resized, and only these projections are resized and summed. The numbers are
the same up to rounding, at 1/18 to 1/31 of the multiplications; the plain form is the oracle in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.interpreters import batched
from dsgan_datasets.parallel import parallel_map
from dsgan_datasets.recipe import Vote
from dsgan_datasets.uncertainty import image_score, js_divergence

#: Bands of so many rows of output are computed side by side, each with the projections that it needs,
_BAND_ROWS = 64
#: in chunks of about so many pixels, which keeps a chunk in the processor's cache, but of so many rows at least:
#: rows of one chunk share the source rows that they are interpolated from.
_CHUNK_PIXELS = 1024
_CHUNK_ROWS = 4
#: Columns of one interpolation product; see `_ColumnTiles`.
_TILE = 16


@dataclass(frozen=True)
class Labels:
    """Labels of N images.

    Attributes:
        mask: int64 class ids [N, H, W].
        uncertainty: float32 [N, H, W], disagreement of the members in nats.
        uncertainty_score: float32 [N], mean of the most uncertain pixels of each image, in nats.
    """

    mask: Tensor
    uncertainty: Tensor
    uncertainty_score: Tensor


class PixelEnsemble(nn.Module):
    """M pixel classifiers with two hidden layers, as stacked matrices.

    A member maps the C features of a pixel to K logits: relu(relu(f · W1 + b1) · W2 + b2) · W3 + b3. The batch
    normalizations of the published classifiers follow a ReLU, so in evaluation they fold into the next matrix.

    Args:
        weights: "w1" [C, M, h1] (so that the block of a feature map is contiguous), "b1" [M, h1], "w2" [M, h1, h2],
            "b2" [M, h2], "w3" [M, h2, K], "b3" [M, K].
        vote: "majority" of the members' classes (ties to the lowest) or argmax of the "mean" probability.
        top_fraction: share of the pixels that decides the image score.

    Raises:
        ValueError: the matrices do not fit together.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *, vote: Vote = "majority", top_fraction: float = 0.1) -> None:
        super().__init__()
        if vote not in ("majority", "mean"):
            raise ValueError(f'vote must be "majority" or "mean", not {vote!r}')
        c, m, h1 = weights["w1"].shape
        h2, k = weights["w3"].shape[1:]
        shapes = {"w1": (c, m, h1), "b1": (m, h1), "w2": (m, h1, h2), "b2": (m, h2), "w3": (m, h2, k), "b3": (m, k)}
        for name, shape in shapes.items():
            if tuple(weights[name].shape) != shape:
                raise ValueError(f"{name} has shape {list(weights[name].shape)}, expected {list(shape)}")
            self.register_buffer(name, weights[name].detach().float().contiguous())
        self.vote = vote
        self.top_fraction = top_fraction

    @property
    def num_members(self) -> int:
        """Number of classifiers M."""
        return len(self.w2)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.w3.shape[2]

    @property
    def in_channels(self) -> int:
        """Number of features C a pixel must have."""
        return len(self.w1)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says of the ensemble."""
        return {
            "architecture": "pixel_ensemble",
            "members": self.num_members,
            "in_channels": self.in_channels,
            "hidden": list(self.w2.shape[1:]),
            "classes": self.num_classes,
        }

    @torch.no_grad()
    def logits(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Logits of every member at every pixel.

        Args:
            features: maps [N, C_l, h_l, w_l]; their channels, in this order, are the classifiers' input.
            size: (H, W) of the full frame, to which every map is resized (bilinear, align_corners=False).
            rows: (top, bottom) rows of the frame to compute; None computes all.

        Returns:
            float32 [M, N, K, H, W], H counting the computed rows.

        Raises:
            ValueError: the features do not fit the ensemble, or rows lie outside the frame.
        """
        count, height, width = self._check(features, size, rows)
        result = self.w1.new_empty(self.num_members, count, self.num_classes, height, width)

        def keep(n: int, chunk: slice, logits: Tensor) -> None:
            result[:, n, :, chunk] = logits

        self._each_chunk(features, size, rows, keep)
        return result

    def probabilities(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Class probabilities of every member at every pixel, [M, N, K, H, W]; arguments as for `logits`."""
        return self.logits(features, size, rows=rows).softmax(2)

    @torch.no_grad()
    def label(
        self, features: Sequence[Tensor], size: tuple[int, int], *, rows: tuple[int, int] | None = None
    ) -> Labels:
        """Class and uncertainty of every pixel, score of every image; arguments as for `logits`.

        On a GPU the whole batch is labeled at once, in the precision of the maps; see `batched`.

        Example:
            >>> labels = ensemble.label(features, (256, 256), rows=(32, 224))  # doctest: +SKIP
            >>> labels.mask.shape  # doctest: +SKIP
            torch.Size([8, 192, 256])
        """
        count, height, width = self._check(features, size, rows)
        if self.w1.device.type != "cpu":
            mask, js = batched.label(self, features, size, rows or (0, size[0]))
            return Labels(mask, js, image_score(js, self.top_fraction))
        mask = self.w1.new_empty(count, height, width, dtype=torch.int64)
        js = self.w1.new_empty(count, height, width)

        def keep(n: int, chunk: slice, logits: Tensor) -> None:
            mask[n, chunk], js[n, chunk] = self._label_chunk(logits)

        self._each_chunk(features, size, rows, keep)
        score = parallel_map(lambda one: image_score(one[None], self.top_fraction), js, js.device)
        return Labels(mask, js, torch.cat(score))

    def _label_chunk(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[M, K, rows, W] -> mask and uncertainty [rows, W]."""
        probabilities = logits.softmax(1)
        js = js_divergence(probabilities.unsqueeze(1))[0]
        if self.vote == "mean":
            return _argmax(probabilities.mean(0)), js
        votes = probabilities.new_zeros(*js.shape, self.num_classes)
        for choice in _argmax(logits, dim=1).unsqueeze(-1):
            votes.scatter_add_(-1, choice, votes.new_ones(()).expand_as(choice))
        return votes.argmax(-1), js

    def _check(
        self, features: Sequence[Tensor], size: tuple[int, int], rows: tuple[int, int] | None
    ) -> tuple[int, int, int]:
        """(N, H, W) of the result, if the arguments fit."""
        channels = [f.shape[1] for f in features]
        if sum(channels) != self.in_channels:
            raise ValueError(
                f"the classifiers take {self.in_channels} features a pixel, the maps have {sum(channels)}: {channels}. "
                "Is this the generator and the feature layout that they were fitted on?"
            )
        top, bottom = rows or (0, size[0])
        if not 0 <= top < bottom <= size[0]:
            raise ValueError(f"rows {rows} must lie inside the frame: 0 <= top < bottom <= {size[0]}")
        return len(features[0]), bottom - top, size[1]

    def _each_chunk(
        self,
        features: Sequence[Tensor],
        size: tuple[int, int],
        rows: tuple[int, int] | None,
        keep: Callable[[int, slice, Tensor], None],
    ) -> None:
        """Call ``keep(n, rows of the result, logits [M, K, rows, W])`` for every image n and every chunk of rows."""
        top, bottom = rows or (0, size[0])
        first_layer = _FirstLayer([f.shape for f in features], self.w1.flatten(1), self.b1.flatten(), size)
        maps = [_shrink(f.to(self.w1), size) for f in features]
        bands = [
            (n, t, min(t + _BAND_ROWS, bottom)) for n in range(len(maps[0])) for t in range(top, bottom, _BAND_ROWS)
        ]

        def work(band: tuple[int, int, int]) -> None:
            n, band_top, band_bottom = band
            row = band_top - top
            for hidden in first_layer.row_chunks([f[n] for f in maps], band_top, band_bottom):
                logits = self._tail(hidden.relu_()).unflatten(2, (-1, size[1]))
                keep(n, slice(row, row + logits.shape[2]), logits)
                row += logits.shape[2]

        parallel_map(work, bands, self.w1.device)

    def _tail(self, hidden: Tensor) -> Tensor:
        """Second and third layer: [P, M·h1] -> logits [M, K, P]."""
        width = self.w2.shape[1]
        logits = hidden.new_empty(self.num_members, self.num_classes, len(hidden))
        for m in range(self.num_members):
            second = torch.addmm(self.b2[m], hidden[:, m * width : (m + 1) * width], self.w2[m]).relu_()
            torch.addmm(self.b3[m][:, None], self.w3[m].t(), second.t(), out=logits[m])
        return logits


class _FirstLayer:
    """concat(up(f_l)) · W1 + b1, a chunk of rows at a time.

    Maps smaller than the frame are projected first and resized then; the others are as large as the frame.
    Used by several threads at once: it is not changed after it was made.

    Args:
        shapes: [N, C_l, h_l, w_l] of every map.
        weight: [C, O], the first layers of all members stacked.
        bias: [O].
        size: (H, W) of the frame.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], weight: Tensor, bias: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        self.bias = bias
        blocks = weight.split([shape[1] for shape in shapes])
        fine: list[int] = []  # numbers of the maps at least as large as the frame
        coarse: dict[tuple[int, int], list[int]] = {}  # numbers of the others, by size
        for i, (_, _, h, w) in enumerate(shapes):
            if h >= size[0] and w >= size[1]:
                fine.append(i)
            else:
                coarse.setdefault((h, w), []).append(i)
        self.fine = _Group(fine, [blocks[i] for i in fine]) if fine else None
        self.coarse = {shape: _Group(maps, [blocks[i] for i in maps]) for shape, maps in coarse.items()}
        self.rows = max(_CHUNK_ROWS, _CHUNK_PIXELS // size[1]) if weight.device.type == "cpu" else _BAND_ROWS
        self.row_weights = {shape: bilinear_matrix(shape[0], size[0]).to(weight) for shape in coarse}
        if coarse:
            index, tiles = _column_tiles(tuple(w for _, w in coarse), size[1])
            self.columns = index.flatten().to(weight.device)
            self.tiles = tiles.to(weight).repeat(self.rows, 1, 1)

    def row_chunks(self, maps: Sequence[Tensor], top: int, bottom: int) -> Iterator[Tensor]:
        """Values [rows · W, O] of the rows from `top` to `bottom` of one image; each is overwritten by the next."""
        levels = [self._project(maps, shape, top, bottom) for shape in self.coarse]
        interpolation = _Interpolation(self) if self.coarse else None
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
        first, last = _source_rows(shape[0], self.size[0], top, bottom)
        group = self.coarse[shape]
        pixels = group.pixels(maps, first, last)
        # Interpolation weights sum to one, so the bias may join one coarse map instead of every pixel.
        takes_bias = shape == next(iter(self.coarse))
        projected = torch.addmm(self.bias, pixels, group.block) if takes_bias else pixels @ group.block
        return first, projected.unflatten(0, (last - first, shape[1]))


class _Group:
    """Maps of one size, and the rows of the first layer that belong to their channels."""

    def __init__(self, maps: list[int], blocks: list[Tensor]) -> None:
        self.maps = maps
        self.block = torch.cat(blocks)

    def pixels(self, maps: Sequence[Tensor], top: int, bottom: int) -> Tensor:
        """Some rows of these maps of one image, pixel by pixel: [rows · w, C]."""
        return torch.cat([maps[i][:, top:bottom].flatten(1) for i in self.maps]).t()


class _Interpolation:
    """Σ up(projection) over the coarse levels, for a few rows of output; owns the working memory of one thread.

    Rows first, at each level's own width, then all levels' columns in one batched product: for a tile of output columns
    only a few source columns matter, and these are gathered.
    """

    def __init__(self, layer: _FirstLayer) -> None:
        self.layer = layer
        new, outputs = layer.bias.new_empty, len(layer.bias)
        self.by_row = new(layer.rows, sum(w for _, w in layer.coarse), outputs)
        self.gathered = new(layer.rows, len(layer.columns), outputs)
        self.result = new(len(layer.tiles), layer.tiles.shape[1], outputs)

    def rows(self, levels: Sequence[tuple[int, Tensor]], top: int, bottom: int) -> Tensor:
        """[(bottom - top) · W, O]; valid until the next call."""
        layer, n, column = self.layer, bottom - top, 0
        for (shape, weights), (offset, projected) in zip(layer.row_weights.items(), levels, strict=True):
            first, last = _source_rows(shape[0], layer.size[0], top, bottom)
            target = self.by_row[:n, column : column + shape[1]].flatten(1)
            torch.mm(weights[top:bottom, first:last], projected[first - offset : last - offset].flatten(1), out=target)
            column += shape[1]
        gathered = torch.index_select(self.by_row[:n], 1, layer.columns, out=self.gathered[:n])
        tiles = n * (len(layer.tiles) // layer.rows)
        sources = gathered.view(tiles, layer.tiles.shape[2], -1)
        return torch.bmm(layer.tiles[:tiles], sources, out=self.result[:tiles]).flatten(0, 1)


def _argmax(values: Tensor, dim: int = 0) -> Tensor:
    """Argmax, the lowest index where several are equal. Along the last axis it is vectorized, elsewhere it is not."""
    return values.movedim(dim, -1).contiguous().argmax(-1)


def bilinear_matrix(n_in: int, n_out: int) -> Tensor:
    """The matrix [n_out, n_in] that resizes an axis as `interpolate(mode="bilinear", align_corners=False)` does."""
    lower, upper, fraction = _bilinear_taps(n_in, n_out)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64)
    matrix.scatter_add_(1, lower[:, None], 1 - fraction[:, None])
    matrix.scatter_add_(1, upper[:, None], fraction[:, None])
    return matrix.float()


def _bilinear_taps(n_in: int, n_out: int) -> tuple[Tensor, Tensor, Tensor]:
    centers = (torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    centers = centers.clamp(0, n_in - 1)
    lower = centers.floor().long()
    return lower, (lower + 1).clamp(max=n_in - 1), centers - lower


def _source_rows(n_in: int, n_out: int, top: int, bottom: int) -> tuple[int, int]:
    """First and one past the last source row that output rows top…bottom read."""
    lower, upper, _ = _bilinear_taps(n_in, n_out)
    return int(lower[top]), int(upper[bottom - 1]) + 1


@lru_cache(maxsize=16)
def _column_tiles(widths: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
    """For tiles of output columns: which columns of the concatenated levels they read, and with what weights.

    Returns:
        index int64 [tiles, taps] and weight float32 [tiles, columns a tile, taps]; unused taps weigh zero.
    """
    divisors = [d for d in range(1, min(width, 2 * _TILE) + 1) if width % d == 0]
    tile = min(divisors, key=lambda d: abs(math.log(d / _TILE)))
    matrix = torch.cat([bilinear_matrix(w, width) for w in widths], dim=1).unflatten(0, (-1, tile))
    used = matrix.ne(0).any(1)
    taps = int(used.sum(1).max())
    index = used.float().topk(taps, dim=1).indices.sort(1).values
    return index, matrix.gather(2, index.unsqueeze(1).expand(-1, tile, -1))


def _shrink(f: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [N, C, h, w] larger than the frame are brought to its size before they are projected: that is cheaper.

    Plain bilinear without antialiasing, as published. Other maps stay as they are.
    """
    h, w = f.shape[2:]
    if (h, w) == tuple(size) or h < size[0] or w < size[1]:
        return f
    return F.interpolate(f, size=tuple(size), mode="bilinear", align_corners=False)
