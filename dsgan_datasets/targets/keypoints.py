"""Points with names: where each lies in the image, and whether it can be seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dsgan_datasets.checks import is_number
from dsgan_datasets.targets.base import Color, Target, register, require_target
from dsgan_datasets.targets.colors import distinct_colors
from dsgan_datasets.targets.parts import flip_pairs, id_pairs, index_of, part_names

#: Most points of a label, and bytes of each in its file: numbers of float32 take 15 characters at most.
_MOST_POINTS, _BYTES_A_POINT = 1024, 64
#: What a point can be: not in the image, hidden behind something, visible.
_STATES = (0, 1, 2)
#: Relative spread of annotators that COCO's similarity of keypoints takes for a point, unless it is known better.
_SIGMA = 0.05


@dataclass(frozen=True)
class Keypoints:
    """Names of the points of an object, and how they belong together: the keypoint `Target`.

    A label is float32 [K, 3], a row (x, y, v) for each point. x runs from 0 at the left edge of the image to W at the
    right one, y from 0 at the top to H at the bottom; the center of the first pixel is (0.5, 0.5). v is 0 for a point
    that is not in the image, and then x = y = 0; 1 for one that is hidden; 2 for one that is visible. Its file is JSON,
    a list of [x, y, v], and gives the label back exactly. Its tally counts the points with v > 0.

    Args:
        names: of the K points; the position is the point's id.
        skeleton: pairs of ids that are drawn as lines.
        flip_pairs: pairs of ids that trade places when an image is mirrored, such as left and right eye.
        sigmas: relative spread of each point that COCO's object keypoint similarity (OKS) tolerates; 0.05 each if left
            out.

    Raises:
        ValueError: names repeat, there are more than 1,024 of them, or pairs or sigmas do not fit them.

    Example:
        >>> eyes = Keypoints(("left_eye", "right_eye"), skeleton=((0, 1),), flip_pairs=((0, 1),))
        >>> eyes.mirror(torch.tensor([[1.5, 2.0, 2.0], [0.0, 0.0, 0.0]]), (4, 8))
        tensor([[0.0000, 0.0000, 0.0000],
                [6.5000, 2.0000, 2.0000]])
    """

    kind: ClassVar[str] = "keypoints"
    field: ClassVar[str] = "keypoints"
    folder: ClassVar[str] = "keypoints"
    extension: ClassVar[str] = "keypoints.json"
    tally_unit: ClassVar[str] = "points"
    tally_measures: ClassVar[bool] = False
    ignored_as: ClassVar[int] = 0
    rounding: ClassVar[None] = None

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        fill = object.__setattr__
        fill(self, "names", part_names("point", self.names))
        count = self.num_points
        if count > _MOST_POINTS:
            raise ValueError(f"a label has at most {_MOST_POINTS} points, not {count}")
        fill(self, "skeleton", id_pairs("skeleton", "point", self.skeleton, count))
        fill(self, "flip_pairs", flip_pairs("point", self.flip_pairs, count))
        sigmas = tuple(self.sigmas) or (_SIGMA,) * count
        if len(sigmas) != count or not all(is_number(s) and 0 < s < math.inf for s in sigmas):
            raise ValueError(f"sigmas must be {count} numbers above 0, one for each point, not {self.sigmas!r:.80}")
        fill(self, "sigmas", tuple(map(float, sigmas)))

    @property
    def num_points(self) -> int:
        """Number of points K."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Id of a name; ValueError lists the names when there is no such point."""
        return index_of("point", self.names, name, "points")

    @property
    def mirror_order(self) -> tuple[int, ...]:
        """For each point the id of the one that takes its place in a mirror.

        Example:
            >>> Keypoints(("nose", "left", "right"), flip_pairs=((1, 2),)).mirror_order
            (0, 2, 1)
        """
        other = {**dict(self.flip_pairs), **{b: a for a, b in self.flip_pairs}}
        return tuple(other.get(i, i) for i in range(self.num_points))

    @property
    def tally_names(self) -> tuple[str, ...]:
        """The names: `tally` counts each point."""
        return self.names

    @property
    def tally_colors(self) -> tuple[Color, ...]:
        """The color of each point in pictures."""
        return distinct_colors(self.num_points, saturations=(0.9, 1.0))

    @property
    def summary(self) -> str:
        """The names of the points."""
        return f"{self.num_points} points: {', '.join(self.names)}"

    def check(self, value: Tensor, size: tuple[int, int]) -> None:
        """Raise a ValueError unless this is float32 [K, 3] of points in an (H, W) image."""
        if value.dtype != torch.float32 or value.shape != (self.num_points, 3):
            raise ValueError(
                f"keypoints are float32 [{self.num_points}, 3], got {str(value.dtype)[6:]} {list(value.shape)}"
            )
        for name, (x, y, state) in zip(self.names, value.tolist(), strict=True):
            if state not in _STATES:
                raise ValueError(f"point {name}: v is {state:g}; it is 0 (not in the image), 1 (hidden) or 2 (visible)")
            if state == 0 and (x, y) != (0, 0):
                raise ValueError(f"point {name} is not in the image (v is 0), so x and y must be 0, not {x:g}, {y:g}")
            if not (0 <= x <= size[1] and 0 <= y <= size[0]):
                raise ValueError(f"point {name} at {x:g}, {y:g} lies outside the image of {size[1]}×{size[0]} pixels")

    def mirror(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """The points of the mirrored image, [K, 3] or [N, K, 3]: x becomes W - x, then pairs trade places."""
        x, y, v = values.unbind(-1)
        mirrored = torch.stack([torch.where(v > 0, size[1] - x, x), y, v], -1)
        return torch.stack([mirrored[..., i, :] for i in self.mirror_order], -2)  # an index list would wait for a GPU

    def ignore(self, values: Tensor, pixels: Tensor) -> Tensor:
        """Labels [N, K, 3] in which the points on these pixels (bool [N, H, W]) count as not in the image."""
        height, width = pixels.shape[1:]
        column = values[..., 0].long().clamp(0, width - 1)
        row = values[..., 1].long().clamp(0, height - 1)
        return values.masked_fill(pixels.flatten(1).gather(1, row * width + column)[..., None], 0)

    def rounded(self, values: Tensor) -> Tensor:
        """The labels themselves."""
        return values

    def encode(self, value: Tensor) -> bytes:
        """JSON: a list of [x, y, v], in the fewest digits that give the same float32."""
        rows = [[_shortest(x), _shortest(y), int(v)] for x, y, v in value.cpu().numpy()]
        return json.dumps(rows).encode()

    def decode(self, content: bytes, size: tuple[int, int]) -> Tensor:
        """Inverse of `encode`, float32 [K, 3].

        Raises:
            ValueError: not such a list, another number of points, or a point that `check` refuses.
        """
        if len(content) > (most := _BYTES_A_POINT * (self.num_points + 1)):
            raise ValueError(f"keypoints in {len(content)} bytes: {self.num_points} points take {most} at most")
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"keypoints are not JSON ({error})") from error
        if not isinstance(rows, list) or len(rows) != self.num_points or not all(map(_is_row, rows)):
            raise ValueError(f"keypoints must be a list of {self.num_points} rows [x, y, v], not {rows!r:.80}")
        value = torch.tensor(rows, dtype=torch.float32, device="cpu")
        self.check(value, size)
        return value

    def tally(self, values: Tensor) -> Tensor:
        """Which points are in the image (v > 0), hidden or not: int64 [N, K] of 0 and 1."""
        return (values[..., 2] > 0).long()

    def tally_total(self, size: tuple[int, int]) -> int:
        """Number of points."""
        return self.num_points

    def wrap(self, value: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Two entries: "keypoints", a ``tv_tensors.KeyPoints`` [K, 2], and "keypoints_v" [K], a plain tensor.

        Raises:
            ImportError: torchvision is older than 0.23, which has no keypoints.
        """
        from torchvision import tv_tensors

        if not hasattr(tv_tensors, "KeyPoints"):
            raise ImportError(
                "transforms of keypoints need torchvision 0.23 or newer (pip install -U torch torchvision); without "
                "transforms, keypoints work with the installed version too"
            )
        points: Tensor = tv_tensors.KeyPoints(value[..., :2], canvas_size=size)
        return {self.field: points, f"{self.field}_v": value[..., 2]}

    def unwrap(self, entries: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """The points [K, 3] after transforms; what they moved out of the image counts as not in the image."""
        points = entries[self.field].as_subclass(Tensor)
        state = entries[f"{self.field}_v"].as_subclass(Tensor)
        if points.shape != (*state.shape, 2) or state.shape[-1:] != (self.num_points,):
            raise ValueError(
                f"transforms must keep all {self.num_points} points: they returned keypoints {list(points.shape)} and "
                f"keypoints_v {list(state.shape)}"
            )
        x, y = points.unbind(-1)
        inside = (state > 0) & (x >= 0) & (x <= size[1]) & (y >= 0) & (y <= size[0])
        return torch.where(inside[..., None], torch.cat([points, state[..., None]], -1), 0.0)

    def draw(
        self, image: Image.Image, value: Tensor, size: tuple[int, int], opacity: float | None = None
    ) -> Image.Image:
        """Lines of the skeleton, and a dot for each point in the image: filled if it is visible, else a ring."""
        drawn = image.copy()
        canvas = ImageDraw.Draw(drawn)
        scale = np.array([image.width / size[1], image.height / size[0]])
        places = [(float(x), float(y)) for x, y in value[:, :2].cpu().double().numpy() * scale - 0.5]
        states = [int(v) for v in value[:, 2].tolist()]
        colors = self.tally_colors
        unit = max(1, round(min(image.size) / 96))
        for a, b in self.skeleton:
            if states[a] and states[b]:
                middle = tuple((p + q) // 2 for p, q in zip(colors[a], colors[b], strict=True))
                canvas.line([places[a], places[b]], fill=middle, width=unit)
        for (x, y), state, color in zip(places, states, colors, strict=True):
            if state:
                r = 2 * unit
                canvas.ellipse((x - r, y - r, x + r, y + r), color if state == 2 else None, color, unit)
        return drawn if opacity is None else Image.blend(image, drawn, opacity)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as stored in config.json."""
        return {
            "kind": self.kind,
            "field": self.field,
            "names": list(self.names),
            "skeleton": [list(pair) for pair in self.skeleton],
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "sigmas": list(self.sigmas),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Keypoints:
        """Inverse of `to_dict`; all but the names may be left out.

        Raises:
            ValueError: another kind or field, or values that do not fit (see the class).
        """
        if (data.get("kind", cls.kind), data.get("field", cls.field)) != (cls.kind, cls.field):
            raise ValueError(f"keypoints have the field {cls.field}, not {data.get('field')!r:.40}")
        return cls(
            names=data["names"],
            skeleton=data.get("skeleton", ()),
            flip_pairs=data.get("flip_pairs", ()),
            sigmas=data.get("sigmas", ()),
        )


register(Keypoints.kind, Keypoints.from_dict)


def keypoints_of(targets: Iterable[Target]) -> Keypoints:
    """The keypoints among the targets of a source, for what makes sense with keypoints only.

    Raises:
        ValueError: the source has no keypoints.

    Example:
        >>> from dsgan_datasets import Keypoints, LabelSchema
        >>> keypoints_of([LabelSchema(("background", "face")), Keypoints(("nose",))]).names
        ('nose',)
    """
    return require_target(targets, Keypoints, "keypoints")


def box_around(value: Tensor, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """A box for the object that points [K, 3] belong to, where nothing else says how large it is.

    It is the tight box of the points in the image, larger by a tenth of its longer side (at least half a pixel) on each
    side, and cut at the edges of the (H, W) image.

    Returns:
        (left, top, right, bottom) in pixels; None if no point is in the image.

    Example:
        >>> box_around(torch.tensor([[10.0, 5.0, 2.0], [20.0, 5.0, 1.0]]), (64, 64))
        (9.0, 4.0, 21.0, 6.0)
    """
    points = value[value[:, 2] > 0, :2].cpu().double()
    if not len(points):
        return None
    (left, top), (right, bottom) = points.amin(0).tolist(), points.amax(0).tolist()
    margin = max(0.5, (right - left) / 10, (bottom - top) / 10)
    return max(left - margin, 0.0), max(top - margin, 0.0), min(right + margin, size[1]), min(bottom + margin, size[0])


def _shortest(number: np.float32) -> float:
    """The number of fewest digits that gives the same float32 when read."""
    return float(str(number))


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(is_number(v) and abs(v) < 1e30 for v in row)
