"""A second domain, from generator file to instances: scans of 16 bits with findings that most of them do not have."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scans import AIR, CROP, IMPLANT, LUNG, NODULE, SCHEMA, SIDE, WINDOW, annotated, save_scan_generator, scanned
from scipy import ndimage

from dsgan_datasets import AnnotatedImages, InterpretedLabeler, LabeledGenerator, fit_interpreter, write_shards
from dsgan_datasets.annotations import AnnotationError, load_annotations
from dsgan_datasets.fitting import FitSettings
from dsgan_datasets.images import png
from dsgan_datasets.inversion import read_labels, read_photos
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.shards.source import ShardSource
from dsgan_datasets.tools.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

GUIDE = Path(__file__).parent.parent / "docs" / "medical.md"
SIZE = (CROP[1] - CROP[0], SIDE)
CPU = ("--device", "cpu")
#: A rule on the content: every scan has a nodule that can be seen.
REQUIRED: dict[str, Any] = {"require": [NODULE], "min_area": 10}


@pytest.fixture(scope="module")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator, as a file."""
    return save_scan_generator(tmp_path_factory.mktemp("scans") / "scanner")


@pytest.fixture(scope="module")
def to_annotate(scanner: Path) -> Path:
    """Sixteen draws with masks of 8 and 16 bits, painted by a rule in place of an expert."""
    folder = scanner.with_name("to-annotate")
    words = ["--classes", ",".join(SCHEMA.classes), "--truncation-psi", "1", "--set", f"crop={list(CROP)}"]
    assert main(["annotate", "export", str(scanner), str(folder), "--num-samples", "16", *words, *CPU]) == 0
    (folder / "masks").mkdir()
    for number, path in enumerate(sorted((folder / "images").glob("*.png"))):
        mask = annotated(np.asarray(Image.open(path))[..., 0])
        (folder / "masks" / path.name).write_bytes(png(mask.astype(np.uint16 if number % 2 else np.uint8)))
    return folder


@pytest.fixture(scope="module")
def checkpoint(scanner: Path, to_annotate: Path) -> Path:
    """Fitted as a user does it."""
    out = scanner.with_name("my-scans")
    quick = ["--members", "3", "--steps", "200", "--num-samples", "60", "--folds", "0"]
    assert main(["annotate", "check", str(to_annotate), "--generator", str(scanner)]) == 0
    assert main(["fit", str(scanner), str(to_annotate), str(out), *quick, *CPU]) == 0
    return out


@pytest.fixture(scope="module")
def samples(checkpoint: Path) -> SampleBatch:
    """Forty of the stream, filter on."""
    return LabeledGenerator.from_pretrained(checkpoint, device="cpu").batch(range(40), seed=1)


def seen(samples: SampleBatch) -> np.ndarray:
    """What the expert would have painted, [N, H, W]."""
    return np.stack([annotated(image[0].numpy()) for image in samples.image])


def test_findings_are_found_where_they_are_and_nowhere_else(samples: SampleBatch) -> None:
    """Nodules are in a third of the scans and implants in a fifth, so the sixteen have few of them."""
    rule, mask = seen(samples), samples.mask.numpy()
    known = rule != SCHEMA.ignore_index
    for kind, least in ((AIR, 0.95), (LUNG, 0.95), (NODULE, 0.8), (IMPLANT, 0.8)):
        both, either = (mask == kind) & (rule == kind), ((mask == kind) | (rule == kind)) & known
        assert both.sum() / either.sum() > least, SCHEMA.classes[kind]
    for kind in (NODULE, IMPLANT):
        there = (rule == kind).any((1, 2))
        assert 0.02 < there.mean() < 0.6
        assert (mask == kind).any((1, 2))[there].mean() > 0.9
        assert (mask == kind)[~there].sum() <= 3  # pixels of 40 scans


