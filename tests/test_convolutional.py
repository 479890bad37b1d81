"""The convolutional interpreter: its arithmetic, its guarantees, its file, and its fitting on a handful of images."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from fake_gpu import FakeCuda, Operations, fake_tensors, to_fake_gpu
from test_without_gpu import switched
from torch import Tensor

from dsgan_datasets import (
    AnnotatedImages,
    InterpretedLabeler,
    LabeledGenerator,
    LabelSchema,
    Recipe,
    fit_interpreter,
    load_generator,
)
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.device import has_fast_bfloat16
from dsgan_datasets.fitting import ConvolutionalSettings, FitSettings, cross_validate, evaluate
from dsgan_datasets.fitting.evaluation import hold_out
from dsgan_datasets.fitting.regions import Region, Span
from dsgan_datasets.fitting.trainers import trainer_for
from dsgan_datasets.generators import FeatureGenerator
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.interpreters import ConvolutionalInterpreter, fusion, load_interpreter
from dsgan_datasets.interpreters.base import Frame, LabelingOptions
from dsgan_datasets.interpreters.loading import build_interpreter
from dsgan_datasets.latents import Purpose, sample_latents
from dsgan_datasets.uncertainty import image_score, js_divergence

pytestmark = pytest.mark.usefixtures("one_thread")

#: (channels, rows, columns) of the maps: two of one size, and none a multiple of the one before.
MAPS = [(7, 4, 4), (5, 8, 6), (6, 8, 6), (3, 17, 12)]
LEVELS = (1, 2, 1)
FRAME = Frame((20, 13), (2, 18))
SCHEMA = LabelSchema(("dark", "middle", "bright"))
RECIPE = Recipe(truncation_psi=0.9)
QUICK = ConvolutionalSettings(
    members=2, width=8, max_steps=24, tries=2, learning_rate=1e-2, channel_dropout=0.0, noise=0.0
)


@pytest.fixture
def old_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch, capability=(7, 5))


def interpreter(members: int = 3, classes: int = 5, convolutions: int = 2) -> ConvolutionalInterpreter:
    """Random networks whose activations and logits are of the order of one."""
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def normal(*shape: int) -> Tensor:
        fan_in = math.prod(shape[-3:] if shape[-1] == 3 else shape[-1:])
        return torch.randn(shape, generator=random) / fan_in**0.5

    below = 0
    for i, (width, channels) in enumerate(((8, 7), (6, 11), (4, 3))):
        tensors |= {f"project_{i}": normal(members, width, channels), f"bias_{i}": normal(members, width)}
        tensors |= {f"mix_{i}": normal(convolutions, members, width, width, 3, 3)}
        tensors |= {f"mix_bias_{i}": normal(convolutions, members, width)}
        if i:
            tensors[f"carry_{i}"] = normal(members, width, below)
        below = width
    tensors |= {"head": 4 * normal(members, classes, below), "head_bias": normal(members, classes)}
    return ConvolutionalInterpreter(tensors, layout="convs", channels=[c for c, _, _ in MAPS], levels=LEVELS)


def maps(count: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(count, *shape, generator=random) for shape in MAPS]


def written_out(network: ConvolutionalInterpreter, features: list[Tensor], frame: Frame) -> Tensor:
    """Logits [M, N, K, H, W] in float64, member by member, resizing before the 1×1 convolutions."""
    t = {name: tensor.double() for name, tensor in network.state_dict().items()}
    levels = [features[0], torch.cat(features[1:3], 1), features[3]]
    members = []
    for m in range(network.num_members):
        x = None
        for i, level in enumerate(levels):
            pre = torch.einsum("oc,nchw->nohw", t[f"project_{i}"][m], level.double()) + t[f"bias_{i}"][m, :, None, None]
            if x is not None:
                up = F.interpolate(x, size=level.shape[2:], mode="bilinear", align_corners=False)
                pre = pre + torch.einsum("oc,nchw->nohw", t[f"carry_{i}"][m], up)
            x = pre.relu()
            for mix, bias in zip(t[f"mix_{i}"], t[f"mix_bias_{i}"], strict=True):
                x = (x + F.conv2d(x, mix[m], bias[m], padding=1)).relu()
        assert x is not None
        out = torch.einsum("oc,nchw->nohw", t["head"][m], x) + t["head_bias"][m, :, None, None]
        members.append(F.interpolate(out, size=frame.size, mode="bilinear", align_corners=False))
    return torch.stack(members)[..., slice(*frame.kept), :]


# Labels


def test_it_computes_what_is_written_out() -> None:
    network, features = interpreter(), maps()
    expected = written_out(network, features, FRAME)
    torch.testing.assert_close(network.logits(features, FRAME).double(), expected, atol=1e-5, rtol=1e-5)
    found = network.predict(features, FRAME, LabelingOptions("mean", 0.2, probabilities=True))
    p = expected.softmax(2)
    assert (found.labels["mask"] != p.mean(0).argmax(1)).double().mean() <= 0.002  # near ties
    uncertainty = js_divergence(p)
    torch.testing.assert_close(found.uncertainty, uncertainty.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.uncertainty_score, image_score(uncertainty, 0.2).float(), atol=1e-5, rtol=1e-4)
    assert found.probabilities is not None and found.probabilities.dtype == torch.float16
    torch.testing.assert_close(found.probabilities.double(), p.mean(0), atol=1e-3, rtol=1e-3)


def test_members_vote() -> None:
    network, features = interpreter(members=5), maps()
    votes = F.one_hot(written_out(network, features, FRAME).argmax(2), 5).sum(0)
    mask = network.predict(features, FRAME, LabelingOptions("majority")).labels["mask"]
    assert (mask != votes.argmax(-1)).double().mean() <= 0.002


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_sample_is_the_same_in_any_company(dtype: torch.dtype, threads: int) -> None:
    network, features = interpreter(), [f.to(dtype) for f in maps(4)]
    expected = network.predict(features, FRAME)
    torch.set_num_threads(threads)
    for rows in (slice(2, 3), slice(1, 4)):
        alone = network.predict([f[rows] for f in features], FRAME)
        for name in ("uncertainty", "uncertainty_score"):
            assert torch.equal(getattr(alone, name), getattr(expected, name)[rows])
        assert torch.equal(alone.labels["mask"], expected.labels["mask"][rows])


def test_asking_for_probabilities_changes_nothing_else() -> None:
    network, features = interpreter(), maps()
    plain, more = (
        network.predict(features, FRAME),
        network.predict(features, FRAME, LabelingOptions(probabilities=True)),
    )
    assert plain.probabilities is None and more.probabilities is not None
    assert torch.equal(plain.uncertainty, more.uncertainty) and torch.equal(plain.labels["mask"], more.labels["mask"])


def test_half_precision_is_near() -> None:
    network, features = interpreter(), maps()
    exact = network.predict(features, FRAME)
    half = network.predict([f.bfloat16() for f in features], FRAME)
    assert (half.labels["mask"] != exact.labels["mask"]).double().mean() < 0.03
    changed = not torch.equal(half.uncertainty, exact.uncertainty)
    assert changed, "features lost digits"
    if has_fast_bfloat16(torch.device("cpu")):
        rounded = network.predict([f.bfloat16().float() for f in features], FRAME)
        assert not torch.equal(half.uncertainty, rounded.uncertainty), "computed in float32"


def test_a_crop_is_a_part_of_the_frame() -> None:
    network, features = interpreter(), maps()
    whole = network.predict(features, Frame(FRAME.size)).labels["mask"]
    assert torch.equal(network.predict(features, FRAME).labels["mask"], whole[:, 2:18])


@pytest.mark.parametrize(
    ("changed", "frame", "message"),
    [
        ({0: (6, 4, 4)}, FRAME, "was fitted on maps of"),
        ({1: (5, 8, 7)}, FRAME, "maps 1 to 2 must be of one size"),
        ({}, Frame((20, 13), (2, 21)), "must lie inside the frame"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[int, Any], frame: Frame, message: str) -> None:
    features = [torch.zeros(1, *changed.get(i, shape)) for i, shape in enumerate(MAPS)]
    with pytest.raises(ValueError, match=message):
        interpreter().predict(features, frame)


@pytest.mark.parametrize("region", [((2, 9), (3, 11)), ((0, 20), (0, 13)), ((19, 20), (12, 13))], ids=str)
def test_a_region_of_the_frame_is_computed_from_parts_of_the_maps(region: tuple[Span, Span]) -> None:
    network, features = interpreter(), maps()
    levels = fusion.grouped(features, LEVELS, torch.float32)
    sizes = [(level.shape[2], level.shape[3]) for level in levels]
    part = Region.of(*region, FRAME.size, sizes, network.weights.convolutions)
    found = fusion.logits(network.weights, [part.cut(level, i) for i, level in enumerate(levels)], part.resize)
    whole = fusion.logits(network.weights, levels, fusion.bilinear(levels, FRAME.size))
    torch.testing.assert_close(found, whole[..., slice(*region[0]), slice(*region[1])], atol=1e-5, rtol=1e-5)


def test_a_small_region_reads_little_of_large_maps() -> None:
    region = Region.of((100, 120), (7, 9), (256, 256), [(4, 4), (32, 32), (256, 256)], [1, 2, 1])
    assert region.spans[2] == ((99, 121), (6, 10)), "one convolution reads one neighbor"
    assert region.spans[1] == ((9, 18), (0, 4)) and region.spans[0] == ((0, 4), (0, 3))


@pytest.mark.parametrize("options", [LabelingOptions(vote="some"), LabelingOptions(top_fraction=0.0)])
def test_options_out_of_range(options: LabelingOptions) -> None:
    with pytest.raises(ValueError, match="vote must be|top_fraction must lie"):
        interpreter().predict(maps(), FRAME, options)


# On a GPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpu_takes_whole_batches_and_no_switch_of_the_process(old_cuda: FakeCuda, dtype: torch.dtype) -> None:
    with fake_tensors():
        network = to_fake_gpu(interpreter())
        features = [torch.empty(4, *shape, device="cuda:0", dtype=dtype) for shape in MAPS]
        with Operations() as seen:
            found = network.predict(features, FRAME, LabelingOptions(probabilities=True))
    assert found.labels["mask"].is_cuda and found.labels["mask"].shape == (4, *FRAME.shape)
    ours = [inputs for name, inputs in seen.seen if "dsgan_datasets.convolution" in name]
    assert ours and {t for inputs in ours[:-1] for t in inputs} == {dtype}, "operands have the precision of the maps"
    assert set(ours[-1]) == {torch.float32}, "the last layer decides the labels"
    assert not switched(seen.seen)
    assert not [name for name, _ in seen.seen if "_local_scalar_dense" in name or "nonzero" in name], "it waits"


def test_a_batch_is_divided_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for a GPU's way: parts of a batch are equal, and give what the whole gives."""
    network, features = interpreter(), maps(4)
    monkeypatch.setattr(ConvolutionalInterpreter, "device", torch.device("meta"))
    whole = network.predict(features, FRAME)
    monkeypatch.setattr("dsgan_datasets.interpreters.convolutional._MAX_BYTES", 1)
    parts = network.predict(features, FRAME)
    torch.testing.assert_close(parts.uncertainty, whole.uncertainty)
    assert torch.equal(parts.labels["mask"], whole.labels["mask"])


