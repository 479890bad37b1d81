"""Fitting: pixels are read where they are, members differ, and a known rule is learned."""

from __future__ import annotations

import dataclasses
import functools
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsgan_datasets import AnnotatedImages, LabeledGenerator, LabelSchema, Recipe, fit_interpreter
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.fitting.evaluation import evaluate
from dsgan_datasets.fitting.pixel_ensemble import MemberNorm, PixelTrainer
from dsgan_datasets.fitting.pixels import gather_features, moments
from dsgan_datasets.fitting.settings import FitSettings
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters.base import Frame
from dsgan_datasets.interpreters.loading import BATCH_NORM_EPS
from dsgan_datasets.latents import Purpose, sample_latents

SCHEMA = LabelSchema(("dark", "middle", "bright"))
RECIPE = Recipe(truncation_psi=0.9)


def annotated(labeled: LabeledGenerator, indices: range) -> AnnotatedImages:
    """Classes by the value of one channel of the finest map: a rule that the features know."""
    latents = sample_latents(indices, 32, seed=0, purpose=Purpose.ANNOTATION)
    _, features = synthesize(labeled.generator, RECIPE, latents)
    channel = features[-1][:, 0]
    return AnnotatedImages(latents, (channel > -0.1).long() + (channel > 0.5).long())


def test_gathered_features_are_those_of_the_resized_maps() -> None:
    maps = [torch.randn(1, 3, 4, 4), torch.randn(1, 2, 16, 16), torch.randn(1, 2, 40, 40)]
    size = (18, 23)
    rows, columns = torch.meshgrid(torch.arange(18), torch.arange(23), indexing="ij")
    got = gather_features(maps, rows.flatten(), columns.flatten(), size)
    expected = torch.cat([F.interpolate(f, size=size, mode="bilinear") for f in maps], 1)[0].flatten(1).t()
    assert torch.allclose(got, expected, atol=2e-5)


@pytest.mark.slow
def test_a_known_rule_is_learned(unfiltered: LabeledGenerator) -> None:
    ensemble = fit_interpreter(
        unfiltered.generator, annotated(unfiltered, range(12)), SCHEMA, recipe=RECIPE, members=3, steps=300
    )
    held_out = annotated(unfiltered, range(100, 120))
    _, features = synthesize(unfiltered.generator, RECIPE, held_out.latents)
    predicted = ensemble.predict(features, Frame((16, 16))).labels["mask"]
    accuracy = (predicted == held_out.masks).double().mean()
    majority = held_out.masks.flatten().bincount().max() / held_out.masks.numel()
    assert accuracy > majority + 0.25
    assert not torch.equal(ensemble.w2[0], ensemble.w2[1])
    assert (ensemble.layout, list(ensemble.channels)) == (
        unfiltered.generator.features,
        unfiltered.generator.feature_channels,
    )


def test_same_seed_same_interpreter(unfiltered: LabeledGenerator) -> None:
    def fit(seed: int) -> torch.Tensor:
        return fit_interpreter(
            unfiltered.generator, annotated(unfiltered, range(2)), SCHEMA, recipe=RECIPE, members=2, steps=5, seed=seed
        ).w1

    torch.manual_seed(1)
    first = fit(0)
    torch.manual_seed(2)
    assert torch.equal(first, fit(0)) and not torch.equal(first, fit(1))


def test_ignored_pixels_and_crop(unfiltered: LabeledGenerator) -> None:
    """Half of the pixels carry wrong labels but are ignored; rows are those of the crop."""
    recipe = Recipe(truncation_psi=0.9, crop=(4, 12))
    plain = annotated(unfiltered, range(6))
    masks = plain.masks[:, 4:12].clone()
    masks[:, :, 8:] = 255
    ensemble = fit_interpreter(
        unfiltered.generator, AnnotatedImages(plain.latents, masks), SCHEMA, recipe=recipe, members=2, steps=200
    )
    _, features = synthesize(unfiltered.generator, recipe, plain.latents)
    predicted = ensemble.predict(features, Frame((16, 16), (4, 12))).labels["mask"]
    assert (predicted == plain.masks[:, 4:12])[:, :, :8].double().mean() > 0.9


