"""Fitting, held-out figures, checkpoints and filters of masks, keypoints and dense maps together."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_labeled
from torch import Tensor

from dsgan_datasets import (
    AnnotatedImages,
    CheckpointError,
    DenseMap,
    InterpretedLabeler,
    Keypoints,
    LabeledGenerator,
    LabelSchema,
    Recipe,
    ScoreFilter,
    ShardDataset,
    calibrate,
    fit_interpreter,
    load_interpreter,
    sample_latents,
    write_shards,
)
from dsgan_datasets.annotations.loading import Annotations
from dsgan_datasets.fitting import FitSettings, MapErrors, PointErrors, cross_validate, evaluate
from dsgan_datasets.fitting.pipeline import fit_checkpoint
from dsgan_datasets.fitting.pixel_ensemble import PixelTrainer
from dsgan_datasets.fitting.trainers import trainer_for
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.latents import Purpose
from dsgan_datasets.tools.cli import main
from dsgan_datasets.tools.options import shares

SCHEMA = LabelSchema(("dark", "bright"))
POINTS = Keypoints(("high", "low"), flip_pairs=((0, 1),))
DEPTH = DenseMap("depth", low=-4, high=4, unit="m")
RECIPE = Recipe(truncation_psi=0.9)
QUICK = FitSettings(members=2, steps=150, sigma=0.06)


@pytest.fixture(scope="module")
def labeled() -> LabeledGenerator:
    return small_labeled()


def annotated(labeled: LabeledGenerator, indices: range) -> AnnotatedImages:
    """Labels that the features know: a coarse channel is the depth, its extremes are the points."""
    latents = sample_latents(indices, 32, seed=0, purpose=Purpose.ANNOTATION)
    _, features = synthesize(labeled.generator, RECIPE, latents)
    smooth = F.interpolate(features[0][:, :1], size=(16, 16), mode="bilinear")
    depth = (smooth - smooth.mean()) / smooth.std()
    # A parabola around its extremes tells their neighborhood from all else.
    flat = smooth.flatten(1)
    extremes = torch.stack([flat.argmax(1), flat.argmin(1)], 1)
    points = torch.stack([extremes % 16 + 0.5, extremes // 16 + 0.5, torch.full_like(extremes, 2)], 2)
    labels = {"mask": (depth[:, 0] > 0).long(), "keypoints": points, "depth": depth.clamp(-4, 4)}
    return AnnotatedImages(latents, labels)


def annotations(labeled: LabeledGenerator, count: int = 8) -> Annotations:
    targets = (SCHEMA, POINTS, DEPTH)
    names = tuple(map(str, range(count)))
    return Annotations(
        annotated(labeled, range(count)), targets, RECIPE, names, size=(16, 16), generator=labeled.generator
    )


# --- what is learned ---


def test_depth_is_learned(labeled: LabeledGenerator) -> None:
    data, held_out = annotated(labeled, range(10)), annotated(labeled, range(100, 110))
    ensemble = fit_interpreter(labeled.generator, data, DEPTH, recipe=RECIPE, settings=QUICK)
    found = evaluate(labeled.generator, ensemble, held_out, recipe=RECIPE, target=DEPTH)
    spread = held_out.of("depth").std().item()
    assert isinstance(found, MapErrors) and found.rmse.item() < 0.5 * spread and found.mae.item() <= found.rmse.item()


@pytest.mark.slow
def test_points_are_learned(labeled: LabeledGenerator) -> None:
    """Two points of fixed places on the channel's own map: better than the mean place of each."""
    data, held_out = annotated(labeled, range(16)), annotated(labeled, range(100, 110))
    ensemble = fit_interpreter(labeled.generator, data, POINTS, recipe=RECIPE, settings=QUICK, steps=400)
    _, features = synthesize(labeled.generator, RECIPE, data.latents)
    from dsgan_datasets.interpreters.base import Frame

    found = ensemble.predict(features, Frame((16, 16))).labels["keypoints"]
    truth = data.of("keypoints")
    error = (found[..., :2] - truth[..., :2]).norm(dim=2).mean()
    constant = (truth[..., :2] - truth[..., :2].mean(0)).norm(dim=2).mean()
    assert error < 0.5 * constant
    quality = evaluate(labeled.generator, ensemble, held_out, recipe=RECIPE, target=POINTS)
    assert isinstance(quality, PointErrors) and quality.errors.shape == (10, 2)


