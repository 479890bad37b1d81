"""Pictures for people: contact sheets of samples, histograms of scores, bars of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsgan_datasets.files import atomic_write
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.targets.segmentation import LabelSchema

#: Pictures on a sheet are enlarged to about so many pixels: images smoothly, masks and maps pixel by pixel.
_CELL = 192
_MARGIN = 12
_TEXT = 14
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
#: Dark to bright with even steps in lightness: readable without color too.
_HEAT = np.array([(12, 8, 38), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def photo(image: Tensor) -> Image.Image:
    """An image uint8 [3, H, W], a small one enlarged smoothly to what a sheet shows."""
    picture = Image.fromarray(image.cpu().permute(1, 2, 0).numpy())
    zoom = _zoom(picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)


def overlay(sample: Sample, schema: LabelSchema, opacity: float = 0.55) -> Image.Image:
    """The `photo` with its mask painted over it; pixels of class 0 and ignored ones stay as they are."""
    image = np.asarray(photo(sample.image)).astype(np.float64)
    mask = sample.mask.cpu().numpy()
    mask = mask.repeat(image.shape[0] // mask.shape[0], 0).repeat(image.shape[1] // mask.shape[1], 1)
    palette = np.zeros((256, 3))
    palette[: schema.num_classes] = schema.palette
    painted = (mask != 0) & (mask != schema.ignore_index)
    image[painted] = (1 - opacity) * image[painted] + opacity * palette[mask[painted]]
    return Image.fromarray(image.round().astype(np.uint8))


def _zoom(width: int) -> int:
    return max(1, round(_CELL / width))


def heat_map(values: np.ndarray, highest: float) -> Image.Image:
    """Values [H, W] from 0 to `highest` as colors, dark to bright."""
    position = np.clip(values / max(highest, 1e-12), 0, 1) * (len(_HEAT) - 1)
    lower = np.minimum(position.astype(int), len(_HEAT) - 2)
    fraction = (position - lower)[..., None]
    return Image.fromarray(((1 - fraction) * _HEAT[lower] + fraction * _HEAT[lower + 1]).round().astype(np.uint8))


def contact_sheet(batch: SampleBatch, schema: LabelSchema, *, title: str = "", columns: int = 3) -> Image.Image:
    """Image, mask overlay and, if there is one, uncertainty map of every sample, its score, a legend of the classes.

    Args:
        batch: samples, with or without the extra field "uncertainty".
        schema: names and colors.
        title: first line of the sheet.
        columns: samples side by side.
    """
    with_js = "uncertainty" in batch
    highest = float(batch.uncertainty.max()) if with_js else 0.0
    pictures, captions = [], []
    for sample in batch.rows():
        uncertainty = [heat_map(sample.uncertainty.cpu().numpy(), highest)] if with_js else []
        pictures.append([photo(sample.image), overlay(sample, schema), *uncertainty])
        caption = f"index {int(sample.index)}   score {float(sample.uncertainty_score):.4f} nats"
        if "class_label" in sample:
            caption += f"   class {int(sample.class_label)}"
        if int(sample.attempt):
            caption += f"   after {int(sample.attempt)} rejected"
        captions.append(caption)
    shown = f"image | mask | uncertainty, bright = {highest:.2f} nats" if with_js else "image | mask"
    title = f"{title}   ({shown})"
    return sheet(pictures, captions, title, schema, columns=columns)


def sheet(
    pictures: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    title: str,
    schema: LabelSchema | None = None,
    *,
    columns: int = 3,
) -> Image.Image:
    """Groups of pictures side by side, each with a line of text below, and a legend of the classes.

    Args:
        pictures: groups of equally many pictures; a small first one is enlarged, pixel by pixel, and all others to it.
        captions: one a group.
        title: first line of the sheet.
        schema: classes of the legend; None for none.
        columns: groups side by side.
    """
    width, height = pictures[0][0].size
    zoom = _zoom(width)
    cell_w, cell_h = width * zoom, height * zoom
    columns = max(1, min(columns, len(pictures)))
    block_w, block_h = len(pictures[0]) * (cell_w + 4) + _MARGIN - 4, cell_h + _TEXT + 2 * _MARGIN
    rows = -(-len(pictures) // columns)
    font = ImageFont.load_default(_TEXT)
    sheet_w = max(columns * block_w + (columns + 1) * _MARGIN, int(font.getlength(title)) + 2 * _MARGIN)
    legend = None if schema is None else _legend(schema, sheet_w - 2 * _MARGIN, font)
    top = _TEXT + 3 * _MARGIN
    sheet_h = top + rows * block_h + (0 if legend is None else legend.height) + _MARGIN
    result = Image.new("RGB", (sheet_w, sheet_h), _PAPER)
    draw = ImageDraw.Draw(result)
    draw.text((_MARGIN, _MARGIN), title, _INK, font)
    for i, (group, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _MARGIN + (i % columns) * (block_w + _MARGIN)
        y = top + (i // columns) * block_h
        for k, picture in enumerate(group):
            result.paste(picture.resize((cell_w, cell_h), Image.Resampling.NEAREST), (x + k * (cell_w + 4), y))
        draw.text((x, y + cell_h + 3), caption, _INK, font)
    if legend is not None:
        result.paste(legend, (_MARGIN, top + rows * block_h))
    return result


#: Colors of a chart: what stays, what is dropped, lines and grid.
_KEPT, _DROPPED, _GRID = (58, 110, 165), (214, 106, 78), (222, 222, 222)


def histogram(
    scores: np.ndarray,
    *,
    threshold: float | None = None,
    title: str = "",
    of: str = "draws",
    size: tuple[int, int] = (720, 360),
) -> Image.Image:
    """How scores are distributed, and which of them the filter drops.

    Args:
        scores: [N], nats.
        threshold: highest accepted score; None if there is no filter.
        title: first line.
        of: "draws" that the filter has not seen, or "samples" that it has accepted.
        size: (width, height), pixels.
    """
    width, height = size
    left, right, top, bottom = 56, width - 20, 66, height - 48
    font = ImageFont.load_default(_TEXT)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    highest = float(scores.max()) if scores.max() > 0 else 1.0
    edges = _bins(highest, min(60, max(10, int(len(scores) ** 0.5) * 2)), threshold)
    counts, highest = np.histogram(scores, edges)[0], float(edges[-1])
    ticks = _ticks(float(counts.max()), whole=True)
    full = max(ticks[-1], float(counts.max()))

    def x_of(value: float) -> float:
        return left + (right - left) * value / highest

    def y_of(count: float) -> float:
        return bottom - (bottom - top) * count / full

    for tick in ticks:
        draw.line((left, y_of(tick), right, y_of(tick)), _GRID)
        draw.text((left - 8, y_of(tick)), f"{tick:g}", _INK, font, anchor="rm")
    for tick in _ticks(highest):
        draw.line((x_of(tick), bottom, x_of(tick), bottom + 4), _INK)
        draw.text((x_of(tick), bottom + 7), f"{tick:g}", _INK, font, anchor="ma")
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            color = _KEPT if threshold is None or low < threshold else _DROPPED
            draw.rectangle((x_of(low), y_of(count), x_of(high) - 1, bottom), color)
    draw.line((left, bottom, right, bottom), _INK)
    draw.text((left, 10), title, _INK, font)
    if threshold is not None and threshold <= highest:
        draw.line((x_of(threshold), top - 8, x_of(threshold), bottom), _INK, 2)
        dropped = float((scores > threshold).mean())
        line = f"threshold {threshold:.4g} nats: {dropped:.1%} of {len(scores)} draws are more uncertain and dropped"
        if of != "draws":
            line = f"{len(scores)} {of}, all at most {threshold:.4g} nats, the threshold"
    else:
        line = f"{len(scores)} {of}, {'no filter' if threshold is None else f'threshold {threshold:.4g} nats'}"
    draw.text((left, 32), line, _INK, font)
    draw.text(((left + right) / 2, height - 8), f"score (nats); height: number of {of}", _INK, font, "ms")
    return picture


def _ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to about `highest`, some five of them."""
    step = 10.0 ** np.floor(np.log10(max(highest, 1e-9) / 4))
    step *= next(m for m in (1, 2, 5, 10) if highest / (step * m) <= 6)
    if whole:
        step = max(step, 1.0)
    return [float(f"{i * step:.6g}") for i in range(int(highest / step + 1e-6) + 1)]