def test_hidden_sizes_follow_the_number_of_classes(unfiltered: LabeledGenerator) -> None:
    latents = sample_latents(range(1), 32, seed=0)
    masks = torch.arange(256).view(1, 16, 16)
    for classes, hidden in ((31, [128, 32]), (32, [256, 128])):
        schema = LabelSchema(tuple(f"c{i}" for i in range(classes)))
        data = AnnotatedImages(latents, masks % classes)
        ensemble = fit_interpreter(unfiltered.generator, data, schema, members=1, steps=1)
        assert ensemble.config["hidden"] == hidden and ensemble.num_classes == classes


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.full((1, 16, 16), 3), r"annotated image 0: a mask holds class id 3, the schema has the ids 0-2"),
        (torch.full((1, 16, 16), 255), "nothing to learn from"),
        (
            torch.zeros(1, 8, 16, dtype=torch.int64),
            r"image 0: a mask is int64 \[16, 16\], got int64 \[8, 16\]",
        ),
    ],
)
def test_masks_that_do_not_fit(unfiltered: LabeledGenerator, masks: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_interpreter(unfiltered.generator, AnnotatedImages(torch.zeros(1, 32), masks), SCHEMA, steps=1)


def test_latents_that_do_not_fit(unfiltered: LabeledGenerator) -> None:
    with pytest.raises(ValueError, match="latents have 31 numbers"):
        fit_interpreter(
            unfiltered.generator, AnnotatedImages(torch.zeros(1, 31), torch.zeros(1, 16, 16, dtype=torch.int64)), SCHEMA
        )
    with pytest.raises(ValueError, match="latents must be"):
        AnnotatedImages(torch.zeros(2, 32), torch.zeros(1, 16, 16, dtype=torch.int64))


@pytest.mark.parametrize("masks", [torch.zeros(1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.bool)])
def test_masks_of_the_wrong_type(masks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="integer class ids"):
        AnnotatedImages(torch.zeros(1, 32), masks)


def test_masks_of_any_integer_type_and_latents_that_are_numbers() -> None:
    assert AnnotatedImages(torch.zeros(1, 32), torch.zeros(1, 4, 4, dtype=torch.uint8)).masks.dtype == torch.int64
    assert AnnotatedImages(torch.zeros(1, 32), torch.zeros(1, 4, 4).numpy().astype("int32")).masks.dtype == torch.int64  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN or infinity"):
        AnnotatedImages(torch.full((1, 32), float("nan")), torch.zeros(1, 4, 4, dtype=torch.int64))


def test_settings_are_given_whole_or_by_name(unfiltered: LabeledGenerator) -> None:
    data, fit = annotated(unfiltered, range(2)), functools.partial(fit_interpreter, unfiltered.generator)
    whole = fit(data, SCHEMA, recipe=RECIPE, settings=FitSettings(members=2, steps=5, seed=3))
    by_name = fit(data, SCHEMA, recipe=RECIPE, members=2, steps=5, seed=3)
    mixed = fit(data, SCHEMA, recipe=RECIPE, settings=FitSettings(members=9, steps=5, seed=3), members=2)
    assert torch.equal(whole.w1, by_name.w1) and torch.equal(whole.w1, mixed.w1)
    with pytest.raises(TypeError, match="epochs"):
        fit(data, SCHEMA, recipe=RECIPE, epochs=5)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"members": 0},
        {"batch_pixels": 1},
        {"pixels_per_image": -1},
        {"hidden": (5,)},
        {"class_balance": float("nan")},
        {"dtype": "float16"},
    ],
)
def test_arguments_out_of_range_are_named(unfiltered: LabeledGenerator, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        fit_interpreter(unfiltered.generator, annotated(unfiltered, range(1)), SCHEMA, recipe=RECIPE, **change)  # type: ignore[arg-type]


def test_a_single_usable_pixel_gives_numbers(unfiltered: LabeledGenerator) -> None:
    masks = torch.full((1, 16, 16), 255)
    masks[0, 3, 3] = 1
    data = AnnotatedImages(sample_latents(range(1), 32, seed=0), masks)
    ensemble = fit_interpreter(unfiltered.generator, data, SCHEMA, recipe=RECIPE, members=1, steps=2)
    assert all(bool(t.isfinite().all()) for t in ensemble.state_dict().values())


def test_standardizing_folds_into_the_first_layer(unfiltered: LabeledGenerator) -> None:
    """The ensemble reads plain features: what the network saw in training gives the same logits."""
    data = annotated(unfiltered, range(4))
    settings = FitSettings(members=2, steps=30, pixels_per_image=256, dtype="float32", standardize=True)
    trainer = PixelTrainer.of(unfiltered.generator, data, SCHEMA, RECIPE, settings)
    pixels = trainer.pixels
    mean, std = moments(pixels.features, torch.arange(len(pixels.image)))
    assert torch.allclose(mean, pixels.features.mean(0), atol=1e-5)
    assert torch.allclose(std, pixels.features.std(0, correction=0), rtol=1e-4)
    shifted = dataclasses.replace(pixels, features=(pixels.features - mean) / std)

    def trained(**changes: Any) -> Any:
        return dataclasses.replace(trainer, random=torch.Generator().manual_seed(3), **changes).train()

    plain = trained()
    by_hand = trained(pixels=shifted, settings=dataclasses.replace(settings, standardize=False))
    dead = pixels.features.clone()
    dead[:, 0] = 5.0
    _, kept = moments(dead, torch.arange(len(dead)))
    assert float(kept[0]) == pytest.approx(0.01 * float(kept.median())) and torch.equal(kept[1:], std[1:])
    hidden = torch.einsum("pc,cmh->pmh", pixels.features, plain.w1) + plain.b1
    expected = torch.einsum("pc,cmh->pmh", shifted.features, by_hand.w1) + by_hand.b1
    assert torch.allclose(hidden, expected, atol=1e-3)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_frequencies_that_drawing_changed_are_taken_back(unfiltered: LabeledGenerator, balance: float) -> None:
    """Pixels of frequency p are drawn with weight p ** -balance: the logit of their class rises by -balance · log p."""
    data = annotated(unfiltered, range(2))
    fit = functools.partial(fit_interpreter, unfiltered.generator, data, SCHEMA, recipe=RECIPE, members=2, steps=2)
    biases = [fit(class_balance=balance, prior=prior).b3 for prior in (0.0, 0.5, 1.0)]
    frequency = data.masks.flatten().bincount(minlength=3) / data.masks.numel()
    for share, bias in zip((0.5, 1.0), biases[1:], strict=True):
        taken = bias - biases[0]
        torch.testing.assert_close(taken, (share * balance * frequency.log()).expand(2, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(unfiltered: LabeledGenerator) -> None:
    data, held_out = annotated(unfiltered, range(8)), annotated(unfiltered, range(100, 110))
    accuracy = {}
    for dtype in ("float32", "bfloat16"):
        ensemble = fit_interpreter(
            unfiltered.generator,
            data,
            SCHEMA,
            recipe=RECIPE,
            members=3,
            steps=200,
            dtype=dtype,  # type: ignore[arg-type]
        )
        accuracy[dtype] = evaluate(unfiltered.generator, ensemble, held_out, recipe=RECIPE).pixel_accuracy
    majority = held_out.masks.flatten().bincount().max().item() / held_out.masks.numel()
    assert accuracy["bfloat16"] == pytest.approx(accuracy["float32"], abs=0.03)
    assert accuracy["float32"] > majority + 0.15


def test_normalization_is_that_of_pytorch() -> None:
    x = torch.randn(2, 7, 3)
    ours, theirs = MemberNorm(2, 3), torch.nn.BatchNorm1d(6, eps=BATCH_NORM_EPS)
    expected = theirs(x.transpose(0, 1).flatten(1)).unflatten(1, (2, 3)).transpose(0, 1)
    assert torch.allclose(ours(x), expected, atol=1e-5)
    assert torch.allclose(ours.running_mean.flatten(), theirs.running_mean, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(ours.running_var.flatten(), theirs.running_var, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_nothing(unfiltered: LabeledGenerator, dtype: str, one_thread: None) -> None:
    def fit(threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        data = annotated(unfiltered, range(2))
        settings: dict[str, Any] = {"members": 3, "steps": 5, "dtype": dtype}
        return fit_interpreter(unfiltered.generator, data, SCHEMA, recipe=RECIPE, **settings).w1

    assert torch.equal(fit(1), fit(2)) and torch.equal(fit(1), fit(3))


def test_whether_the_cpu_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    if (flags := Path("/proc/cpuinfo")).is_file() and platform.machine() == "x86_64":
        assert has_fast_bfloat16(cpu) == ("avx512_bf16" in flags.read_text().split())
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)  # it is private and may go
    assert not has_fast_bfloat16(cpu) and not has_fast_bfloat16(torch.device("meta"))
