"""Every kind of damage is found, named and mended."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_ensemble, small_labeled
from test_shards import content

from dsgan_datasets import LabeledGenerator, ShardError, ShardMapDataset, verify_shards, write_shards
from dsgan_datasets.labelers.interpreted import InterpretedLabeler
from dsgan_datasets.shards import Encoding, Folder, Manifest, load_generator_of, repair_shards
from dsgan_datasets.shards.codec import decode, record
from dsgan_datasets.shards.tar import read_record, read_records
from dsgan_datasets.tools.cli import main

FIRST, SECOND = "shard-000000.tar", "shard-000001.tar"


@pytest.fixture
def folder(tmp_path: Path, filtered: LabeledGenerator) -> Path:
    write_shards(filtered, tmp_path, range(7), samples_per_shard=3, encoding=Encoding(latent=True))
    return tmp_path


def truncate(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(data[:5000])


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[600] ^= 1
    (folder / FIRST).write_bytes(data)


def flip_a_bit_of_a_header(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[Manifest.read(Folder(folder)).shards[0].offsets[1] + 3] ^= 1
    (folder / FIRST).write_bytes(data)


def empty(folder: Path) -> None:
    (folder / FIRST).write_bytes(b"")


def swap(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes((folder / SECOND).read_bytes())
    (folder / SECOND).write_bytes(data)


def interleave(folder: Path) -> None:
    """The records of two shards in turn, as two writers to one file would leave them."""
    members = []
    for name in (FIRST, SECOND):
        with tarfile.open(folder / name) as tar:
            members.append([(m, tar.extractfile(m).read()) for m in tar])  # type: ignore[union-attr]
    with tarfile.open(folder / FIRST, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in zip(*members, strict=True):
            for member, data in pair:
                tar.addfile(member, io.BytesIO(data))


def reorder(folder: Path) -> None:
    with tarfile.open(folder / FIRST) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    with tarfile.open(folder / FIRST, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in [*members[4:8], *members[:4], *members[8:]]:
            tar.addfile(member, io.BytesIO(data))


def lose(folder: Path) -> None:
    (folder / FIRST).unlink()


def duplicate(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder / "shard-000000 (copy).tar")


def lose_the_index(folder: Path) -> None:
    (folder / "wids.json").unlink()


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        (truncate, {FIRST: "truncated"}),
        (empty, {FIRST: "truncated"}),
        (flip_a_bit, {FIRST: "changed"}),
        (flip_a_bit_of_a_header, {FIRST: "changed"}),
        (swap, {FIRST: "swapped", SECOND: "swapped"}),
        (interleave, {FIRST: "interleaved"}),
        (reorder, {FIRST: "interleaved"}),
        (lose, {FIRST: "missing"}),
        (duplicate, {"shard-000000 (copy).tar": "duplicate"}),
        (lose_the_index, {"wids.json": "index"}),
    ],
)
def test_damage_is_named_and_mended(
    folder: Path, filtered: LabeledGenerator, damage: Callable[[Path], None], kinds: dict[str, str]
) -> None:
    reference = content(folder)
    assert verify_shards(folder) == []
    damage(folder)
    assert {problem.name: problem.kind for problem in verify_shards(folder)} == kinds
    assert repair_shards(folder, filtered, strict=True) == []
    assert content(folder) == reference


@pytest.mark.parametrize("number", [0, 2])
def test_damaged_records_are_named(folder: Path, number: int) -> None:
    offsets = Manifest.read(Folder(folder)).shards[1].offsets
    data = bytearray((folder / SECOND).read_bytes())
    data[(offsets[number] + offsets[number + 1]) // 2] ^= 1
    (folder / SECOND).write_bytes(data)
    (problem,) = verify_shards(folder)
    assert (problem.kind, problem.records) == ("changed", (3 + number,))
    assert f"1 of 3 records are not those that were written: {3 + number:09d}" in str(problem)
    read = ShardMapDataset(folder)
    with pytest.raises(ShardError, match=rf"{SECOND} is damaged: record {3 + number:09d}, its bytes"):
        read[3 + number]
    assert int(read[4].index) == 4  # its neighbor is as it was


def test_a_pipe_in_place_of_a_shard_is_named_and_replaced(folder: Path, filtered: LabeledGenerator) -> None:
    before = content(folder)
    (folder / FIRST).unlink()
    os.mkfifo(folder / FIRST)  # which a reader would wait for without end
    (problem,) = verify_shards(folder)
    assert problem.name == FIRST and problem.kind == "missing" and "a device or a pipe" in problem.detail
    with pytest.raises(ShardError, match="a device or a pipe"):
        ShardMapDataset(folder)[0]
    assert repair_shards(folder, filtered) == [] and content(folder) == before


def test_a_folder_in_place_of_a_file_is_named_and_left_alone(folder: Path, filtered: LabeledGenerator) -> None:
    flip = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(flip[:-600] + b"x" + flip[-599:])
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()
    (folder / FIRST / "note").write_text("mine")
    first, second = verify_shards(folder)
    assert "a folder in its place: move that elsewhere" in first.detail and second.name == SECOND
    with pytest.raises(OSError, match="a folder in its place"):
        repair_shards(folder, filtered)
    assert (folder / FIRST / "note").read_text() == "mine"
    for file in ("manifest.json", "wids.json"):
        (folder / file).unlink()
        os.mkfifo(folder / file)
    with pytest.raises(ShardError, match=r"has no manifest\.json"):
        verify_shards(folder)


def test_bytes_after_the_last_record_are_part_of_no_record(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[-1] ^= 1
    (folder / FIRST).write_bytes(data)
    (problem,) = verify_shards(folder)
    assert (problem.kind, problem.records) == ("changed", ()) and "all records are intact" in problem.detail


def test_records_behind_a_cut_are_named(folder: Path) -> None:
    offsets = Manifest.read(Folder(folder)).shards[0].offsets
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[: offsets[1] + 10])
    (problem,) = verify_shards(folder)
    assert (problem.kind, problem.records) == ("truncated", (1, 2))


def test_a_run_of_records_is_read_up_to_the_damaged_one(folder: Path) -> None:
    shard = Manifest.read(Folder(folder)).shards[0]
    whole = list(read_records(Folder(folder), shard, 0, 3))
    assert whole == [read_record(Folder(folder), shard, number) for number in range(3)]
    assert [json.loads(files["json"])["index"] for files in whole] == [0, 1, 2]
    data = bytearray((folder / FIRST).read_bytes())
    data[shard.offsets[1] + 700] ^= 1
    (folder / FIRST).write_bytes(data)
    records = read_records(Folder(folder), shard, 0, 3)
    assert next(records) == whole[0]
    with pytest.raises(ShardError, match=f"{FIRST} is damaged: record 000000001, its bytes are not those"):
        next(records)
    lose(folder)
    with pytest.raises(ShardError, match=f"{FIRST} is damaged: there is no such file"):
        read_record(Folder(folder), shard, 0)


# Formats


def test_what_a_newer_version_recorded_is_kept(folder: Path, filtered: LabeledGenerator) -> None:
    forge(folder, weather="fine", shard__lens={"mm": 35})
    manifest = Manifest.read(Folder(folder))
    assert verify_shards(folder) == [] and int(ShardMapDataset(folder)[4].index) == 4
    assert Manifest.from_json(manifest.to_json(), "x") == manifest
    lose_the_index(folder)
    assert repair_shards(folder, filtered) == []  # writes the manifest too
    written = json.loads((folder / "manifest.json").read_text())
    assert written["weather"] == "fine" and written["shards"][1]["lens"] == {"mm": 35}


def as_format_1(folder: Path) -> None:
    """Rewrite the manifest as format 1 had it."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    recipe = data.pop("recipe")
    sampling, rendering, chosen = recipe["sampling"], recipe["rendering"], recipe["filter"]
    data["recipe"] = {
        "psi": sampling["truncation_psi"],
        "cutoff": sampling["truncation_cutoff"],
        "views": sampling["group_size"],
        "features": "convs",
        "compute_batch": rendering["compute_batch"],
        "reject_fraction": chosen["reject_fraction"],
        "threshold": chosen["threshold"],
        "require": [],
    }
    (target,) = data.pop("targets")
    data["schema"] = {name: target[name] for name in ("classes", "ignore_index", "flip_pairs")} | {"class_map": None}
    del data["encoding"]["version"], data["digest"]
    for shard in data["shards"]:
        shard["pixels"], shard["score"] = shard.pop("tallies")["mask"], shard.pop("uncertainty_score")
        del shard["checksums"]
    data["version"] = 1
    data["digest"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(data))


