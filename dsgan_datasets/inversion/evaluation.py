"""Does a checkpoint know what is in photos that a person has labeled? By inversion, and by a student of its stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dsgan_datasets.checkpoints.fit_report import Figures
from dsgan_datasets.fitting.quality import PCK_AT, QUALITIES, ConfusionMatrix, MapErrors, PointErrors, Quality
from dsgan_datasets.inversion.labeled_photos import LabeledPhotos
from dsgan_datasets.inversion.photos import Labels
from dsgan_datasets.pictures import photo, sheet
from dsgan_datasets.students import Student
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints
from dsgan_datasets.targets.segmentation import LabelSchema

#: Who labels photos.
INVERSION, STUDENT = "inversion", "student"
#: Photos on the picture, and that a student sees at a time.
_SHOWN, _BATCH = 24, 16
#: What is good enough: IoU; share of points within a tenth of the object's size; mean error as a share of the range.
_LEAST_IOU, _LEAST_PCK, _MOST_ERROR = 0.5, 0.5, 0.1
#: Steps of a student that has learned something of every part, unless it is rare.
_ENOUGH_STEPS = 500


class Verdict(NamedTuple):
    """What figures mean.

    Attributes:
        text: the figure that counts, in words.
        good: whether it is good enough to work with.
        weak: classes, points or channels that are not.
    """

    text: str
    good: bool
    weak: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """How labels of one kind agree with those that photos had.

    Attributes:
        target: what the labels mean.
        compared: photos that had such a label.
        qualities: by who labeled them, `INVERSION` and `STUDENT`, if there was a student that learns this kind.

    Example:
        >>> from dsgan_datasets.fitting.evaluation import ConfusionMatrix
        >>> matrix = ConfusionMatrix(torch.tensor([[9, 1], [2, 8]]))
        >>> found = Comparison(LabelSchema(("background", "face")), compared=1, qualities={INVERSION: matrix})
        >>> round(found.qualities[INVERSION].pixel_accuracy, 2)
        0.85
    """

    target: Target
    compared: int
    qualities: Mapping[str, Quality]

    @property
    def figures(self) -> dict[str, Figures]:
        """The numbers, by who labeled the photos."""
        return {who: quality.figures(self.target) for who, quality in self.qualities.items()}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What they mean, by who labeled the photos."""
        judge = _VERDICTS[self.target.kind]
        return {who: judge(quality, self.target) for who, quality in self.qualities.items()}


@dataclass(frozen=True)
class Evaluation:
    """Labels of photos beside those that they had.

    Attributes:
        comparisons: of each kind of label that some photo had.
        names: of the compared photos.
        predicted: by who labeled them, the labels of each of these photos by field.

    Example:
        >>> found = evaluate_photos(photos, own, student)  # doctest: +SKIP
        >>> [comparison.target.field for comparison in found.comparisons]  # doctest: +SKIP
        ['mask']
    """

    comparisons: tuple[Comparison, ...]
    names: tuple[str, ...]
    predicted: Mapping[str, Sequence[Mapping[str, Tensor]]] = field(repr=False)


def compared_rows(source: LabeledPhotos, labels: Labels) -> list[int]:
    """Numbers of the samples whose photos have labels of their own.

    Args:
        source: the labeled photos.
        labels: of the photos themselves, see `read_labels`.

    Raises:
        ValueError: there are none.
    """
    rows = [row for row, name in enumerate(source.names) if name in labels]
    if not rows:
        raise ValueError(
            "none of the photos that can be trusted has a label: name labels like their photos (--labels), or give "
            "photos as a COCO file or shards, which hold labels"
        )
    return rows


def evaluate_photos(source: LabeledPhotos, labels: Labels, student: Student | None = None) -> Evaluation:
    """Compare the labels of photos with labels of their own, all photos together.

    Args:
        source: labeled photos; those that cannot be trusted are not compared, by either way.
        labels: of some of them or of all, see `read_labels`.
        student: of the checkpoint's stream, see `train_student`; None compares labels by inversion alone.

    Raises:
        ValueError: no photo that can be trusted has a label.

    Example:
        >>> photos = LabeledPhotos.of(labeled, "my-photos")  # doctest: +SKIP
        >>> own = read_labels(photos.photos, photos.targets, "my-masks")  # doctest: +SKIP
        >>> found = evaluate_photos(photos, own, train_student(labeled, minutes=5))  # doctest: +SKIP
        >>> found.comparisons[0].figures["student"].summary["mean IoU"]  # doctest: +SKIP
        0.64
    """
    rows = compared_rows(source, labels)
    names = tuple(source.names[row] for row in rows)
    samples = list(source.stream(rows))
    predicted: dict[str, list[Mapping[str, Tensor]]] = {INVERSION: list(samples)}
    if student is not None:
        images = torch.stack([sample.image for sample in samples])
        parts = [student.predict(part) for part in images.split(_BATCH)]
        fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        predicted[STUDENT] = [{name: values[row] for name, values in fields.items()} for row in range(len(rows))]
    comparisons = []
    for target in source.targets:
        own = [labels[name].get(target.field) for name in names]
        there = [number for number, label in enumerate(own) if label is not None]
        if target.kind not in _VERDICTS or not there:
            continue
        qualities = {}
        for who, each in predicted.items():
            if target.field in each[0]:
                kind = QUALITIES[target.kind]
                compared = [
                    kind.compare(torch.from_numpy(own[number]), each[number][target.field].cpu(), target)
                    for number in there
                ]
                qualities[who] = kind.pooled(torch.stack(compared), target)
        comparisons.append(Comparison(target, len(there), qualities))
    return Evaluation(tuple(comparisons), names, predicted)