# In a file


def test_a_checkpoint_holds_it(tmp_path: Path, generator: FeatureGenerator, fitted: ConvolutionalInterpreter) -> None:
    labeled = LabeledGenerator(InterpretedLabeler(generator, fitted, [SCHEMA]), RECIPE)
    labeled.save_pretrained(tmp_path)
    again = LabeledGenerator.from_pretrained(tmp_path, device="cpu")
    assert again.fingerprint == labeled.fingerprint
    assert again.interpreter.config == fitted.config == load_interpreter(tmp_path, device="cpu").config
    mine, theirs = labeled.generate([3, 1]), again.generate([3, 1])
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "change",
    [
        {"members": 4},
        {"widths": [8, 6, 5]},
        {"convolutions": [2, 2, 10**9]},
        {"classes": 10**9},
        {"channels": [7, 5, 6, 4]},
        {"channels": [7, 5, 6, 10**30]},
        {"channels": [7, 5, 6, -3]},
        {"channels": 21},
        {"channels": []},
        {"levels": [1, 1, 1]},
        {"levels": [1, 1, 2]},
        {"levels": [1, 2.0, 1]},
        {"levels": [True, 2, 1]},
        {"levels": [1] * 100_000},
        {"layout": None},
        {"layout": 7},
        {"more": 1},
    ],
    ids=str,
)
def test_a_config_that_lies_is_refused(change: dict[str, Any]) -> None:
    network = interpreter()
    assert build_interpreter(network.config, network.state_dict(), device="cpu").config == network.config
    with pytest.raises(CheckpointError, match="do not fit together|config.json promises"):
        build_interpreter({**network.config, **change}, network.state_dict(), device="cpu")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("project_1", None),
        ("carry_2", None),
        ("head_bias", None),
        ("mix_0", torch.zeros(2, 3, 8, 8, 5, 5)),
        ("mix_0", torch.zeros(8)),
        ("project_0", torch.zeros(3, 0, 7)),
        ("head", torch.zeros(3, 256, 4)),
        ("head", torch.zeros(())),
        ("bias_2", torch.full((3, 4), float("nan"))),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, change: Tensor | None) -> None:
    network = interpreter()
    tensors = {k: v for k, v in network.state_dict().items() if k != name}
    with pytest.raises(CheckpointError):
        build_interpreter(network.config, tensors if change is None else {**tensors, name: change}, device="cpu")