def test_unknown_values_teach_nothing(labeled: LabeledGenerator) -> None:
    """Wrong values on the right half count unless they are unknown."""
    data = annotated(labeled, range(6))
    depth = data.of("depth").clone()
    depth[..., 8:] = torch.nan
    masked = AnnotatedImages(data.latents, {"depth": depth})
    trainer = PixelTrainer.of(labeled.generator, masked, DEPTH, RECIPE, QUICK)
    assert len(trainer.pixels.image) == 6 * 16 * 8 and not trainer.pixels.learned.isnan().any()
    with pytest.raises(ValueError, match="the depth of every image is ignored: there is nothing to learn from"):
        nothing = AnnotatedImages(data.latents, {"depth": torch.full_like(depth, torch.nan)})
        fit_interpreter(labeled.generator, nothing, DEPTH, recipe=RECIPE, settings=QUICK)


def test_heat_of_hidden_and_absent_points(labeled: LabeledGenerator) -> None:
    points = torch.tensor([[[4.5, 4.5, 2.0], [11.5, 6.5, 1.0]], [[8.0, 8.0, 2.0], [0.0, 0.0, 0.0]]])
    data = AnnotatedImages(sample_latents(range(2), 32, seed=0), {"keypoints": points})
    task = PixelTrainer.of(labeled.generator, data, POINTS, RECIPE, QUICK).task
    everywhere = torch.arange(256)
    first, second = (task.learned(image, everywhere).view(16, 16, 4) for image in (0, 1))
    assert first[4, 4].tolist() == pytest.approx([1, 0, 1, 0], abs=1e-3)
    assert first[6, 11].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-3)
    assert second[..., [1, 3]].max() == 0 and 0.5 < second[7, 7, 0] < 1
    assert set(task.strata[0].unique().tolist()) == {0, 1, 2} and set(task.strata[1].unique().tolist()) == {0, 2}


def test_pixels_near_points_are_chosen_from_large_images(labeled: LabeledGenerator) -> None:
    recipe = Recipe(truncation_psi=0.9, size=(64, 64))
    points = torch.tensor([[[20.5, 20.5, 2.0], [50.5, 10.5, 2.0]]])
    data = AnnotatedImages(sample_latents(range(1), 32, seed=0), {"keypoints": points})
    settings = FitSettings(pixels_per_image=400, sigma=0.02)
    pixels = PixelTrainer.of(labeled.generator, data, POINTS, recipe, settings).pixels
    share = (pixels.strata < 2).double().mean()
    assert len(pixels.strata) == 400 and share > 0.1, "one in ninety pixels is near a point"
    assert len(pixels.features.unique(dim=0)) == 400, "no pixel twice"


def test_the_same_seed_gives_the_same_points(labeled: LabeledGenerator) -> None:
    def fit(seed: int, threads: int = 1) -> Tensor:
        torch.set_num_threads(threads)
        data = annotated(labeled, range(2))
        quick: dict[str, Any] = {"members": 2, "steps": 5, "seed": seed}
        result: Tensor = fit_interpreter(labeled.generator, data, POINTS, recipe=RECIPE, **quick).w1
        torch.set_num_threads(1)
        return result

    assert torch.equal(fit(0), fit(0, threads=2)) and not torch.equal(fit(0), fit(1))


# --- how good it is ---


