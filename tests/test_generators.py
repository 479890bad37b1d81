"""Generators of other projects: loading, converting, channels, the average w, and what is refused."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import ELSEWHERE, GENERATORS, PROBES, generator_file

from dsgan_datasets import (
    CheckpointError,
    FeatureGenerator,
    InterpretedLabeler,
    LabeledGenerator,
    load_generator,
    save_generator,
)
from dsgan_datasets.checkpoints.tensors import digest_tensors
from dsgan_datasets.generators.base import FeatureLayout
from dsgan_datasets.generators.dialects import DIALECTS, READABLE, import_generator
from dsgan_datasets.generators.loading import build_generator, generator_tensors
from dsgan_datasets.interpreters import load_interpreter
from dsgan_datasets.recipe import NoiseMode
from dsgan_datasets.tools.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

ROSINALITY = PROBES / "ros_sg2_64.pt"


def outputs(generator: FeatureGenerator, **how: Any) -> list[torch.Tensor]:
    """Image and maps of two latents, truncated."""
    z = torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(0))
    c = torch.eye(generator.c_dim)[:2] if generator.c_dim else None
    image, maps = generator.synthesis(generator.mapping(z, c, **{"truncation_psi": 0.7, "truncation_cutoff": 5, **how}))
    return [image, *maps]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def stored_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# --- conversion ---


@pytest.mark.parametrize("name", [n for n in GENERATORS if n != "semanticgan_32" and n not in ELSEWHERE])
def test_converting_changes_no_bit(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = generator_file(PROBES, name)
    assert main(["convert", str(source), str(tmp_path / "out"), "--license", "CC0-1.0"]) == 0
    printed = capsys.readouterr().out
    theirs, ours = load_generator(source, device="cpu"), load_generator(tmp_path / "out", device="cpu")
    assert digest_tensors(generator_tensors(theirs)) == digest_tensors(generator_tensors(ours))
    assert (theirs.config, theirs.features, theirs.provenance.sha256) == (
        ours.config,
        ours.features,
        ours.provenance.sha256,
    )
    assert_same(outputs(theirs), outputs(ours))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["license"] == config["provenance"]["license"] == "CC0-1.0"
    assert config["provenance"]["sha256"] == theirs.provenance.sha256 and source.name in printed
    assert theirs.provenance.dialect in (tmp_path / "out" / "README.md").read_text()
    before = (tmp_path / "out" / "generator.safetensors").read_bytes()
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "generator.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dgan_sg1_128", ["StyleGAN1 state dict", "128×128, RGB", "layout datasetgan: 32×4², 32×4²", "w 512 × 18"]),
        ("ros_sg2_64", ["rosinality StyleGAN2", "64×64", "layout convs: 48×4²", "average w known"]),
        ("sg2ada_cond32_skip", ["StyleGAN2 snapshot", "skip architecture, clamp 1.5", "32×32", "3 image classes"]),
        ("sg2ada_uncond32_resnet", ["StyleGAN2 snapshot", "resnet architecture, clamp 2", "unconditional"]),
        ("sg3_t_32", ["StyleGAN3 snapshot", "configuration T, 3×3", "layout convs: 24×16²", "w 64 × 16"]),
        ("sg3_r_32", ["StyleGAN3 snapshot", "configuration R", "1×1 kernels", "32×32"]),
    ],
)
def test_info_names_dialect_resolution_and_layout(
    capsys: pytest.CaptureFixture[str], name: str, expected: list[str]
) -> None:
    assert main(["info", str(generator_file(PROBES, name))]) == 0
    printed = capsys.readouterr().out
    assert [text for text in expected if text not in printed] == []


def test_the_license_of_a_checkpoint_is_kept(tmp_path: Path) -> None:
    assert main(["convert", "demo-faces", str(tmp_path / "out"), "--license", ""]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["license"] == config["provenance"]["license"] == "CC0-1.0"
    assert config["provenance"]["file"] == load_generator("demo-faces", device="cpu").provenance.file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "not a generator file, which is a pickle or.*: expected a checkpoint directory"),
        (b"", "it is an empty file; .* fetch it again"),
        (b"\x89PNG\r\n", "it is a picture"),
        (ROSINALITY.read_bytes()[:300_000], "damaged or cut off"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "faces.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_generator(tmp_path / "faces.pt")


def test_a_conversion_is_not_overwritten_by_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    assert main(["convert", str(ROSINALITY), str(tmp_path / "out")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_labeled_checkpoint_remembers_where_its_generator_came_from(tmp_path: Path) -> None:
    from conftest import small_labeled

    labeled = small_labeled()
    labeled.save_pretrained(tmp_path / "faces")
    loaded = LabeledGenerator.from_pretrained(tmp_path / "faces", device="cpu")
    assert loaded.generator.provenance == labeled.generator.provenance
    assert loaded.generator.provenance.file == "sg2ada_fullsnapshot16.pkl"


def test_the_old_name_of_the_provenance_works_for_a_while() -> None:
    generator = load_generator(ROSINALITY, device="cpu")
    with pytest.warns(DeprecationWarning, match=r"use FeatureGenerator\.provenance"):
        assert generator.source is generator.provenance


def test_what_a_newer_version_noted_about_the_origin_is_kept(tmp_path: Path) -> None:
    save_generator(load_generator(ROSINALITY, device="cpu"), tmp_path / "out")
    config = stored_config(tmp_path / "out")
    config["provenance"]["trained_on"] = {"images": 12}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    generator = load_generator(tmp_path / "out", device="cpu")
    assert generator.provenance.more == {"trained_on": {"images": 12}}
    save_generator(generator, tmp_path / "again")
    assert stored_config(tmp_path / "again")["provenance"] == config["provenance"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("file"), "it lacks file"),
        (lambda p: p.update(license=3), "must be texts"),
        (lambda p: p.update(notes="none"), "notes a list of texts"),
        (lambda p: p.update(notes=[1]), "notes a list of texts"),
    ],
)
def test_an_origin_that_cannot_be_read(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    save_generator(load_generator(ROSINALITY, device="cpu"), tmp_path / "out")
    config = stored_config(tmp_path / "out")
    change(config["provenance"])
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"section 'provenance' is not usable.*{message}"):
        load_generator(tmp_path / "out", device="cpu")


def test_weights_of_another_checkpoint_are_noticed(tmp_path: Path) -> None:
    """Same shapes, other values: nothing but the recorded digest can tell."""
    generator = load_generator(PROBES / "sg2ada_fullsnapshot16.pkl", device="cpu")
    save_generator(generator, tmp_path / "a")
    with torch.no_grad():
        next(generator.parameters()).add_(1)
    save_generator(generator, tmp_path / "b")
    (tmp_path / "a" / "generator.safetensors").write_bytes((tmp_path / "b" / "generator.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        load_generator(tmp_path / "a", device="cpu")


# --- dialects ---


def test_a_file_is_of_the_first_dialect_that_knows_it() -> None:
    """SemanticGAN files are rosinality files with more in them, StyleGAN3 snapshots are snapshots with G_ema."""
    expected = {
        "semanticgan_32.pt": "SemanticGAN",
        "ros_sg2_64.pt": "rosinality",
        "sg3_t_32.pkl": "StyleGAN3",
        "sg2ada_fullsnapshot16.pkl": "StyleGAN2",
    }
    for file, start in expected.items():
        imported, provenance = import_generator(PROBES / file)
        assert provenance.dialect.startswith(start) and provenance.file == file
        assert imported.config.img_resolution in (16, 32, 64)


def test_generators_may_stand_beside_anything_classifiers_may_not(tmp_path: Path) -> None:
    """Arguments of a training script may stand in a generator's file, not in one of classifiers."""
    content = torch.load(ROSINALITY, weights_only=True)
    torch.save({**content, "args": argparse.Namespace(size=64)}, tmp_path / "model_0.pth")
    assert load_generator(tmp_path / "model_0.pth", device="cpu").img_resolution == 64
    with pytest.raises(CheckpointError, match=r"asks for argparse\.Namespace"):
        load_interpreter(tmp_path, device="cpu")