# Fitting


@pytest.fixture(scope="module")
def generator() -> FeatureGenerator:
    return load_generator(GOLDEN / "sg2ada_fullsnapshot16.pkl", device="cpu")


def annotated(generator: FeatureGenerator, indices: range) -> AnnotatedImages:
    """Classes by a channel of the finest map, averaged over neighbors: a rule that no pixel knows by itself."""
    latents = sample_latents(indices, 32, seed=0, purpose=Purpose.ANNOTATION)
    _, features = synthesize(generator, RECIPE, latents)
    smooth = F.avg_pool2d(features[-1][:, :1], 3, 1, 1)[:, 0]
    return AnnotatedImages(latents, (smooth > -0.1).long() + (smooth > 0.5).long())


def fit(generator: FeatureGenerator, images: AnnotatedImages, seed: int = 0, **changes: Any) -> Any:
    """A convolutional interpreter."""
    settings = FitSettings(dtype="float32", seed=seed, convolutional=dataclasses.replace(QUICK, **changes))
    return fit_interpreter(
        generator, images, SCHEMA, recipe=RECIPE, settings=settings, architecture="convolutional", folds=3
    )


def checked(generator: FeatureGenerator, images: AnnotatedImages, folds: int = 3) -> tuple[Any, int]:
    """Held-out quality, and the number of steps that gives it."""
    settings = FitSettings(dtype="float32", convolutional=QUICK)
    trainer = trainer_for(SCHEMA, "convolutional")(generator, images, SCHEMA, RECIPE, settings)
    quality, trial = hold_out(trainer, generator, images, SCHEMA, RECIPE, folds)
    return quality, QUICK.looked_at[trial]