def class_bars(
    columns: Mapping[str, Sequence[float]], schema: LabelSchema, *, title: str = "", width: int = 720
) -> Image.Image:
    """A row of bars for each class, in its color; NaN is shown as none.

    Args:
        columns: heading -> one share (0-1) a class.
        schema: names and colors.
        title: first line.
        width: pixels.
    """
    font = ImageFont.load_default(_TEXT)
    line, top = _TEXT + 10, 62
    left = _MARGIN + 26 + int(max(font.getlength(name) for name in schema.classes)) + 14
    cell = (width - left - _MARGIN) // len(columns)
    picture = Image.new("RGB", (width, top + line * schema.num_classes + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 10), title, _INK, font)
    for k, (heading, values) in enumerate(columns.items()):
        x = left + k * cell
        draw.text((x, 36), heading, _INK, font)
        longest = cell - 80
        draw.line((x, top - 4, x, top + line * schema.num_classes), _GRID)
        for i, (value, color) in enumerate(zip(values, schema.palette, strict=True)):
            y, known = top + i * line, value == value
            if known and value > 0:
                draw.rectangle((x, y + 2, x + max(1.0, longest * value), y + line - 6), color, _INK)
            label = "none" if not known else f"{value:.1%}"
            draw.text((x + (longest * value if known else 0) + 7, y), label, _INK, font)
    for i, (name, color) in enumerate(zip(schema.classes, schema.palette, strict=True)):
        y = top + i * line
        draw.rectangle((_MARGIN, y + 2, _MARGIN + _TEXT, y + 2 + _TEXT), fill=color, outline=_INK)
        draw.text((_MARGIN + 22, y), name, _INK, font)
    return picture


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of equal width, one below the other."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), _PAPER)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet


def as_png(picture: Image.Image) -> bytes:
    """Content of a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG file, whole or not at all; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(as_png(picture))


def _bins(highest: float, count: int, threshold: float | None) -> np.ndarray:
    """Edges of about `count` equal bins over 0 … highest; no bin lies on both sides of the threshold."""
    step = highest * 1.02 / count
    if threshold is None or not step <= threshold < highest:
        return np.linspace(0, highest * 1.02, count + 1)
    edge = float(np.nextafter(threshold, np.inf))  # a bin takes its lower edge, the filter accepts the threshold itself
    step = edge / max(1, round(edge / step))
    return np.concatenate([np.linspace(0, edge, round(edge / step) + 1), np.arange(edge + step, highest + step, step)])


def _legend(schema: LabelSchema, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """Swatches with class names, wrapped to the width."""
    swatch, line = _TEXT, _TEXT + 10
    places, x, y = [], 0, 0
    for name in schema.classes:
        entry = swatch + 6 + int(font.getlength(name)) + 18
        if x and x + entry > width:
            x, y = 0, y + line
        places.append((x, y))
        x += entry
    legend = Image.new("RGB", (width, y + line), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (x, y), name, color in zip(places, schema.classes, schema.palette, strict=True):
        draw.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=color, outline=_INK)
        draw.text((x + swatch + 6, y), name, _INK, font)
    return legend