def test_format_1_is_read_and_verified_but_not_continued(folder: Path, filtered: LabeledGenerator) -> None:
    before = Manifest.read(Folder(folder))
    as_format_1(folder)
    after = Manifest.read(Folder(folder))
    assert after.plan.recipe.sampling == before.plan.recipe.sampling and after.plan.targets == before.plan.targets
    assert after.plan.recipe.threshold == before.plan.recipe.threshold
    assert [s.tallies for s in after.shards] == [s.tallies for s in before.shards]
    assert {s.checksums for s in after.shards} == {None}
    assert verify_shards(folder) == []
    assert torch.equal(ShardMapDataset(folder)[5].mask, filtered.generate([5]).mask[0])
    flip_a_bit(folder)
    (problem,) = verify_shards(folder)
    assert (problem.kind, problem.records) == ("changed", ())
    with pytest.raises(ShardError, match="was written in format 1.*only that version continues or repairs it"):
        repair_shards(folder, filtered)
    with pytest.raises(ShardError, match="was written in format 1"):
        write_shards(filtered, folder, range(7), samples_per_shard=3, encoding=Encoding(latent=True))


@pytest.mark.parametrize("version", [3, 0, "2", None, True])
def test_other_versions_of_the_format_are_refused(folder: Path, version: object) -> None:
    forge(folder, version=version)
    with pytest.raises(ShardError, match=r"manifest\.json has version .*this version of dsgan_datasets reads 1 to 2"):
        ShardMapDataset(folder)


