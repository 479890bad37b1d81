"""What a kind of label needs to be annotated, beside what the target itself says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from dsgan_datasets.annotations.folder import Array
from dsgan_datasets.annotations.mistakes import Findings, listed
from dsgan_datasets.targets.base import Color


class Cleaning(NamedTuple):
    """What to make of annotations that are not perfect; see `load_annotations`."""

    min_region: int = 0
    min_class: int = 0
    allow_missing: bool = False


@dataclass(frozen=True)
class Project:
    """What an annotator is given to begin with.

    Attributes:
        labels: names of what is drawn or marked; LabelMe's and CVAT's. Empty if it is neither.
        flags: LabelMe's check boxes of a label: pattern of the label -> their names.
        cvat: entries of CVAT's label constructor.
        cvat_format: under which CVAT exports them.
        coco_file: what to call that file.
        task: one line and more: what to do.
        files: lines that say how a file of its own looks like; empty if there is none.
        parts: the parts to annotate, for people.
    """

    labels: Sequence[str] = ()
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cvat: Sequence[Mapping[str, Any]] = ()
    cvat_format: str = ""
    coco_file: str = ""
    task: str = ""
    files: Sequence[str] = ()
    parts: str = ""


def part_disagreements(
    parts: tuple[Sequence[str], Sequence[str]],
    pairs: tuple[Iterable[tuple[int, int]], Iterable[tuple[int, int]]],
    rounds: tuple[str, str],
    file: str,
    lack: Callable[[str, str, str], str],
) -> list[str]:
    """What two rounds whose labels have named parts disagree on: the names, or which of them trade places in a mirror.

    Args:
        parts: names of the first round, and of the later one.
        pairs: of ids, likewise.
        rounds: their folders.
        file: that describes the parts in each.
        lack: what to say of names that a round lacks: names for people, the round, the other one.
    """
    mistakes = []
    for here, there in ((0, 1), (1, 0)):
        if lacking := [name for name in parts[there] if name not in parts[here]]:
            mistakes.append(f"{rounds[here]}: {file} {lack(listed(lacking), rounds[here], rounds[there])}")
    first, later = ({frozenset(names[i] for i in p) for p in ids} for names, ids in zip(parts, pairs, strict=True))
    if not mistakes and first != later:
        mistakes.append(f"{rounds[1]}: flip_pairs in {file} are not those of {rounds[0]}: make them the same")
    return mistakes


class Kind(Protocol):
    """Labels of one kind, while they are annotated. Targets are of this kind, labels of these targets.

    Attributes:
        noun: what a label is called in messages.
    """

    noun: str

    def settled(self, label: Array, target: Any, name: str, cleaning: Cleaning, found: Findings) -> Array | None:
        """The label of the image `name` as it is used; None if mistakes were noted."""

    def noticed(self, labels: Tensor, target: Any, names: Sequence[str]) -> list[str]:
        """What an annotator should check in all labels [A, ...] together, one sentence each."""

    def disagreements(self, first: Any, later: Any, rounds: tuple[str, str]) -> list[str]:
        """Why labels of two targets cannot be fitted together, with the way out; `rounds` names their folders."""

    def check_drafts(self, predicted: Any, target: Any) -> None:
        """Raise a ValueError unless what an interpreter predicts can be a draft of a target."""

    def translated(self, labels: Tensor, target: Any, other: Any) -> Tensor:
        """Labels [A, ...] as labels of another target, with which there is no disagreement, or which they are drafts
        of."""

    def table(self, labels: Tensor, target: Any) -> list[str]:
        """Lines that say what labels [A, ...] hold."""

    def caption(self, label: Tensor, target: Any) -> str:
        """What one label holds, in a few words."""

    def drawn(self, picture: Image.Image, label: Tensor, target: Any, size: tuple[int, int]) -> Image.Image:
        """The label of an (H, W) image on a picture of it, for somebody who looks for mistakes."""

    def legend(self, labels: Tensor, target: Any) -> list[tuple[str, Color]]:
        """Entries of the legend beside the target's own."""

    def project(self, target: Any, labels: Tensor | None) -> Project:
        """What an annotator is given; `labels` are drafts [A, ...], if there are some."""


def as_hex(color: Color) -> str:
    """A color as CVAT and HTML write it.

    Example:
        >>> as_hex((255, 0, 16))
        '#ff0010'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)
