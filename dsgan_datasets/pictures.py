"""Pictures for people: contact sheets of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.schema import LabelSchema

#: Pictures on a sheet are enlarged, pixel by pixel, to about so many pixels.
_CELL = 192
_MARGIN = 12
_TEXT = 14
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
#: Dark to bright with even steps in lightness: readable without colour too.
_HEAT = np.array([(12, 8, 38), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def overlay(sample: Sample, schema: LabelSchema, opacity: float = 0.55) -> Image.Image:
    """The image with its mask painted over it; pixels of class 0 and ignored ones stay as they are."""
    image = sample.image.cpu().permute(1, 2, 0).numpy().astype(np.float64)
    mask = sample.mask.cpu().numpy()
    palette = np.zeros((256, 3))
    palette[: schema.num_classes] = schema.palette
    painted = (mask != 0) & (mask != schema.ignore_index)
    image[painted] = (1 - opacity) * image[painted] + opacity * palette[mask[painted]]
    return Image.fromarray(image.round().astype(np.uint8))


def heat_map(values: np.ndarray, highest: float) -> Image.Image:
    """Values [H, W] from 0 to `highest` as colours, dark to bright."""
    position = np.clip(values / max(highest, 1e-12), 0, 1) * (len(_HEAT) - 1)
    lower = np.minimum(position.astype(int), len(_HEAT) - 2)
    fraction = (position - lower)[..., None]
    return Image.fromarray(((1 - fraction) * _HEAT[lower] + fraction * _HEAT[lower + 1]).round().astype(np.uint8))


def contact_sheet(batch: SampleBatch, schema: LabelSchema, *, title: str = "", columns: int = 3) -> Image.Image:
    """Image, mask overlay and uncertainty map of every sample, with its score, and a legend of the classes.

    Args:
        batch: samples with the extra field "js".
        schema: names and colours.
        title: first line of the sheet.
        columns: samples side by side.
    """
    highest = float(batch.js.max())
    pictures, captions = [], []
    for sample in batch.rows():
        image = Image.fromarray(sample.image.cpu().permute(1, 2, 0).numpy())
        pictures.append([image, overlay(sample, schema), heat_map(sample.js.cpu().numpy(), highest)])
        caption = f"index {int(sample.index)}   score {float(sample.score):.4f} nats"
        if "class_label" in sample:
            caption += f"   class {int(sample.class_label)}"
        if int(sample.attempt):
            caption += f"   after {int(sample.attempt)} rejected"
        captions.append(caption)
    title = f"{title}   (image | mask | uncertainty, bright = {highest:.2f} nats)"
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
        pictures: groups of equally many pictures of one size; they are enlarged, pixel by pixel.
        captions: one a group.
        title: first line of the sheet.
        schema: classes of the legend; None for none.
        columns: groups side by side.
    """
    width, height = pictures[0][0].size
    zoom = max(1, round(_CELL / width))
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
