"""Masks of class ids: names and colors of the classes, and which of them swap sides in a mirror."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.checks import names
from dsgan_datasets.images import png, read_pixels
from dsgan_datasets.targets.base import Color, Target, register, require_target
from dsgan_datasets.targets.colors import distinct_colors
from dsgan_datasets.targets.parts import flip_pairs, index_of, part_names

#: What ignored pixels and ids without a class look like in colored masks.
IGNORED_COLOR: Color = (255, 255, 255)
#: Of masks drawn on an image.
_OPACITY = 0.55


@dataclass(frozen=True)
class LabelSchema:
    """Names and colors of the classes in a mask: the segmentation `Target`.

    A mask holds class ids, int64 [H, W]. Its file is an 8-bit grayscale PNG whose pixels are the ids; it gives the mask
    back exactly. Its tally counts the pixels of each class; ignored pixels are not counted.

    Args:
        classes: class names; the position is the class id in every mask.
        palette: one RGB color (0-255) for each class; distinct colors are chosen if it is left out.
        ignore_index: id of pixels that no loss and no metric should count, outside the class ids.
        flip_pairs: pairs of class ids that trade places when an image is mirrored, such as left and right eye.

    Raises:
        ValueError: names repeat, there are more than 255 of them, or colors or pairs do not fit them.

    Example:
        >>> schema = LabelSchema(("background", "left_eye", "right_eye"), flip_pairs=((1, 2),))
        >>> schema.num_classes
        3
        >>> schema.mirror(torch.tensor([[1, 0, 0]]), (1, 3))
        tensor([[0, 0, 2]])
    """

    kind: ClassVar[str] = "segmentation"
    field: ClassVar[str] = "mask"
    folder: ClassVar[str] = "masks"
    extension: ClassVar[str] = "seg.png"
    tally_unit: ClassVar[str] = "pixels"
    tally_measures: ClassVar[bool] = True
    rounding: ClassVar[None] = None

    classes: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    ignore_index: int = 255
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        fill = object.__setattr__
        fill(self, "classes", part_names("class", self.classes))
        n = self.num_classes
        if n > 255:
            raise ValueError(f"masks are stored in 8 bits, so a schema has at most 255 classes, not {n}")
        fill(self, "palette", tuple(map(_color, self.palette)) or ((0, 0, 0), *distinct_colors(n - 1)))
        fill(self, "flip_pairs", flip_pairs("class", self.flip_pairs, n))
        if 0 <= self.ignore_index < n or not 0 <= self.ignore_index <= 255:
            raise ValueError(f"ignore_index {self.ignore_index} must lie outside the class ids 0-{n - 1}, up to 255")
        if len(self.palette) != n or any(not 0 <= v <= 255 for color in self.palette for v in color):
            raise ValueError(f"palette needs {n} RGB colors with values 0-255, one for each class; got {self.palette}")

    @property
    def num_classes(self) -> int:
        """Number of classes K in a mask."""
        return len(self.classes)

    def index(self, name: str) -> int:
        """Class id of a name; ValueError lists the names when there is no such class."""
        return index_of("class", self.classes, name, "classes")

    @property
    def summary(self) -> str:
        """The class names."""
        return f"{self.num_classes} classes: {', '.join(self.classes)}"

    @property
    def tally_names(self) -> tuple[str, ...]:
        """The class names: `tally` counts pixels of each."""
        return self.classes

    @property
    def tally_colors(self) -> tuple[Color, ...]:
        """The palette."""
        return self.palette

    @property
    def ignored_as(self) -> int:
        """`ignore_index`."""
        return self.ignore_index

    def merge(self, groups: Mapping[str, Iterable[str]]) -> LabelSchema:
        """The schema of a coarser task; each group takes the place and color of its first member.

        Args:
            groups: new class name -> names of the classes it replaces. Classes in no group stay as they are.

        Raises:
            ValueError: an unknown class, or one that is in two groups.

        Example:
            >>> LabelSchema(("skin", "iris", "eye_white")).merge({"eye": ["iris", "eye_white"]}).classes
            ('skin', 'eye')
        """
        renamed = self._renamed(groups)
        classes, coarse = tuple(dict.fromkeys(renamed)), self.class_map_to(groups)
        pairs = {(min(p), max(p)) for p in ((coarse[a], coarse[b]) for a, b in self.flip_pairs) if p[0] != p[1]}
        return LabelSchema(
            classes=classes,
            palette=tuple(self.palette[renamed.index(name)] for name in classes),
            ignore_index=self.ignore_index,
            flip_pairs=tuple(sorted(pairs)),
        )

    def class_map_to(self, groups: Mapping[str, Iterable[str]]) -> tuple[int, ...]:
        """For each class of this schema its id in the schema that `merge` gives for the same groups.

        Example:
            >>> LabelSchema(("skin", "iris", "eye_white")).class_map_to({"eye": ["iris", "eye_white"]})
            (0, 1, 1)
        """
        renamed = self._renamed(groups)
        classes = list(dict.fromkeys(renamed))
        return tuple(classes.index(name) for name in renamed)

    def choose(self, classes: Sequence[str]) -> LabelSchema:
        """The schema of some of the classes, in this order; pixels of the others are to be ignored.

        Raises:
            ValueError: an unknown class, one that is named twice, or one of a flip pair without the other: in a mirror
                it would become the other, which nobody can see any more.

        Example:
            >>> LabelSchema(("sky", "sea", "ship")).choose(["ship", "sky"]).classes
            ('ship', 'sky')
        """
        if isinstance(classes, str):
            raise ValueError(f"classes are several names: give [{classes!r}]")
        ids = [self.index(name) for name in classes]
        for a, b in self.flip_pairs:
            if (a in ids) != (b in ids):
                kept, lost = (a, b) if a in ids else (b, a)
                raise ValueError(
                    f"class {self.classes[kept]!r} is chosen without {self.classes[lost]!r}, with which it trades "
                    "places in a mirror: choose both, or neither, or merge them"
                )
        return LabelSchema(
            classes=tuple(classes),
            palette=tuple(self.palette[i] for i in ids),
            ignore_index=self.ignore_index,
            flip_pairs=tuple((ids.index(a), ids.index(b)) for a, b in self.flip_pairs if a in ids),
        )

    def _renamed(self, groups: Mapping[str, Iterable[str]]) -> list[str]:
        """The name of each class after merging."""
        renamed = list(self.classes)
        grouped: set[int] = set()
        for name, members in as_groups(groups).items():
            if not members or (name in self.classes and name not in members):
                raise ValueError(f"group {name!r} has no members, or is a class that is not among them: {members}")
            for member in members:
                i = self.index(member)
                if i in grouped:
                    raise ValueError(f"class {member!r} is in two groups of {dict(groups)}")
                grouped.add(i)
                renamed[i] = name
        return renamed

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """Raise a ValueError unless this is a mask int64 [H, W] of class ids and `ignore_index`."""
        if value.dtype != torch.int64 or value.shape != size:
            raise ValueError(f"a mask is int64 {list(size)}, got {str(value.dtype)[6:]} {list(value.shape)}")
        low, high = (int(bound) for bound in value.aminmax())
        if low >= 0 and high < self.num_classes:
            return
        if low >= 0 and high <= 255:  # as bytes, of which the known ones are taken away: a tenth of a comparison's time
            known = bytes((*range(self.num_classes), self.ignore_index))
            unknown = list(value.byte().cpu().numpy().tobytes().translate(None, known))
        else:
            unknown = [low if low < 0 else high]
        if unknown:
            raise ValueError(
                f"a mask holds class id {unknown[0]}, the schema has the ids 0-{self.num_classes - 1} and "
                f"{self.ignore_index} for ignored pixels"
            )

    def mirror(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """The mask of the mirrored image: pixels mirrored, then sides swapped; [H, W] or [N, H, W]."""
        return self.swap_sides(values.flip(-1))

    def ignore(self, values: Tensor, pixels: Tensor) -> Tensor:
        """Masks [N, H, W] with `ignore_index` where `pixels` (bool [N, H, W]) is set."""
        return values.masked_fill(pixels, self.ignore_index)

    def rounded(self, values: Tensor) -> Tensor:
        """The masks themselves."""
        return values

    def encode(self, value: Tensor) -> bytes:
        """An 8-bit grayscale PNG whose pixels are the ids."""
        return png(value)

    def decode(self, content: bytes, size: tuple[int, int]) -> Tensor:
        """Inverse of `encode`, int64 [H, W]; ids are not compared with the classes, see `check`.

        Raises:
            ValueError: not an 8-bit grayscale picture, or a damaged one.
        """
        return torch.from_numpy(read_pixels(content, "L", size=size, verified=True).astype(np.int64))

    def tally(self, values: Tensor) -> Tensor:
        """Pixels of each class in masks [N, H, W], int64 [N, K]; ignored pixels are not counted."""
        flat = values.flatten(1)
        if flat.device.type == "cpu":
            numbered = flat + 256 * torch.arange(len(flat), device=flat.device)[:, None]
            return numbered.flatten().bincount(minlength=256 * len(flat)).view(len(flat), 256)[:, : self.num_classes]
        counts = torch.zeros(len(flat), 256, dtype=torch.int64, device=flat.device)  # bincount would wait for the GPU
        return counts.scatter_add_(1, flat, torch.ones_like(flat))[:, : self.num_classes]

    def tally_total(self, size: tuple[int, int]) -> int:
        """Pixels of the image."""
        return size[0] * size[1]

    def wrap(self, value: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The mask as a ``tv_tensors.Mask``."""
        from torchvision import tv_tensors

        return {self.field: tv_tensors.Mask(value)}

    def unwrap(self, entries: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """The mask as transforms left it."""
        return entries[self.field]

    def colored(self, mask: Tensor) -> Image.Image:
        """A mask [H, W] as a palette picture: pixels are the ids, shown in the colors of the classes, the rest white.

        Example:
            >>> LabelSchema(("sky", "sea"), ((0, 0, 9), (0, 9, 0))).colored(torch.tensor([[1]])).mode
            'P'
        """
        picture = Image.fromarray(mask.cpu().byte().numpy())
        colors = [*self.palette, *[IGNORED_COLOR] * (256 - self.num_classes)]
        picture.putpalette([value for color in colors for value in color])
        return picture

    def draw(
        self,
        image: Image.Image,
        value: Tensor,
        size: tuple[int, int] | None = None,
        opacity: float | None = None,
    ) -> Image.Image:
        """The classes' colors painted over the image (0.55 unless `opacity` says otherwise); pixels of class 0 and
        ignored ones stay as they are."""
        ids = Image.fromarray(value.cpu().byte().numpy()).resize(image.size, Image.Resampling.NEAREST)
        colors = self.colored(torch.from_numpy(np.array(ids))).convert("RGB")
        hidden = np.zeros(256, np.uint8)
        hidden[1 : self.num_classes] = round(255 * (_OPACITY if opacity is None else opacity))
        return Image.composite(colors, image, Image.fromarray(hidden[np.asarray(ids)]))

    def swap_sides(self, mask: Tensor) -> Tensor:
        """Exchange the class ids of every flip pair; what a mask needs after its pixels were mirrored.

        Args:
            mask: class ids of any shape and integer dtype; `ignore_index` and other ids are kept.
        """
        lookup = torch.arange(256, dtype=mask.dtype, device=mask.device)
        for a, b in self.flip_pairs:
            lookup[a], lookup[b] = b, a
        return lookup[mask.long()]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json and classes.json."""
        return {
            "kind": self.kind,
            "field": self.field,
            "classes": [{"name": n, "color": list(c)} for n, c in zip(self.classes, self.palette, strict=True)],
            "ignore_index": self.ignore_index,
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSchema:
        """Inverse of `to_dict`; also reads a plain ``{"classes": [{"name", "color"}, …]}`` file, and schemas of format
        1, whose class map belongs to the recipe now.

        Raises:
            ValueError: another kind or field, or values that do not fit (see the class).
        """
        if (data.get("kind", cls.kind), data.get("field", cls.field)) != (cls.kind, cls.field):
            raise ValueError(f"a schema describes the {cls.field} of a sample, not {data.get('field')!r:.40}")
        entries: Sequence[Mapping[str, Any]] = data["classes"]
        return cls(
            classes=tuple(e["name"] for e in entries),
            palette=tuple(_color(e["color"]) for e in entries) if all("color" in e for e in entries) else (),
            ignore_index=int(data.get("ignore_index", 255)),
            flip_pairs=tuple((int(a), int(b)) for a, b in data.get("flip_pairs", ())),
        )


register(LabelSchema.kind, LabelSchema.from_dict)


def as_groups(groups: Mapping[str, str | Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Groups of classes with their members as tuples, which can be read twice.

    Raises:
        ValueError: not a dict of names and lists of names.
    """
    if not isinstance(groups, Mapping):
        raise ValueError(f'groups must be a dict, such as {{"eye": ["iris", "pupil"]}}, not {groups!r:.80}')
    return {
        names("groups", [name])[0]: names(f"group {name}", [members] if isinstance(members, str) else members)
        for name, members in groups.items()
    }


def schema_of(targets: Iterable[Target]) -> LabelSchema:
    """The schema among the targets of a source, for what makes sense with masks only.

    Raises:
        ValueError: the source has no masks.

    Example:
        >>> schema_of([Keypoints(("nose",)), LabelSchema(("background", "face"))]).classes
        ('background', 'face')
    """
    return require_target(targets, LabelSchema, "masks")


def _color(values: Sequence[int]) -> Color:
    red, green, blue = (int(value) for value in values)
    return red, green, blue
