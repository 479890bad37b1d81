"""The command line, as a user calls it: in a process of its own, from another folder."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image

from dsgan_datasets import LabeledGenerator
from dsgan_datasets._version import __version__
from dsgan_datasets.tools.cli import build_parser, main
from dsgan_datasets.tools.estimate import rate


def dsgan(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dsgan_datasets.tools.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_preview_writes_a_sheet(tmp_path: Path) -> None:
    done = dsgan("preview", "demo-faces", "--num-samples", 3, "--out", "new/faces.png", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "new" / "faces.png") in done.stdout
    sheet = Image.open(tmp_path / "new" / "faces.png")
    assert sheet.mode == "RGB" and sheet.width > 600
    # The sheet holds the image itself, enlarged smoothly.
    image = LabeledGenerator.from_pretrained("demo-faces", device="cpu").generate([0]).image[0]
    enlarged = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((192, 192), Image.Resampling.BICUBIC)
    places = [
        (x, y)
        for y in range(80)
        for x in range(40)
        if np.array_equal(np.asarray(sheet.crop((x, y, x + 192, y + 192))), np.asarray(enlarged))
    ]
    assert len(places) == 1


@pytest.mark.slow
def test_counts_and_warnings_are_said_as_a_person_would(tmp_path: Path) -> None:
    (tmp_path / "demo-faces").mkdir()  # which two steps of the command warn of
    done = dsgan("preview", "demo-faces", "--num-samples", 1, "--device", "cpu", cwd=tmp_path)
    assert "preview of 1 sample:" in done.stdout and done.stderr.count("is the built-in checkpoint") == 1
    words = ("annotate", "export", "demo-faces", "one", "--num-samples", 1, "--candidates", 1, "--device", "cpu")
    done = dsgan(*words, cwd=tmp_path)
    assert "1 image, 64×64" in done.stdout and "Triggered internally" not in done.stderr


def test_info_of_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "demo-faces"]) == 0
    printed = capsys.readouterr().out
    fingerprint = LabeledGenerator.from_pretrained("demo-faces", device="cpu").fingerprint
    for expected in (
        "stylegan2",
        "64×64",
        "pixel_ensemble: 10 networks",
        "background, skin",
        "CC0-1.0",
        fingerprint,
        "drops 10%",
    ):
        assert expected in printed


def test_info_of_a_checkpoint_with_points(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "demo-faces-128"]) == 0
    printed = capsys.readouterr().out
    for expected in ("convolutional: 5 networks", "keypoint_ensemble: 5 networks", "14 classes", "19 points: nose_tip"):
        assert expected in printed
    assert "classifiers" not in printed


def test_info_of_published_classifiers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(GOLDEN / "dgan_sg1_128_c7_ckpt")]) == 0
    printed = capsys.readouterr().out
    assert all(t in printed for t in ("folder of published pixel classifiers", "304 features, 128/32", "7"))


@pytest.mark.slow
def test_shards(tmp_path: Path) -> None:
    done = dsgan(
        "shards", "write", "demo-faces", tmp_path / "out", "--num-samples", 5, "--samples-per-shard", 3, cwd=tmp_path
    )
    assert done.returncode == 0 and "5 samples in 2 shards" in done.stdout, done.stderr
    with tarfile.open(tmp_path / "out" / "shard-000001.tar") as tar:
        assert tar.getnames() == [f"00000000{i}.{kind}" for i in (3, 4) for kind in ("png", "seg.png", "json")]
        member = tar.extractfile("000000004.json")
        assert member is not None and json.load(member)["index"] == 4


@pytest.mark.slow
def test_calibrate(tmp_path: Path, capsys: pytest.CaptureFixture[str], filtered: LabeledGenerator) -> None:
    filtered.save_pretrained(tmp_path / "a")
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--truncation-psi", "0.5", "--num-samples", "40"]
    assert main(["calibrate", *arguments, "--device", "cpu"]) == 0
    assert "threshold" in capsys.readouterr().out
    assert LabeledGenerator.from_pretrained(tmp_path / "b", device="cpu").recipe.truncation_psi == 0.5


def test_calibrate_does_not_replace_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], filtered: LabeledGenerator
) -> None:
    filtered.save_pretrained(tmp_path / "a", card="by hand")
    same = ["calibrate", str(tmp_path / "a"), str(tmp_path / "a"), "--num-samples", "40", "--device", "cpu"]
    assert main(same) == 1 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "a" / "README.md").read_text() == "by hand"
    assert main([*same, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["preview", "demo-dogs"], 1, "built-in checkpoint of that name (demo-faces, demo-faces-128)"),
        (["preview", "demo-faces", "--out", "sheet.txt"], 1, "must end in .png or .jpg"),
        (["preview", "demo-faces", "--truncation-psi", "9"], 1, "psi must be a number in -2 … 2"),
        (["preview", "demo-faces", "--truncation-psi", "0.3"], 1, "dsgan calibrate"),
        (["preview", "demo-faces", "--device", "tpu"], 1, "use cpu, cuda or cuda:N"),
        (["preview", "demo-faces", "--num-samples", "0"], 2, "'0' is not an integer in 1 … 1,000"),
        (["preview", "demo-faces", "--start", "-4"], 2, "0 … 2^63-1"),
        (["preview", "demo-faces", "--seed", "-1"], 2, "not an integer in 0 … 2^64-1"),
        (["preview", "demo-faces", "--seed", "x"], 2, "'x' is not an integer"),
        (["info", "setup.cfg"], 1, "no file or directory"),
        (["info", "hf://nobody/nothing"], 1, "hf://"),
        (["shards", "write", "demo-faces", "/proc/nowhere", "--num-samples", "1"], 1, "/proc/nowhere"),
        (["calibrate", "demo-faces", "out", "--num-samples", "3"], 1, "num_samples must be an integer of at least 20"),
        (["calibrate", "demo-faces", "out", "--reject-fraction", "2"], 1, "reject_fraction must be a number in [0, 1)"),
    ],
)
def test_mistakes_end_in_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = main(arguments)
    printed = capsys.readouterr()
    assert code == status
    assert message in printed.err and "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())  # nothing was left behind


def test_every_command_has_help_with_an_example() -> None:
    verbs = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name, parser in verbs.items():  # type: ignore[union-attr]
        text = parser.format_help()
        assert "example:" in text and f"dsgan {name}" in text


def test_no_filter_shows_uncertain_samples(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--num-samples", "1", "--out", str(tmp_path / "a.png")]
    assert main(["preview", "demo-faces", "--truncation-psi", "0.3", "--no-filter", *out]) == 0
    assert "deprecated" not in capsys.readouterr().err
    assert main(["preview", "demo-faces", "--psi", "0.3", "--no-filter", *out]) == 0
    assert "warning: --psi is deprecated and will be removed in version" in capsys.readouterr().err


def test_any_recipe_field_can_be_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["preview", "demo-faces", "--num-samples", "4", "--no-filter", "--device", "cpu"]
    out = tmp_path / "views.png"
    fields = [
        "--set",
        "mixing_layer=4",
        "--set",
        "group_size=2",
        "--set",
        "truncation_psi=[0.5,0.9]",
        "--set",
        "vote=mean",
    ]
    assert main([*common, "--out", str(out), *fields]) == 0
    with Image.open(out) as sheet:
        width, height = sheet.size
    assert width < 1500 and height > 500, "a view group is a row"
    for wrong, status, message in (
        ("mix=4", 2, "no such recipe field: mix"),
        ("vote=max", 1, "vote must be majority or mean"),
        ("views", 2, "'views' is not FIELD=VALUE"),
    ):
        assert main([*common, "--out", str(out), "--set", wrong]) == status
        assert message in capsys.readouterr().err


def test_version_and_help_of_a_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dsgan {__version__}\n"
    assert main([]) == 0
    assert "commands:" in capsys.readouterr().out


@pytest.mark.slow
def test_doctor_says_what_is_there_and_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions are those of the environment; a missing package is named with its extra, an original as what it is."""
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    version = metadata.version

    def with_original(name: str) -> str:
        if name == "sal-detectron2":
            raise metadata.PackageNotFoundError(name)
        return "0.6" if name == "detectron2" else version(name)

    monkeypatch.setattr(metadata, "version", with_original)
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["dsgan_datasets"] == __version__ and found["versions"]["torch"] == torch.__version__
    assert found["device"]["used"] == "cpu" and "samples/s" in found["device"]["speed"]
    assert found["packages"]["webdataset"].startswith(metadata.version("webdataset"))
    assert "pip install 'dsgan_datasets[s3]'" in found["packages"]["s3fs"]
    assert found["packages"]["detectron2"] == "detectron2 0.6, the original (training in Detectron2)"
    assert main(["doctor", "--device", "cpu"]) == 0
    assert "packages:" in capsys.readouterr().out
    assert main(["doctor", "--device", "cuda:99"]) == 1
    assert "cuda" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Of all commands."""
    below = [each for action in parser._actions if isinstance(action, argparse._SubParsersAction) for each in [action]]
    for action in below:
        for command in action.choices.values():
            yield from parsers(command)
    if not below:
        yield parser


def test_an_option_means_the_same_everywhere() -> None:
    """It takes a value in all commands or in none, and what counts samples is called --num-samples."""
    flags: dict[str, set[bool]] = {}
    for parser in parsers(build_parser()):
        for action in parser._actions:
            for option in action.option_strings:
                flags.setdefault(option, set()).add(action.nargs == 0)
    assert {option: kinds for option, kinds in flags.items() if len(kinds) > 1} == {}
    assert "--num-samples" in flags and "--num" not in flags and "--json" in flags


def test_a_wrong_option_shows_the_usage_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "write", "a", "b", "--num-samples", "1", "--bogus"]) == 2
    printed = capsys.readouterr().err
    assert "--samples-per-shard" in printed and "dsgan shards write: error: unrecognized arguments: --bogus" in printed


@pytest.mark.parametrize(
    ("words", "named"),
    [("--truncation-psi 9", "--truncation-psi"), ("--set mixing_layer=99", "--set mixing_layer=VALUE")],
)
def test_a_wrong_field_of_the_recipe_is_named_as_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, named: str
) -> None:
    assert main(["preview", "demo-faces", "--device", "cpu", "--out", str(tmp_path / "a.png"), *words.split()]) == 1
    assert capsys.readouterr().err.rstrip().endswith(f": {named})")


def test_json_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is JSON and nothing else."""

    def found(*words: str, status: int = 0) -> Any:
        assert main([*words, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    assert found("info", "demo-faces")["license"].startswith("CC0-1.0")
    few = ("--num-samples", "4", "--device", "cpu")
    out = str(tmp_path / "shards")
    written = found("shards", "write", "demo-faces", out, "--samples-per-shard", "2", *few)
    assert written["samples"] == 4 and written["shards"] == 2 and written["complete"] is True
    assert found("shards", "verify", out) == []
    Path(out, "shard-000001.tar").unlink()
    (problem,) = found("shards", "verify", out, status=1)
    assert problem["name"] == "shard-000001.tar" and problem["kind"] == "missing"
    exported = found("export", "demo-faces", str(tmp_path / "e"), "--format", "folder", *few)
    assert exported["samples"] == 4 and Path(exported["folder"]).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["shards", "write", "demo-faces", "OUT"], ["export", "demo-faces", "OUT", "--format", "mmseg"]]
)
def test_a_dry_run_estimates_and_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [*words, "--num-samples", "16", "--device", "cpu"]
    assert main([*command, "--dry-run", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "OUT").exists()
    assert estimate["num_samples"] == 16 and estimate["seconds"] > 0
    assert estimate["seconds"] == pytest.approx(16 / estimate["samples_per_second"])
    assert main(command) == 0
    size = sum(file.stat().st_size for file in (tmp_path / "OUT").rglob("*") if file.is_file())
    assert estimate["bytes"] == pytest.approx(size, rel=0.5)  # preview and manifest are not proportional


@pytest.mark.parametrize("held_up", [0.0, 0.5, 30.0])
def test_a_rate_is_never_far_too_high(held_up: float) -> None:
    """Also if something else held up the first run for some seconds."""
    runs: list[int] = []

    def seconds_of(units: int) -> float:
        runs.append(units)
        return 2 + units / 100 + (held_up if len(runs) == 1 else 0.0)

    begun, found = rate(seconds_of, 10, 1000)
    assert begun == 2.1 + held_up
    assert 25 < found < 200 and max(runs) <= 1000


def test_the_shell_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "dsgan").write_text(capsys.readouterr().out)
    asked = "source ./dsgan; COMP_WORDS=({}); COMP_CWORD={}; _shtab_dsgan; echo ${{COMPREPLY[@]}}"
    for words, expected in (
        ("dsgan ann", "annotate"),
        ("dsgan shards wr", "write"),
        ("dsgan stats --num", "--num-samples"),
    ):
        command = ["bash", "-c", asked.format(words, words.count(" "))]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.split() == [expected], done.stderr


