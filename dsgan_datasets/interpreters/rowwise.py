"""Outputs of the members image by image, in chunks of rows that stay in a core's cache: what a CPU runs.

DatasetGAN (arXiv 2104.06490, section 3.1) upsamples every feature map to the output size, concatenates thousands of
channels, and runs M three-layer classifiers on every pixel (`reference` does just that). The first layer is linear and
bilinear resizing is linear, so they commute: up(f) · W = up(f · W), and concat(f_l) · W = Σ f_l · W_l. Here each map is
multiplied by its own block of the stacked first layers *before* it is resized, and only these projections are resized
and summed. The numbers are the same up to rounding, at 1/18 to 1/31 of the multiplications.

A band of rows is computed for one group of members after the other, which bounds the working memory. Ten members of
the published width are one group: smaller ones would keep a chunk in the second-level cache, but the calls cost more
than that gains (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.reduce import Reduction
from dsgan_datasets.interpreters.resizing import shrink
from dsgan_datasets.interpreters.weights import EnsembleWeights
from dsgan_datasets.interpreters.windows import CoarseMaps
from dsgan_datasets.parallel import Workspace, parallel_map


@dataclass(frozen=True)
class Chunks:
    """How the work is divided. Other numbers change speed and memory, and the last bits of results.

    Attributes:
        band_rows: rows of a band. Bands are computed in parallel, each with the projections that it needs.
        pixels: pixels of a chunk of a band, about.
        rows: rows of a chunk, at most: those of a small frame are short.
        outputs: outputs of the first layer that are computed together, about: those of a group of members.
    """

    band_rows: int = 64
    pixels: int = 2048
    rows: int = 8
    outputs: int = 1280


DEFAULT_CHUNKS = Chunks()


class Band(NamedTuple):
    """Rows of the frame of one image: top … bottom of image n."""

    n: int
    top: int
    bottom: int


@torch.no_grad()
def outputs(
    weights: EnsembleWeights, features: Sequence[Tensor], frame: Frame, chunks: Chunks = DEFAULT_CHUNKS
) -> Tensor:
    """Outputs of every member at every pixel, float32 [M, N, K, H, W]: logits of classifiers.

    Args:
        weights: the members.
        features: maps [N, C_l, h_l, w_l]; their channels, in this order, are the members' input.
        frame: its labeled rows are the H of the result.
        chunks: how the work is divided.
    """
    members = Rowwise(weights, [f.shape[1:] for f in features], frame, torch.float32, chunks)
    maps = members.maps(features)
    shape = (weights.num_members, len(features[0]), weights.num_outputs, *frame.shape)
    result = weights.w1.new_empty(shape)

    def work(band: Band) -> None:
        for group, rows, values in members.chunks(maps, band):
            result[group, band.n, :, members.kept_rows(band)][:, :, rows] = values

    parallel_map(work, members.bands(len(features[0])), weights.device)
    return result


@torch.no_grad()
def reduce(
    weights: EnsembleWeights,
    features: Sequence[Tensor],
    frame: Frame,
    reduction: Reduction,
    chunks: Chunks = DEFAULT_CHUNKS,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """What `reduction` keeps, [N, ..., H, W] each; arguments as for `outputs`, precision of operands."""
    return Rowwise(weights, [f.shape[1:] for f in features], frame, dtype, chunks).reduce(features, reduction)


class Rowwise:
    """An ensemble prepared for maps of given shapes; several threads share it.

    Args:
        weights: of the ensemble.
        shapes: [C_l, h_l, w_l] of every map.
        frame: size and rows.
        dtype: precision of the operands of all layers but the last, whose result decides the labels. Sums are float32,
            and what is stored between products is rounded to it.
        chunks: how the work is divided.
    """

    def __init__(
        self,
        weights: EnsembleWeights,
        shapes: Sequence[Sequence[int]],
        frame: Frame,
        dtype: torch.dtype = torch.float32,
        chunks: Chunks = DEFAULT_CHUNKS,
    ) -> None:
        self.frame, self.dtype = frame, dtype
        size, (h1, _) = frame.size, weights.hidden
        step = min(weights.num_members, max(1, chunks.outputs // h1))
        self.groups = [
            Group(weights, slice(m, min(m + step, weights.num_members)), dtype)
            for m in range(0, weights.num_members, step)
        ]
        self.outputs, self.band_rows = weights.num_outputs, chunks.band_rows
        self.channels = [int(shape[0]) for shape in shapes]
        sizes = [(min(int(h), size[0]), min(int(w), size[1])) if h >= size[0] and w >= size[1] else (int(h), int(w))
                 for _, h, w in shapes]  # fmt: skip
        self.fine = [i for i, found in enumerate(sizes) if found == size]
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, found in enumerate(sizes):
            if i not in self.fine:
                by_size.setdefault(found, []).append(i)
        on_cpu = weights.device.type == "cpu"
        self.rows = min(chunks.rows, max(1, chunks.pixels // size[1])) if on_cpu else chunks.band_rows
        self.maps_of = list(by_size.values())  # of each coarse size
        self.coarse = CoarseMaps(list(by_size), size, self.rows, dtype, weights.device) if by_size else None
        self.width = size[1] if self.coarse is None else self.coarse.frame.padded_width
        for group in self.groups:
            group.split(self.channels, self.fine, self.maps_of)

    def reduce(self, features: Sequence[Tensor], reduction: Reduction) -> tuple[Tensor, ...]:
        """What `reduction` keeps, [N, ..., H, W] each, of maps [N, C_l, h_l, w_l]."""
        maps, device, count = self.maps(features), features[0].device, len(features[0])
        kept = reduction.empty(self.outputs, count, self.frame.shape, device)

        def work(band: Band) -> None:
            tally = reduction.tally((self.outputs, band.bottom - band.top, self.frame.size[1]), device)
            for members, rows, values in self.chunks(maps, band):
                tally.add(members, rows, values)
            rows = self.kept_rows(band)
            for whole, part in zip(kept, tally.result(), strict=True):
                whole[band.n][..., rows, :] = part

        parallel_map(work, self.bands(count), device)
        return kept

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps in the precision of the operands; those larger than the frame are resized first."""
        return [shrink(f, self.frame.size).to(self.dtype) for f in features]

    def bands(self, images: int) -> list[Band]:
        """All bands of a number of images."""
        top, bottom = self.frame.kept
        tops = range(top, bottom, self.band_rows)
        return [Band(n, t, min(t + self.band_rows, bottom)) for n in range(images) for t in tops]

    def kept_rows(self, band: Band) -> slice:
        """Rows of the result that a band fills."""
        top = self.frame.kept[0]
        return slice(band.top - top, band.bottom - top)

    def chunks(self, maps: Sequence[Tensor], band: Band) -> Iterator[tuple[slice, slice, Tensor]]:
        """Members, rows of the band, and outputs float32 [members, K, rows, W], which the next chunk overwrites."""
        image = [f[band.n].permute(1, 2, 0) for f in maps]  # [h, w, C]
        fine = self._fine_pixels(image, band)
        sources = [] if self.coarse is None else self.coarse.sources(image, self.maps_of, band.top, band.bottom)
        for group in self.groups:
            if self.coarse is not None:
                levels = self.coarse.project(sources, group.coarse, group.bias, band.top, band.bottom)
            for top in range(band.top, band.bottom, self.rows):
                bottom = min(top + self.rows, band.bottom)
                hidden = None if self.coarse is None else self.coarse.frame.rows_of(levels, top, bottom).flatten(0, 1)
                if fine is not None:
                    assert group.fine is not None
                    pixels = fine[top - band.top : bottom - band.top].flatten(0, 1)
                    if hidden is None:
                        hidden = torch.addmm(group.bias, pixels, group.fine)
                    else:
                        hidden.addmm_(pixels, group.fine)
                assert hidden is not None
                values = group.further_layers(hidden.relu_()).unflatten(2, (bottom - top, self.width))
                yield group.members, slice(top - band.top, bottom - band.top), values[..., : self.frame.size[1]]

    def _fine_pixels(self, image: Sequence[Tensor], band: Band) -> Tensor | None:
        """The maps as large as the frame, pixel by pixel: [rows, padded W, C]."""
        if not self.fine:
            return None
        rows, width, channels = band.bottom - band.top, self.frame.size[1], sum(self.channels[i] for i in self.fine)
        pixels = Workspace.take("fine", (rows, self.width, channels), self.dtype, image[0].device)
        torch.cat([image[i][band.top : band.bottom] for i in self.fine], 2, out=pixels[:, :width])
        pixels[:, width:] = 0
        return pixels