def test_what_can_be_read_is_listed_from_the_table() -> None:
    names = [dialect.name for dialect in DIALECTS]
    assert len(set(names)) == len(names)
    assert all(dialect.readable in READABLE for dialect in DIALECTS)


# --- the average w ---


def sg1_file(folder: Path, average: np.ndarray | None) -> Path:
    source = generator_file(PROBES, "dgan_sg1_128")
    (folder / "faces.pt").symlink_to(source)
    if average is not None:
        np.save(folder / "faces_avg_latent.npy", average)
    return folder / "faces.pt"


AVERAGE = np.load(PROBES / "dgan_sg1_128_avg_latent.npy")


@pytest.mark.parametrize("average", [AVERAGE, AVERAGE[0], AVERAGE[:1], AVERAGE[None]], ids=str)
def test_the_average_beside_the_file_or_given(tmp_path: Path, average: np.ndarray) -> None:
    expected = load_generator(generator_file(PROBES, "dgan_sg1_128"), device="cpu")
    (tmp_path / "without").mkdir()
    beside = load_generator(sg1_file(tmp_path, average), device="cpu")
    given = load_generator(sg1_file(tmp_path / "without", None), device="cpu", avg_latent=torch.from_numpy(average))
    for generator in (beside, given):
        assert_same(outputs(expected), outputs(generator))


