from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsgan_datasets import LabeledGenerator, calibrate
from dsgan_datasets.calibration import upper_quantile
from dsgan_datasets.checkpoints.calibration_report import Calibration
from dsgan_datasets.filtering import FAILURE_PROBABILITY, Acceptance
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.tools.calibrate import report
from dsgan_datasets.tools.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_the_most_uncertain_are_rejected(unfiltered: LabeledGenerator, fraction: float) -> None:
    calibrated = calibrate(unfiltered, 200, reject_fraction=fraction)
    found = calibrated.calibration
    assert found is not None and found.acceptance == pytest.approx(1 - fraction, abs=0.006)
    scores = unfiltered.generate(range(400), seed=77).uncertainty_score
    rejected = (scores > calibrated.recipe.threshold).double().mean().item()
    assert rejected == pytest.approx(fraction, abs=0.09)  # 400 draws: three standard deviations are 0.074


def test_nothing_to_reject(filtered: LabeledGenerator) -> None:
    opened = calibrate(filtered, reject_fraction=0)
    assert opened.recipe.threshold is None and opened.calibration is None and not opened.recipe.is_filtered


def test_calibrating_again_ignores_the_old_threshold(filtered: LabeledGenerator, unfiltered: LabeledGenerator) -> None:
    assert calibrate(filtered, 60).recipe == calibrate(unfiltered, 60).recipe


def test_same_seed_same_threshold(unfiltered: LabeledGenerator) -> None:
    assert calibrate(unfiltered, 40).calibration == calibrate(unfiltered, 40).calibration
    assert calibrate(unfiltered, 40, seed=1).calibration != calibrate(unfiltered, 40).calibration


@pytest.mark.slow
def test_what_the_filter_drops_of_each_class(unfiltered: LabeledGenerator, tmp_path: Path) -> None:
    calibrated = calibrate(unfiltered, 200, reject_fraction=0.3)
    found = calibrated.calibration
    assert found is not None and found.dropped_by_class is not None
    fields = list(unfiltered.unfiltered(200, seed=0, description=""))
    scores, masks = (torch.cat([batch[name] for batch in fields]) for name in ("uncertainty_score", "mask"))
    dropped = scores.cpu() > calibrated.recipe.threshold
    expected = {}
    for i, name in enumerate(unfiltered.schema.classes):
        holds = (masks == i).flatten(1).any(1).cpu()
        if holds.sum() >= 20:
            expected[name] = round(dropped[holds].double().mean().item(), 4)
    assert found.dropped_by_class == expected and len(expected) > 1
    calibrated.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert " dropped |" in card and all(f" {share:.0%} |" in card for share in expected.values())
    assert LabeledGenerator.from_pretrained(tmp_path / "saved", device="cpu").calibration == found


def test_classes_that_the_filter_nearly_removes_are_told() -> None:
    shares = {"skin": 0.1, "mouth": 0.22, "beard": 0.64}
    found = Calibration(1000, 0, 0.01, 0.9, dropped_by_class=shares)
    assert "dropped more often: beard 64%, mouth 22%;" in report(Recipe(reject_fraction=0.1), found)[1]
    assert len(report(Recipe(reject_fraction=0.1), dataclasses.replace(found, dropped_by_class={"skin": 0.19}))) == 1
    for damaged in ({"skin": 2}, {"skin": None}, [0.1], 5):
        with pytest.raises(ValueError, match="dropped_by_class"):
            dataclasses.replace(found, dropped_by_class=damaged)


