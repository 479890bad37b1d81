"""Keypoints as something to annotate."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsgan_datasets.annotations.folder import TARGETS, Array
from dsgan_datasets.annotations.kinds.base import Cleaning, Project, as_hex, part_disagreements
from dsgan_datasets.annotations.marks import ABSENT, HIDDEN, OBJECT
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.targets.base import Color
from dsgan_datasets.targets.keypoints import Keypoints

#: A pair of points is compared with those of other images if there are so many, and their directions agree: the length
#: of the mean of unit vectors, 1 if all are the same.
_FEWEST_OTHERS, _AGREEMENT = 3, 0.6
#: Sides seem exchanged if the cosine of the angle to the other images' mean direction is below this, and the points are
#: not much nearer to each other than there.
_OPPOSITE, _SHORT = -0.5, 0.25
#: Pixels of a picture in which names of points can be read.
_READABLE = 480


class Points:
    """A `Kind`: points float32 [K, 3]."""

    noun = "keypoints"

    def settled(self, label: Array, target: Keypoints, name: str, cleaning: Cleaning, found: Findings) -> Array | None:
        """The points, none of which lacks a mark; with `allow_missing` one that does is not in the image."""
        unmarked: Array = np.isnan(label[:, 2])
        lacking = [point for point, lacks in zip(target.names, unmarked, strict=True) if lacks]
        if not (label[~unmarked, 2] > 0).any():
            found.error(
                name,
                f"no point is in the image: mark {listed(target.names)}, or remove its annotation and leave it out "
                "with allow_missing (--allow-missing)",
            )
            return None
        if lacking and not cleaning.allow_missing:
            found.error(
                name,
                f"{listed(lacking, 30)} {'is' if len(lacking) == 1 else 'are'} not marked: mark each point; one that "
                f'is not in the image is marked anywhere, as "{ABSENT[0]}" (LabelMe) or outside (CVAT). With '
                "allow_missing (--allow-missing) points without a mark are not in the image",
            )
            return None
        if lacking:
            found.warning(name, f"{listed(lacking, 30)}: not marked, so taken as not in the image")
        return np.where(unmarked[:, None], 0, label).astype(np.float32)

    def noticed(self, labels: Tensor, target: Keypoints, names: Sequence[str]) -> list[str]:
        """Points that no image shows, and left and right that seem exchanged."""
        there = labels[..., 2] > 0
        never = [name for name, any_there in zip(target.names, there.any(0).tolist(), strict=True) if not any_there]
        sentences = []
        if never:
            sentences.append(
                f"no image has the point {', '.join(never)}, so it cannot be learned: annotate images that show it, or "
                "leave it out of the points when you export"
            )
        opposite = {pair: exchanged(labels, pair) for pair in target.flip_pairs}
        for row, name in enumerate(names):
            if pairs := [pair for pair, rows in opposite.items() if rows[row]]:
                what = "; ".join(f"{target.names[a]} and {target.names[b]}" for a, b in pairs)
                everything = len(pairs) > 1 and len(pairs) == len(target.flip_pairs)
                seen = " (or the object is seen from behind)" if everything else ""
                sentences.append(
                    f"{name}: left and right seem exchanged{seen}, compared with the other images: {what}. Left is the "
                    "object's own left, as in the names; exchange the marks if they are wrong"
                )
        return sentences

    def disagreements(self, first: Keypoints, later: Keypoints, rounds: tuple[str, str]) -> list[str]:
        """Names and flip pairs must be the same."""
        return part_disagreements(
            (first.names, later.names),
            (first.flip_pairs, later.flip_pairs),
            rounds,
            TARGETS,
            lambda names, here, there: (
                f"lacks the point {names}, which {there} has: append the names to its {TARGETS}, "
                "and mark them in its images"
            ),
        )

    def check_drafts(self, predicted: Keypoints, target: Keypoints) -> None:
        """Drafts have all points that are to be marked, and no others."""
        if set(predicted.names) != set(target.names):
            raise ValueError(
                f"the interpreter's points are {', '.join(predicted.names)}, those to annotate "
                f"{', '.join(target.names)}: take the same ones, or export without interpreter"
            )

    def translated(self, labels: Tensor, target: Keypoints, other: Keypoints) -> Tensor:
        """Points in the order of another target with these names."""
        return labels[:, [target.index(name) for name in other.names]]

    def table(self, labels: Tensor, target: Keypoints) -> list[str]:
        """In how many images each point is visible, hidden, and not there."""
        width = max(map(len, (*target.names, "point")))
        lines = [f"{'id':>4}  {'point':<{width}}  visible  hidden  not in the image"]
        for i, name in enumerate(target.names):
            absent, hidden, visible = ((labels[:, i, 2] == state).sum().item() for state in (0, 1, 2))
            lines.append(f"{i:>4}  {name:<{width}}  {visible:>7}  {hidden:>6}  {absent:>16}")
        return lines

    def caption(self, label: Tensor, target: Keypoints) -> str:
        """How many points it has, and how many of them are hidden."""
        hidden, there = int((label[:, 2] == 1).sum()), int((label[:, 2] > 0).sum())
        return f"{there} points{f', {hidden} hidden' if hidden else ''}"

    def drawn(self, picture: Image.Image, label: Tensor, target: Keypoints, size: tuple[int, int]) -> Image.Image:
        """The points with their names, on a picture that is enlarged so that they can be read."""
        zoom = max(1, round(_READABLE / picture.width))
        large = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)
        drawn = target.draw(large, label, size)
        scale = (large.width / size[1], large.height / size[0])
        marked = [
            (x * scale[0], y * scale[1], name, color)
            for (x, y, v), name, color in zip(label.tolist(), target.names, target.tally_colors, strict=True)
            if v > 0
        ]
        _write_names(drawn, marked)
        return drawn

    def legend(self, labels: Tensor, target: Keypoints) -> list[tuple[str, Color]]:
        """Nothing: names and colors are those of the target."""
        return []

    def project(self, target: Keypoints, labels: Tensor | None) -> Project:
        """Points to mark, and a skeleton of them that looks like the drafts."""
        lines = [
            f"{'Mark' if labels is None else 'Correct'} all {len(target.names)} points in each image, each once, also "
            "where something hides them.",
            'Left and right are the object\'s own: of somebody who looks at you, "left" is on the right.',
            f'LabelMe: shapes of type Point (Create Point), one for each name. Check "{HIDDEN[0]}" if something is in',
            f'front, and "{ABSENT[0]}" if the point is not in the image (then mark it anywhere).',
            f'CVAT: one skeleton "{OBJECT}" in each image; a point is "{HIDDEN[1]}" if it is hidden, and "{ABSENT[1]}"',
            "if it is not in the image.",
        ]
        if not target.flip_pairs:
            del lines[1]
        return Project(
            labels=target.names,
            flags={f"^({'|'.join(map(re.escape, target.names))})$": (HIDDEN[0], ABSENT[0])},
            cvat=[_skeleton(target, labels)],
            cvat_format="COCO Keypoints 1.0",
            coco_file="coco_keypoints.json",
            task="\n".join(lines),
            parts="\n".join(
                [
                    f"Points (names, skeleton and pairs: {TARGETS}):",
                    *(f"    {i:3d}  {name}" for i, name in enumerate(target.names)),
                ]
            ),
        )


def exchanged(labels: Tensor, pair: tuple[int, int]) -> list[bool]:
    """In which images two points of a pair seem to have traded places.

    The direction from one to the other is compared with its mean over all other images that have both. If these agree
    with each other, and this image points the opposite way, its sides are exchanged, or the object is turned around.
    Where objects point everywhere, as in pictures from above, the directions do not agree, and nothing is said.

    Args:
        labels: [A, K, 3].
        pair: ids of the points.

    Example:
        >>> eyes = torch.tensor([[[30.0, 20, 2], [10, 20, 2]]]).repeat(5, 1, 1)
        >>> eyes[2] = eyes[2].flip(0)
        >>> exchanged(eyes, (0, 1))
        [False, False, True, False, False]
    """
    a, b = (labels[:, i].double() for i in pair)
    way = b[:, :2] - a[:, :2]
    length = way.norm(dim=1)
    both = (a[:, 2] > 0) & (b[:, 2] > 0) & (length > 0)
    if int(both.sum()) <= _FEWEST_OTHERS:
        return [False] * len(labels)
    unit = torch.where(both[:, None], way / length.clamp_min(1e-9)[:, None], 0)
    mean = (unit.sum(0) - unit) / (both.sum() - 1)  # of the others
    agreement = mean.norm(dim=1)
    cosine = (unit * mean).sum(1) / agreement.clamp_min(1e-9)
    long = length > _SHORT * length[both].median()
    found: list[bool] = (both & long & (agreement >= _AGREEMENT) & (cosine < _OPPOSITE)).tolist()
    return found


def sides(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of names that differ in left and right alone, as ids.

    Example:
        >>> sides(["nose", "left_eye", "Right Ear", "right_eye", "Left Ear"])
        ((1, 3), (4, 2))
    """
    number = {name.lower(): i for i, name in enumerate(names)}
    others = {i: number.get(re.sub(r"left", "right", name.lower())) for i, name in enumerate(names)}
    return tuple((i, other) for i, other in others.items() if other is not None and other != i)


