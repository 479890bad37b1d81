from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from dsgan_datasets import AreaRule, Filter, Labeling, Recipe, Rendering, Sampling


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
        ({"group_size": 2}, "group_size must be 1 without mixing_layer"),
        (
            {"group_size": 9, "mixing_layer": 2},
            r"group_size must be up to compute_batch \(8\), not 9",
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


def test_a_reject_fraction_of_zero_means_no_filter_by_uncertainty() -> None:
    open_recipe = CALIBRATED.override(truncation_psi=0.5, reject_fraction=0)
    assert not open_recipe.needs_calibration and not open_recipe.is_filtered and open_recipe.filter is None
    ruled = CALIBRATED.override(require=(1,)).override(reject_fraction=0)
    assert ruled.require == (1,) and ruled.threshold is None
    assert CALIBRATED.override(require=(1,)).override(filter=None).filter is None


def test_no_threshold_meant_the_same_and_says_so() -> None:
    with pytest.warns(DeprecationWarning, match="threshold=None is deprecated .* version 0.4: use reject_fraction=0"):
        assert CALIBRATED.override(threshold=None) == CALIBRATED.override(reject_fraction=0)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("psi", "truncation_psi", 0.5),
        ("cutoff", "truncation_cutoff", 3),
        ("second_latent", "mixing_side", "coarse"),
        ("ignore_js", "max_uncertainty", 0.1),
    ],
)
def test_old_names_work_and_name_the_new_one(old: str, new: str, value: object) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated .*use {new}"):
        recipe = Recipe(**{old: value})
    assert recipe == Recipe(**{new: value})
    with pytest.warns(DeprecationWarning, match=f"Recipe.{new}"):
        assert getattr(recipe, old) == value
    with pytest.raises(TypeError, match=f"{new} was given twice"):
        Recipe(**{old: value, new: value})


def test_sections_and_flat_names_are_one_recipe() -> None:
    flat = Recipe(truncation_psi=0.5, size=(8, 8), vote="mean", reject_fraction=0.1, require=(2, 1), min_area=3)
    sections = Recipe(
        Sampling(truncation_psi=0.5),
        Rendering(size=(8, 8)),
        Labeling(vote="mean"),
        Filter(reject_fraction=0.1, rules=(AreaRule(2, 3), AreaRule(1, 3))),
    )
    assert flat == sections and hash(flat) == hash(sections)
    assert (flat.truncation_psi, flat.size, flat.vote, flat.require, flat.min_area) == (0.5, (8, 8), "mean", (2, 1), 3)


def test_a_given_threshold_is_kept() -> None:
    assert CALIBRATED.override(truncation_psi=0.5, threshold=0.4).threshold == 0.4


def test_unknown_override_lists_the_fields() -> None:
    with pytest.raises(ValueError, match="truncation.*compute_batch.*psi"):
        Recipe().override(truncation=0.5)


def test_every_field_reaches_json() -> None:
    for section in (Sampling(), Rendering(), Labeling()):
        assert set(Recipe().to_dict()[section.section]) == {f.name for f in dataclasses.fields(section)}
    assert Recipe().to_dict()["filter"] is None
    assert set(Recipe(reject_fraction=0.1).to_dict()["filter"]) == {f.name for f in dataclasses.fields(Filter)}


def test_a_field_decides_nothing_until_it_is_used() -> None:
    """Fingerprints hash this: a field with its default must not appear, so that one may be added later."""
    assert Recipe().decisions() == {"sampling": {}, "rendering": {}, "labeling": {}, "filter": {}}
    used = Recipe(max_uncertainty=0.5, truncation_psi=0.7, require=[1]).decisions()
    assert used == {
        "sampling": {"truncation_psi": 0.7},
        "rendering": {},
        "labeling": {"max_uncertainty": 0.5},
        "filter": {"rules": [{"rule": "area", "class_id": 1, "min_area": 1}]},
    }


def test_json_without_a_field_has_the_default_of_its_format() -> None:
    assert Recipe.from_dict({}) == Recipe()
    assert Recipe.from_dict({"sampling": {"truncation_psi": 0.5}}) == Recipe(truncation_psi=0.5)
    with pytest.raises(ValueError, match=r"section sampling of the recipe has unknown fields \['lens'\]"):
        Recipe.from_dict({"sampling": {"lens": 1}})
    with pytest.raises(ValueError, match=r"unknown sections \['optics'\]"):
        Recipe.from_dict({"optics": {}})


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