@pytest.mark.slow
def test_an_average_that_no_file_has_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the mean of mapped draws, always the same ones; the note says so, and conversion stores it."""
    path = sg1_file(tmp_path, None)
    generator, again = (load_generator(path, device="cpu") for _ in range(2))
    assert torch.equal(generator.mean_w, again.mean_w)
    assert [note for note in generator.provenance.notes if "average w computed from 10000 fixed draws" in note]
    z = torch.randn(4000, generator.z_dim, generator=torch.Generator().manual_seed(5))
    ws = generator.mapping(z)[:, 0]
    assert (generator.mean_w - ws.mean(0)).abs().max() < 6 * float(ws.std(0).max()) / len(z) ** 0.5
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert "average w computed" in capsys.readouterr().out
    assert_same(outputs(load_generator(tmp_path / "out", device="cpu")), outputs(generator))
    np.save(tmp_path / "mean.npy", AVERAGE)
    assert main(["convert", str(path), str(tmp_path / "with"), "--avg-latent", str(tmp_path / "mean.npy")]) == 0
    assert_same(
        outputs(load_generator(tmp_path / "with", device="cpu")),
        outputs(load_generator(generator_file(PROBES, "dgan_sg1_128"), device="cpu")),
    )


@pytest.mark.parametrize(
    ("average", "message"),
    [
        (np.arange(36.0).reshape(2, 18), "same for all layers"),
        (np.zeros((512, 0)), "finite numbers"),
        (np.zeros((2, 18, 512)), "finite numbers"),
        (np.full(512, np.nan), "finite numbers"),
        (np.zeros(100, np.float32), r"average w has \[100\] numbers, w has 512"),
        (np.array(["a"]), "not a .npy file of numbers|can't convert"),
    ],
)
def test_averages_that_are_none(tmp_path: Path, average: np.ndarray, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_generator(sg1_file(tmp_path, average), device="cpu")


@pytest.mark.slow
def test_noise_comes_from_the_weights(tmp_path: Path) -> None:
    """The same weights, the same noise, in whatever file; other weights, other noise."""
    state = torch.load(generator_file(PROBES, "dgan_sg1_128"), weights_only=True)
    torch.save(dict(reversed(state.items())), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    changed = {**state, "g_synthesis.torgb.bias": state["g_synthesis.torgb.bias"] + 1}
    torch.save(changed, tmp_path / "b.pt")
    first, second, other = (
        load_generator(path, device="cpu")._stored_noise()
        for path in (generator_file(PROBES, "dgan_sg1_128"), tmp_path / "a.pt", tmp_path / "b.pt")
    )
    assert_same(first, second)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    fine = torch.cat([noise.flatten() for noise in first[-4:]])
    assert abs(float(fine.mean())) < 0.02 and abs(float(fine.std()) - 1) < 0.02
    assert not torch.equal(first[-1], first[-2])


# --- channels ---


def with_channels(generator: FeatureGenerator, channels: int) -> FeatureGenerator:
    """The same generator, its image made of the first `channels` channels (the last one repeated)."""
    tensors = generator_tensors(generator)
    torgb = {name for name in tensors if re.search(r"(torgb|L\d+_\d+_3)\.(weight|bias)$", name)}
    rows = torch.arange(channels).clamp(max=2)
    if generator.config["architecture"] == "stylegan3":
        pytest.skip("its layer names hold the channels; covered through the config")
    config = type(generator._config)(**{**vars(generator._config), "img_channels": channels})
    changed = {name: tensor[rows] if name in torgb else tensor for name, tensor in tensors.items()}
    return build_generator(config, changed, device="cpu")


@pytest.mark.parametrize("name", ["sg2ada_fullsnapshot16", "dgan_sg1_128", "ros_sg2_64"])
@pytest.mark.parametrize("channels", [1, 4])
def test_gray_is_repeated_and_a_fourth_channel_dropped(tmp_path: Path, name: str, channels: int) -> None:
    rgb = load_generator(generator_file(PROBES, name), device="cpu")
    generator = with_channels(rgb, channels)
    image, expected = outputs(generator)[0], outputs(rgb)[0]
    assert image.shape[1] == 3
    kept = [0, 0, 0] if channels == 1 else [0, 1, 2]
    assert torch.allclose(image, expected[:, kept], rtol=1e-5, atol=1e-4)
    save_generator(generator, tmp_path / "out")
    assert_same(outputs(load_generator(tmp_path / "out", device="cpu")), outputs(generator))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["parts"]["generator"]["config"]["img_channels"]
        == channels
    )


def rosinality_with(change: Callable[[dict[str, Any]], Any], folder: Path) -> Path:
    content = torch.load(ROSINALITY, weights_only=True)
    change(content)
    torch.save(content, folder / "changed.pt")
    return folder / "changed.pt"


def keep_channels(*rows: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        state = content["g_ema"]
        for name in [name for name in state if re.match(r"to_rgbs?\d*(\.\d+)?\.(bias|conv\.weight)$", name)]:
            state[name] = state[name][:, list(rows)]

    return change


def test_channels_are_noted_where_they_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(rosinality_with(keep_channels(0), tmp_path))]) == 0
    assert "1 channel, repeated to three" in capsys.readouterr().out
    assert main(["convert", str(rosinality_with(keep_channels(0, 1, 2, 2), tmp_path)), str(tmp_path / "out")]) == 0
    assert (
        "first three are kept" in json.loads((tmp_path / "out" / "config.json").read_text())["provenance"]["notes"][0]
    )
    with pytest.raises(CheckpointError, match="img_channels must be 1, 3, 4, not 2"):
        load_generator(rosinality_with(keep_channels(0, 1), tmp_path))


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["g_ema"].pop("convs.3.activate.bias"),
            "not a rosinality StyleGAN2.*it has no convs.3.activate.bias",
        ),
        (lambda c: c["g_ema"].update(surprise=torch.zeros(1)), "not known.*surprise"),
        (lambda c: c["g_ema"].update({"input.input": 3}), "only named tensors"),
        (lambda c: c["g_ema"].update({"convs.0.conv.blur.kernel": torch.ones(4, 4)}), r"not the filter \[1, 3, 3, 1\]"),
        (lambda c: c["g_ema"].update({"style.1.weight": torch.zeros(64, 64, 2)}), "mapping_network.fc0.weight"),
        (lambda c: c["g_ema"].update({"noises.noise_3": torch.zeros(1, 1, 8, 8)}), r"noise_const has shape \[8, 8\]"),
        (lambda c: c.pop("g_ema"), "not a generator file: it holds 'latent_avg'; expected a checkpoint directory"),
        (lambda c: c["g_ema"].update({"iwt.ll": torch.zeros(1, 1, 2, 2)}), "not known.*iwt"),
    ],
)
def test_a_state_dict_that_is_none(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_generator(rosinality_with(change, tmp_path))


def test_rosinality_without_average(tmp_path: Path) -> None:
    generator = load_generator(rosinality_with(lambda c: c.pop("latent_avg"), tmp_path), device="cpu")
    assert generator.mean_w is not None and "average w computed" in generator.provenance.notes[-1]
    again = load_generator(ROSINALITY, device="cpu")
    assert_same(outputs(generator, truncation_psi=1), outputs(again, truncation_psi=1))


@pytest.mark.parametrize(
    ("name", "features", "allowed"),
    [
        ("dgan_sg1_128", "convs", "StyleGAN1 has the feature layouts datasetgan, not 'convs'"),
        ("sg3_t_32", "const+convs", "StyleGAN3 has the feature layouts convs"),
        ("ros_sg2_64", "datasetgan", "StyleGAN2 has the feature layouts convs, const\\+convs"),
    ],
)
def test_layouts_of_another_architecture(name: str, features: FeatureLayout, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        load_generator(generator_file(PROBES, name), device="cpu", features=features)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": [3]},
        {"input_size": 37},
        {"img_channels": 4},
        {"output_scale": -1},
        {"bandwidth": "x"},
    ],
)
def test_shapes_that_no_stylegan3_has(tmp_path: Path, change: dict[str, Any]) -> None:
    save_generator(load_generator(PROBES / "sg3_t_32.pkl", device="cpu"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["parts_sha256"]  # else the change itself is noticed
    config["parts"]["generator"]["config"].update(change)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="config is not usable"):
        load_generator(tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [("up", 0), ("padding", [1, 2]), ("up_filter", [3, 4]), ("up_filter", []), ("kernel", -1), ("size", 10**9)],
)
def test_layers_that_no_stylegan3_has(tmp_path: Path, field: str, value: Any) -> None:
    save_generator(load_generator(PROBES / "sg3_t_32.pkl", device="cpu"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["parts_sha256"]  # else the change itself is noticed
    config["parts"]["generator"]["config"]["layers"][3][field] = value
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="config is not usable"):
        load_generator(tmp_path / "out")


@pytest.mark.parametrize("name", ["dgan_sg1_128", "sg3_t_32", "sg3_r_32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_stay_close(name: str, dtype: torch.dtype) -> None:
    generator = load_generator(generator_file(PROBES, name), device="cpu")
    ws = generator.mapping(torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(0)))
    exact, other = generator.synthesis(ws), generator.synthesis(ws, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for a, b in zip([exact[0], *exact[1]], [other[0], *other[1]], strict=True):
        assert b.isfinite().all() and (a - b).norm() < tolerance * a.norm()


@pytest.mark.parametrize("name", ["dgan_sg1_128", "sg2ada_uncond64_skip", "sg2ada_uncond32_resnet"])
@pytest.mark.parametrize("noise_mode", ["const", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_fewer_passes_without_gradients_give_the_same(
    name: str, noise_mode: NoiseMode, dtype: torch.dtype, tolerance: float
) -> None:
    """On a CPU layers write over their own results, unless gradients need them; feature maps are never written over."""
    generator = load_generator(generator_file(PROBES, name), device="cpu")
    ws = generator.mapping(torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(0)))
    with torch.enable_grad():
        expected_image, expected = generator.synthesis(ws, noise_mode=noise_mode, dtype=dtype)
    with torch.no_grad():
        image, features = generator.synthesis(ws, noise_mode=noise_mode, dtype=dtype)
    for got, wanted in zip([image, *features], [expected_image, *expected], strict=True):
        assert (got - wanted).norm() <= tolerance * wanted.norm()


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    for name, renamed in (("ros_sg2_64.pt", "a.pkl"), ("sg3_r_32.pkl", "b.pt"), ("sg3_t_32.pkl", "c.bin")):
        (tmp_path / renamed).symlink_to(PROBES / name)
        assert load_generator(tmp_path / renamed, device="cpu").provenance.dialect


def test_an_array_serves_as_average(tmp_path: Path) -> None:
    generator = load_generator(sg1_file(tmp_path, None), device="cpu", avg_latent=AVERAGE)
    assert generator.provenance.notes[-1] == "average w given separately"
    assert not [note for note in generator.provenance.notes if "no average" in note]
    for wrong in ("mean", AVERAGE.astype(complex), AVERAGE > 0):
        with pytest.raises(ValueError, match="an average latent must be"):
            load_generator(tmp_path / "faces.pt", device="cpu", avg_latent=wrong)


def test_the_license_reaches_the_labeled_generator(tmp_path: Path) -> None:
    from conftest import small_labeled

    parts = small_labeled()
    save_generator(parts.generator, tmp_path / "out", license="MIT")
    generator = load_generator(tmp_path / "out", device="cpu")
    labeler = InterpretedLabeler(generator, parts.interpreter, parts.targets)
    assert LabeledGenerator(labeler, parts.recipe).license == "MIT"
    with pytest.raises(ValueError, match="license must be a text, not list"):
        save_generator(generator, tmp_path / "other", license=["MIT"])
