"""Arguments of a wrong kind: each is refused by name, before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sources import NumberSource

from dsgan_datasets import (
    CheckpointError,
    DSGANDataset,
    DSGANIterableDataset,
    InterpretedLabeler,
    LabeledGenerator,
    LabelSchema,
    Recipe,
    Rendering,
    ShardDataset,
    load_generator,
    sample_latents,
    verify_shards,
    write_shards,
)
from dsgan_datasets.calibration import check_shares
from dsgan_datasets.sources.local import CheckpointSource
from dsgan_datasets.transforms import RandomHorizontalFlip

Build = Callable[[Any], Any]
LABELED = cache(lambda: LabeledGenerator.from_pretrained("demo-faces", device="cpu"))

#: What an argument is not: name in the message, how it is passed, values.
WRONG: dict[str, tuple[Build, tuple[Any, ...]]] = {
    "seed": (
        lambda seed: DSGANIterableDataset(NumberSource(), seed=seed),
        (torch.tensor(3.5), torch.tensor(True), np.array([]), np.bool_(True), 1.0, None),
    ),
    "length": (lambda length: DSGANDataset(NumberSource(), length), (torch.tensor(True), torch.tensor(2.0))),
    "extras": (lambda extras: DSGANIterableDataset(NumberSource(), extras=extras), (None, 3, [1], b"x", "latent")),
    "same_epoch": (lambda same: DSGANIterableDataset(NumberSource(), same_epoch=same), ("no", None, 2, torch.ones(2))),
    "split_by_rank": (
        lambda split: DSGANIterableDataset(NumberSource(), split_by_rank=split),
        (0, 0.0, "no", torch.ones(2)),
    ),
    "sampling": (lambda section: Recipe(sampling=section), (Rendering(), {}, "x", torch.ones(2), False)),
    "filter": (lambda section: Recipe(filter=section), (-1, "none", Rendering())),
    "class_weights": (lambda weights: Recipe(class_weights=weights), ({3, 1}, b"31", {0: 1.0})),
    "class names": (LabelSchema, ("face", None, [1, 2])),
    "flip_pairs": (lambda pairs: LabelSchema(("a", "b"), flip_pairs=pairs), (None, 1, [(0, 1.5)], [1], ["ab"])),
    "p ": (lambda p: RandomHorizontalFlip(LabelSchema(("a", "b")), p=p), (float("nan"), "0.5", None, 2)),
    "targets": (RandomHorizontalFlip, (None, "mask", [0])),
    "groups": (LabelSchema(("a", "b")).merge, (None, ["a"], {1: ["a"]})),
    "folder of shards": (ShardDataset, (None, 3, [1], b"x", {}, torch.tensor(1))),
    "folder": (verify_shards, (None, ["faces"], 1)),
    "LabeledGenerator": (lambda labeled: write_shards(labeled, "never-made", range(2)), (None, "demo-faces")),
    "device": (lambda device: CheckpointSource("demo-faces", device=device), (1.5, "x", [1], -1, torch.float16)),
    "ignore_fraction": (lambda share: check_shares(0.1, share), ("x", [1], float("nan"), 1.0)),
    "generator must": (lambda part: InterpretedLabeler(part, LABELED().interpreter, []), (None, "x")),
    "interpreter must": (lambda part: InterpretedLabeler(LABELED().generator, part, []), (None, "x")),
    "targets must": (
        lambda targets: InterpretedLabeler(LABELED().generator, LABELED().interpreter, targets),
        (None, "x", [1], LabelSchema(("a", "b"))),
    ),
    "group eye": (lambda members: LabelSchema(("a", "b")).merge({"eye": members}), (None, [0], 3)),
}


def cases() -> Iterator[Any]:
    for name, (build, values) in WRONG.items():
        for value in values:
            yield pytest.param(name, build, value, id=f"{name.strip()}-{value!r}")


@pytest.mark.parametrize(("name", "build", "value"), list(cases()))
def test_a_wrong_argument_is_refused_by_name(name: str, build: Build, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        build(value)


@pytest.mark.parametrize("index", [torch.tensor(3.5), torch.tensor(True), np.array([]), 1.5, "x", None], ids=repr)
def test_what_is_not_an_integer_names_no_sample(index: Any) -> None:
    with pytest.raises(TypeError, match="indices must be integers"):
        sample_latents([index], 2, seed=0)
    if not isinstance(index, torch.Tensor) or index.dtype != torch.bool:
        with pytest.raises(TypeError, match="an index must be an integer"):
            DSGANDataset(NumberSource(), 4)[index]


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    dataset = DSGANIterableDataset(
        NumberSource(), seed=np.uint64(2**64 - 1), length=torch.tensor(4), same_epoch=np.bool_(True)
    )
    assert (dataset.seed, dataset.length, dataset.same_epoch) == (2**64 - 1, 4, True)
    assert DSGANIterableDataset(NumberSource(), split_by_rank=np.bool_(False)).split_by_rank is False
    assert torch.equal(sample_latents([np.int64(3), torch.tensor(4)], 2, seed=0), sample_latents([3, 4], 2, seed=0))


def test_parts_of_a_labeled_generator_are_what_they_must_be() -> None:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    with pytest.raises(ValueError, match="expected a labeler and a Recipe.*StyleGAN2"):
        LabeledGenerator(labeled.generator, labeled.recipe)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a labeler and a Recipe.*dict"):
        LabeledGenerator(labeled.labeler, {})  # type: ignore[arg-type]
    for attempts in (-1, 2**63, 1.5, None):
        with pytest.raises(ValueError, match="attempts"):
            next(labeled.stream([0], attempts=[attempts]))  # type: ignore[list-item]


@pytest.mark.parametrize("device", [torch.float64, "float16", -1, 1.5, "nonsense"], ids=repr)
def test_a_labeled_generator_moves_to_devices_only(device: Any) -> None:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    before = labeled.generate([0]).image
    with pytest.raises(ValueError, match="device"):
        labeled.to(device)
    assert torch.equal(labeled.generate([0]).image, before)


@pytest.mark.parametrize("name", [None, b"demo-faces", 3])
def test_what_names_no_checkpoint_is_refused(name: Any) -> None:
    with pytest.raises(CheckpointError, match="expected a path or a name"):
        load_generator(name)


def test_a_recipe_is_read_from_an_object_only() -> None:
    for data in (None, [], "sampling"):
        with pytest.raises(ValueError, match="must be an object"):
            Recipe.from_dict(data)  # type: ignore[arg-type]