@pytest.fixture(scope="module")
def fitted(generator: FeatureGenerator) -> ConvolutionalInterpreter:
    found: ConvolutionalInterpreter = fit(generator, annotated(generator, range(8)), steps=120)
    return found


def test_it_learns_a_rule_of_neighbors(generator: FeatureGenerator, fitted: ConvolutionalInterpreter) -> None:
    assert fitted.layout == generator.features and list(fitted.channels) == generator.feature_channels
    found = evaluate(generator, fitted, annotated(generator, range(100, 108)), recipe=RECIPE)
    assert found.mean_iou > 0.5  # 0.25 for a guess


def test_the_same_seed_gives_the_same_weights(generator: FeatureGenerator) -> None:
    some = annotated(generator, range(4))
    one, two, other = (fit(generator, some, seed, steps=3).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head"], other["head"])
    assert not torch.equal(one["project_0"][0], one["project_0"][1]), "members are alike"


@pytest.mark.slow
def test_held_out_images_choose_the_number_of_steps(generator: FeatureGenerator) -> None:
    some = annotated(generator, range(6))
    quality, steps = checked(generator, some)
    assert QUICK.looked_at == [12, 24] and steps in QUICK.looked_at
    assert quality.confusion.sum() == some.masks.numel(), "each image is labeled once"
    chosen, same = fit(generator, some), fit(generator, some, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(chosen.state_dict().values(), same.state_dict().values(), strict=True))


def test_held_out_images_are_held_out(generator: FeatureGenerator) -> None:
    """Each image is of a class of its own, which networks that did not see it cannot know."""
    latents = sample_latents(range(3), 32, seed=0, purpose=Purpose.ANNOTATION)
    images = AnnotatedImages(latents, torch.arange(3)[:, None, None].expand(3, 16, 16))
    assert checked(generator, images)[0].pixel_accuracy < 0.05


def test_ignored_pixels_are_not_learned_from(generator: FeatureGenerator) -> None:
    some = annotated(generator, range(4))
    masks = some.masks.clone()
    masks[:, :, 8:] = 255
    one = fit(generator, AnnotatedImages(some.latents, masks), steps=3)
    assert all(bool(tensor.isfinite().all()) for tensor in one.state_dict().values())
    with pytest.raises(ValueError, match="ignored"):
        fit(generator, AnnotatedImages(some.latents, torch.full_like(masks, 255)), steps=3)


def test_a_training_that_diverges_says_what_to_do(generator: FeatureGenerator) -> None:
    with pytest.raises(ValueError, match="diverged.*choose a smaller learning_rate than 1e\\+30"):
        fit(generator, annotated(generator, range(4)), steps=4, learning_rate=1e30)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["of a pixel", "of its neighbors"])
