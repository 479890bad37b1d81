"""Masks as something to annotate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.annotations.folder import CLASSES, IGNORE, Array
from dsgan_datasets.annotations.kinds.base import Cleaning, Project, as_hex, part_disagreements
from dsgan_datasets.annotations.mistakes import Findings
from dsgan_datasets.annotations.regions import absorb_specks, drop_rare
from dsgan_datasets.targets.base import Color
from dsgan_datasets.targets.segmentation import IGNORED_COLOR, LabelSchema


class Masks:
    """A `Kind`: class ids int64 [H, W]."""

    noun = "mask"

    def settled(
        self, label: Array, schema: LabelSchema, name: str, cleaning: Cleaning, found: Findings
    ) -> Array | None:
        """The mask without specks; one that shows no class is a mistake."""
        mask = drop_rare(absorb_specks(label, cleaning.min_region, schema.ignore_index), cleaning.min_class)
        if ((mask != 0) & (mask != schema.ignore_index)).any():
            return mask
        empty = f"the mask is empty: every pixel is {schema.classes[0]!r}"
        ignored = int((mask == schema.ignore_index).sum())
        if ignored:
            example = f", such as 1 for {schema.classes[1]!r}" if schema.num_classes > 1 else ""
            found.error(
                name,
                f"{empty} or ignored ({ignored} px have the id {schema.ignore_index}, are white, or have the label "
                f"{IGNORE}). Annotate it with the ids, colors or names of its classes{example}",
            )
        else:
            found.error(
                name,
                f"{empty}. Annotate it, or remove its annotation and leave it out with allow_missing (--allow-missing)",
            )
        return None

    def noticed(self, labels: Tensor, schema: LabelSchema, names: Sequence[str]) -> list[str]:
        """Classes that no image shows."""
        present = set(labels.unique().tolist())
        absent = [name for i, name in enumerate(schema.classes) if i not in present]
        if not absent:
            return []
        return [
            f"no image has the class {', '.join(absent)}, so it cannot be learned: annotate images that show it, or "
            "leave it out of the classes when you export"
        ]

    def disagreements(self, first: LabelSchema, later: LabelSchema, rounds: tuple[str, str]) -> list[str]:
        """Names of classes, and flip pairs, must be the same."""
        return part_disagreements(
            (first.classes, later.classes),
            (first.flip_pairs, later.flip_pairs),
            rounds,
            CLASSES,
            lambda names, here, there: (
                f"lacks {names}, which {there} has, so such pixels have another class in {here}: "
                f"append the names to its {CLASSES}, and annotate them if its images show any"
            ),
        )

    def check_drafts(self, predicted: LabelSchema, target: LabelSchema) -> None:
        """The classes of drafts are among those to annotate."""
        if unknown := [c for c in predicted.classes if c not in target.classes]:
            raise ValueError(
                f"the interpreter's class {', '.join(unknown)} is not among the classes to annotate "
                f"({', '.join(target.classes)}): add it, or export without interpreter"
            )

    def translated(self, labels: Tensor, schema: LabelSchema, other: LabelSchema) -> Tensor:
        """Masks in the ids of another schema with these names."""
        table = torch.full((256,), other.ignore_index)
        for i, name in enumerate(schema.classes):
            table[i] = other.index(name)
        return table[labels]

    def table(self, labels: Tensor, schema: LabelSchema) -> list[str]:
        """Pixels and images of each class."""
        ids = [*range(schema.num_classes), schema.ignore_index]
        width = max(map(len, (*schema.classes, "(ignored)")))
        lines = [f"{'id':>4}  {'class':<{width}}  images     pixels   share"]
        for i, name in zip(ids, (*schema.classes, "(ignored)"), strict=True):
            is_class = labels == i
            images, pixels = int(is_class.any(2).any(1).sum()), int(is_class.sum())
            if pixels or i != schema.ignore_index:
                lines.append(f"{i:>4}  {name:<{width}}  {images:>6}  {pixels:>9,}  {pixels / labels.numel():>6.2%}")
        return lines

    def caption(self, label: Tensor, schema: LabelSchema) -> str:
        """How many classes it shows, and how much is ignored."""
        ignored = label == schema.ignore_index
        shares = f", {ignored.double().mean():.0%} ignored" if ignored.any() else ""
        return f"{len(label[~ignored].unique())} classes{shares}"

    def drawn(self, picture: Image.Image, label: Tensor, schema: LabelSchema, size: tuple[int, int]) -> Image.Image:
        """The classes over the picture, ignored pixels dotted white."""
        drawn = schema.draw(picture, label, size)
        where = Image.fromarray((label == schema.ignore_index).numpy()).resize(drawn.size, Image.Resampling.NEAREST)
        rows, columns = np.indices((drawn.height, drawn.width))
        white = np.asarray(where) & ((rows + columns) % 2 == 0)
        return Image.fromarray(np.where(white[..., None], np.array(IGNORED_COLOR, np.uint8), np.asarray(drawn)))

    def legend(self, labels: Tensor, schema: LabelSchema) -> list[tuple[str, Color]]:
        """Beside the classes: what is ignored."""
        return [("ignored", IGNORED_COLOR)] if (labels == schema.ignore_index).any() else []

    def project(self, schema: LabelSchema, labels: Tensor | None) -> Project:
        """Classes to draw shapes of."""
        names, colors = (*schema.classes, IGNORE), (*schema.palette, IGNORED_COLOR)
        classes = "\n".join(f"    {i:3d}  {name}" for i, name in enumerate(schema.classes))
        return Project(
            labels=names,
            cvat=[{"name": n, "color": as_hex(c), "attributes": []} for n, c in zip(names, colors, strict=True)],
            cvat_format="COCO 1.0",
            coco_file="coco.json",
            task=f"""\
{"Draw the parts" if labels is None else "Correct the outlines of the parts"}.
What no shape covers is "{schema.classes[0]}". Where shapes overlap, the later one counts: draw large parts first.
"{IGNORE}" marks what you cannot tell.""",
            files=(
                "Painting  Any program that saves PNG; begin with a copy of a draft, if there are drafts.",
                f"{schema.folder}/NAME.png belongs to images/NAME.png and has its size: a palette or gray PNG of class",
                f"ids, or RGB in exactly the colors of {CLASSES} (white is ignored).",
            ),
            parts=f"Classes (names and colors: {CLASSES}):\n{classes}",
        )
