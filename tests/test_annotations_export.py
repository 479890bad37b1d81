"""What is exported for annotation identifies its images, and drafts are what the interpreter sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from annotation_folders import GENERATOR, SIZE
from conftest import SCHEMA, small_labeled
from PIL import Image

from dsgan_datasets import LabelSchema, Recipe, load_generator
from dsgan_datasets.annotations import export_annotations
from dsgan_datasets.annotations.folder import IGNORE
from dsgan_datasets.annotations.selection import diverse
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.latents import Purpose, sample_latents


def test_export_writes_what_identifies_the_images(pristine: Path) -> None:
    stored = json.loads((pristine / "annotations.json").read_text())
    indices = [image["index"] for image in stored["images"]]
    latents = sample_latents(indices, 32, seed=0, purpose=Purpose.ANNOTATION)
    assert np.array_equal(np.load(pristine / "latents.npy"), latents.numpy())
    labeled = small_labeled()
    images, _ = synthesize(labeled.generator, labeled.recipe, latents)
    for image, pixels in zip(stored["images"], images, strict=True):
        shown = np.asarray(Image.open(pristine / image["file"]))
        assert np.array_equal(shown, pixels.permute(1, 2, 0).numpy())
    assert stored["recipe"]["sampling"]["truncation_psi"] == 0.9 and stored["seed"] == 0
    assert (pristine / "labels.txt").read_text().split() == [*SCHEMA.classes, IGNORE]
    cvat = json.loads((pristine / "cvat" / "labels.json").read_text())
    assert cvat[1] == {"name": "left", "color": "#{:02x}{:02x}{:02x}".format(*SCHEMA.palette[1]), "attributes": []}
    with Image.open(pristine / "contact_sheet.png") as picture:
        assert picture.width > 600
    text = (pristine / "README.txt").read_text()
    assert all(t in text for t in ("labelme images", "cvat/labels.json", "masks/NAME.png", "annotate check"))


def test_no_sample_of_a_dataset_is_annotated(pristine: Path) -> None:
    annotated = np.load(pristine / "latents.npy")
    dataset = sample_latents(range(64), 32, seed=0).numpy()
    assert not (annotated[:, None] == dataset[None]).all(2).any()


def test_diverse_covers_better_than_the_first(one_thread: None) -> None:
    points = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    standard = (points - points.mean(0)) / points.std(0)

    def radius(rows: list[int]) -> float:
        return float(torch.cdist(standard, standard[rows]).min(1).values.max())

    chosen = diverse(points, 16)
    assert len(set(chosen)) == 16 and radius(chosen) < radius(list(range(16)))
    assert diverse(points * 100 + 7, 16) == chosen  # units do not count
    assert sorted(diverse(torch.zeros(5, 3), 5)) == [0, 1, 2, 3, 4]  # equal candidates too, none twice


def test_informative_takes_uncertain_and_different_ones() -> None:
    points = torch.tensor([[0.0], [0.01], [5.0], [10.0]])
    scores = torch.tensor([0.9, 1.0, 0.8, 0.1])
    assert diverse(points, 2, scores) == [1, 2]  # not its twin 0, and not 3, of which nothing is to be learned


def test_informative_export_drafts_what_the_interpreter_sees(tmp_path: Path) -> None:
    labeled = small_labeled()
    exported = export_annotations(
        labeled.generator,
        SCHEMA,
        tmp_path / "a",
        num_samples=3,
        select="informative",
        candidates=16,
        recipe=labeled.recipe,
        interpreter=labeled,
    )
    _, features = synthesize(labeled.generator, labeled.recipe, exported.latents)
    labels = labeled.interpreter.predict(features, Frame(SIZE), LabelingOptions())
    assert labels.uncertainty_score is not None
    assert [image.uncertainty_score for image in exported.images] == pytest.approx(labels.uncertainty_score.tolist())
    rest = sample_latents(range(16), 32, seed=0, purpose=Purpose.ANNOTATION)
    every = synthesize(labeled.generator, labeled.recipe, rest)[1]
    all_scores = labeled.interpreter.predict(every, Frame(SIZE), LabelingOptions()).uncertainty_score
    assert all_scores is not None
    assert labels.uncertainty_score.max() == pytest.approx(float(all_scores.max()))
    assert labels.uncertainty_score.mean() > all_scores.mean()
    drafts = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "a" / "drafts").glob("*.png"))])
    assert np.array_equal(drafts, labels.labels["mask"].numpy())


def test_drafts_of_a_merged_schema_and_of_more_classes(tmp_path: Path) -> None:
    labeled = small_labeled()
    merged = labeled.merge_classes({"side": ["left", "right"]})
    schema = LabelSchema(("background", "nose", "hat", "side"))
    exported = export_annotations(
        labeled.generator,
        schema,
        tmp_path / "a",
        num_samples=2,
        select="random",
        recipe=labeled.recipe,
        interpreter=merged,
    )
    _, features = synthesize(labeled.generator, labeled.recipe, exported.latents)
    fine = labeled.interpreter.predict(features, Frame(SIZE), LabelingOptions()).labels["mask"].numpy()
    drafts = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "a" / "drafts").glob("*.png"))])
    assert np.array_equal(drafts, np.array([0, 3, 3, 2])[fine])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"select": "informative"}, "needs an interpreter"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"num_samples": 10**6}, "num_samples must be .* 10000"),
        ({"candidates": 2}, "num_samples=3 images among candidates=2"),
        ({"candidates": 10**9}, "candidates must be"),
        ({"select": "best"}, "random, diverse, informative"),
        ({"recipe": Recipe(truncation_psi=(0.5, 0.7))}, "fixed psi"),
    ],
)
def test_export_refuses(options: dict[str, object], words: str, tmp_path: Path) -> None:
    generator = load_generator(GENERATOR, device="cpu")
    with pytest.raises(ValueError, match=words):
        export_annotations(generator, SCHEMA, tmp_path / "a", **({"num_samples": 3} | options))  # type: ignore[arg-type]


def test_export_needs_a_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    generator = load_generator(GENERATOR, device="cpu")
    with pytest.raises(ValueError, match="file is a file: choose another name"):
        export_annotations(generator, SCHEMA, tmp_path / "file", num_samples=3)
    with pytest.raises(OSError, match="cannot be written to"):
        export_annotations(generator, SCHEMA, tmp_path / "file" / "below", num_samples=3)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_touches_no_annotations(folder: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        export_annotations(load_generator(GENERATOR, device="cpu"), SCHEMA, folder)