def test_point_errors_by_hand() -> None:
    truth = torch.tensor([[0.0, 0.0, 2.0], [4.0, 9.0, 1.0], [0.0, 0.0, 0.0]])
    found = torch.tensor([[0.3, 0.4, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]])
    quality = PointErrors.pooled(PointErrors.compare(truth, found, Keypoints(("a", "b", "c")))[None], None)
    assert (
        quality.errors[0, 0] == pytest.approx(0.5 / 6) and quality.errors[0, 1].isinf() and quality.errors[0, 2].isnan()
    )
    assert quality.pck(0.1)[:2].tolist() == [1, 0] and quality.pck(0.05)[0] == 0 and quality.pck(0.1)[2].isnan()
    assert quality.mean_errors[0] == pytest.approx(0.5 / 6) and quality.mean_errors[1:].isnan().all()
    assert quality.visibility == pytest.approx(1 / 3)
    figures = quality.figures(Keypoints(("a", "b", "c")))
    assert figures.by_name["PCK 10%"] == {"a": 1.0, "b": 0.0, "c": None} and figures.summary["PCK 10%"] == 0.5


def test_map_errors_by_hand() -> None:
    truth = torch.tensor([[[1.0, 2.0], [torch.nan, 0.0]]])
    found = truth.nan_to_num(5) + torch.tensor([[1.0, 2.0]])
    quality = MapErrors.pooled(MapErrors.compare(truth, found, DEPTH)[None], DEPTH)
    assert quality.mae.item() == pytest.approx(5 / 3) and quality.rmse.item() == pytest.approx(3**0.5)
    assert quality.figures(DEPTH).summary == {"MAE (m)": 1.6667, "RMSE (m)": 1.7321}


def test_cross_validation_holds_images_out(labeled: LabeledGenerator) -> None:
    """Values of noise can be learned by heart, and not be predicted."""
    latents = sample_latents(range(4), 32, seed=0)
    noise = torch.tensor([-3.0, 3.0, -3.0, 3.0]).view(4, 1, 1, 1).expand(4, 1, 16, 16).clone()
    data = AnnotatedImages(latents, {"depth": noise})
    quick = FitSettings(members=2, steps=80)
    quality = cross_validate(labeled.generator, data, DEPTH, recipe=RECIPE, folds=2, settings=quick)
    ensemble = fit_interpreter(labeled.generator, data, DEPTH, recipe=RECIPE, settings=quick)
    seen = evaluate(labeled.generator, ensemble, data, recipe=RECIPE, target=DEPTH)
    assert seen.mae.item() < 0.6 and quality.mae.item() > 1.5 and quality.sums[0, 0] == noise.numel()


def test_labels_that_cannot_be_learned_are_named() -> None:
    with pytest.raises(ValueError, match="no interpreter 'x' learns mask; those that do: pixel_ensemble"):
        trainer_for(SCHEMA, "x")


# --- one checkpoint ---