def evaluation_sheet(source: LabeledPhotos, labels: Labels, found: Evaluation, *, title: str = "") -> Image.Image:
    """The first 24 compared photos: photo | for each kind of label: its own, by inversion, of the student.

    Args:
        source, labels: what was compared.
        found: the comparison.
        title: first words of the sheet.

    Example:
        >>> sheet = evaluation_sheet(photos, own, evaluate_photos(photos, own, student))  # doctest: +SKIP
        >>> sheet.save("evaluation.png")  # doctest: +SKIP
    """
    size = source.image_size
    pictures, captions = [], []
    for number, name in enumerate(found.names[:_SHOWN]):
        sample = found.predicted[INVERSION][number]
        shown = photo(sample["image"])
        cells = [shown]
        for each in found.comparisons:
            own = labels[name].get(each.target.field)
            cells.append(shown if own is None else each.target.draw(shown, torch.from_numpy(own), size))
            for who in each.qualities:
                label = found.predicted[who][number][each.target.field].cpu()
                cells.append(each.target.draw(shown, label, size))
        pictures.append(cells)
        captions.append(f"{name:.24}   score {float(sample['inversion_score']):.2f}")
    columns = ["photo"]
    for each in found.comparisons:
        columns += [f"its {each.target.field}", *(f"by {who}" for who in each.qualities)]
    targets = [each.target for each in found.comparisons]
    return sheet(pictures, captions, f"{title}   ({' | '.join(columns)})".strip(), targets, columns=3)


def expectation(trusted: float, found: Evaluation, steps: int | None = None) -> str:
    """What somebody with such photos may expect, in plain sentences.

    Args:
        trusted: share of the photos that can be trusted.
        found: the comparison.
        steps: of the student, if there was one.
    """
    sentences = []
    if trusted < 0.5:
        sentences.append(
            "Most of your photos are unlike what the generator makes: align them as it was trained, or train a "
            "generator on photos like yours. What follows holds for the others."
        )
    if steps is not None and steps < _ENOUGH_STEPS:
        sentences.append(
            f"The student was trained for {steps:,} steps only, too few to judge by: give it more time "
            f"(--student-minutes) until it has {_ENOUGH_STEPS:,}."
        )
    for each in found.comparisons:
        verdicts = each.verdicts
        by_inversion, student = verdicts[INVERSION], verdicts.get(STUDENT)
        best = student or by_inversion
        weak = f" Not so well: {', '.join(best.weak)}." if best.weak else ""
        field = each.target.field
        if student is None:
            text = (
                f"labels by inversion reach {by_inversion.text}. What a student of the stream reaches was not tried "
                "(--student-minutes)."
            )
        elif student.good:
            text = (
                f"expect a student of the stream to reach {student.text} on photos like yours, and more if it is "
                f"larger or learns for longer. (Labels by inversion: {by_inversion.text}.)"
            )
        elif by_inversion.good:
            text = (
                f"the generator knows your photos, and by inversion their labels reach {by_inversion.text}; but the "
                f"student reaches {student.text} only. Let it learn for longer (--student-minutes), and if that does "
                "not help, mix your own photos into its training: they look different from the samples."
            )
        else:
            text = (
                f"expect little yet: the student reaches {student.text}, labels by inversion {by_inversion.text}. "
                "Annotate more samples, or fit with your labeled photos too (`dsgan invert`, `dsgan fit`)."
            )
        sentences.append(f"{field}: {text}{weak}")
    return "\n".join(sentences)


def _of_masks(found: ConfusionMatrix, schema: LabelSchema) -> Verdict:
    weak = [name for name, iou in zip(schema.classes, found.iou.tolist(), strict=True) if iou < _LEAST_IOU]
    return Verdict(f"a mean IoU of {found.mean_iou:.2f}", found.mean_iou >= _LEAST_IOU, tuple(weak))


def _of_points(found: PointErrors, target: Keypoints) -> Verdict:
    each = found.pck(PCK_AT[-1])
    weak = [name for name, share in zip(target.names, each.tolist(), strict=True) if share < _LEAST_PCK]
    mean = each.nanmean().item()
    text = f"{mean:.0%} of the points within a tenth of the object's size"
    return Verdict(text, mean >= _LEAST_PCK, tuple(weak))


def _of_maps(found: MapErrors, target: DenseMap) -> Verdict:
    limit = _MOST_ERROR * (target.high - target.low)
    weak = [name for name, error in zip(target.channels, found.mae.tolist(), strict=True) if error > limit]
    mean = found.mae.nanmean().item()
    text = f"a mean error of {mean:.3g} {target.unit}".rstrip() + f" (range {target.low:g} … {target.high:g})"
    return Verdict(text, mean <= limit, tuple(weak) if target.num_channels > 1 else ())


#: Kind of label -> what its figures mean.
_VERDICTS: dict[str, Callable[[Any, Any], Verdict]] = {
    LabelSchema.kind: _of_masks,
    Keypoints.kind: _of_points,
    DenseMap.kind: _of_maps,
}