class Group:
    """Some members of an ensemble; their first layers count as one of O = members · h1 outputs.

    Args:
        weights: of the ensemble.
        members: which of them.
        dtype: precision of the first two layers.
    """

    def __init__(self, weights: EnsembleWeights, members: slice, dtype: torch.dtype) -> None:
        self.members = members
        self._first = weights.w1[:, members].flatten(1).to(dtype)
        self.bias = weights.b1[members].flatten().to(dtype)
        self.w2, self.b2 = weights.w2[members].to(dtype), weights.b2[members, None].to(dtype)
        self.w3 = weights.w3[members].transpose(1, 2).contiguous()
        self.b3 = weights.b3[members, :, None]

    def split(self, channels: Sequence[int], fine: Sequence[int], coarse: Sequence[Sequence[int]]) -> None:
        """Divide the first layer by maps: those as large as the frame, and those of each other size."""
        blocks = self._first.split(list(channels))
        self.fine = torch.cat([blocks[i] for i in fine]) if fine else None
        self.coarse = [torch.cat([blocks[i] for i in maps]) for maps in coarse]
        del self._first

    def further_layers(self, hidden: Tensor) -> Tensor:
        """Second and third layer: [P, O] -> outputs float32 [members, K, P]."""
        (count, _, h2), pixels = self.w2.shape, len(hidden)
        result = Workspace.take("outputs", (count, self.w3.shape[1], pixels), torch.float32, hidden.device)
        second = Workspace.take("second", (count, pixels, h2), hidden.dtype, hidden.device)
        torch.baddbmm(self.b2, hidden.unflatten(1, (count, -1)).transpose(0, 1), self.w2, out=second).relu_()
        return torch.baddbmm(self.b3, self.w3, second.float().transpose(1, 2), out=result)