def test_what_completion_needs_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 1
    assert "pip install 'dsgan_datasets[completion]'" in capsys.readouterr().err


@pytest.mark.frameworks
def test_frameworks_in_place_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the pinned redistributions or the originals are."""
    assert main(["install", "detectron2", "mmseg", "ultralytics", "mmseg"]) == 0
    said = [line.partition(", the original")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["detectron2: in place", "mmseg: in place", "ultralytics: in place"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What seems to be installed, with versions; nothing at first."""
    present: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in present:
            raise metadata.PackageNotFoundError(name)
        return present[name]

    monkeypatch.setattr(metadata, "version", version)
    return present


def test_installing_a_framework(capsys: pytest.CaptureFixture[str], installed: dict[str, str]) -> None:
    """As if none were installed: pinned by hash, without their own dependencies."""
    assert main(["install", "detectron2", "mmseg", "--dry-run"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(commands) == 5 and all(words[1:3] == ["-m", "pip"] for words in commands)
    assert any(word.startswith("fvcore") for word in commands[0]) and any("yapf" in word for word in commands[3])
    pinned = [words for words in commands if "--require-hashes" in words]
    assert len(pinned) == 2 and all("--no-deps" in words and Path(words[-1]).is_file() for words in pinned)
    assert main(["install", "pytorch"]) == 2


ORIGINALS = {"mmengine": "0.10.7", "mmsegmentation": "1.2.2", "mmcv": "2.1.0"}


def test_originals_are_left_alone(capsys: pytest.CaptureFixture[str], installed: dict[str, str]) -> None:
    """Neither replaced nor added to, whatever their version; both commands name them."""
    installed.update(ORIGINALS, detectron2="0.6")
    assert main(["install", "detectron2", "mmseg"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "detectron2: in place, the original: detectron2 0.6",
        "mmseg: in place, the original: mmengine 0.10.7, mmsegmentation 1.2.2, mmcv 2.1.0",
    ]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({}, "found mmengine 0.10.7, no mmsegmentation, no mmcv, which are not all originals"),
        ({"mmsegmentation": "1.2.2", "mmcv-lite": "2.2.0"}, "found mmengine 0.10.7, mmsegmentation 1.2.2, mmcv-lite "),
        ({"onedl-mmengine": "0.10.12"}, "mmengine 0.10.7 and onedl-mmengine 0.10.12 are both installed"),
    ],
)
def test_a_mixture_with_originals_is_refused(
    capsys: pytest.CaptureFixture[str], installed: dict[str, str], others: dict[str, str], message: str
) -> None:
    installed.update(mmengine="0.10.7", **others)
    assert main(["install", "mmseg"]) == 1
    said = capsys.readouterr().err
    assert message in said and "pip uninstall mmengine" in said
