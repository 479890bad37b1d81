"""Bad arguments end in one sentence and status 1 or 2 before anything is written; files say nothing of this machine."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from annotation_folders import export_to, write_labelme, write_masks
from conftest import GOLDEN, small_labeled

from dsgan_datasets import LabeledGenerator, LabelSchema, write_shards
from dsgan_datasets.checkpoints.directory import PRETRAINED
from dsgan_datasets.export import ExportInput, export, formats_for
from dsgan_datasets.tools import cli
from dsgan_datasets.tools.cli import main
from dsgan_datasets.tools.messages import printable

GENERATOR = str(GOLDEN / "sg2ada_fullsnapshot16.pkl")
DEEP = "[" * 100_000

#: (command, words of the message); OUT is a new name, CHECKPOINT a small labeled checkpoint.
HOSTILE = [
    ("preview CHECKPOINT --set self=1", "no such recipe field: self"),
    ("preview CHECKPOINT --set device=cpu", "no such recipe field: device"),
    ("preview CHECKPOINT --set __class__=1", "no such recipe field: __class__"),
    ("preview CHECKPOINT --set _OWNERS=1", "no such recipe field"),
    ("preview CHECKPOINT --set vote=mean --set vote=majority", "vote is given twice"),
    ("preview CHECKPOINT --psi 1 --set psi=0.5", "truncation_psi is given twice"),
    (f"preview CHECKPOINT --set require={DEEP}", "nested too deeply"),
    ("preview CHECKPOINT --set require={}", "require must be"),
    ("preview CHECKPOINT --set rules=[{}]", "rules must be"),
    ("preview CHECKPOINT --set threshold=NaN", "threshold must be"),
    ("preview CHECKPOINT --set threshold=1e999", "threshold must be"),
    ("preview CHECKPOINT --set size=[99999999999999999999,1]", "size must be"),
    ("preview CHECKPOINT --set compute_batch=99999999999999999999999", "compute_batch must be"),
    ("preview CHECKPOINT --set mixing_layer=99999999999999999999", "mixing_layer"),
    ("preview CHECKPOINT --set class_label=99999999999999999999", "class_label"),
    ("preview CHECKPOINT --set truncation_cutoff=99999999999999999999", "truncation_cutoff"),
    ("preview CHECKPOINT --set require=[99999999999999999999]", "require"),
    ("preview CHECKPOINT --num-samples 100000000000000000000", "is not an integer in 1 … 1,000"),
    ("preview CHECKPOINT --num-samples NaN", "is not an integer"),
    ("preview CHECKPOINT --num-samples " + "9" * 5000, "is not an integer"),
    ("preview CHECKPOINT --start 9223372036854775807 --num-samples 2", "indices must lie in 0 … 2^63-1"),
    ("preview CHECKPOINT --start 9223372036854775808", "is not an integer in 0 … 2^63-1"),
    ("preview CHECKPOINT --psi nan", "'nan' is not a number"),
    ("preview CHECKPOINT --psi 1e999", "'1e999' is not a number"),
    ("preview CHECKPOINT --out CHECKPOINT/x\udce4.png", "is not UTF-8"),
    ("preview CHECKPOINT --out a\0b.png", "null character"),
    ("preview a\0b", "null character"),
    ("preview \x1b[2J\x1b]0;title\x07", "\\x1b[2J"),
    (f"preview {'x' * 5000}", "File name too long"),
    (f"preview {'x/' * 3000}", "File name too long"),
    (f"preview CHECKPOINT --out {'x' * 300}.png", "File name too long"),
    ("preview CHECKPOINT --out FOLDER.png", "FOLDER.png is a folder: name a file"),
    ("preview CHECKPOINT --out /proc/nowhere/a.png", "/proc/nowhere"),
    ("preview FOLDER.png", "has no config.json"),
    ("preview .", "has no config.json"),
    ("preview ", "no config.json"),
    ("preview FILE", "FILE"),
    ("stats CHECKPOINT --num-samples 1000000000000000", "is not an integer in 1 … 10,000,000"),
    ("calibrate CHECKPOINT OUT --reject-fraction nan", "'nan' is not a number"),
    ("calibrate CHECKPOINT OUT --reject-fraction -0.1", "reject_fraction must be a number in [0, 1)"),
    ("calibrate CHECKPOINT OUT --ignore-fraction 1", "ignore_fraction must be a number in [0, 1)"),
    ("calibrate CHECKPOINT OUT --num-samples 3", "(num_samples: --num-samples)"),
    ("calibrate CHECKPOINT FILE", "FILE is a file"),
    ("calibrate CHECKPOINT FILE/deep", "Not a directory"),
    (f"calibrate CHECKPOINT {'x' * 300}", "File name too long"),
    ("fit GENERATOR FOLDER.png OUT --members 99999999", "is not an integer in 1 … 1,000"),
    ("fit GENERATOR FOLDER.png OUT --learning-rate inf", "'inf' is not a number"),
    ("fit GENERATOR FOLDER.png FOLDER.png OUT", "given twice"),
    ("fit GENERATOR FILE OUT", "no folder"),
    ("fit FILE FOLDER.png OUT", "FOLDER.png"),
    ("cluster GENERATOR OUT --clusters 999999999999", "is not an integer in 2 … 255"),
    ("cluster GENERATOR OUT --map -1", "is not an integer in 0"),
    (f"cluster GENERATOR OUT --names {DEEP}", "File name too long"),
    ("cluster GENERATOR OUT --names DEEP.json", "DEEP.json is not valid JSON"),
    ("cluster GENERATOR OUT --masks FOLDER.png", "annotations.json is missing"),
    ("annotate export GENERATOR OUT --classes a,a", "no name twice"),
    ("annotate export GENERATOR OUT --classes DEEP.json", "nested too deeply"),
    ("annotate export GENERATOR OUT --classes a,b\udce4", "is not UTF-8"),
    ("annotate export GENERATOR OUT --classes a,b --num-samples 99999999", "is not an integer in 1 … 10,000"),
    ("annotate export GENERATOR FILE --classes a,b", "FILE is a file"),
    ("annotate export GENERATOR OUT --classes a,b --after FOLDER.png", "annotations.json is missing"),
    ("annotate check FILE", "FILE"),
    ("annotate check FOLDER.png --min-region -1", "is not an integer in 0"),
    ("export CHECKPOINT OUT --format folder --num-samples 99999999999999999999", "is not an integer in 1 … 2^63-1"),
    ("export CHECKPOINT OUT --format folder --num-samples 4 --start 9223372036854775807", "start must be"),
    ("export CHECKPOINT OUT --format folder --num-samples 4 --split val=nan", "a split is a name"),
    ("export CHECKPOINT OUT --format coco --num-samples 4 --instance-class a\udce4", "is not UTF-8"),
    ("export CHECKPOINT FILE --format folder --num-samples 4", "FILE exists"),
    ("export CHECKPOINT FILE/deep --format folder --num-samples 4", "Not a directory"),
    ("export FOLDER.png OUT --format folder", "neither a checkpoint"),
    ("shards write CHECKPOINT OUT --num-samples 4 --quality 999 --image-format jpg", "is not an integer in 1 … 100"),
    ("shards write CHECKPOINT OUT --num-samples 4 --shard-range 0:99999999999999999999", "is not an integer in 0"),
    ("shards write CHECKPOINT OUT --num-samples 4 --workers 99999999", "is not an integer in 1 … 1,024"),
    ("info FILE", "FILE"),
    ("fit GENERATOR s3://key:secret@bucket/a OUT", "s3:/…@bucket/a"),
    ("info s3://key:secret@bucket/a", "s3://…@bucket/a"),
    ("preview CHECKPOINT --num-samples https://host/a?signature=secret", "https://host/a?…"),
    ("nonsense", "invalid choice"),
    (f"preview --device {DEEP} CHECKPOINT", "[[["),
    ("--" + "x" * 100_000, "required"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    small_labeled().save_pretrained(path)
    return path


@pytest.mark.parametrize(("command", "words"), HOSTILE, ids=[f"{c[:60]!a}" for c, _ in HOSTILE])
def test_bad_arguments_end_in_one_sentence(
    tmp_path: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER.png").mkdir()
    (tmp_path / "FILE").write_text("text")
    (tmp_path / "DEEP.json").write_text(DEEP)
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        word.replace("CHECKPOINT", str(checkpoint)).replace("GENERATOR", GENERATOR) for word in command.split(" ")
    ]
    assert main(arguments) in (1, 2)
    output = capsys.readouterr().err
    assert words in output and "Traceback" not in output and "internal error" not in output
    assert "secret" not in output
    (sentence,) = [line for line in output.splitlines() if "error: " in line]
    assert len(sentence) < 2000 and all(character.isprintable() for character in sentence)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fault_of_the_program_says_where_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.info, "run", lambda args: {}["surprise"])
    assert main(["info", "demo-faces"]) == 1
    output = capsys.readouterr().err
    assert "dsgan: internal error: KeyError: 'surprise'" in output and "report it" in output
    assert "Traceback" not in output
    monkeypatch.setenv(cli.DEBUG, "1")
    assert main(["info", "demo-faces"]) == 1 and "Traceback" in capsys.readouterr().err


def test_debugging_shows_where_a_usual_error_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cli.DEBUG, "1")
    assert main(["info", "nothing"]) == 1
    output = capsys.readouterr().err
    assert "Traceback" in output and "dsgan: error: no file or directory 'nothing'" in output


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["preview", "annotate"])
def test_running_out_of_space_names_the_file(tmp_path: Path, verb: str) -> None:
    """A limit on the size of files fails in `write`, as a full disk does: without a name."""
    command = {
        "preview": ["preview", "demo-faces", "--out", "sheet.png"],
        "annotate": ["annotate", "export", GENERATOR, "sheet.png", "--classes", "a,b", "--num-samples", "2"],
    }[verb]
    code = (
        "import resource, sys; from dsgan_datasets.tools.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); sys.exit(main({[*command, '--device', 'cpu']!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "sheet.png: File too large, nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_built_in_name_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write = ["shards", "write", "demo-faces", "demo-faces", "--num-samples", "1", "--device", "cpu"]
    assert [main(write), main(write)] == [0, 0]
    output = capsys.readouterr().err
    assert output.count("demo-faces is the built-in checkpoint") == 1 and "write ./demo-faces" in output
    built_in = LabeledGenerator.from_pretrained(PRETRAINED / "demo-faces", device="cpu").fingerprint
    with pytest.warns(UserWarning, match="built-in checkpoint"):
        assert LabeledGenerator.from_pretrained("demo-faces", device="cpu").fingerprint == built_in
    export = ["export", "demo-faces", "out", "--format", "folder", "--num-samples", "1", "--device", "cpu"]
    assert main(export) == 0  # of the checkpoint, not of the shards in the folder of that name
    assert main(["export", "./demo-faces", "shards-out", "--format", "folder"]) == 0
    (tmp_path / "demo-faces").rename(tmp_path / "elsewhere")
    (tmp_path / "demo-faces").symlink_to(checkpoint)
    for own in ("./demo-faces", Path("demo-faces"), str(tmp_path / "demo-faces")):
        assert LabeledGenerator.from_pretrained(own, device="cpu").fingerprint != built_in


@pytest.mark.parametrize(
    "name", ["folder", "coco", "mmseg", "yolo-seg", pytest.param("everything", marks=pytest.mark.extended)]
)
def test_files_that_travel_say_nothing_of_this_machine(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """No path of a folder here, no user: exports, shards, checkpoints with cards, and what an annotator gets."""
    secret = tmp_path / "home-of-somebody"
    secret.mkdir()
    monkeypatch.chdir(secret)
    source = secret / "my-generator.pkl"
    source.write_bytes(Path(GENERATOR).read_bytes())
    cpu, out = ["--device", "cpu"], secret / "out"
    few = ["--num-samples", "4"]
    form = "folder" if name == "everything" else name
    assert main(["export", str(checkpoint), str(out / name), "--format", form, *few, *cpu]) == 0
    if name == "everything":
        write_shards(small_labeled(), out / "shards", range(2))
        assert main(["export", str(out / "shards"), str(out / "read"), "--format", "coco"]) == 0
        two = ["--classes", "a,b", "--num-samples", "2", *cpu]
        assert main(["annotate", "export", str(source), str(out / "a"), *two]) == 0
        export_to(secret / "work")
        write_masks(secret / "work")
        write_labelme(secret / "work")
        fast = ["--folds", "0", "--steps", "5", "--members", "2", "--num-samples", "40", *cpu]
        assert main(["fit", str(source), str(secret / "work"), str(out / "fitted"), "--format", "masks", *fast]) == 0
        after = ["--after", str(secret / "work"), "--interpreter", str(out / "fitted"), "--num-samples", "2"]
        assert main(["annotate", "export", str(source), str(out / "round-2"), *after, *cpu]) == 0
        assert main(["calibrate", str(out / "fitted"), str(out / "again"), "--num-samples", "40", *cpu]) == 0
        assert main(["cluster", str(source), str(out / "clusters"), "--clusters", "2", "--num-samples", "2", *cpu]) == 0
        assert main(["convert", str(source), str(out / "converted")]) == 0
        capsys.readouterr()
        assert main(["stats", str(checkpoint), "--num-samples", "3", "--json", *cpu]) == 0
        (out / "stats.json").write_text(capsys.readouterr().out)
        assert json.loads((out / "stats.json").read_text())["checkpoint"] == "small"
    output = [b"home-of-somebody", os.fsencode(tmp_path.parent), os.fsencode(Path(GENERATOR).parent)]
    output += [os.fsencode(Path.home()) + b"/"]
    output += [f"/{getpass.getuser()}/".encode()]
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in output if word in content], path


def test_text_that_is_not_unicode_loses_no_work(tmp_path: Path) -> None:
    """A license or a name from a stranger's file may hold half a character: what is written reads back the same."""
    odd = "half \udce4 character"
    labeled = small_labeled()
    labeled.license = odd
    labeled.save_pretrained(tmp_path / "checkpoint")
    assert LabeledGenerator.from_pretrained(tmp_path / "checkpoint", device="cpu").license == odd
    assert "half \\udce4 character" in (tmp_path / "checkpoint" / "README.md").read_text()
    for name in formats_for(labeled.targets):
        export(ExportInput.generated(labeled, 4), tmp_path / name, name)
    stored = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert stored["licenses"][0]["name"] == odd
    for name in ("a\udce4", "a\nb", "a\x1b[2J"):
        with pytest.raises(ValueError, match="must be text that can be written and shown"):
            LabelSchema(("background", name))


@pytest.mark.parametrize("part", ["x", "a:", "a:/", "a:/b?", "://a:b", "a:b@", "é"])
def test_a_message_that_quotes_a_very_long_word_takes_no_time_and_shows_no_secret(part: str) -> None:
    begin = time.process_time()
    for text in (f"no {part * 100_000} there", f"no https://me:{part * 100_000}@host there"):
        shown = printable(text)
        assert shown.startswith("no ") and shown.endswith(" there") and len(shown) < 400
    assert "me:" not in shown and time.process_time() - begin < 5