@pytest.mark.parametrize(("samples", "fraction"), [(19, 0.1), (40, 1.0), (40, -0.1)])
def test_bad_arguments(unfiltered: LabeledGenerator, samples: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 20|reject_fraction"):
        calibrate(unfiltered, samples, reject_fraction=fraction)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_quantile_is_the_smallest_score_that_suffices(scores: list[float], share: float) -> None:
    values = torch.tensor(scores, dtype=torch.float32)
    threshold, error = upper_quantile(values, share)
    assert (values <= threshold).double().mean() >= share - 1e-9
    below = values[values < threshold]
    assert not len(below) or (values <= below.max()).double().mean() < share
    assert error >= 0


def test_standard_error_matches_repeated_draws() -> None:
    random = torch.Generator().manual_seed(0)
    thresholds, errors = zip(
        *(upper_quantile(torch.rand(1000, generator=random), 0.9) for _ in range(300)), strict=True
    )
    assert sum(errors) / 300 == pytest.approx(torch.tensor(thresholds).std().item(), rel=0.2)


@pytest.mark.parametrize(("rate", "draws"), [(1.0, 256), (0.9, 1000), (0.5, 256), (0.02, 256)])
def test_attempt_limit_leaves_no_index_behind(rate: float, draws: int) -> None:
    limit = Acceptance(draws, rate, {}).attempt_limit
    assert (1 - rate) ** limit <= FAILURE_PROBABILITY and limit < 20_000


@pytest.mark.slow
def test_ignored_pixels_are_the_share_that_was_asked_for(unfiltered: LabeledGenerator) -> None:
    calibrated = calibrate(unfiltered, 200, reject_fraction=0.2, ignore_fraction=0.05)
    assert calibrated.recipe.threshold == calibrate(unfiltered, 200, reject_fraction=0.2).recipe.threshold
    assert calibrated.calibration is not None and calibrated.calibration.ignore_fraction == 0.05
    mask = calibrated.generate(range(150), seed=5).mask
    assert (mask == 255).double().mean().item() == pytest.approx(0.05, abs=0.012)


def test_exactly_the_uncertain_pixels_are_ignored(unfiltered: LabeledGenerator) -> None:
    ignoring = unfiltered.with_recipe(unfiltered.recipe.override(max_uncertainty=0.3))
    before, after = (labeled.generate(range(20), extras=("uncertainty",)) for labeled in (unfiltered, ignoring))
    uncertain = before.uncertainty > 0.3
    assert 0 < uncertain.sum() < uncertain.numel()
    assert torch.equal(after.mask, before.mask.masked_fill(uncertain, 255))
    assert torch.equal(after.image, before.image) and torch.equal(after.uncertainty_score, before.uncertainty_score)


def test_ignoring_is_the_same_whatever_is_asked_for_with_it(unfiltered: LabeledGenerator) -> None:
    ignoring = calibrate(unfiltered, 60, reject_fraction=0.3, ignore_fraction=0.2)
    together = ignoring.generate(range(11), seed=3)
    alone = torch.cat([ignoring.generate([i], seed=3).mask for i in (10, 4, 0)])
    assert torch.equal(together.mask[[10, 4, 0]], alone) and (alone == 255).any()


@pytest.mark.slow
def test_content_rules_count_what_is_left(unfiltered: LabeledGenerator) -> None:
    """A class that has enough pixels only with those that are ignored does not pass."""
    ruled = unfiltered.with_recipe(unfiltered.recipe.override(require=(2,), min_area=6))
    ignoring = calibrate(ruled, 200, reject_fraction=0.1, ignore_fraction=0.3)
    plain = calibrate(ruled, 200, reject_fraction=0.1)
    assert ignoring.calibration is not None and plain.calibration is not None
    assert ignoring.calibration.acceptance < plain.calibration.acceptance
    assert ((ignoring.generate(range(40)).mask == 2).flatten(1).sum(1) >= 6).all()
    drawn = torch.cat([fields["mask"] for fields in ignoring.unfiltered(200)])
    passed = (drawn == 2).flatten(1).sum(1) >= 6
    scores = torch.cat([fields["uncertainty_score"] for fields in ignoring.unfiltered(200)])
    expected = (passed & (scores <= ignoring.recipe.threshold)).double().mean().item()
    assert ignoring.calibration.acceptance == pytest.approx(expected)


def test_ignoring_without_a_filter_and_switching_it_off(unfiltered: LabeledGenerator) -> None:
    ignoring = calibrate(unfiltered, 40, reject_fraction=0, ignore_fraction=0.1)
    assert ignoring.recipe.threshold is None and ignoring.recipe.max_uncertainty is not None
    assert calibrate(ignoring, 40).recipe.max_uncertainty == ignoring.recipe.max_uncertainty
    assert calibrate(ignoring, 40, ignore_fraction=0).recipe == calibrate(unfiltered, 40).recipe


def test_the_fingerprint_covers_the_id_of_ignored_pixels(unfiltered: LabeledGenerator, tmp_path: Path) -> None:
    def made(ignore_index: int, **recipe: float) -> LabeledGenerator:
        schema = dataclasses.replace(unfiltered.schema, ignore_index=ignore_index)
        return LabeledGenerator(unfiltered.labeler.with_targets([schema]), unfiltered.recipe.replace(**recipe))

    assert made(254).fingerprint == made(255).fingerprint == unfiltered.fingerprint
    assert made(254, max_uncertainty=0.1).fingerprint != made(255, max_uncertainty=0.1).fingerprint
    made(254, max_uncertainty=0.1).save_pretrained(tmp_path)
    loaded = LabeledGenerator.from_pretrained(tmp_path, device="cpu")
    assert loaded.fingerprint == made(254, max_uncertainty=0.1).fingerprint and loaded.recipe.max_uncertainty == 0.1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_ignore_fraction_out_of_range(unfiltered: LabeledGenerator, fraction: float) -> None:
    with pytest.raises(ValueError, match="ignore_fraction must be a number in"):
        calibrate(unfiltered, 40, ignore_fraction=fraction)


def test_the_command_draws_a_histogram_and_names_view_groups(
    unfiltered: LabeledGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfiltered.save_pretrained(tmp_path / "a")
    views = ["--set", "mixing_layer=2", "--set", "group_size=2"]
    assert main(["calibrate", *map(str, (tmp_path / "a", tmp_path / "b")), "--num-samples", "60", *views]) == 0
    assert "% of the groups of 2 views pass" in capsys.readouterr().out
    with Image.open(tmp_path / "b" / "calibration.png") as picture:
        assert picture.size == (720, 360)
    assert "calibration.png" in (tmp_path / "b" / "README.md").read_text()