def test_the_images_are_gray_and_cropped_and_so_are_the_masks(checkpoint: Path, samples: SampleBatch) -> None:
    assert samples.image.shape == (40, 3, *SIZE) and samples.mask.shape == (40, *SIZE)
    assert torch.equal(samples.image[:, 0], samples.image[:, 2])
    unfiltered = {"device": "cpu", "reject_fraction": 0}
    whole = LabeledGenerator.from_pretrained(checkpoint, crop=None, **unfiltered).batch(range(4))
    rows = LabeledGenerator.from_pretrained(checkpoint, **unfiltered).batch(range(4))
    assert whole.image.shape == (4, 3, SIDE, SIDE)
    for field in ("image", "mask"):
        assert torch.equal(whole[field][..., slice(*CROP), :], rows[field]), field


def test_ignored_pixels_are_read_as_such_and_never_become_labels(scanner: Path, to_annotate: Path) -> None:
    found = load_annotations(to_annotate, scanner)
    masks = found.annotated.masks
    painted = [np.asarray(Image.open(path)) for path in sorted((to_annotate / "masks").glob("*.png"))]
    assert {mask.dtype for mask in painted} == {np.dtype(np.uint8), np.dtype(np.uint16)}
    assert np.array_equal(masks.numpy(), np.stack(painted)) and (masks == SCHEMA.ignore_index).any()
    without_metal = torch.where(masks == IMPLANT, SCHEMA.ignore_index, masks)
    interpreter = fit_interpreter(
        found.generator,
        AnnotatedImages(found.annotated.latents, without_metal),
        SCHEMA,
        recipe=found.recipe,
        settings=FitSettings(members=2, steps=100),
    )
    labeler = InterpretedLabeler(found.generator, interpreter, [SCHEMA])
    assert set(LabeledGenerator(labeler, found.recipe).batch(range(16)).mask.unique().tolist()) == {0, 1, 2, 3}


def test_a_required_finding_is_in_every_sample(checkpoint: Path, samples: SampleBatch) -> None:
    findings = LabeledGenerator.from_pretrained(checkpoint, device="cpu", **REQUIRED)
    areas = (findings.batch(range(12)).mask == NODULE).sum((1, 2))
    assert (areas >= REQUIRED["min_area"]).all()
    assert not ((samples.mask == NODULE).sum((1, 2)) >= REQUIRED["min_area"]).all()


def test_truncation_takes_rare_findings_away(checkpoint: Path) -> None:
    """As the guide says."""
    shares = []
    for psi in (0.4, 1.0):
        drawn = LabeledGenerator.from_pretrained(checkpoint, device="cpu", truncation_psi=psi, reject_fraction=0)
        shares.append((drawn.batch(range(48)).mask == NODULE).any(2).any(1).float().mean())
    assert shares[0] < 0.5 * shares[1]


def test_shards_hold_the_same_scans(checkpoint: Path, tmp_path: Path) -> None:
    labeled = LabeledGenerator.from_pretrained(checkpoint, device="cpu")
    write_shards(labeled, tmp_path / "shards", range(10), samples_per_shard=4)
    stored, made = ShardSource(tmp_path / "shards").batch(range(10)), labeled.batch(range(10))
    assert torch.equal(stored.image, made.image) and torch.equal(stored.mask, made.mask)
    assert main(["shards", "verify", str(tmp_path / "shards")]) == 0


def test_scans_of_16_bits_are_windowed_as_the_guide_says(
    samples: SampleBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "masks").mkdir()
    for number, image in enumerate(samples.image[:3]):
        Image.fromarray(scanned(image[0].numpy())).save(tmp_path / "scans" / f"{number}.png")
        (tmp_path / "masks" / f"{number}.png").write_bytes(png(annotated(image[0].numpy()).astype(np.uint16)))
    with pytest.raises(AnnotationError, match="more than 8 bits a channel .*: choose the window of gray values"):
        read_photos(tmp_path / "scans", SIZE)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    low, high = re.search(r"LOW, HIGH = (-?\d+), (-?\d+)", code).groups()  # type: ignore[union-attr]
    code = code.replace(f"LOW, HIGH = {low}, {high}", f"LOW, HIGH = {WINDOW[0]}, {WINDOW[1]}")
    assert "OFFSET = -1024" in code
    exec(code.replace("OFFSET = -1024", "OFFSET = 0"), {})
    photos = read_photos("windowed", SIZE)
    for image, photo, annotation in zip(samples.image[:3], photos, seen(samples)[:3], strict=True):
        assert torch.equal(photo.image, image)
        assert np.array_equal(read_labels(photos, [SCHEMA], "masks")[photo.name]["mask"], annotation)