@pytest.fixture(scope="module")
def checkpoint(labeled: LabeledGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kinds") / "faces"
    fractions = {"mask": 0.1, "keypoints": 0.2}
    quick = FitSettings(members=2, steps=20, sigma=0.06)
    run = fit_checkpoint(
        labeled.generator, annotations(labeled), out, quick, folds=2, num_samples=40, reject_fraction=fractions
    )
    assert list(run.quality) == ["mask", "keypoints", "depth"]
    return out


def test_shares_of_unknown_labels_are_refused_before_anything_is_fitted(
    labeled: LabeledGenerator, tmp_path: Path
) -> None:
    endless = FitSettings(members=2, steps=10**8)
    with pytest.raises(ValueError, match="names 'nose'; the labels with an uncertainty are: mask, keypoints, depth"):
        fit_checkpoint(
            labeled.generator, annotations(labeled), tmp_path / "out", endless, reject_fraction={"nose": 0.1}
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def faces(checkpoint: Path) -> LabeledGenerator:
    return LabeledGenerator.from_pretrained(checkpoint, device="cpu")


@pytest.mark.slow
def test_all_labels_come_from_one_checkpoint(checkpoint: Path, faces: LabeledGenerator) -> None:
    stems = {path.stem for path in checkpoint.glob("*.safetensors")}
    assert stems == {"generator", "interpreter", "interpreter_keypoints", "interpreter_depth"}
    batch = faces.generate(range(3), extras=("uncertainty", "keypoints_uncertainty"))
    for target in faces.targets:
        target.check(batch[target.field][0], (16, 16))
    assert batch.keypoints_uncertainty.shape == (3, 16, 16) and "depth_uncertainty" not in batch
    alone = LabeledGenerator(
        InterpretedLabeler(faces.generator, faces.labeler.interpreters[1], [POINTS]), faces.recipe.unfiltered()
    )
    attempts = batch.attempt
    assert torch.equal(alone.generate(range(3), attempts=attempts).keypoints, batch.keypoints)
    assert load_interpreter(checkpoint, field="keypoints", device="cpu").fields == ("keypoints",)
    assert load_interpreter(checkpoint, field="mask", device="cpu").fields == ("mask",)
    with pytest.raises(CheckpointError, match="none of its interpreters predicts 'nose'"):
        load_interpreter(checkpoint, field="nose", device="cpu")
    copy = pickle.loads(pickle.dumps(faces)).to("cpu")
    assert torch.equal(copy.generate([1]).keypoints, batch.keypoints[1:2]) and copy.fingerprint == faces.fingerprint


@pytest.mark.slow
def test_a_card_and_info_show_all_labels(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (checkpoint / "README.md").read_text()
    for text in ("## Classes", "## Keypoints", "| 1 | low |", "PCK 5%", "## Depth", "RMSE (m)", "20% by keypoints"):
        assert text in card
    assert main(["info", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    for text in ("interpreter of keypoints", "keypoint_ensemble", "depth held out", "MAE (m)", "by keypoints"):
        assert text in printed


def test_each_score_filters_by_its_own_threshold(faces: LabeledGenerator) -> None:
    (score,) = faces.recipe.scores
    assert score.field == "keypoints" and score.threshold is not None and faces.recipe.threshold is not None
    drawn = list(faces.unfiltered(40))
    of_masks, of_points = (
        torch.cat([part[name] for part in drawn]) for name in ("uncertainty_score", "keypoints_uncertainty_score")
    )
    assert (of_masks > faces.recipe.threshold).sum() == 4 and (of_points > score.threshold).sum() == 8
    accepted = faces.generate(range(12))
    assert (accepted.keypoints_uncertainty_score <= score.threshold).all() and accepted.attempt.any()
    assert (accepted.uncertainty_score <= faces.recipe.threshold).all()
    looser = faces.with_recipe(faces.recipe.override(scores=()))
    assert looser.fingerprint != faces.fingerprint


def test_calibration_of_several_scores(faces: LabeledGenerator) -> None:
    assert calibrate(faces, 40, reject_fraction=0).recipe.filter is None
    kept = calibrate(faces, 40, reject_fraction=0.3).recipe
    assert kept.scores == faces.recipe.scores and kept.reject_fraction == 0.3
    only = calibrate(faces, 40, reject_fraction={"mask": 0, "depth": 0.5, "keypoints": 0})
    assert only.recipe.threshold is None and [s.field for s in only.recipe.scores] == ["depth"]
    assert only.calibration is not None and only.calibration.acceptance == 0.5
    with pytest.raises(ValueError, match="names 'nose'; the labels with an uncertainty are: mask, keypoints, depth"):
        calibrate(faces, 40, reject_fraction={"nose": 0.1})


def test_a_change_that_moves_the_scores_drops_every_threshold(faces: LabeledGenerator) -> None:
    moved = faces.recipe.override(truncation_psi=0.5)
    assert moved.needs_calibration and moved.scores[0].threshold is None
    with pytest.raises(ValueError, match="rejects 10% \\(and 20% by keypoints\\) of the draws"):
        faces.with_recipe(moved).generate([0])
    assert faces.recipe.override(compute_batch=4).scores == faces.recipe.scores
    assert faces.recipe.override(reject_fraction=0).filter is None
    with pytest.raises(ValueError, match="filters by the scores of nose; .* are: keypoints, depth"):
        faces.with_recipe(faces.recipe.override(scores=[ScoreFilter("nose")]))
    with pytest.raises(ValueError, match="scores must be a list of score filters"):
        Recipe(scores=[ScoreFilter("keypoints"), ScoreFilter("keypoints")])


def test_a_vote_of_the_masks_does_not_bother_the_points(faces: LabeledGenerator) -> None:
    voted = faces.with_recipe(faces.recipe.override(vote="mean", reject_fraction=0))
    plain = faces.with_recipe(faces.recipe.override(reject_fraction=0))
    assert torch.equal(voted.generate([0]).keypoints, plain.generate([0]).keypoints)
    points = InterpretedLabeler(faces.generator, faces.labeler.interpreters[1], [POINTS])
    with pytest.raises(ValueError, match="do not vote"):
        LabeledGenerator(points, Recipe(vote="mean"))


def test_merged_classes_keep_the_points(faces: LabeledGenerator) -> None:
    merged = faces.merge_classes({"all": ["dark", "bright"]})
    batch = merged.generate([0])
    assert batch.mask.max() == 0 and torch.equal(batch.keypoints, faces.generate([0]).keypoints)
    assert merged.recipe.scores == faces.recipe.scores


def test_shards_hold_every_score(faces: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(faces, tmp_path / "set", range(3), workers=1)
    stored = list(ShardDataset(tmp_path / "set"))
    for sample, expected in zip(stored, faces.stream(range(3)), strict=True):
        assert set(sample) == set(expected) and all(torch.equal(sample[name], expected[name]) for name in expected)


def test_interpreters_that_do_not_go_together(faces: LabeledGenerator) -> None:
    mask, points, _ = faces.labeler.interpreters
    for interpreters, targets, message in (
        ([mask, mask], [SCHEMA], "the interpreters predict mask, mask; the targets are mask"),
        ([mask, points], [SCHEMA], "predict mask, keypoints; the targets are mask"),
        ([], [SCHEMA], "or several of it, not"),
        ([mask, 3], [SCHEMA, POINTS], "or several of it, not"),
    ):
        with pytest.raises(ValueError, match=message):
            InterpretedLabeler(faces.generator, interpreters, targets)  # type: ignore[arg-type]


def test_a_missing_part_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    for path in checkpoint.iterdir():
        if path.stem != "interpreter_keypoints":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"interpreter_keypoints.safetensors is missing"):
        LabeledGenerator.from_pretrained(tmp_path, device="cpu")
    assert set(config["parts"]) == {"generator", "interpreter", "interpreter_keypoints", "interpreter_depth"}


def test_shares_of_the_command_line() -> None:
    assert shares("0.1") == 0.1 and shares("mask=0.1,keypoints=0.05") == {"mask": 0.1, "keypoints": 0.05}


# --- annotated images ---


def test_annotated_images_hold_labels_by_field() -> None:
    masks, points = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 2, 3, dtype=torch.float64)
    data = AnnotatedImages(torch.zeros(3, 8), {"mask": masks, "keypoints": points})
    assert len(data) == 3 and data.masks.dtype == torch.int64 and data.of("keypoints").dtype == torch.float32
    assert len(data[torch.tensor([0, 2])].of("keypoints")) == 2
    assert torch.equal(AnnotatedImages(torch.zeros(3, 8), masks=masks).masks, data.masks)
    with pytest.raises(ValueError, match="have no depth; their labels are: mask, keypoints"):
        data.of("depth")
    with pytest.raises(ValueError, match=r"keypoints \[A, \.\.\.\]; got \[3, 8\] and \[2, 2, 3\]"):
        AnnotatedImages(torch.zeros(3, 8), {"keypoints": points[:2]})
    with pytest.raises(ValueError, match="give the labels"):
        AnnotatedImages(torch.zeros(3, 8), masks, masks=masks)
    with pytest.raises(ValueError, match="keypoints must hold numbers"):
        AnnotatedImages(torch.zeros(3, 8), {"keypoints": points > 0})