def test_auto_takes_what_labels_held_out_images_better(generator: FeatureGenerator, rule: str) -> None:
    """A rule of one pixel is easy for classifiers of pixels, and networks that train for one step know nothing."""
    images = annotated(generator, range(6))
    steps = {"of a pixel": (200, 1), "of its neighbors": (1, 60)}[rule]
    settings = FitSettings(
        members=2, steps=steps[0], dtype="float32", convolutional=dataclasses.replace(QUICK, steps=steps[1])
    )
    given: dict[str, Any] = {"recipe": RECIPE, "settings": settings, "folds": 2}
    found = fit_interpreter(generator, images, SCHEMA, architecture="auto", **given)
    scores = {
        name: cross_validate(generator, images, SCHEMA, architecture=name, **given).score
        for name in ("pixel_ensemble", "convolutional")
    }
    assert found.architecture == max(scores, key=lambda name: scores[name])
    assert found.architecture == ("pixel_ensemble" if rule == "of a pixel" else "convolutional")


def test_auto_needs_held_out_images(generator: FeatureGenerator) -> None:
    images = annotated(generator, range(1))
    with pytest.raises(ValueError, match="'auto' takes the interpreter of mask that labels .* best: it needs"):
        fit_interpreter(generator, images, SCHEMA, recipe=RECIPE, architecture="auto")
    assert fit(generator, images).num_classes == 3  # one image is enough otherwise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 0}, "members must be an integer of at least 1"),
        ({"width": 1}, "width must be an integer in 2"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"channel_dropout": 1.0}, r"channel_dropout must lie in \[0, 1\)"),
        ({"noise": -1.0}, "noise must not be below 0"),
        ({"noise": float("nan")}, "noise must not be below 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"region": 0}, "region must be an integer of at least 1"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvolutionalSettings(**change)
