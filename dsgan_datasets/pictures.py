"""Pictures for people: contact sheets of samples."""

from __future__ import annotations

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
    """Image, mask overlay and, if there is one, uncertainty map of every sample, its score, a legend of the classes.

    Args:
        batch: samples, with or without the extra field "js".
        schema: names and colours.
        title: first line of the sheet.
        columns: samples side by side.
    """
    height, width = batch.mask.shape[1:]
    zoom = max(1, round(_CELL / width))
    cell_w, cell_h = width * zoom, height * zoom
    columns = max(1, min(columns, batch.num_samples))
    kinds = ["image", "mask", *(["uncertainty"] if "js" in batch else [])]
    block_w, block_h = len(kinds) * cell_w + 2 * _MARGIN, cell_h + _TEXT + 2 * _MARGIN
    rows = -(-batch.num_samples // columns)
    sheet_w = columns * block_w + (columns + 1) * _MARGIN
    font = ImageFont.load_default(_TEXT)
    legend = _legend(schema, sheet_w - 2 * _MARGIN, font)
    top = _TEXT + 3 * _MARGIN
    sheet = Image.new("RGB", (sheet_w, top + rows * block_h + legend.height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    highest = float(batch.js.max()) if "js" in batch else 0.0
    shown = " | ".join(kinds) + (f", bright = {highest:.2f} nats" if "js" in batch else "")
    draw.text((_MARGIN, _MARGIN), f"{title}   ({shown})", _INK, font)
    for i, sample in enumerate(batch.rows()):
        x = _MARGIN + (i % columns) * (block_w + _MARGIN)
        y = top + (i // columns) * block_h
        pictures = [Image.fromarray(sample.image.cpu().permute(1, 2, 0).numpy()), overlay(sample, schema)]
        if "js" in sample:
            pictures.append(heat_map(sample.js.cpu().numpy(), highest))
        for k, picture in enumerate(pictures):
            sheet.paste(picture.resize((cell_w, cell_h), Image.Resampling.NEAREST), (x + k * (cell_w + 4), y))
        caption = f"index {int(sample.index)}   score {float(sample.score):.4f} nats"
        if "class_label" in sample:
            caption += f"   class {int(sample.class_label)}"
        if int(sample.attempt):
            caption += f"   after {int(sample.attempt)} rejected"
        draw.text((x, y + cell_h + 3), caption, _INK, font)
    sheet.paste(legend, (_MARGIN, top + rows * block_h))
    return sheet


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
