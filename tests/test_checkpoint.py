"""The checkpoint directory: round trip, and what a damaged or foreign one says."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from properties import assert_same_samples
from safetensors.torch import load_file, save_file

from dsgan_datasets import (
    Checkpoint,
    CheckpointError,
    LabeledGenerator,
    LabelSchema,
    describe,
    files,
    load_generator,
    load_interpreter,
)
from dsgan_datasets.checkpoints.directory import PRETRAINED, built_in
from dsgan_datasets.checkpoints.tensors import digest_tensors, fingerprint
from dsgan_datasets.files import atomic_write


@pytest.fixture
def saved(tmp_path: Path, filtered: LabeledGenerator) -> Path:
    filtered.save_pretrained(tmp_path / "faces")
    return tmp_path / "faces"


def test_round_trip(saved: Path, filtered: LabeledGenerator) -> None:
    loaded = LabeledGenerator.from_pretrained(saved, device="cpu")
    assert loaded.fingerprint == filtered.fingerprint
    assert (loaded.recipe, loaded.schema, loaded.calibration) == (
        filtered.recipe,
        filtered.schema,
        filtered.calibration,
    )
    assert_same_samples(loaded.generate(range(9)).rows(), filtered.generate(range(9)).rows())
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "config.json",
        "generator.safetensors",
        "interpreter.safetensors",
    ]


@pytest.mark.parametrize("changes", [{}, {"truncation_psi": 0.5}, {"crop": (2, 10), "reject_fraction": 0}])
def test_a_description_needs_no_weights(saved: Path, changes: dict[str, Any]) -> None:
    labeled = LabeledGenerator.from_pretrained(saved, device="cpu", **changes)
    for weights in saved.glob("*.safetensors"):
        weights.unlink()
    found = describe(saved, **changes)
    assert (found.fingerprint, found.image_size) == (labeled.fingerprint, labeled.image_size)
    assert (found.recipe, found.schema, found.calibration) == (labeled.recipe, labeled.schema, labeled.calibration)


def test_how_it_was_fitted_is_kept_and_told(saved: Path, tmp_path: Path) -> None:
    unknown = LabeledGenerator.from_pretrained(saved, device="cpu")
    edit_config(lambda c: c.update(fit=FITTED | {"title": " faces\n# of\tpeople "}))(saved)
    known = LabeledGenerator.from_pretrained(saved, device="cpu")
    assert known.fingerprint == unknown.fingerprint and unknown.fit is None and known.fit is not None
    known.save_pretrained(tmp_path / "again")
    assert describe(tmp_path / "again").fit == known.fit
    card = (tmp_path / "again" / "README.md").read_text()
    assert card.startswith("# faces # of people\n\n") and "| note | a\\|b c |" in card
    assert "mean IoU 0.500, pixel accuracy 0.900" in card


def test_saving_again_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    LabeledGenerator.from_pretrained(saved, device="cpu").save_pretrained(tmp_path / "again")
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_parts_load_alone(saved: Path, filtered: LabeledGenerator) -> None:
    generator = load_generator(saved / "generator.safetensors", device="cpu")
    assert torch.equal(generator.mean_w, filtered.generator.mean_w)
    assert torch.equal(load_interpreter(saved, device="cpu").w1, filtered.interpreter.w1)


@pytest.mark.parametrize("stem", ["generator", "interpreter"])
@pytest.mark.parametrize("damage", ["a bit", "another save", "no digest"])
def test_parts_that_load_alone_are_those_of_config_json(
    saved: Path, tmp_path: Path, filtered: LabeledGenerator, stem: str, damage: str
) -> None:
    file = saved / f"{stem}.safetensors"
    if damage == "a bit":
        content = bytearray(file.read_bytes())
        content[-7] ^= 4
        file.write_bytes(content)
    elif damage == "another save":  # as a copy leaves it that was broken off
        tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
        save_file(tensors, file)
    else:
        edit_config(lambda c: (c["parts"][stem].pop("sha256"), c.pop("parts_sha256")), sign=False)(saved)
    load = load_generator if stem == "generator" else load_interpreter
    with pytest.raises(CheckpointError, match=rf"{stem}.safetensors was changed or damaged, or belongs to another"):
        load(saved, device="cpu")


@pytest.mark.parametrize("load", [load_generator, load_interpreter])
def test_a_changed_config_of_a_part_is_noticed(saved: Path, load: Callable[..., Any], tmp_path: Path) -> None:
    """A setting that fits the tensors as well would give other images."""
    edit_config(lambda c: c["parts"]["generator"]["config"].update(mapping_lr_multiplier=0.03), sign=False)(saved)
    with pytest.raises(CheckpointError, match="config.json was changed or damaged: it says SHA-256 of its parts"):
        load(saved, device="cpu")


def test_a_generator_of_format_1_without_digest_still_loads(saved: Path) -> None:
    generator = json.loads((saved / "config.json").read_text())["parts"]["generator"]["config"]
    (saved / "config.json").write_text(json.dumps({"format_version": 1, "generator": generator}))
    assert load_generator(saved, device="cpu").img_resolution == generator["img_resolution"]


def test_weights_do_not_change_with_their_file(saved: Path) -> None:
    """As `cp` and `rsync --inplace` do, onto a checkpoint that a training is using."""
    labeled = LabeledGenerator.from_pretrained(saved, device="cpu")
    alone = load_interpreter(saved, device="cpu"), load_generator(saved, device="cpu")
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in alone]
    samples = labeled.generate(range(2))
    for stem in ("generator", "interpreter"):
        with (saved / f"{stem}.safetensors").open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(size // 2)
            file.write(b"\x3f" * (size - size // 2))
    assert_same_samples(labeled.generate(range(2)).rows(), samples.rows())
    for part, values in zip(alone, before, strict=True):
        assert all(torch.equal(part.state_dict()[name], value) for name, value in values.items())


def test_average_latent_may_be_replaced(saved: Path) -> None:
    generator = load_generator(saved, device="cpu", avg_latent=torch.zeros(32))
    z = torch.randn(1, 32)
    assert torch.allclose(generator.mapping(z, truncation_psi=0.5), generator.mapping(z) / 2, atol=1e-6)


def edit_config(change: Callable[[dict[str, Any]], Any], *, sign: bool = True) -> Callable[[Path], None]:
    """Change config.json; signed, its fingerprint is that of the changed content, so that deeper checks are reached."""

    def edit(saved: Path) -> None:
        config = json.loads((saved / "config.json").read_text())
        change(config)
        if sign:
            with suppress(CheckpointError):
                config["fingerprint"] = Checkpoint.from_dict(config, saved).fingerprint
        (saved / "config.json").write_text(json.dumps(config))

    return edit


def edit_tensors(stem: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(saved: Path) -> None:
        tensors = load_file(saved / f"{stem}.safetensors")
        change(tensors)
        save_file(tensors, saved / f"{stem}.safetensors")
        edit_config(lambda c: c["parts"][stem].update(sha256=digest_tensors(tensors)))(saved)

    return edit


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda saved: (saved / name).write_bytes((saved / name).read_bytes()[:keep]) and None


def flip_a_bit(saved: Path) -> None:
    data = bytearray((saved / "generator.safetensors").read_bytes())
    data[-9] ^= 1
    (saved / "generator.safetensors").write_bytes(data)


FITTED = {
    "title": "faces",
    "num_images": 16,
    "folds": 4,
    "pixel_accuracy": 0.9,
    "iou": {"a": 0.5, "b": None},
    "settings": {"members": 2, "note": "a|b\nc"},
    "generator": "faces.pkl",
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: (saved / "config.json").unlink(), "no config.json"),
        (lambda saved: (saved / "generator.safetensors").unlink(), "generator.safetensors is missing"),
        (cut("config.json", 40), "not valid JSON"),
        (cut("generator.safetensors", 5000), r"generator.safetensors \(5000 bytes\) is damaged"),
        (cut("interpreter.safetensors", 0), r"interpreter.safetensors \(0 bytes\) is damaged"),
        (
            flip_a_bit,
            r"generator.safetensors was changed or damaged, or .*: config.json says SHA-256 [0-9a-f]{16}…, the",
        ),
        (
            edit_config(lambda c: c.update(format_version=99)),
            "format_version 99.*reads 1 to 2. It was written by a newer version",
        ),
        (edit_config(lambda c: c.pop("recipe")), "no section 'recipe'"),
        (
            edit_config(lambda c: c["recipe"]["sampling"].update(truncation_psi=0.3), sign=False),
            "it says fingerprint [0-9a-f]{16}…, but its",
        ),
        (edit_config(lambda c: c.update(migrated_from=1, fingerprint="0"), sign=False), "it says fingerprint 0…"),
        (edit_config(lambda c: c.pop("parts")), "no section 'parts'"),
        (edit_config(lambda c: c["parts"]["generator"].update(sha256=None)), "says SHA-256 None"),
        (edit_config(lambda c: c["parts"].pop("interpreter")), "part 'interpreter' is missing"),
        (edit_config(lambda c: c.update(labeler="oracle")), "unknown kind of labeler 'oracle'; known: interpreted"),
        (edit_config(lambda c: c["recipe"]["sampling"].update(color=1)), "unknown fields \\['color'\\]"),
        (edit_config(lambda c: c["recipe"]["sampling"].update(truncation_psi="high")), "truncation_psi"),
        (edit_config(lambda c: c["recipe"]["filter"].update(rules=[{"rule": "smell"}])), "rules must be a list"),
        (edit_config(lambda c: c["targets"][0].update(kind="smell")), "unknown kind of label 'smell'; known: "),
        (
            edit_config(lambda c: c["targets"][0]["classes"].pop()),
            "predicts 4 classes, the schema names 3",
        ),
        (edit_config(lambda c: c["targets"][0].pop("classes")), "classes"),
        (edit_config(lambda c: c["targets"].pop()), "needs a target for each"),
        (edit_config(lambda c: c["targets"].append(c["targets"][0])), "none twice"),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"].update(architecture="biggan")),
            "'biggan' is unknown; known: stylegan1",
        ),
        (edit_config(lambda c: c["parts"]["generator"]["config"].update(img_resolution=17)), "power of two"),
        (edit_config(lambda c: c["parts"]["generator"]["config"].update(img_resolution=32)), "channels must name"),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"].update(z_dim=10**9)),
            "z_dim must be an integer in 1 … 8192",
        ),
        (edit_config(lambda c: c["parts"]["generator"]["config"].update(c_dim="x")), "c_dim must be an integer"),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"].update(embed_dim=None)),
            "embed_dim must be an integer",
        ),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"].update(mapping_layers=1.5)),
            "mapping_layers must be an integer",
        ),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"].update(conv_clamp=[1])),
            "conv_clamp must be a positive number",
        ),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"]["channels"].update({"8": float("inf")})),
            "not usable",
        ),
        (edit_config(lambda c: c.update(fit=5)), "config.json: .*expected an object of settings, not 5"),
        (edit_config(lambda c: c.update(fit={"title": "a"})), "missing 4 required"),
        (edit_config(lambda c: c.update(fit=FITTED | {"title": 4})), "fit title must be a text, not 4"),
        (edit_config(lambda c: c.update(fit=FITTED | {"folds": -1})), "fit folds must be an integer of at least 0"),
        (edit_config(lambda c: c.update(fit=FITTED | {"iou": [0.5]})), "fit quality must be a table"),
        (edit_config(lambda c: c.update(fit=FITTED | {"iou": {"a": "x"}})), "numbers by name, or null, not {'a': 'x'}"),
        (edit_config(lambda c: c.update(fit=FITTED | {"quality": [1]})), "fit quality must be a table"),
        (
            edit_config(lambda c: c.update(fit=FITTED | {"quality": {"keypoints": {"summary": {"PCK": "x"}}}})),
            "numbers by name, or null, not {'PCK': 'x'}",
        ),
        (edit_config(lambda c: c.update(fit=FITTED | {"quality": {"a": {"summary": {}, "by_name": 3}}})), "tables by"),
        (edit_config(lambda c: c.update(fit=FITTED | {"settings": {"a": []}})), "fit setting 'a' must be a number"),
        (edit_config(lambda c: c.update(calibration=5)), "config.json: .*expected an object of settings, not 5"),
        (edit_config(lambda c: c["calibration"].update(standard_error="x")), "calibration standard_error is 'x'"),
        (edit_config(lambda c: c["calibration"].update(acceptance=7)), "calibration acceptance is 7"),
        (edit_config(lambda c: c["targets"][0].update(ignore_index=float("inf"))), "config.json"),
        (edit_config(lambda c: c["targets"][0]["classes"][0].update(name=None)), "must be words"),
        (edit_config(lambda c: c["targets"][0].update(classes=5)), "config.json"),
        (
            edit_config(lambda c: c["parts"]["generator"]["config"]["channels"].update({"8": 7})),
            r"has shape \[.*\], expected \[",
        ),
        (edit_config(lambda c: c["parts"]["interpreter"]["config"].update(members=4)), "promises .*'members': 4"),
        (edit_tensors("generator", lambda t: t.pop("mapping.w_avg")), r"missing \['mapping_network.w_avg'\]"),
        (edit_tensors("generator", lambda t: t.update(extra=torch.zeros(1))), "unexpected \\['extra'\\]"),
        (
            edit_tensors("generator", lambda t: t["mapping.w_avg"].fill_(float("nan"))),
            "NaN or infinity|not finite numbers",
        ),
        (
            edit_tensors("interpreter", lambda t: t.update(w2=t["w2"][:, :5].contiguous())),
            r"w2 has shape \[3, 5, 6\], expected",
        ),
        (edit_tensors("interpreter", lambda t: t.pop("b3")), "b3"),
        (edit_tensors("interpreter", lambda t: t["b3"].fill_(float("inf"))), "NaN or infinity|not finite numbers"),
    ],
)
def test_damage_is_named(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message) as caught:
        LabeledGenerator.from_pretrained(saved, device="cpu")
    assert isinstance(caught.value, CheckpointError) or "schema names" in str(caught.value)


def test_weights_are_only_read_if_header_and_length_agree(saved: Path) -> None:
    """A sparse file is as long as it likes: it must be refused before it is in memory."""
    with (saved / "generator.safetensors").open("r+b") as file:
        file.truncate(2**29)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"generator\.safetensors \(536870912 bytes\) is damaged: \S"):
        LabeledGenerator.from_pretrained(saved, device="cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json is empty"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "thousands of digits"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": "\xe9"}', "is not UTF-8 text"),
        (b"PK\3\4", "holds a zip archive, not JSON"),
    ],
)
def test_a_config_that_is_something_else_says_so_in_plain_words(saved: Path, content: bytes, message: str) -> None:
    (saved / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        LabeledGenerator.from_pretrained(saved, device="cpu")
    assert "copy the checkpoint again" in str(caught.value)


def test_what_a_newer_version_adds_is_kept(saved: Path, tmp_path: Path) -> None:
    """Nothing of this decides a sample: it is not refused, and comes back when the checkpoint is saved."""

    def grow(config: dict[str, Any]) -> None:
        config["fit"] = FITTED | {"keypoints": {"pck": 0.9}}
        config["calibration"]["lens"] = "wide"
        config["provenance"]["url"] = "somewhere"
        config["history"] = [1, 2]

    before = LabeledGenerator.from_pretrained(saved, device="cpu")
    edit_config(grow, sign=False)(saved)
    loaded = LabeledGenerator.from_pretrained(saved, device="cpu")
    assert loaded.fingerprint == before.fingerprint
    loaded.merge_classes({"side": ["left", "right"]}).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["fit"]["keypoints"] == {"pck": 0.9} and config["history"] == [1, 2]
    assert config["calibration"]["lens"] == "wide" and config["provenance"]["url"] == "somewhere"


def test_a_fingerprint_of_this_format_stays(saved: Path) -> None:
    """Changing how it is computed, or a default, would make every checkpoint another one."""
    config = {
        "labeler": "interpreted",
        "parts": {"generator": {"config": {"img_resolution": 8}, "sha256": "ab"}},
        "targets": [],
        "recipe": {"sampling": {"truncation_psi": 0.7}, "rendering": {}, "labeling": {}, "filter": None},
    }
    assert Checkpoint.from_dict(config, saved).fingerprint == (
        "00e1d73f264348b3e1eac262bc2928c6081341d89b53a5e47f3961402bfe96ff"
    )


def test_the_built_in_checkpoint_in_format_1_gives_the_same_samples(tmp_path: Path) -> None:
    """Its config.json as the first version wrote it, beside today's weights."""
    for name in ("generator.safetensors", "interpreter.safetensors"):
        (tmp_path / name).symlink_to(PRETRAINED / "demo-faces" / name)
    shutil.copy(Path(__file__).parent / "data" / "demo-faces-format-1.json", tmp_path / "config.json")
    old, new = (LabeledGenerator.from_pretrained(path, device="cpu") for path in (tmp_path, "demo-faces"))
    assert (old.recipe, old.schema, old.calibration) == (new.recipe, new.schema, new.calibration)
    assert_same_samples(old.generate(range(6)).rows(), new.generate(range(6)).rows())
    assert describe(tmp_path).fingerprint == old.fingerprint


