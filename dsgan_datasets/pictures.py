"""Pictures for people: contact sheets of samples, with their labels drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsgan_datasets._deprecation import moved
from dsgan_datasets.files import atomic_write
from dsgan_datasets.images import png
from dsgan_datasets.samples import Sample, SampleBatch
from dsgan_datasets.targets.base import Color, Target
from dsgan_datasets.targets.colors import heat
from dsgan_datasets.uncertainty import score_unit

__getattr__ = moved(
    __name__, {"histogram": "dsgan_datasets.charts:histogram", "class_bars": "dsgan_datasets.charts:tally_bars"}
)

#: Small pictures on a sheet are enlarged to about this many pixels: images smoothly, labels and maps pixel by pixel.
_CELL = 192
_MARGIN = 12
_TEXT = 14
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def photo(image: Tensor) -> Image.Image:
    """An image uint8 [3, H, W] as shown on a sheet: a small one is smoothly enlarged.

    Example:
        >>> photo(torch.zeros(3, 64, 64, dtype=torch.uint8)).size
        (192, 192)
    """
    picture = Image.fromarray(image.cpu().permute(1, 2, 0).numpy())
    zoom = _zoom(picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)


def _zoom(width: int) -> int:
    return max(1, round(_CELL / width))


def heat_map(values: np.ndarray, highest: float) -> Image.Image:
    """Values [H, W] from 0 to `highest` as colors, dark to bright.

    Example:
        >>> heat_map(np.array([[0.0, 0.5]]), highest=0.5).size
        (2, 1)
    """
    return Image.fromarray(heat(values / max(highest, 1e-12)))


def contact_sheet(
    batch: SampleBatch, targets: Target | Sequence[Target], *, title: str = "", columns: int = 3
) -> Image.Image:
    """Image, drawn labels and, if there is one, uncertainty map of every sample, with captions and a legend.

    Args:
        batch: samples, with or without "uncertainty_score" and the extra field "uncertainty".
        targets: labels of the samples.
        title: first line of the sheet.
        columns: samples side by side.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> contact_sheet(labeled.generate([0, 1], extras=("uncertainty",)), labeled.schema, title="demo").mode
        'RGB'
    """
    targets = targets if isinstance(targets, Sequence) else [targets]
    uncertain, unit = "uncertainty" in batch, score_unit(targets)
    highest = float(batch["uncertainty"].max()) if uncertain else 0.0
    pictures, captions = [], []
    for sample in batch.rows():
        image, size = photo(sample.image), (sample.image.shape[1], sample.image.shape[2])
        labels = [target.draw(image, sample[target.field], size) for target in targets]
        maps = [heat_map(sample["uncertainty"].cpu().numpy(), highest)] if uncertain else []
        pictures.append([image, *labels, *maps])
        captions.append("   ".join(about(sample, unit)))
    shown = ["image", *(target.field for target in targets)]
    shown += [f"uncertainty, bright = {highest:.2f} {unit}".rstrip()] * uncertain
    return sheet(pictures, captions, f"{title}   ({' | '.join(shown)})", targets, columns=columns)


def about(sample: Sample, unit: str) -> list[str]:
    """What a caption says of a sample: index, score (in `unit`), class, and how many draws of it were rejected.

    Example:
        >>> labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
        >>> about(next(labeled.stream([4])), "nats")
        ['index 4', 'score 0.1295 nats', 'after 1 rejected']
    """
    said = [f"index {int(sample.index)}"]
    if "uncertainty_score" in sample:
        said.append(f"score {float(sample['uncertainty_score']):.4f} {unit}".rstrip())
    if "class_label" in sample:
        said.append(f"class {int(sample['class_label'])}")
    if int(sample.attempt):
        said.append(f"after {int(sample.attempt)} rejected")
    return said


def sheet(
    pictures: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    title: str,
    targets: Target | Sequence[Target] = (),
    *,
    columns: int = 3,
    more: Sequence[tuple[str, Color]] = (),
) -> Image.Image:
    """Groups of pictures side by side, each with a line of text below, and a legend.

    Args:
        pictures: groups of equal length; a small first picture is enlarged, pixel by pixel, and all others to its size.
        captions: one for each group.
        title: first line of the sheet.
        targets: labels whose counted names and colors (such as classes) the legend shows.
        columns: groups side by side.
        more: names and colors that the legend shows too.

    Example:
        >>> black = Image.new("RGB", (96, 96))
        >>> sheet([[black], [black]], ["first", "second"], "two pictures", columns=2).mode
        'RGB'
    """
    title, *captions = (text.encode(errors="replace").decode() for text in (title, *captions))  # it may name a file
    width, height = pictures[0][0].size
    zoom = _zoom(width)
    cell_w, cell_h = width * zoom, height * zoom
    columns = max(1, min(columns, len(pictures)))
    block_w, block_h = len(pictures[0]) * (cell_w + 4) + _MARGIN - 4, cell_h + _TEXT + 2 * _MARGIN
    rows = -(-len(pictures) // columns)
    font = ImageFont.load_default(_TEXT)
    sheet_w = max(columns * block_w + (columns + 1) * _MARGIN, int(font.getlength(title)) + 2 * _MARGIN)
    targets = targets if isinstance(targets, Sequence) else [targets]
    entries = [*(entry for t in targets for entry in zip(t.tally_names, t.tally_colors, strict=True)), *more]
    legend = _legend(entries, sheet_w - 2 * _MARGIN, font) if entries else None
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


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of equal width, one below the other.

    Example:
        >>> stacked([Image.new("RGB", (4, 2)), Image.new("RGB", (4, 3))]).size
        (4, 5)
    """
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), _PAPER)
    y = 0
    for picture in pictures:
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet


def as_png(picture: Image.Image) -> bytes:
    """Content of a PNG file.

    Example:
        >>> as_png(Image.new("RGB", (2, 2)))[1:4]
        b'PNG'
    """
    return png(picture, effort=9)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG file, whole or not at all; its folder is created if needed.

    Example:
        >>> save_png(Image.new("RGB", (2, 2)), tmp / "new" / "black.png")
        >>> [file.name for file in (tmp / "new").iterdir()]
        ['black.png']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(as_png(picture))


def _legend(
    entries: Sequence[tuple[str, Color]], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """Swatches with names, wrapped to the width."""
    swatch, line = _TEXT, _TEXT + 10
    places, x, y = [], 0, 0
    for name, _ in entries:
        needed = swatch + 6 + int(font.getlength(name)) + 18
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y))
        x += needed
    legend = Image.new("RGB", (width, y + line), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (x, y), (name, color) in zip(places, entries, strict=True):
        draw.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=color, outline=_INK)
        draw.text((x + swatch + 6, y), name, _INK, font)
    return legend
