"""config.json of earlier formats -> the current one, a step a version: plain JSON in, plain JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.checkpoints.tensors import fingerprint

FORMAT_VERSION = 2

_SAMPLING = {
    "psi": "truncation_psi",
    "cutoff": "truncation_cutoff",
    "class_label": "class_label",
    "class_weights": "class_weights",
    "mixing_layer": "mixing_layer",
    "second_latent": "mixing_side",
    "views": "group_size",
}
_RENDERING = ("noise_mode", "size", "crop", "dtype", "compute_batch")
_LABELING = {"ignore_js": "max_uncertainty", "vote": "vote", "top_fraction": "top_fraction"}
_FILTER = ("reject_fraction", "threshold", "require", "min_area")


def migrate(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config.json in the current format.

    Args:
        config: as read, of any format that this version knows.
        where: names the file in errors.

    Raises:
        CheckpointError: another format, or content that its format does not allow.
    """
    current = {name: value for name, value in config.items() if name != "migrated_from"}
    while (version := current.get("format_version")) != FORMAT_VERSION or isinstance(version, bool):
        if isinstance(version, bool) or not isinstance(version, int) or version not in _STEPS:
            newer = " It was written by a newer version." if type(version) is int and version > FORMAT_VERSION else ""
            raise CheckpointError(
                f"{where} has format_version {version!r:.40}; this version of dsgan_datasets reads "
                f"{min(_STEPS)} to {FORMAT_VERSION}.{newer}"
            )
        try:
            current = _STEPS[version](current, where)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{where}: {error!r:.200}") from error
    return current


def recipe_v1_to_v2(data: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a flat recipe of format 1; the class map was a part of the schema then.

    Args:
        data: recipe of a config.json or a manifest of format 1.
        schema: the schema beside it.

    Raises:
        ValueError: a field that format 1 did not have.
    """
    known = {*_SAMPLING, *_RENDERING, *_LABELING, *_FILTER, "features"}
    if unknown := sorted(set(data) - known):
        raise ValueError(f"recipe has unknown fields {unknown}: written by a newer version of dsgan_datasets?")
    rules = [{"rule": "area", "class_id": i, "min_area": data.get("min_area", 1)} for i in data.get("require", ())]
    chosen = {"reject_fraction": data.get("reject_fraction", 0.0), "threshold": data.get("threshold"), "rules": rules}
    return {
        "sampling": {new: data[old] for old, new in _SAMPLING.items() if old in data},
        "rendering": {name: data[name] for name in _RENDERING if name in data},
        "labeling": {
            "class_map": schema.get("class_map"),
            **{new: data[old] for old, new in _LABELING.items() if old in data},
        },
        "filter": None if chosen == {"reject_fraction": 0.0, "threshold": None, "rules": []} else chosen,
    }


def schema_v1_to_v2(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The segmentation target of a schema of format 1."""
    target = {name: value for name, value in schema.items() if name != "class_map"}
    return {"kind": "segmentation", "field": "mask", **target}


def _from_1(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Format 1 had one interpreter, one schema, a flat recipe and the threshold twice."""
    taken = {"generator", "interpreter", "schema", "recipe", "weights", "calibration", "source", "fingerprint"}
    rest = {name: value for name, value in config.items() if name not in taken}
    result: dict[str, Any] = {
        **rest,
        "format_version": 2,
        "migrated_from": 1,
        "provenance": config.get("source"),
    }
    weights = _section(config, "weights", where) if "weights" in config else {}
    if "generator" in config:
        result["parts"] = {
            "generator": {"config": _section(config, "generator", where), "sha256": weights.get("generator")}
        }
    if "interpreter" not in config and "recipe" not in config:
        return result
    generator, interpreter, schema, recipe = (
        _section(config, name, where) for name in ("generator", "interpreter", "schema", "recipe")
    )
    _section(config, "weights", where)
    classes: object = schema.get("class_map")
    if recipe.get("ignore_js") is not None:
        classes = {"class_map": schema.get("class_map"), "ignore_index": schema.get("ignore_index", 255)}
    found = fingerprint(weights, generator, interpreter, classes, recipe)
    if (expected := str(config.get("fingerprint"))) != found:
        raise CheckpointError(changed(where, expected, found))
    calibration = None
    if config.get("calibration"):
        calibration = _section(config, "calibration", where)
        if calibration.pop("threshold", None) != recipe.get("threshold"):
            raise CheckpointError(f"{where}: calibration and recipe have different thresholds")
        calibration.pop("reject_fraction", None)
    # The channels of each map were not recorded, only their sum.
    reads = {"layout": recipe.get("features", "convs"), "channels": [interpreter.pop("in_channels")]}
    result["parts"]["interpreter"] = {
        "config": {**interpreter, **reads},
        "sha256": weights.get("interpreter"),
    }
    return {
        **result,
        "labeler": "interpreted",
        "targets": [schema_v1_to_v2(schema)],
        "recipe": recipe_v1_to_v2(recipe, schema),
        "calibration": calibration,
    }


def changed(where: str, expected: str, found: str, what: str = "fingerprint") -> str:
    """What to say of a config.json whose fingerprint is not that of its content."""
    return (
        f"{where} was changed or damaged: it says {what} {expected[:16]}…, but its content gives {found[:16]}…. "
        "Copy the checkpoint again; a recipe is changed with options (--truncation-psi 0.9, truncation_psi=0.9), not "
        "in the file"
    )


def _section(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = config.get(name)
    if found is None:
        raise CheckpointError(f"{where} has no section {name!r}")
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: {name!r} must be an object of settings, not {found!r:.60}")
    return dict(found)


_STEPS: dict[int, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {1: _from_1}
