"""The ``dsgan:`` line of a data YAML -> a YAML with everything that Ultralytics wants of one.

    dsgan: {checkpoint: demo-faces}

Ultralytics reads the YAML again at the end of a training and when one is resumed, so the complete one is a file: it is
written to the folder of the run. Its ``dsgan`` has a mapping for each split.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics.utils import YAML

from dsgan_datasets.adapters.ultralytics.generated import VALIDATION_LENGTH, GeneratedSet
from dsgan_datasets.checkpoints import CheckpointError
from dsgan_datasets.checkpoints.directory import is_built_in
from dsgan_datasets.files import atomic_write, exists, is_file
from dsgan_datasets.latents import MAX_SEED
from dsgan_datasets.recipe import RecipeOverrides
from dsgan_datasets.shards import ShardError

_SPLITS = ("train", "val")


def completed(data: Any, folder: Path, task: str) -> str:
    """The path of the complete YAML; `data` itself if that names no generated images, or is complete.

    Args:
        data: what the user gave as ``data=``.
        folder: of the run; the complete YAML becomes ``data.yaml`` in it.
        task: of Ultralytics, such as "segment".

    Raises:
        ValueError: a ``dsgan`` that is wrong; the message names it and what is allowed.
    """
    path = Path(str(data))
    if path.suffix not in (".yaml", ".yml") or not is_file(path):
        return str(data)
    content = YAML.load(path)
    if not isinstance(content, Mapping) or "dsgan" not in content or _is_complete(content["dsgan"]):
        return str(data)
    node = content["dsgan"]
    if not isinstance(node, Mapping):
        raise ValueError(f"{path}: dsgan must be a mapping such as {{checkpoint: demo-faces}}, not {node!r:.80}")
    out = folder / "data.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_complete(path, content, dict(node), task), indent=1, ensure_ascii=False)  # JSON is YAML
    with atomic_write(out) as file:
        file.write(text.encode() + b"\n")
    return str(out)


def generated_set(data: Mapping[str, Any], split: str) -> tuple[GeneratedSet | None, bool]:
    """What a split of a complete YAML has: its generated samples (None: it has none), and whether it has files, too."""
    node = data.get("dsgan")
    if not isinstance(node, Mapping) or node.get(split) is None:
        return None, True
    return GeneratedSet(**node[split], task=node["task"]), split in node["files"]


def _is_complete(node: Any) -> bool:
    return isinstance(node, Mapping) and "files" in node


def _complete(path: Path, content: Mapping[str, Any], node: dict[str, Any], task: str) -> dict[str, Any]:
    """The complete YAML of one that a user wrote."""
    files = [split for split in _SPLITS if content.get(split)]
    own = node.pop("val", None)
    if own is not None and not isinstance(own, Mapping):
        raise ValueError(f"{path}: val in dsgan must be a mapping such as {{length: 500}}, not {own!r:.80}")
    if own is not None and "val" in files:
        raise ValueError(f"{path}: there are two validation sets, val and dsgan: val; leave one out")
    splits: dict[str, dict[str, Any] | None] = {"train": node, "val": None}
    if "val" not in files:
        splits["val"] = _validation(path, node, dict(own or {}))
    sets = {split: _set(path, split, entry, task) for split, entry in splits.items() if entry is not None}
    facts = {"names": list(sets["train"].annotator.names), **sets["train"].annotator.facts}
    _check_facts(path, content, facts)
    if "val" in sets and sets["val"].annotator.names != sets["train"].annotator.names:
        raise ValueError(
            f"{path}: dsgan: classes for validation are {list(sets['val'].annotator.names)}, those trained "
            f"{facts['names']}"
        )
    root = path.resolve().parent
    if content.get("path"):
        root = root / content["path"] if exists(root / content["path"]) else Path(content["path"])
    return {
        **content,
        "path": str(root),
        **{split: content.get(split) or "." for split in _SPLITS},
        **facts,
        "nc": len(facts["names"]),
        "dsgan": {**{split: _absolute(entry) for split, entry in splits.items()}, "files": files, "task": task},
    }


def _validation(path: Path, train: Mapping[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the validation set: those for training, with another seed and length."""
    if "shards" in own:
        return {**{key: value for key, value in train.items() if key in _OF_ANY_SOURCE}, **own}
    if "shards" in train:
        raise ValueError(
            f"{path}: samples for validation must not be those for training: name other shards "
            "(dsgan: {shards: …, val: {shards: …}}) or a folder of images (val: images/val)"
        )
    seed = train.get("seed", 0)
    other = {"seed": (seed + 1) % (MAX_SEED + 1)} if isinstance(seed, int) else {}
    return {**train, **other, "length": VALIDATION_LENGTH, **own}


_ARGUMENTS = [
    *(name for name in inspect.signature(GeneratedSet).parameters if name not in ("recipe", "task")),
    *sorted(RecipeOverrides.__annotations__),
]
_OF_ANY_SOURCE = ("things", "instances", "min_instance_area", "category", "classes", "merge")


def _set(path: Path, split: str, arguments: Mapping[str, Any], task: str) -> GeneratedSet:
    place, allowed = ("dsgan", ["val", *_ARGUMENTS]) if split == "train" else (f"{split} in dsgan", _ARGUMENTS)
    if unknown := sorted(str(key) for key in arguments if key not in _ARGUMENTS):
        raise ValueError(f"{path}: {place} has unknown keys {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    try:
        return GeneratedSet(**arguments, task=task)
    except (ValueError, CheckpointError, ShardError, OSError) as error:
        raise ValueError(f"{path}: dsgan ({split}): {error}") from error


def _check_facts(path: Path, content: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """ValueError unless all that the YAML says of the labels is what the samples have."""
    for key, value in {**ours, "nc": len(ours["names"]), "channels": 3}.items():
        given = content.get(key)
        if key == "names" and isinstance(given, Mapping):
            given = list(given.values())
        if given is not None and given != value:
            raise ValueError(
                f"{path}: {key} is {given!r:.200}, but that of the generated samples is {value}: leave {key} out, or "
                "choose and order the classes (dsgan: {classes: …, things: …, merge: …})"
            )


def _absolute(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The same with paths that hold in any folder: a training may be resumed from another one."""
    if arguments is None:
        return None

    def absolute(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [absolute(each) for each in value]
        local = isinstance(value, str) and os.path.exists(value) and not is_built_in(value)
        return os.path.abspath(value) if local else value

    return {**arguments, **{key: absolute(arguments[key]) for key in ("checkpoint", "shards") if key in arguments}}
