"""Students: small networks that learn every kind of label, and say what a stream is worth on photos."""

from __future__ import annotations

import pytest
import torch
from conftest import SCHEMA
from kinds import DEPTH, POINTS, labeled_with

from dsgan_datasets import LabeledGenerator, LabelSchema
from dsgan_datasets.fitting.quality import QUALITIES
from dsgan_datasets.inversion.evaluation import INVERSION, STUDENT, Comparison, Evaluation, expectation
from dsgan_datasets.students import Student, segmentation_loss, train_student
from dsgan_datasets.students.heads import HEADS
from dsgan_datasets.targets.dense_map import DenseMap
from dsgan_datasets.targets.keypoints import Keypoints

TARGETS = (SCHEMA, POINTS, DEPTH)
#: Sides that are no multiple of anything, and larger than what a student sees.
SIZES = [(16, 16), (20, 44), (300, 140)]


def scene(size: tuple[int, int], count: int = 4) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Images of a bright square somewhere, with labels that say where it is."""
    height, width = size
    side = min(size) // 2
    random = torch.Generator().manual_seed(0)
    images = torch.full((count, 3, *size), 30, dtype=torch.uint8)
    masks = torch.zeros(count, *size, dtype=torch.int64)
    points = torch.zeros(count, 3, 3)
    depth = torch.full((count, 1, *size), -1.0)
    for n in range(count):
        top, left = (int(torch.randint(end - side + 1, (), generator=random)) for end in (height, width))
        square = (slice(top, top + side), slice(left, left + side))
        images[n][:, square[0], square[1]] = torch.tensor([250, 200, 90], dtype=torch.uint8)[:, None, None]
        masks[n][square] = 2
        depth[n, 0][square] = 1.0
        points[n, 0] = torch.tensor([left + side / 2, top + side / 2, 2])
        points[n, 1] = torch.tensor([left, top, 1])  # the third is in no image
    return images, {"mask": masks, "keypoints": points, "depth": depth}


@pytest.mark.parametrize("size", SIZES)
def test_labels_fit_the_images_whatever_their_size(size: tuple[int, int]) -> None:
    images, labels = scene(size)
    torch.manual_seed(0)
    student = Student(TARGETS, size)
    assert bool(student.loss(images, labels).isfinite())
    for target, label in zip(TARGETS, student.predict(images).values(), strict=True):
        for each in label:
            target.check(each, size)
    assert max(student.seen_size) <= 128


@pytest.mark.slow
def test_a_student_learns_every_kind_of_label() -> None:
    images, labels = scene((32, 48))
    torch.manual_seed(0)
    student = Student(TARGETS, (32, 48))
    optimizer = torch.optim.AdamW(student.parameters(), 1e-2)
    for _ in range(80):
        loss = student.loss(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = student.eval().predict(images)
    assert float((found["mask"] == labels["mask"]).double().mean()) > 0.95
    assert found["keypoints"][..., 2].equal(labels["keypoints"][..., 2])
    assert float((found["keypoints"] - labels["keypoints"]).abs().max()) < 2
    assert float((found["depth"] - labels["depth"]).abs().mean()) < 0.3


def test_what_is_not_known_teaches_nothing() -> None:
    images, labels = scene((16, 16))
    unknown = {
        "mask": torch.full_like(labels["mask"], SCHEMA.ignore_index),
        "keypoints": torch.zeros_like(labels["keypoints"]),
        "depth": torch.full_like(labels["depth"], torch.nan),
    }
    for target in TARGETS:
        head = HEADS[target.kind]
        outputs = torch.randn(len(images), head.channels(target), 16, 16, requires_grad=True)
        head.loss(outputs, unknown[target.field], target, (16, 16)).backward()
        assert outputs.grad is not None
        assert target is POINTS or not outputs.grad.any()
    # That a point is not in the image is taught, but not where it is.
    outputs = torch.randn(len(images), 12, 16, 16)
    outputs[:, 3:] = 0  # states that are the same everywhere
    HEADS[POINTS.kind].loss(outputs.requires_grad_(), unknown["keypoints"], POINTS, (16, 16)).backward()
    assert (
        outputs.grad is not None and bool(outputs.grad[:, 3:].any()) and float(outputs.grad[:, :3].abs().max()) < 1e-6
    )
    half = labels["mask"].clone()
    half[:, :8] = SCHEMA.ignore_index
    outputs = torch.randn(len(images), 4, 16, 16, requires_grad=True)
    segmentation_loss(outputs, half, SCHEMA.ignore_index).backward()
    assert outputs.grad is not None and not outputs.grad[:, :, :8].any() and bool(outputs.grad[:, :, 8:].any())


def test_a_stream_trains_a_student() -> None:
    labeled = labeled_with("mask", "keypoints", "depth")
    state = torch.random.get_rng_state()
    student = train_student(labeled, minutes=1e-4)
    assert student.steps >= 1 and not student.training
    assert torch.random.get_rng_state().equal(state)
    sample = labeled.generate([0])
    assert student.predict(sample.image).keys() == {"mask", "keypoints", "depth"}
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="minutes of training must be a number above 0"):
            train_student(labeled, minutes=minutes)


def test_labels_that_no_student_learns_are_named() -> None:
    class Scalar:
        kind, field = "scalar", "age"

    assert Student([Scalar(), SCHEMA], (16, 16)).targets == (SCHEMA,)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="segmentation, keypoints, dense_map, and these are scalar"):
        Student([Scalar()], (16, 16))  # type: ignore[list-item]


# What to expect


def compared(target: LabelSchema | Keypoints | DenseMap, by_inversion: float, by_student: float | None) -> Comparison:
    """Labels of which these shares are right."""

    def quality(share: float) -> object:
        size, wrong = (10, 10), round(10 * (1 - share))
        if isinstance(target, LabelSchema):
            own = torch.arange(100).view(size) % 2
            predicted = own.clone()
            predicted[:wrong] = 1 - predicted[:wrong]
        elif isinstance(target, Keypoints):
            own = torch.tensor([[0.0, 0.0, 2.0], [100.0, 0.0, 2.0], [50.0, 100.0, 2.0]]).repeat(4, 1)[:10]
            predicted = own.clone()
            predicted[:wrong, :2] += 500
        else:
            own = torch.zeros(1, *size)
            predicted = own + 3 * (1 - share)
        kind = QUALITIES[target.kind]
        return kind.pooled(kind.compare(own, predicted, target)[None], target)

    shares = {INVERSION: by_inversion, STUDENT: by_student}
    return Comparison(target, 5, {who: quality(share) for who, share in shares.items() if share is not None})  # type: ignore[misc]


TEN = Keypoints(tuple(f"p{i}" for i in range(10)))


@pytest.mark.parametrize("target", [LabelSchema(("a", "b")), TEN, DEPTH], ids=lambda target: target.kind)
def test_a_sentence_says_what_to_expect(target: LabelSchema | Keypoints | DenseMap) -> None:
    def said(by_inversion: float, by_student: float | None, trusted: float = 1.0) -> str:
        return expectation(trusted, Evaluation((compared(target, by_inversion, by_student),), (), {}))

    assert f"{target.field}: expect a student of the stream to reach" in said(0.1, 1.0)
    assert "but the student reaches" in said(1.0, 0.1) and "mix your own photos" in said(1.0, 0.1)
    assert "expect little yet" in said(0.1, 0.1) and "Annotate more samples" in said(0.1, 0.1)
    assert "was not tried" in said(1.0, None)
    assert "Most of your photos are unlike" in said(1.0, 1.0, trusted=0.4)
    assert "Most of your photos" not in said(1.0, 1.0, trusted=0.5)
    few = expectation(1.0, Evaluation((compared(target, 1.0, 0.1),), (), {}), steps=39)
    assert few.startswith("The student was trained for 39 steps only, too few to judge by")
    assert "too few" not in expectation(1.0, Evaluation((compared(target, 1.0, 0.1),), (), {}), steps=500)


def test_what_is_weak_is_named() -> None:
    schema = LabelSchema(("background", "eye"))
    confusion = torch.tensor([[900, 10], [60, 30]])
    quality = QUALITIES[schema.kind].pooled(confusion[None], schema)
    found = Evaluation((Comparison(schema, 3, {INVERSION: quality, STUDENT: quality}),), (), {})
    assert "Not so well: eye." in expectation(1.0, found)


def test_labeled_generators_stay_as_they_were() -> None:
    labeled: LabeledGenerator = labeled_with("mask")
    before = labeled.generate([3]).mask
    train_student(labeled, minutes=1e-4)
    assert labeled.generate([3]).mask.equal(before)
