from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from dsgan_datasets import Recipe


def test_json_round_trip() -> None:
    recipe = Recipe(
        truncation_psi=(0.5, 0.7),
        crop=(8, 24),
        size=(32, 32),
        require=(1, 2),
        threshold=0.3,
        class_weights=(1, 2),
        mixing_layer=3,
        mixing_side="coarse",
        group_size=4,
    )
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("truncation_psi", float("nan")),
        ("truncation_psi", "1"),
        ("truncation_cutoff", -1),
        ("noise_mode", "random"),
        ("features", "all"),
        ("vote", "max"),
        ("dtype", "int8"),
        ("crop", (5, 5)),
        ("size", (0, 4)),
        ("size", (64, 10**6)),
        ("top_fraction", 0.0),
        ("compute_batch", 0),
        ("reject_fraction", 1.0),
        ("threshold", float("inf")),
        ("require", (-1,)),
        ("require", "beard"),
        ("require", {3: 20}),
        ("require", 3),
        ("size", "64"),
        ("size", (64.5, 64)),
        ("threshold", 10**400),
        ("min_area", 0),
        ("class_label", -1),
        ("truncation_psi", (0.9, 0.5)),
        ("truncation_psi", (0.5,)),
        ("truncation_psi", (0.5, 0.6, 0.7)),
        ("truncation_psi", (0.5, 3)),
        ("truncation_psi", (0.5, "x")),
        ("truncation_psi", None),
        ("truncation_psi", True),
        ("class_weights", ()),
        ("class_weights", (0, 0)),
        ("class_weights", (1, -1)),
        ("class_weights", (1, float("nan"))),
        ("class_weights", 3),
        ("mixing_layer", 0),
        ("mixing_layer", 1.5),
        ("mixing_side", "middle"),
        ("group_size", 0),
        ("group_size", 4),
        ("max_uncertainty", -0.1),
        ("max_uncertainty", float("nan")),
        ("max_uncertainty", "much"),
    ],
)
def test_bad_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_weights": (1, 2), "class_label": 0}, "class_weights must be .* with class_label=None"),
        (
            {"group_size": 9, "mixing_layer": 2},
            r"group_size must be 1, or with mixing_layer up to compute_batch \(8\), not 9",
        ),
    ],
)
def test_fields_that_exclude_each_other(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)  # type: ignore[arg-type]


def test_whole_numbers_and_lists_are_the_same_recipe() -> None:
    assert Recipe(truncation_psi=1).to_dict() == Recipe().to_dict()
    assert Recipe(truncation_psi=[1, 2], class_weights=[1, 2]) == Recipe(
        truncation_psi=(1.0, 2.0), class_weights=(1.0, 2.0)
    )  # type: ignore[arg-type]


CALIBRATED = Recipe(truncation_psi=0.7, reject_fraction=0.1, threshold=0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"truncation_psi": 0.5},
        {"truncation_psi": (0.7, 0.8)},
        {"vote": "mean"},
        {"crop": (0, 4)},
        {"reject_fraction": 0.2},
        {"mixing_layer": 1},
    ],
)
def test_a_change_that_moves_scores_drops_the_threshold(change: dict[str, object]) -> None:
    changed = CALIBRATED.override(**change)
    assert changed.threshold is None and changed.needs_calibration


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"truncation_psi": 0.7},
        {"truncation_psi": (0.7, 0.7)},
        {"mixing_side": "coarse"},
        {"compute_batch": 4},
        {"require": (1,)},
        {"min_area": 3},
        {"max_uncertainty": 0.1},
    ],
)
def test_other_changes_keep_it(change: dict[str, object]) -> None:
    assert CALIBRATED.override(**change).threshold == 0.2


def test_the_other_second_latent_moves_scores_where_there_is_one() -> None:
    mixed = CALIBRATED.override(mixing_layer=2, threshold=0.2)
    assert mixed.override(mixing_side="coarse").threshold is None
    assert mixed.override(mixing_side="fine").threshold == 0.2


def test_no_threshold_means_no_filter() -> None:
    open_recipe = CALIBRATED.override(truncation_psi=0.5, threshold=None)
    assert not open_recipe.needs_calibration and not open_recipe.is_filtered


def test_a_given_threshold_is_kept() -> None:
    assert CALIBRATED.override(truncation_psi=0.5, threshold=0.4).threshold == 0.4


def test_unknown_override_lists_the_fields() -> None:
    with pytest.raises(ValueError, match="truncation.*compute_batch.*psi"):
        Recipe().override(truncation=0.5)


def test_every_field_reaches_json() -> None:
    assert set(Recipe(max_uncertainty=0.5).to_dict()) == {f.name for f in dataclasses.fields(Recipe)}


def test_a_field_that_came_later_changes_no_fingerprint_until_it_is_used() -> None:
    """Checkpoints hold the SHA-256 of this form: a new field may only appear in it where it is used."""
    assert set(Recipe(max_uncertainty=0.5).to_dict()) - set(Recipe().to_dict()) == {"max_uncertainty"}
    assert Recipe.from_dict(Recipe().to_dict()) == Recipe()
    assert Recipe.from_dict(Recipe(max_uncertainty=0.5).to_dict()) == Recipe(max_uncertainty=0.5)


def test_numpy_numbers_and_arrays_are_numbers_and_lists() -> None:
    recipe = Recipe(
        truncation_psi=np.float32(0.5),  # type: ignore[arg-type]
        class_weights=np.array([1, 2.5], dtype=np.float32),  # type: ignore[arg-type]
        size=np.array([32, 16]),  # type: ignore[arg-type]
        require=(np.int64(2),),  # type: ignore[arg-type]
        min_area=np.uint8(3),  # type: ignore[arg-type]
        threshold=np.array(0.25),  # type: ignore[arg-type]
    )
    plain = Recipe(
        truncation_psi=0.5, class_weights=(1.0, 2.5), size=(32, 16), require=(2,), min_area=3, threshold=0.25
    )
    assert recipe == plain and json.dumps(recipe.to_dict()) == json.dumps(plain.to_dict())
    assert Recipe(truncation_psi=torch.tensor([0.5, 0.75])).truncation_psi == (0.5, 0.75)  # type: ignore[arg-type]
    assert Recipe(class_label=np.int64(3)).class_label == 3  # type: ignore[arg-type]
    assert Recipe(truncation_psi=[np.float32(0.5), 1]).truncation_psi == (0.5, 1.0)  # type: ignore[list-item, arg-type]


@pytest.mark.parametrize("value", [np.bool_(True), np.array("x"), np.array([[1, 2]]), np.float32("nan")])
def test_arrays_that_are_no_psi(value: object) -> None:
    with pytest.raises(ValueError, match="truncation_psi"):
        Recipe(truncation_psi=value)  # type: ignore[arg-type]


def test_psi_out_of_order_says_so() -> None:
    with pytest.raises(ValueError, match=r"two of them \(low, high\) with low <= high, not \(0.9, 0.5\)"):
        Recipe(truncation_psi=(0.9, 0.5))


def test_a_range_of_one_psi_is_that_psi() -> None:
    assert Recipe(truncation_psi=(0.7, 0.7)) == Recipe(truncation_psi=0.7)
