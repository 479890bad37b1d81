from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsgan_datasets import LabeledGenerator, calibrate
from dsgan_datasets.calibration import upper_quantile
from dsgan_datasets.filtering import FAILURE_PROBABILITY, Acceptance


@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_the_most_uncertain_are_rejected(unfiltered: LabeledGenerator, fraction: float) -> None:
    calibrated = calibrate(unfiltered, 200, reject_fraction=fraction)
    found = calibrated.calibration
    assert found is not None and found.acceptance == pytest.approx(1 - fraction, abs=0.006)
    scores = unfiltered.generate(range(400), seed=77).score
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
