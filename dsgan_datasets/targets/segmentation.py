"""What the class ids of a mask mean: names, colors, and which parts swap sides in a mirror."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSchema:
    """Names and colors of the classes in a mask.

    Args:
        classes: class names; the position is the class id in every mask.
        palette: one RGB color (0-255) a class; left out, distinct colors are chosen.
        ignore_index: id of pixels that no loss and no metric should count, outside the class ids.
        flip_pairs: pairs of class ids that trade places when an image is mirrored, such as left and right eye.
        class_map: for a coarser task, the id in ``classes`` of each class that the interpreter predicts;
            made by `merge`, None when interpreter and schema have the same classes.

    Raises:
        ValueError: names repeat, there are more than 255 of them, or colors, pairs or map do not fit them.

    Example:
        >>> LabelSchema(("background", "left_eye", "right_eye"), flip_pairs=((1, 2),)).num_classes
        3
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    ignore_index: int = 255
    flip_pairs: tuple[tuple[int, int], ...] = ()
    class_map: tuple[int, ...] | None = field(default=None)

    def __post_init__(self) -> None:
        fill = object.__setattr__
        fill(self, "classes", tuple(self.classes))
        fill(self, "palette", tuple(map(_color, self.palette)) or _colors(len(self.classes)))
        fill(self, "flip_pairs", tuple((int(a), int(b)) for a, b in self.flip_pairs))
        if self.class_map is not None:
            fill(self, "class_map", tuple(int(i) for i in self.class_map))
        self._check()

    def _check(self) -> None:
        n = self.num_classes
        if n > 255:
            raise ValueError(f"masks are stored in 8 bits, so a schema has at most 255 classes, not {n}")
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if not all(isinstance(name, str) and name for name in self.classes):
            raise ValueError(f"class names must be words, got {self.classes}")
        if n == 0 or repeated:
            raise ValueError(f"a schema needs at least one class and no name twice; repeated: {repeated}")
        if 0 <= self.ignore_index < n or not 0 <= self.ignore_index <= 255:
            raise ValueError(f"ignore_index {self.ignore_index} must lie outside the class ids 0-{n - 1}, up to 255")
        if len(self.palette) != n or any(not 0 <= v <= 255 for color in self.palette for v in color):
            raise ValueError(f"palette needs {n} RGB colors with values 0-255, one a class; got {self.palette}")
        swapped = [i for pair in self.flip_pairs for i in pair]
        if len(set(swapped)) != len(swapped) or any(not 0 <= i < n for i in swapped):
            raise ValueError(f"flip_pairs {self.flip_pairs}: each class id 0-{n - 1} may stand in one pair, once")
        if self.class_map is not None and any(not 0 <= i < n for i in self.class_map):
            raise ValueError(f"class_map {self.class_map} points outside the class ids 0-{n - 1}")

    @property
    def num_classes(self) -> int:
        """Number of classes K in a mask."""
        return len(self.classes)

    def index(self, name: str) -> int:
        """Class id of a name; ValueError lists the names when there is no such class."""
        if name not in self.classes:
            raise ValueError(f"no class {name!r}; the classes are: {', '.join(self.classes)}")
        return self.classes.index(name)

    def merge(self, groups: Mapping[str, Iterable[str]]) -> LabelSchema:
        """Fuse classes into coarser ones; each group takes the place and color of its first member.

        The interpreter still votes on the fine classes; its labels are mapped afterwards.

        Args:
            groups: new class name -> names of the classes it replaces. Classes in no group stay as they are.

        Raises:
            ValueError: an unknown class, or one that stands in two groups.

        Example:
            >>> LabelSchema(("skin", "iris", "eye_white")).merge({"eye": ["iris", "eye_white"]}).class_map
            (0, 1, 1)
        """
        target = list(self.classes)
        grouped: set[int] = set()
        for name, members in groups.items():
            members = [members] if isinstance(members, str) else list(members)
            if not members or (name in self.classes and name not in members):
                raise ValueError(f"group {name!r} has no members, or is a class that is not among them: {members}")
            for member in members:
                i = self.index(member)
                if i in grouped:
                    raise ValueError(f"class {member!r} stands in two groups of {dict(groups)}")
                grouped.add(i)
                target[i] = name
        classes = tuple(dict.fromkeys(target))
        coarse = tuple(classes.index(name) for name in target)
        pairs = {(min(p), max(p)) for p in ((coarse[a], coarse[b]) for a, b in self.flip_pairs) if p[0] != p[1]}
        fine = self.class_map or tuple(range(self.num_classes))
        return LabelSchema(
            classes=classes,
            palette=tuple(self.palette[target.index(name)] for name in classes),
            ignore_index=self.ignore_index,
            flip_pairs=tuple(sorted(pairs)),
            class_map=tuple(coarse[i] for i in fine),
        )

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
        """JSON form, as stored in config.json."""
        return {
            "classes": [{"name": n, "color": list(c)} for n, c in zip(self.classes, self.palette, strict=True)],
            "ignore_index": self.ignore_index,
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "class_map": None if self.class_map is None else list(self.class_map),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSchema:
        """Inverse of `to_dict`; also reads a plain ``{"classes": [{"name", "color"}, …]}`` file."""
        entries: Sequence[Mapping[str, Any]] = data["classes"]
        return cls(
            classes=tuple(e["name"] for e in entries),
            palette=tuple(_color(e["color"]) for e in entries) if all("color" in e for e in entries) else (),
            ignore_index=int(data.get("ignore_index", 255)),
            flip_pairs=tuple((int(a), int(b)) for a, b in data.get("flip_pairs", ())),
            class_map=data.get("class_map"),
        )


def _color(values: Sequence[int]) -> Color:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _colors(n: int) -> tuple[Color, ...]:
    """Black for class 0, then hues a golden angle apart, so that neighbors in the list differ most."""
    hues = (colorsys.hsv_to_rgb(i * 0.381966 % 1.0, 0.75 if i % 2 else 0.5, 0.95) for i in range(1, n))
    return ((0, 0, 0), *((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in hues))[:n]
