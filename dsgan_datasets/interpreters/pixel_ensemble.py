"""The DatasetGAN interpreter: an ensemble of small pixel classifiers, evaluated at native resolution.

DatasetGAN (arXiv 2104.06490, section 3.1) upsamples every feature map to the output size, concatenates thousands of
channels, and runs M three-layer classifiers on every pixel. The first layer is linear and bilinear resizing is linear,
so they commute: up(f) · W = up(f · W), and concat(f_l) · W = Σ f_l · W_l. Here each map is multiplied by its own block of
the stacked first layers *before* it is resized, and only these projections are resized and summed. The numbers are the
same up to rounding, at 1/18 to 1/31 of the multiplications; the plain form is the oracle in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgan_datasets.recipe import Vote
from dsgan_datasets.uncertainty import image_score, js_divergence

#: Rows of output are computed in chunks of about so many pixels, which keeps the chunk in the processor's cache,
_CHUNK_PIXELS = 2048
#: and projections are held for a band of rows at a time, of about so many bytes.
_BAND_BYTES = 256 * 2**20
#: Columns of one interpolation product; see `_ColumnTiles`.
_TILE = 16


@dataclass(frozen=True)
class Labels:
    """Labels of N images.

    Attributes:
        mask: int64 class ids [N, H, W].
        js: float32 [N, H, W], disagreement of the members in nats.
        score: float32 [N], mean of the most uncertain pixels of each image, in nats.
    """

    mask: Tensor
    js: Tensor
    score: Tensor


class PixelEnsemble(nn.Module):
    """M pixel classifiers with two hidden layers, as stacked matrices.

    A member maps the C features of a pixel to K logits: relu(relu(f · W1 + b1) · W2 + b2) · W3 + b3. The batch
    normalisations of the published classifiers follow a ReLU, so in evaluation they fold into the next matrix.

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
        self._check(features, size, rows)
        first_layer = _FirstLayer(features, self.w1.flatten(1), self.b1.flatten(), size)
        images = [torch.cat(list(self._logit_chunks(first_layer, one, rows)), dim=2) for one in self._images(features)]
        return torch.stack(images, 1)

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

        Example:
            >>> labels = ensemble.label(features, (256, 256), rows=(32, 224))  # doctest: +SKIP
            >>> labels.mask.shape  # doctest: +SKIP
            torch.Size([8, 192, 256])
        """
        self._check(features, size, rows)
        first_layer = _FirstLayer(features, self.w1.flatten(1), self.b1.flatten(), size)
        masks, divergences = [], []
        for one in self._images(features):
            parts = [self._label_chunk(logits) for logits in self._logit_chunks(first_layer, one, rows)]
            masks.append(torch.cat([mask for mask, _ in parts]))
            divergences.append(torch.cat([js for _, js in parts]))
        js = torch.stack(divergences)
        return Labels(torch.stack(masks), js, image_score(js, self.top_fraction))

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

    def _images(self, features: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Features [C_l, h_l, w_l] image by image, in the precision of the ensemble."""
        for n in range(len(features[0])):
            yield [f[n].to(self.w1) for f in features]

    def _check(self, features: Sequence[Tensor], size: tuple[int, int], rows: tuple[int, int] | None) -> None:
        channels = [f.shape[1] for f in features]
        if sum(channels) != self.in_channels:
            raise ValueError(
                f"the classifiers take {self.in_channels} features a pixel, but the maps have {sum(channels)} ({channels}): "
                "is this the generator and the feature layout that they were fitted on?"
            )
        if rows is not None and not 0 <= rows[0] < rows[1] <= size[0]:
            raise ValueError(f"rows {rows} must lie inside the frame: 0 <= top < bottom <= {size[0]}")

    def _logit_chunks(self, image: _FirstLayer, maps: list[Tensor], rows: tuple[int, int] | None) -> Iterator[Tensor]:
        """Logits [M, K, rows, W] of one image, some rows at a time, top to bottom."""
        height, width = image.size
        for hidden in image.row_chunks(maps, *(rows or (0, height))):
            yield self._tail(hidden.relu_()).unflatten(2, (-1, width))

    def _tail(self, hidden: Tensor) -> Tensor:
        """Second and third layer: [P, M·h1] -> logits [M, K, P]."""
        width = self.w2.shape[1]
        logits = hidden.new_empty(self.num_members, self.num_classes, len(hidden))
        for m in range(self.num_members):
            second = torch.addmm(self.b2[m], hidden[:, m * width : (m + 1) * width], self.w2[m]).relu_()
            torch.addmm(self.b3[m][:, None], self.w3[m].t(), second.t(), out=logits[m])
        return logits