@pytest.mark.parametrize("rules", [[], [1, 2]])
def test_format_1_is_read_through_a_migration(saved: Path, filtered: LabeledGenerator, rules: list[int]) -> None:
    config = json.loads((saved / "config.json").read_text())
    recipe, parts, filter = config["recipe"], config["parts"], config["recipe"]["filter"]
    interpreter = dict(parts["interpreter"]["config"])
    sampling = recipe["sampling"]
    schema = {k: v for k, v in config["targets"][0].items() if k not in ("kind", "field")}
    old = {
        "format_version": 1,
        "weights": {name: part["sha256"] for name, part in parts.items()},
        "license": config["license"],
        "generator": parts["generator"]["config"],
        "source": config["provenance"],
        "interpreter": interpreter,
        "schema": {**schema, "class_map": None},
        "recipe": {
            "psi": sampling["truncation_psi"],
            "cutoff": sampling["truncation_cutoff"],
            "second_latent": sampling["mixing_side"],
            "views": sampling["group_size"],
            **{name: sampling[name] for name in ("class_label", "class_weights", "mixing_layer")},
            **{k: v for k, v in recipe["rendering"].items() if k != "compile"},
            **{name: recipe["labeling"][name] for name in ("vote", "top_fraction")},
            "features": interpreter.pop("layout"),
            "reject_fraction": filter["reject_fraction"],
            "threshold": filter["threshold"],
            "require": rules,
            "min_area": 2,
        },
        "calibration": {**config["calibration"], "threshold": filter["threshold"], "reject_fraction": 0.4},
        "fit": None,
    }
    interpreter["in_channels"] = sum(interpreter.pop("channels"))
    old["fingerprint"] = fingerprint(old["weights"], old["generator"], interpreter, None, old["recipe"])
    (saved / "config.json").write_text(json.dumps(old))
    loaded = LabeledGenerator.from_pretrained(saved, device="cpu")
    assert (loaded.recipe.require, loaded.recipe.min_area) == (tuple(rules), 2 if rules else 1)
    loaded = loaded.with_recipe(loaded.recipe.override(require=()), filtered.calibration)
    assert loaded.recipe == filtered.recipe and loaded.schema == filtered.schema
    assert_same_samples(loaded.generate(range(5)).rows(), filtered.generate(range(5)).rows())
    old["recipe"]["psi"] = 0.1
    (saved / "config.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match="it says fingerprint"):
        describe(saved)


@pytest.mark.parametrize(
    ("name", "side", "classes", "points"),
    [("demo-faces", 64, "classes.json", 0), ("demo-faces-128", 128, "classes-128.json", 19)],
)
def test_what_is_built_in_is_small_free_and_described(name: str, side: int, classes: str, points: int) -> None:
    assert name in built_in()
    labeled, folder = LabeledGenerator.from_pretrained(name, device="cpu"), PRETRAINED / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert labeled.fingerprint in card and "License: CC0-1.0" in card and labeled.license == "CC0-1.0"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    demo = json.loads((Path(__file__).resolve().parents[1] / "demo" / classes).read_text())
    assert labeled.schema.palette == LabelSchema.from_dict(demo).palette
    batch = labeled.generate(range(4))
    assert batch.image.shape == (4, 3, side, side) and batch.mask.shape == (4, side, side)
    assert len(batch.mask.unique()) > labeled.schema.num_classes / 2
    if points:
        assert batch.keypoints.shape == (4, points, 3) and (batch.keypoints[..., 2] > 0).all()
        assert (batch.keypoints[..., :2] > 0).all() and (batch.keypoints[..., :2] < side).all()
    assert labeled.recipe.threshold is not None and (batch.uncertainty_score <= labeled.recipe.threshold).all()


def test_unknown_names_list_what_is_built_in() -> None:
    with pytest.raises(CheckpointError, match="a built-in checkpoint of that name \\(demo-faces, demo-faces-128\\)"):
        LabeledGenerator.from_pretrained("demo-cats")


@pytest.mark.parametrize("load", [load_generator, LabeledGenerator.from_pretrained])
def test_a_file_of_another_kind(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="expected a checkpoint directory"):
        load(tmp_path / "notes.txt")


def test_published_classifiers_that_do_not_belong_together(tmp_path: Path) -> None:
    for number, folder in enumerate(("dgan_sg1_128_c7_ckpt", "sg2ada_uncond64_skip_c34_ckpt")):
        (tmp_path / f"model_{number}.pth").write_bytes((GOLDEN / folder / "model_0.pth").read_bytes())
    with pytest.raises(
        CheckpointError, match=r"model_1.pth: layers.0.bias has shape \[256\], but \[128\] in model_0.pth"
    ):
        load_interpreter(tmp_path)


def _ensemble(folder: Path, names: list[str]) -> Path:
    for name in names:
        shutil.copy(GOLDEN / "sg2ada_uncond64_skip_c34_ckpt" / "model_0.pth", folder / name)
    return folder


def test_classifiers_of_half_way_training_are_no_members(tmp_path: Path) -> None:
    others = ["model_20parts_iter5000_number_0.pth", "model_best.pth", "model_01.pth", "model_-1.pth", "optimizer.pth"]
    _ensemble(tmp_path, [f"model_{number}.pth" for number in range(11)])
    members = load_interpreter(tmp_path, device="cpu")
    _ensemble(tmp_path, others)
    with pytest.warns(UserWarning, match="only files named model_NUMBER.pth are members.*model_20parts_iter5000"):
        assert torch.equal(load_interpreter(tmp_path, device="cpu").w1, members.w1)
    (tmp_path / "model_9.pth").unlink()
    with pytest.raises(CheckpointError, match="10 members, among them model_10.pth, and lacks model_9.pth"):
        load_interpreter(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model_20parts_iter5000_number_0.pth"], "model_20parts_iter5000_number_0.pth are not named like that"),
        (["model_999999999999999999.pth"], "lacks model_0.pth"),
    ],
)
def test_a_folder_without_a_whole_ensemble(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_interpreter(_ensemble(tmp_path, names), device="cpu")


def test_classifier_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected config.json, or a folder of model_0.pth"):
        load_interpreter(tmp_path)
    torch.save({"model_state_dict": {"layers.0.weight": torch.zeros(1)}}, tmp_path / "model_0.pth")
    with pytest.raises(CheckpointError, match="it lacks \\['layers.0.bias'"):
        load_interpreter(tmp_path)
    torch.save({"code": load_interpreter}, tmp_path / "model_0.pth")
    with pytest.raises(CheckpointError, match="refused"):
        load_interpreter(tmp_path)
    (tmp_path / "model_0.pth").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        load_interpreter(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with (
        pytest.raises(OSError, match="No space left on device, nothing was written.*config.json"),
        atomic_write(path) as file,
    ):
        file.write(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_written(tmp_path: Path, filtered: LabeledGenerator) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint to"):
        filtered.save_pretrained(tmp_path / "file" / "inside")


def test_unknown_device() -> None:
    with pytest.raises(ValueError, match="use cpu, cuda or cuda:N"):
        load_generator("demo-faces", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA device"):
            load_generator("demo-faces", device="cuda")


def test_feature_layout_of_another_architecture() -> None:
    with pytest.raises(ValueError, match="convs, const\\+convs, not 'datasetgan'"):
        load_generator("demo-faces", device="cpu", features="datasetgan")


def test_shapes_of_generator_inputs_are_checked(unfiltered: LabeledGenerator) -> None:
    generator = unfiltered.generator
    with pytest.raises(ValueError, match=r"z must be \[N, 32\], got \[2, 31\]"):
        generator.mapping(torch.zeros(2, 31))
    with pytest.raises(ValueError, match="unconditional"):
        generator.mapping(torch.zeros(1, 32), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"ws must be \[N, 6, 32\]"):
        generator.synthesis(torch.zeros(1, 5, 32))
    with pytest.raises(ValueError, match="each of the 5 layers, got 2"):
        generator.synthesis(torch.zeros(1, 6, 32), noise=[torch.zeros(1)] * 2)


def test_noise_may_be_given(unfiltered: LabeledGenerator) -> None:
    generator = unfiltered.generator
    ws = generator.mapping(torch.ones(1, 32))
    zeros = [torch.zeros(1, 1, r, r) for r in (4, 8, 8, 16, 16)]
    assert torch.equal(generator.synthesis(ws, noise=zeros)[0], generator.synthesis(ws, noise_mode="none")[0])