def test_records_of_format_1_are_decoded(filtered: LabeledGenerator) -> None:
    sample = next(filtered.stream([0]))
    files = {n.partition(".")[2]: c for n, c in record(sample, Encoding(), filtered.targets, {}).items()}
    facts = json.loads(files["json"])
    facts["score"], facts["pixels"] = facts.pop("uncertainty_score"), facts.pop("tallies")["mask"]
    decoded = decode({**files, "json": json.dumps(facts).encode()}, filtered.targets, filtered.image_size)
    assert torch.equal(decoded["uncertainty_score"], sample["uncertainty_score"])


def test_foreign_tars_are_named_and_left_alone(folder: Path, filtered: LabeledGenerator) -> None:
    (folder / "holiday.tar").write_bytes(b"my pictures")
    (problem,) = verify_shards(folder)
    assert (problem.name, problem.kind) == ("holiday.tar", "foreign")
    assert repair_shards(folder, filtered) == [problem]
    assert (folder / "holiday.tar").read_bytes() == b"my pictures"


@pytest.mark.parametrize("change", [lambda t: t.replace('"seed": 0', '"seed": 1'), lambda t: t[:-40], lambda t: "[]"])
def test_a_changed_manifest_is_noticed(folder: Path, change: Callable[[str], str]) -> None:
    (folder / "manifest.json").write_text(change((folder / "manifest.json").read_text()))
    with pytest.raises(ShardError, match=r"manifest\.json (was changed|is damaged)"):
        verify_shards(folder)


def test_no_set_at_all(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ShardError, match=r"has no manifest\.json"):
            verify_shards(place)


def test_an_unfinished_set_is_named_and_finished(tmp_path: Path, filtered: LabeledGenerator) -> None:
    write_shards(filtered, tmp_path / "whole", range(7), samples_per_shard=3)
    folder = tmp_path / "part"
    write_shards(filtered, folder, range(7), samples_per_shard=3, shard_range=(1, 2))
    assert [(p.name, p.kind) for p in verify_shards(folder)] == [
        ("shard-000000.tar", "unfinished"),
        ("shard-000002.tar", "unfinished"),
    ]
    assert repair_shards(folder, filtered) == []
    assert content(folder) == content(tmp_path / "whole")


# On another machine


def elsewhere(labeled: LabeledGenerator, shift: float) -> LabeledGenerator:
    """The same generator on a machine whose arithmetic differs: its interpreter gives slightly other numbers."""
    moved = small_ensemble(sum(labeled.generator.feature_channels))
    with torch.no_grad():
        moved.b3 += shift * torch.randn(moved.b3.shape, generator=torch.Generator().manual_seed(1))
    labeler = InterpretedLabeler(labeled.generator, moved, labeled.targets)
    other = LabeledGenerator(labeler, labeled.recipe, calibration=labeled.calibration, license=labeled.license)
    other.__dict__["fingerprint"], other.__dict__["weights"] = labeled.fingerprint, labeled.weights
    return other


