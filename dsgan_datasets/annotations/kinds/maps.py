"""Dense maps, such as depth, as something to annotate: measured or computed elsewhere, and put beside the images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.annotations.files import File
from dsgan_datasets.annotations.folder import TARGETS, Array
from dsgan_datasets.annotations.kinds.base import Cleaning, Project
from dsgan_datasets.annotations.mistakes import Findings
from dsgan_datasets.contents import shown
from dsgan_datasets.images import PictureError, open_picture
from dsgan_datasets.targets.base import Color
from dsgan_datasets.targets.dense_map import STEPS, DenseMap


class Maps:
    """A `Kind`: values float32 [C, H, W], NaN where they are unknown."""

    noun = "map"

    def settled(self, label: Array, target: DenseMap, name: str, cleaning: Cleaning, found: Findings) -> Array | None:
        """The map, which must say something."""
        if not np.isnan(label).all():
            return label
        found.error(
            name,
            f"the {target.field} map is empty: every pixel is unknown (0 in a PNG, NaN in an .npy file). Fill it, or "
            "remove it and leave the image out with allow_missing (--allow-missing)",
        )
        return None

    def noticed(self, labels: Tensor, target: DenseMap, names: Sequence[str]) -> list[str]:
        """A range that the maps hardly use: perhaps it is the range of something else."""
        known = labels[~labels.isnan()]
        used = (float(known.max()) - float(known.min())) / (target.high - target.low)
        if used >= 0.05:
            return []
        return [
            f"{target.field}: all values lie in {float(known.min()):g} … {float(known.max()):g}, {used:.1%} of the "
            f"range {target.low:g} … {target.high:g}: check low, high and unit in {TARGETS}"
        ]

    def disagreements(self, first: DenseMap, later: DenseMap, rounds: tuple[str, str]) -> list[str]:
        """Range, unit and channels must be the same."""
        if first == later:
            return []
        here, there = (f"{t.low:g} … {t.high:g} {t.unit}, channels {', '.join(t.channels)}" for t in (first, later))
        return [
            f"{rounds[1]}: its {first.field} is another one ({there}) than that of {rounds[0]} ({here}): describe it "
            f"as in {TARGETS} of {rounds[0]}"
        ]

    def check_drafts(self, predicted: DenseMap, target: DenseMap) -> None:
        """Drafts have the same range, unit and channels."""
        if predicted != target:
            raise ValueError(
                f"the interpreter's {predicted.field} is {predicted.summary}, that to annotate {target.summary}: "
                "describe them alike, or export without interpreter"
            )

    def translated(self, labels: Tensor, target: DenseMap, other: DenseMap) -> Tensor:
        """The maps themselves."""
        return labels

    def table(self, labels: Tensor, target: DenseMap) -> list[str]:
        """Range of each channel, and how much of it is known."""
        width = max(map(len, (*target.channels, "channel")))
        unit = f" ({target.unit})" if target.unit else ""
        lines = [f"{'channel':<{width}}  {'lowest':>10}  {'mean':>10}  {'highest':>10}  known{unit}"]
        for i, channel in enumerate(target.channels):
            values = labels[:, i]
            known = values[~values.isnan()].double()
            numbers = (known.min(), known.mean(), known.max()) if len(known) else (math.nan,) * 3
            columns = "  ".join(f"{float(number):>10.4g}" for number in numbers)
            lines.append(f"{channel:<{width}}  {columns}  {len(known) / values.numel():>5.0%}")
        return lines

    def caption(self, label: Tensor, target: DenseMap) -> str:
        """Its lowest and highest value."""
        known = label[~label.isnan()]
        return f"{target.field} {float(known.min()):.3g} … {float(known.max()):.3g} {target.unit}".rstrip()

    def drawn(self, picture: Image.Image, label: Tensor, target: DenseMap, size: tuple[int, int]) -> Image.Image:
        """The map as colors."""
        return target.draw(picture, label, size)

    def legend(self, labels: Tensor, target: DenseMap) -> list[tuple[str, Color]]:
        """Nothing: the parts of the range are those of the target."""
        return []

    def project(self, target: DenseMap, labels: Tensor | None) -> Project:
        """A folder to put files into."""
        unit = f" {target.unit}" if target.unit else ""
        values = f"{target.low:g} … {target.high:g}{unit}"
        png = f"a 16-bit gray PNG (0 is unknown, 1 … {STEPS + 1} are {values})," if target.num_channels == 1 else ""
        shape = "[H, W]" if target.num_channels == 1 else f"[{target.num_channels}, H, W]"
        return Project(
            task=f"{'Put a map of' if labels is None else 'Correct the map of'} {target.field} beside each image.",
            files=(
                f"{target.field.capitalize():<9} Measured, or computed by another program.",
                f"{target.folder}/NAME.png or {target.folder}/NAME.npy belongs to images/NAME.png and has its size:"
                if png
                else f"{target.folder}/NAME.npy belongs to images/NAME.png and has its size:",
                *([png] if png else []),
                f"{'or ' if png else ''}an .npy file of floats {shape}: {values}, NaN where unknown.",
            ),
            parts=f"{target.field} (range and unit: {TARGETS}): {values}",
        )


def read_map(file: File, target: DenseMap, size: tuple[int, int], found: Findings) -> Array | None:
    """Values float32 [C, H, W] of a 16-bit PNG or an .npy file, or None with the reason among the mistakes.

    A PNG has the levels of `DenseMap`; an array may be of any type of number, and [H, W] if there is one channel.

    Args:
        file: to read.
        target: its range and channels.
        size: (H, W) that it must have.
        found: collects mistakes.
    """
    content = file.read()
    values = _array(file, content, found) if file.suffix == ".npy" else _levels(file, content, target, size, found)
    if values is None:
        return None
    if values.ndim == 2 and target.num_channels == 1:
        values = values[None]
    if values.ndim != 3 or len(values) != target.num_channels:
        shape = "[H, W]" if target.num_channels == 1 else f"[{target.num_channels}, H, W]"
        found.error(file.name, f"is an array {list(values.shape)}, expected {shape}: save it in this order of axes")
        return None
    if (height_width := (values.shape[1], values.shape[2])) != size:
        found.wrong_size(file.name, height_width, size)
        return None
    with np.errstate(over="ignore"):  # too large a number is out of range, too
        values = values.astype(np.float32)
    try:
        target.check(torch.from_numpy(values), size)
    except ValueError as error:
        found.error(file.name, f"{error}: change low and high in {TARGETS}, or give the values in its unit")
        return None
    return values


def _levels(file: File, content: bytes, target: DenseMap, size: tuple[int, int], found: Findings) -> Array | None:
    try:
        picture = open_picture(content, size=size)
    except PictureError as error:
        if error.size:
            found.wrong_size(file.name, error.size, size)
        else:
            found.error(file.name, f"{error.reason} or as .npy")
        return None
    if target.num_channels > 1:
        found.error(file.name, f"is a picture, and {target.field} has {target.num_channels} channels: save it as .npy")
        return None
    if picture.mode != "I;16":
        depth = "of 8 bits" if picture.mode in ("L", "P", "RGB", "RGBA", "LA", "1") else f"of mode {picture.mode}"
        found.error(
            file.name,
            f"is a picture {depth}{'' if picture.mode == 'L' else ' in color' if 'RGB' in picture.mode else ''}, too "
            "coarse for a map: save it as 16-bit gray PNG or as .npy",
        )
        return None
    decoded: Array = target.decode(content, size).numpy()
    return decoded


def _array(file: File, content: bytes, found: Findings) -> Array | None:
    """The numbers of an .npy file; its header does not decide how much memory is taken."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, kind = read(stream)
        values = content[stream.tell() :]
        if kind.kind not in "fiu":
            raise ValueError(f"it holds {kind}")
        if len(values) != (expected := math.prod(shape) * kind.itemsize):
            raise ValueError(f"it holds {len(values)} bytes of values, its header says {expected}")
        array: Array = np.frombuffer(values, kind).reshape(shape, order="F" if columns_first else "C")
    except Exception as error:  # a damaged file may raise anything at all
        found.error(
            file.name, f"is not an .npy file of numbers ({shown(str(error))}): save it with numpy.save, without objects"
        )
        return None
    return array