def _write_names(picture: Image.Image, marked: Sequence[tuple[float, float, str, Color]]) -> None:
    """Names beside their points, none over another as long as there is room."""
    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y, _, _ in marked]
    for x, y, name, color in marked:
        left, top, right, bottom = canvas.textbbox((0, 0), name, font)
        width, height = right - left, bottom - top
        boxes = []
        for distance, turn in product((8, 20, 34, 50), range(8)):
            angle = turn * math.pi / 4
            middle = (
                x + math.cos(angle) * (distance + width / 2),
                y + math.sin(angle) * (distance + height / 2),
            )
            corner = (
                min(max(middle[0] - width / 2, 0), picture.width - width),
                min(max(middle[1] - height / 2, 0), picture.height - height),
            )
            boxes.append((*corner, corner[0] + width, corner[1] + height))
        box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(box)
        nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        canvas.line((x, y, *nearest), color)
        canvas.text((box[0] - left, box[1] - top), name, color, font, stroke_width=1, stroke_fill=(0, 0, 0))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _skeleton(target: Keypoints, labels: Tensor | None) -> dict[str, object]:
    """CVAT's label of a skeleton, whose SVG in 100×100 is what a new one looks like."""
    places, count = _layout(target, labels), len(target.names)
    colors = [as_hex(color) for color in target.tally_colors]
    lines = [
        f'<line x1="{places[a][0]}" y1="{places[a][1]}" x2="{places[b][0]}" y2="{places[b][1]}" data-type="edge" '
        f'data-node-from="{a + 1}" data-node-to="{b + 1}"></line>'
        for a, b in target.skeleton
    ]
    circles = [
        f'<circle r="1.5" cx="{places[i][0]}" cy="{places[i][1]}" data-type="element node" data-element-id="{i + 1}" '
        f'data-node-id="{i + 1}" data-label-name="{escape(target.names[i])}"></circle>'
        for i in range(count)
    ]
    return {
        "name": OBJECT,
        "type": "skeleton",
        "attributes": [],
        "sublabels": [
            {"name": name, "type": "points", "color": color, "attributes": []}
            for name, color in zip(target.names, colors, strict=True)
        ],
        "svg": "".join((*lines, *circles)),
    }


def _layout(target: Keypoints, labels: Tensor | None) -> list[tuple[float, float]]:
    """Where the points of a new skeleton lie, in 5 … 95: the mean of the drafts; without drafts they form a circle."""
    count = len(target.names)
    turns = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    places = torch.stack([-turns.sin(), -turns.cos()], 1)
    if labels is not None:
        weights = (labels[..., 2] > 0).double()[..., None]
        mean = (labels[..., :2] * weights).sum(0) / weights.sum(0).clamp_min(1)
        if bool((weights.sum(0) > 0).all()):
            places = mean
    low, high = places.amin(0), places.amax(0)
    spread = float((high - low).max().clamp_min(1e-9))
    centered = 50 + 90 * (places - (low + high) / 2) / spread
    return [(round(x, 2), round(y, 2)) for x, y in centered.tolist()]