@pytest.mark.frameworks
def test_nodules_are_instances_of_detectron2(checkpoint: Path, tmp_path: Path, clean: None) -> None:
    """With a config as a user writes it: from the checkpoint, and from shards whose uncertain pixels are ignored."""
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

    from dsgan_datasets.adapters import detectron2 as adapter
    from dsgan_datasets.adapters.detectron2 import registered

    least = 4
    unsure = LabeledGenerator.from_pretrained(checkpoint, device="cpu", reject_fraction=0, max_uncertainty=0.05)
    write_shards(unsure, tmp_path / "shards", range(12))
    (tmp_path / "config.yaml").write_text(f"""
DSGAN:
  DATASETS:
    - {{name: drawn, checkpoint: {checkpoint}, device: cpu, task: instances, things: [nodule], instances: components,
       min_instance_area: {least}, require: {REQUIRED["require"]}, min_area: {REQUIRED["min_area"]}}}
    - {{name: stored, shards: {tmp_path / "shards"}, task: instances, things: [nodule], instances: components}}
DATASETS: {{TRAIN: [drawn]}}
INPUT: {{RANDOM_FLIP: none}}
MODEL: {{ROI_HEADS: {{NUM_CLASSES: 1}}}}
SOLVER: {{IMS_PER_BATCH: 4}}
DATALOADER: {{NUM_WORKERS: 0}}
""")
    cfg = get_cfg()
    adapter.add_dsgan_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    adapter.register_from_config(cfg)
    assert MetadataCatalog.get("drawn").thing_classes == ["nodule"]
    batches = build_detection_train_loader(cfg, mapper=adapter.DSGANDatasetMapper(cfg, True))
    records = [record for batch in islice(batches, 4) for record in batch]
    found = 0
    for record in records:
        mask = registered.lookup("drawn").sample(record["image_id"]).mask
        assert record["image"].shape == (3, *SIZE) and (mask == NODULE).any()
        parts = components(mask, least)
        assert {part.numpy().tobytes() for part in record["instances"].gt_masks.tensor} == parts
        found += len(parts)
    assert found >= len(records)
    stored = DatasetCatalog.get("stored")
    counts = [len(record["annotations"]) for record in stored]
    masks = [registered.lookup("stored").sample(number).mask for number in range(12)]
    assert counts == [len(components(mask, 1)) for mask in masks] and 0 in counts
    assert (torch.stack(masks) == SCHEMA.ignore_index).any()


def components(mask: torch.Tensor, least: int) -> set[bytes]:
    """The connected regions of nodules, by another implementation."""
    regions, count = ndimage.label(mask.numpy() == NODULE, np.ones((3, 3)))
    parts = [regions == number for number in range(1, count + 1)]
    return {part.tobytes() for part in parts if part.sum() >= least}


@pytest.mark.extended
def test_scans_of_a_hospital_are_labeled(
    checkpoint: Path, samples: SampleBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By inversion, with the nodules that the expert sees in them."""
    (tmp_path / "windowed").mkdir()
    chosen = [number for number, rule in enumerate(seen(samples)) if (rule == NODULE).sum() > 12][:4]
    for number in chosen:
        Image.fromarray(samples.image[number, 0].numpy()).save(tmp_path / "windowed" / f"{number:02d}.png")
    words = ["--format", "folder", "--steps", "300", *CPU]
    assert main(["label", str(checkpoint), str(tmp_path / "windowed"), str(tmp_path / "labeled"), *words]) == 0
    both = either = 0
    for number, path in zip(chosen, sorted((tmp_path / "labeled" / "masks").rglob("*.png")), strict=True):
        rule, mask = seen(samples)[number], np.asarray(Image.open(path))
        both += int(((mask == NODULE) & (rule == NODULE)).sum())
        either += int((((mask == NODULE) | (rule == NODULE)) & (rule != SCHEMA.ignore_index)).sum())
    assert both / either > 0.5