def test_close_labels_are_taken_with_their_origin(
    folder: Path, filtered: LabeledGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Manifest.read(Folder(folder))
    lose(folder)
    monkeypatch.setattr(np, "__version__", "9.9")
    other = elsewhere(filtered, 1e-4)
    with pytest.raises(ShardError, match="which strict refuses"):
        repair_shards(folder, other, strict=True)
    assert not (folder / FIRST).exists()
    assert repair_shards(folder, other) == []
    after = Manifest.read(Folder(folder))
    assert verify_shards(folder) == []
    first, *others = after.shards
    assert first.origin is not None and first.origin["numpy"] == "9.9"
    assert first.sha256 != before.shards[0].sha256
    assert first.attempts == before.shards[0].attempts  # replayed, not filtered anew
    assert others == list(before.shards[1:]) and after.plan == before.plan


def test_other_labels_are_refused(folder: Path, filtered: LabeledGenerator) -> None:
    reference = content(folder)
    flip_a_bit(folder)
    damaged = content(folder)
    with pytest.raises(ShardError, match="counted elsewhere.*was left as it is"):
        repair_shards(folder, elsewhere(filtered, 1.0))
    assert content(folder) == damaged
    repair_shards(folder, filtered)
    assert content(folder) == reference


def test_another_checkpoint_is_refused(folder: Path) -> None:
    lose(folder)
    with pytest.raises(ShardError, match="give the checkpoint that made it"):
        repair_shards(folder, small_labeled())


# The command


def test_the_command_finds_the_checkpoint_and_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tmp_path / "faces"
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    coarse = labeled.merge_classes({"head": ["skin", "nose"]})
    write_shards(coarse, shards, range(4), samples_per_shard=2)
    reference = content(shards)
    assert main(["shards", "verify", str(shards)]) == 0
    assert "as the manifest says" in capsys.readouterr().out
    lose(shards)
    assert main(["shards", "verify", str(shards)]) == 1
    captured = capsys.readouterr()
    assert "shard-000000.tar: missing" in captured.out and "--repair" in captured.err
    assert main(["shards", "verify", "--repair", str(shards), "--strict", "--device", "cpu"]) == 0
    assert content(shards) == reference
    assert main(["shards", "verify", str(shards), "--strict"]) == 1
    assert "give --repair too" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_built_in_must_be_named(
    folder: Path, filtered: LabeledGenerator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ShardError, match="no built-in checkpoint made"):
        load_generator_of(folder)
    saved = tmp_path_factory.mktemp("saved")
    filtered.save_pretrained(saved)
    assert load_generator_of(folder, saved, device="cpu").fingerprint == filtered.fingerprint
    with pytest.raises(ShardError, match="has other weights"):
        load_generator_of(folder, "demo-faces", device="cpu")


def forge(folder: Path, **changes: object) -> None:
    """Change the manifest as somebody would who knows how its digest is made; `shard__x` is x of the second shard."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"]
    for name, value in changes.items():
        target = data["shards"][1] if name.startswith("shard__") else data
        target[name.removeprefix("shard__")] = value
    data["digest"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"shard__name": "../elsewhere/shard-000001.tar"},
        {"shard__name": "/etc/passwd"},
        {"shard__name": 5},
        {"shard__offsets": [0, 20480, 5, 30720]},
        {"shard__offsets": [float("nan")] * 4},
        {"shard__offsets": [0, 1, 2, 10**18]},
        {"shard__bytes": -1},
        {"shard__count": 2},
        {"shard__sha256": "x"},
        {"shard__uncertainty_score": "high"},
        {"shard__tallies": "a"},
        {"shard__tallies": {"mask": "a"}},
        {"shard__tallies": {"mask": [1]}},
        {"shard__tallies": {}},
        {"shard__checksums": "00"},
        {"shard__checksums": "g" * 96},
        {"shard__checksums": 5},
        {"shard__attempts": {"3": 10**40}},
        {"shards": "none"},
        {"shards": []},
        {"fingerprint": None},
        {"license": 5},
        {"weights": None},
        {"made_with": 3},
        {"image_size": [10**9, 10**9]},
        {"num_samples": 10**30},
        {"start": 2**63 - 1},
        {"targets": []},
        {"targets": [{"kind": "unheard of"}]},
        {"targets": 5},
        {"recipe": {"sampling": {"truncation_psi": "x"}}},
        {"encoding": {"image_format": "gif"}},
        {"encoding": {"later_option": True}},
        {"encoding": {"uncertainty": 10**12}},
        {"encoding": {"latent": "no"}},
    ],
)
def test_a_forged_manifest_is_refused(
    folder: Path, changes: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    forge(folder)
    assert verify_shards(folder) == []  # a forger who changes nothing is let through
    forge(folder, **changes)
    for read in (verify_shards, ShardMapDataset):
        with pytest.raises(ShardError, match=r"manifest\.json is damaged: .*Restore the original"):
            read(folder)
    assert main(["export", str(folder), str(folder / "out"), "--format", "folder"]) == 1
    assert main(["shards", "verify", str(folder)]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_lost_manifest_is_made_again(folder: Path, filtered: LabeledGenerator) -> None:
    reference = content(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match="running the same command again restores the manifest"):
        verify_shards(folder)
    again = {"samples_per_shard": 3, "encoding": Encoding(latent=True)}
    with pytest.raises(ShardError, match=r"already holds shard-000000\.tar.*which these arguments do not make"):
        write_shards(filtered, folder, range(7), seed=1, **again)  # type: ignore[arg-type]
    flip_a_bit(folder)
    changed = content(folder)
    with pytest.raises(ShardError, match=r"shard-000000\.tar is there already, with other bytes"):
        write_shards(filtered, folder, range(7), **again)  # type: ignore[arg-type]
    assert (folder / FIRST).read_bytes() == changed[FIRST]  # perhaps it is somebody's
    (folder / FIRST).unlink()
    write_shards(filtered, folder, range(7), **again)  # type: ignore[arg-type]
    assert content(folder) == reference


def test_writing_again_restores_the_index(folder: Path, filtered: LabeledGenerator) -> None:
    reference = content(folder)
    lose_the_index(folder)
    write_shards(filtered, folder, range(7), samples_per_shard=3, encoding=Encoding(latent=True))
    assert content(folder) == reference


def test_what_the_command_says_of_repairs(
    folder: Path,
    filtered: LabeledGenerator,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "c"
    filtered.save_pretrained(checkpoint)
    duplicate(folder)
    lose(folder)
    (folder / "holiday.tar").write_bytes(b"my pictures")
    words = ["shards", "verify", str(folder)]
    assert main(words) == 1
    assert "removes copies" in capsys.readouterr().err
    assert main([*words, "--repair", "--checkpoint", str(checkpoint)]) == 1  # the stranger is left
    out, err = capsys.readouterr()
    assert "shard-000000 (copy).tar: removed" in out and f"{FIRST}: regenerated" in out and "move them elsewhere" in err
    assert main(words) == 1
    assert "--repair" not in capsys.readouterr().err


def test_a_repair_with_other_bytes_says_so(
    folder: Path,
    filtered: LabeledGenerator,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "c"
    filtered.save_pretrained(checkpoint)
    words = ["shards", "verify", str(folder), "--repair", "--checkpoint", str(checkpoint), "--device", "cpu"]
    lose(folder)
    assert main(words) == 0 and "warning" not in capsys.readouterr().out
    forge(folder, shard__sha256="0" * 64)  # as if another machine had written it
    assert main([*words, "--strict"]) == 1
    capsys.readouterr()
    assert main(words) == 0
    assert f"warning: {SECOND}: other bytes" in capsys.readouterr().out
    assert main(words[:3]) == 0


def test_places_that_are_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["shards", "verify", str(tmp_path / "file")]) == 1
    assert "is a file: name the folder" in capsys.readouterr().err
    assert main(["shards", "verify", ""]) == 1
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--num-samples", str(10**23), "--shard-range", "0:1"],
        ["--num-samples", "3", "--start", str(2**63 - 1)],
        ["--num-samples", "3", "--quality", "50"],
    ],
)
def test_counts_beyond_all_bounds(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "write", "demo-faces", str(tmp_path / "out"), "--device", "cpu", *words]) in (1, 2)
    assert re.search(r"^dsgan.*: error: ", capsys.readouterr().err, re.MULTILINE) and not (tmp_path / "out").exists()


def test_repairing_a_sound_set_removes_what_a_killed_repair_left(filtered: LabeledGenerator, tmp_path: Path) -> None:
    write_shards(filtered, tmp_path, range(4), samples_per_shard=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / f".manifest.json.{'0' * 32}.tmp").write_bytes(b"{")
    assert repair_shards(tmp_path, filtered) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == names
