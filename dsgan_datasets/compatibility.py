"""What a recipe may ask of a generator and its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsgan_datasets.generators.base import FeatureGenerator
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.targets.base import Target
from dsgan_datasets.targets.parts import index_of


def check_recipe(recipe: Recipe, generator: FeatureGenerator, targets: Sequence[Target]) -> None:
    """ValueError if the recipe asks for what this generator cannot give, or for classes that the targets lack."""
    frame = recipe.frame_size(generator.img_size)
    crop = recipe.rendering.crop
    if crop is not None and crop[1] > frame[0]:
        raise ValueError(f"crop {crop} reaches beyond the {frame[0]} rows of the frame")
    size = recipe.image_size(generator.img_size)
    rules = recipe.filter.rules if recipe.filter else ()
    for rule in rules:
        rule.check(targets, size)
    total = sum(getattr(rule, "min_area", 0) for rule in rules)
    if total > size[0] * size[1]:
        raise ValueError(
            f"the rules ask for {total} pixels, but an image has {size[0]}×{size[1]} = {size[0] * size[1]}: lower "
            "min_area"
        )
    sampling = recipe.sampling
    classes, weights = generator.c_dim, sampling.class_weights
    if weights is not None:
        if len(weights) != classes:
            raise ValueError(f"class_weights has {len(weights)} weights, the generator has {classes} classes")
    elif sampling.class_label not in (range(classes) if classes else (None,)):
        allowed = f"0 … {classes - 1}, or class_weights" if classes else "None: the generator is unconditional"
        way_out = f" (on the command line: --set class_label=0 … {classes - 1})" if classes else ""
        raise ValueError(f"class_label is {sampling.class_label}, allowed is {allowed}{way_out}")
    psi_differs = sampling.psi_range != (1, 1)
    if not generator.has_w_space and (psi_differs or sampling.mixing_layer is not None):
        raise ValueError(generator.without_average)
    if sampling.mixing_layer is not None and sampling.mixing_layer >= generator.num_ws:
        raise ValueError(
            f"mixing_layer is {sampling.mixing_layer}, this generator can mix at 1 … {generator.num_ws - 1}"
        )
    if generator.mean_w is None and psi_differs:
        raise ValueError(
            f"truncation_psi is {sampling.truncation_psi}, but the average w of this generator is not known: only 1 "
            "works"
        )


def check_uncertainty(recipe: Recipe, has_uncertainty: bool, others: Sequence[str] = ()) -> None:
    """ValueError if the recipe filters by an uncertainty that the source of labels does not have.

    Args:
        recipe: to check.
        has_uncertainty: of the first label.
        others: fields of further labels that have an uncertainty.
    """
    filter = recipe.filter
    if unknown := [score.field for score in (filter.scores if filter else ()) if score.field not in others]:
        raise ValueError(
            f"the recipe filters by the scores of {', '.join(unknown)}; the labels after the first one that have an "
            f"uncertainty are: {', '.join(others) or 'none'}"
        )
    filtered = filter is not None and (filter.reject_fraction > 0 or filter.threshold is not None)
    if not has_uncertainty and (filtered or recipe.labeling.max_uncertainty is not None):
        raise ValueError(
            "this source of labels does not know how certain it is: use reject_fraction=0, threshold=None and "
            "max_uncertainty=None; rules on the content (require, visible) work"
        )


def check_class_map(recipe: Recipe, predicted: int, named: int) -> None:
    """ValueError unless the classes that a labeler predicts, mapped as the recipe says, are those that are named."""
    class_map = recipe.labeling.class_map
    if class_map is None and predicted != named:
        raise ValueError(
            f"the labeler predicts {predicted} classes, the schema names {named}: name all of them, or merge some with "
            "LabeledGenerator.merge_classes"
        )
    if class_map is not None and (len(class_map) != predicted or max(class_map) >= named):
        raise ValueError(
            f"class_map must map the {predicted} classes of the labeler to 0 … {named - 1}, not {class_map}"
        )


#: Flat name of a rule -> field of the label whose parts it may name, and what a part is called.
_NAMED = {"require": ("mask", "class", "classes"), "visible": ("keypoints", "point", "points")}


def class_ids(overrides: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, Any]:
    """The overrides of a recipe with the names in `require` and `visible` replaced by ids of classes and points.

    Raises:
        ValueError: a name that no target has.
    """
    known = {target.field: target.tally_names for target in targets}
    replaced = dict(overrides)
    for rule, (field, part, parts) in _NAMED.items():
        given = [overrides[rule]] if isinstance(overrides.get(rule), str) else overrides.get(rule)
        if isinstance(given, Sequence | set | frozenset):
            if field not in known and any(isinstance(each, str) for each in given):
                raise ValueError(
                    f"{rule} names {parts}, and there are none: the labels of this source are {', '.join(known)}"
                )
            replaced[rule] = tuple(
                index_of(part, known.get(field, ()), each, parts) if isinstance(each, str) else each for each in given
            )
    return replaced