class _FirstLayer:
    """concat(up(f_l)) · W1 + b1, row chunk by row chunk.

    Maps smaller than the frame are projected first and resized then; the others are resized first, as that is cheaper.
    The working memory is kept from image to image.

    Args:
        features: maps [N, C_l, h_l, w_l]; only their shapes matter here.
        weight: [C, O], the first layers of all members stacked.
        bias: [O].
        size: (H, W) of the frame.
    """

    def __init__(self, features: Sequence[Tensor], weight: Tensor, bias: Tensor, size: tuple[int, int]) -> None:
        self.size = size
        self.bias = bias
        self.blocks = weight.split([f.shape[1] for f in features])
        self.fine: list[int] = []  # numbers of the maps at least as large as the frame
        self.coarse: dict[tuple[int, int], list[int]] = {}  # numbers of the others, by size
        for i, f in enumerate(features):
            h, w = f.shape[2:]
            if h >= size[0] and w >= size[1]:
                self.fine.append(i)
            else:
                self.coarse.setdefault((h, w), []).append(i)
        self.rows = max(1, _CHUNK_PIXELS // size[1])
        self.interpolation = _Interpolation(list(self.coarse), size, bias, self.rows) if self.coarse else None

    def row_chunks(self, maps: Sequence[Tensor], top: int, bottom: int) -> Iterator[Tensor]:
        """Values [rows · W, O] of one image's rows from `top` to `bottom`; each is overwritten by the next."""
        fine = [(_resize(maps[i], self.size), self.blocks[i]) for i in self.fine]
        row_bytes = 4 * len(self.bias) * sum(h * w for h, w in self.coarse) / self.size[0]
        band = self.rows * max(1, int(_BAND_BYTES / max(row_bytes, 1)) // self.rows)
        for band_top in range(top, bottom, band):
            band_bottom = min(band_top + band, bottom)
            levels = [self._project(maps, shape, band_top, band_bottom) for shape in self.coarse]
            for chunk_top in range(band_top, band_bottom, self.rows):
                chunk_bottom = min(chunk_top + self.rows, band_bottom)
                hidden: Tensor | None = None
                if self.interpolation is not None:
                    hidden = self.interpolation.rows(levels, chunk_top, chunk_bottom)
                for f, block in fine:
                    pixels = f[:, chunk_top:chunk_bottom].flatten(1).t()
                    hidden = torch.addmm(self.bias, pixels, block) if hidden is None else hidden.addmm_(pixels, block)
                assert hidden is not None
                yield hidden

    def _project(self, maps: Sequence[Tensor], shape: tuple[int, int], top: int, bottom: int) -> tuple[int, Tensor]:
        """The source rows that output rows top…bottom need, projected: (first source row, [h, w, O])."""
        first, last = _source_rows(shape[0], self.size[0], top, bottom)
        projected: Tensor | None = None
        for i in self.coarse[shape]:
            pixels, block = maps[i][:, first:last].flatten(1).t(), self.blocks[i]
            if projected is not None:
                projected.addmm_(pixels, block)
            elif shape == next(iter(self.coarse)):
                # Interpolation weights sum to one, so the bias may join a coarse map instead of every pixel.
                projected = torch.addmm(self.bias, pixels, block)
            else:
                projected = pixels @ block
        assert projected is not None
        return first, projected.unflatten(0, (last - first, shape[1]))


class _Interpolation:
    """Σ up(projection) over the coarse levels, for a few rows of output.

    Rows first, at each level's own width, then all levels' columns in one batched product: for a tile of output columns
    only a few source columns matter, and these are gathered.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], size: tuple[int, int], bias: Tensor, rows: int) -> None:
        self.shapes = shapes
        self.row_weights = [bilinear_matrix(h, size[0]).to(bias) for h, _ in shapes]
        self.height = size[0]
        index, weight = _column_tiles(tuple(w for _, w in shapes), size[1])
        self.index = index.flatten().to(bias.device)
        self.weight = weight.to(bias).repeat(rows, 1, 1)
        self.tiles, _, taps = weight.shape
        source_columns = sum(w for _, w in shapes)
        self.by_row = bias.new_empty(rows, source_columns, len(bias))
        self.gathered = bias.new_empty(rows, self.tiles * taps, len(bias))
        self.result = bias.new_empty(rows * self.tiles, weight.shape[1], len(bias))

    def rows(self, levels: Sequence[tuple[int, Tensor]], top: int, bottom: int) -> Tensor:
        """[(bottom - top) · W, O]; valid until the next call."""
        n = bottom - top
        column = 0
        for (h, w), weights, (offset, projected) in zip(self.shapes, self.row_weights, levels, strict=True):
            first, last = _source_rows(h, self.height, top, bottom)
            target = self.by_row[:n, column : column + w].flatten(1)
            torch.mm(weights[top:bottom, first:last], projected[first - offset : last - offset].flatten(1), out=target)
            column += w
        gathered = torch.index_select(self.by_row[:n], 1, self.index, out=self.gathered[:n])
        tiles = gathered.view(n * self.tiles, -1, gathered.shape[-1])
        result = torch.bmm(self.weight[: n * self.tiles], tiles, out=self.result[: n * self.tiles])
        return result.flatten(0, 1)


def _argmax(values: Tensor, dim: int = 0) -> Tensor:
    """Argmax, the lowest index where several are equal. Along the last axis it is vectorised, elsewhere it is not."""
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


def _resize(f: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [C, h, w] at the frame's size: plain bilinear, as published, without antialiasing."""
    if tuple(f.shape[1:]) == tuple(size):
        return f
    return F.interpolate(f[None], size=tuple(size), mode="bilinear", align_corners=False)[0]
