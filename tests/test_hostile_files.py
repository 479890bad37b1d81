"""Invariant 5: whatever a file holds, nothing of it runs, and reading it ends soon, in little memory, in one error."""

from __future__ import annotations

import base64
import gzip
import importlib
import io
import json
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import hostile
import mutators
import pytest
import torch
from annotation_folders import export_to, write_labelme
from conftest import GOLDEN, small_stylegan1
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from watched import Outcome, Watched

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.tools.cli import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the watch reads /proc")

LONGEST = 10.0  # seconds of the processor

#: Kind of a file -> how it is loaded, and its name.
KINDS = {
    **dict.fromkeys(("snapshot", "stylegan3", "four channels", "tensorflow", "xl", "fastgan"), ("generator", "x.pkl")),
    **dict.fromkeys(("state dict", "rosinality", "semanticgan", "stylegan1"), ("generator", "x.pt")),
    **dict.fromkeys(("genforce", "mmagic", "lucidrains", "gzip"), ("generator", "x.pth")),
    "torch file": ("torch file", "x.pt"),
    **dict.fromkeys(("classifier", "zip", "legacy"), ("interpreter", "model_0.pth")),
}
REAL = ["snapshot", "stylegan3", "four channels", "rosinality", "semanticgan", "stylegan1", "zip", "legacy"]
DIALECTS = {
    "tensorflow": "tf4_sg2_cond16.pkl",
    "xl": "xl_c4_t32.pkl",
    "fastgan": "pgan_fastgan_lite_cond_256.pkl",
    "genforce": "genforce_sg1_cond16.pth",
    "mmagic": "mmagic_sg3_t_32.pth",
    "lucidrains": "lucidrains_rgba_noconst_16/model_0.pt",
}
REAL += [*DIALECTS, "gzip"]

Loads = Callable[..., Outcome]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, filtered: LabeledGenerator) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "faces"
    filtered.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Real files, by kind: snapshots, state dicts of generators, and a classifier in both formats of torch.save."""
    classifier = hostile.CLASSIFIERS / "model_0.pth"
    legacy = tmp_path_factory.mktemp("seeds") / "legacy.pth"
    torch.save(torch.load(classifier, weights_only=True), legacy, _use_new_zipfile_serialization=False)
    torch.save(small_stylegan1(), legacy.with_name("stylegan1.pt"), _use_new_zipfile_serialization=False)
    return {
        "stylegan3": (GOLDEN / "sg3_r_32.pkl").read_bytes(),
        "four channels": (GOLDEN / "sg3_4ch_t_32.pkl").read_bytes(),
        "rosinality": (GOLDEN / "ros_sg2_64.pt").read_bytes(),
        "semanticgan": (GOLDEN / "semanticgan_32.pt").read_bytes(),
        "stylegan1": legacy.with_name("stylegan1.pt").read_bytes(),
        "snapshot": hostile.SMALL_SNAPSHOT.read_bytes(),
        "zip": classifier.read_bytes(),
        "legacy": legacy.read_bytes(),
        "gzip": gzip.compress(hostile.SMALL_SNAPSHOT.read_bytes()),
        **{kind: (GOLDEN / file).read_bytes() for kind, file in DIALECTS.items()},
    }


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, exported: Path) -> Iterator[Watched]:
    here = tmp_path_factory.mktemp("watched")
    legacy = here.parent / "legacy.pt"
    torch.save(small_stylegan1(), legacy, _use_new_zipfile_serialization=False)
    warm_up = [("generator", hostile.SMALL_SNAPSHOT), ("interpreter", hostile.CLASSIFIERS), ("labeled", checkpoint)]
    warm_up += [("generator", GOLDEN / file) for file in DIALECTS.values()]
    warm_up += [("torch file", legacy), ("generator", legacy), ("annotations", exported)]
    watched = Watched(here, warm_up)
    yield watched
    watched.close()
    assert list(here.iterdir()) == []  # the folder that a canary would appear in


@pytest.fixture
def loads(child: Watched, tmp_path: Path) -> Loads:
    """Load bytes as a file of some kind, and check that no rule was broken."""

    def load(kind: str, data: bytes, *, check: bool = True) -> Outcome:
        how, file = KINDS[kind]
        path = tmp_path / file
        path.write_bytes(data)
        outcome = child.load(how, tmp_path if how == "interpreter" else path)
        if check:
            assert outcome.violations(len(data)) == [] and outcome.seconds < LONGEST
        return outcome

    return load


def refused(outcome: Outcome) -> bool:
    return outcome.kind == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.PAYLOADS)
def test_nothing_runs(loads: Loads, name: str) -> None:
    piece = hostile.PAYLOADS[name]
    assert refused(loads("snapshot", hostile.snapshot(piece)))
    for wrapped in (hostile.zip_file(piece), hostile.legacy_file(piece)):
        assert all(refused(loads(kind, wrapped)) for kind in ("torch file", "state dict", "classifier"))
    assert refused(loads("snapshot", hostile.snapshot(hostile.nested(piece))))


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.SNAPSHOT_PAYLOADS)
def test_nothing_in_a_snapshot_runs(loads: Loads, name: str) -> None:
    assert refused(loads("snapshot", hostile.snapshot(hostile.SNAPSHOT_PAYLOADS[name])))


def test_what_is_refused_is_named(loads: Loads) -> None:
    system = hostile.PAYLOADS["posix.system"]
    asks = "refused: the file asks for posix.system, which is not on the allow-list"
    for kind, data in (
        ("snapshot", hostile.snapshot(system)),
        ("snapshot", hostile.snapshot(hostile.nested(system))),
        ("torch file", hostile.zip_file(system)),
        ("classifier", hostile.legacy_file(system)),
    ):
        assert loads(kind, data).message.endswith(asks)


@pytest.mark.parametrize("name", ["posix.system", "eval", "exec", "subprocess", "getattr", "open"])
def test_the_watch_would_notice(child: Watched, tmp_path: Path, name: str) -> None:
    """The same payloads do run in a plain pickle.load, and both the canary and the hook show it."""
    path = tmp_path / "x.pkl"
    path.write_bytes(hostile.snapshot(hostile.PAYLOADS[name]))
    outcome = child.load("plain pickle", path)
    assert outcome.events and outcome.violations(path.stat().st_size)
    canary = child.folder / "CANARY"
    assert wait_for(canary)
    canary.unlink()


def wait_for(path: Path) -> bool:
    """A subprocess writes it in its own time."""
    for _ in range(200):
        if path.exists():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_the_watch_would_notice_time_and_memory(
    child: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(hostile.snapshot(hostile.call(hostile.name("builtins", "bytearray"), hostile.number(500_000_000))))
    assert "MB for a file of" in " ".join(child.load("plain pickle", path).violations(100))
    monkeypatch.setenv("WATCHED_TIMEOUT", "0.1")
    child.close()
    numbers = hostile.call(hostile.name("builtins", "range"), hostile.number(10**9))
    for endless in (("time", "sleep", hostile.number(60)), ("builtins", "max", numbers)):
        path.write_bytes(hostile.snapshot(hostile.call(hostile.name(*endless[:2]), endless[2])))
        assert child.load("plain pickle", path) == Outcome("died", "took too long")
    monkeypatch.delenv("WATCHED_TIMEOUT")
    child.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.BOMBS)
def test_bombs(loads: Loads, name: str) -> None:
    piece = hostile.BOMBS[name]()
    assert refused(loads("snapshot", hostile.snapshot(piece)))
    assert all(refused(loads(kind, hostile.zip_file(piece))) for kind in ("classifier", "state dict"))
    loads("torch file", hostile.legacy_file(piece))  # some are harmless there


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.SNAPSHOT_BOMBS)
def test_bombs_in_a_snapshot(loads: Loads, name: str) -> None:
    assert refused(loads("snapshot", hostile.snapshot(hostile.SNAPSHOT_BOMBS[name]())))


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.PLACEHOLDERS)
def test_placeholders_are_bounded(loads: Loads, name: str) -> None:
    """In the place of the network, and beside a good one, in each container."""
    piece = hostile.PLACEHOLDERS[name]()
    assert refused(loads("snapshot", hostile.snapshot(piece)))
    for wrapped in (hostile.zip_file(piece), hostile.legacy_file(piece)):
        assert refused(loads("state dict", wrapped))
    assert refused(loads("snapshot", b"\x80\x04" + piece + b"."))
    assert refused(loads("snapshot", gzip.compress(hostile.snapshot(piece), 1)))


@pytest.mark.slow
def test_gzip_bombs(loads: Loads) -> None:
    assert "far larger unpacked" in loads("gzip", gzip.compress(b"\x80\x04" + bytes(300_000_000), 9)).message


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.TORCH_FILES)
def test_torch_files(loads: Loads, name: str) -> None:
    data = hostile.TORCH_FILES[name]()
    assert refused(loads("classifier", data))
    loads("torch file", data)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shared lists", "repeated over and over"),
        ("a long text again and again", "repeated over and over"),
        ("modules in two places", "repeated over and over"),
        ("a network of them that holds itself", "a part of the content holds itself"),
        ("networks in two places of the next", "repeated over and over"),
        ("a network with a stranger inside", r"the file asks for os.system, which is not on the allow-list"),
        ("a tensor under many names", "repeated over and over"),
        ("deep lists", "nested deeper than 100 levels"),
        ("deep modules", "nested deeper than 100 levels"),
        ("a list in itself", "a part of the content holds itself"),
        ("a module that is its own child", "a part of the content holds itself"),
        ("many sets", "more than 400000 opcodes"),
        ("a dict made over and over", "asks for more data than it holds"),
        ("one storage again and again", "asks for more data than it holds"),
        ("a tensor of terabytes", "reaches beyond its 4 stored values"),
        ("a tensor beyond its storage", "reaches beyond its 4 stored values"),
        ("a storage shorter than declared", "is shorter or longer than that"),
        ("a nested storage of terabytes", "asks for more data than it holds"),
        ("storages that nobody refers to", "not those that the tensors refer to"),
        ("an array of absurd shape", "a numpy array of shape"),
        ("state of an array", "malformed state"),
        ("buffers", "opcode NEXT_BUFFER, which no file of weights needs"),
    ],
)
def test_each_rule_of_the_snapshot_reader(loads: Loads, name: str, reason: str) -> None:
    """By its own message: another rule, or the loader of the network, might have refused the file as well."""
    makers = {**hostile.BOMBS, **hostile.SNAPSHOT_BOMBS, **hostile.PLACEHOLDERS}
    piece = makers[name]() if name in makers else hostile.SNAPSHOT_PAYLOADS[name]
    assert reason in loads("snapshot", hostile.snapshot(piece)).message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("equal hashes", "keys are strings or integers below 2\\^60"),
        ("a deflated pickle", "data.pkl in the archive is compressed"),
        ("a deflated storage", "data/0 in the archive is compressed"),
        ("an entry longer than the file", "or longer than the archive"),
        ("a storage of another size", "a storage of 16 bytes has 17"),
        ("two files of one name", "two files of one name"),
        ("two pickles", "not one of torch.save"),
        ("TorchScript", "TorchScript archives cannot be read"),
        ("big-endian", "big-endian|a storage of 6 bytes has 3"),
        ("a damaged storage", "Bad CRC-32"),
        ("many entries", "an archive of more than 100000 files"),
        ("entries on top of each other", "File name in directory .* differ|Overlapped entries"),
        ("legacy, big-endian", "big-endian"),
        ("legacy with other keys", "not those that the tensors refer to"),
        ("legacy with a key twice", "not those that the tensors refer to"),
        ("legacy with fewer values", "is shorter or longer than that"),
        ("legacy with more values", "continues after its last storage"),
        ("another magic number", "neither of the two formats"),
    ],
)
def test_each_rule_of_the_reader_of_torch_files(loads: Loads, name: str, reason: str) -> None:
    data = hostile.zip_file(hostile.BOMBS[name]()) if name in hostile.BOMBS else hostile.TORCH_FILES[name]()
    assert re.search(reason, loads("torch file", data).message)


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.DIRECTORIES)
def test_directories(child: Watched, checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "faces"
    shutil.copytree(checkpoint, folder)
    hostile.DIRECTORIES[name](folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    outcomes = [child.load(how, folder) for how in ("generator", "interpreter", "labeled")]
    assert [outcome.violations(size) for outcome in outcomes] == [[], [], []]
    assert outcomes[2].kind == "refused" and max(outcome.seconds for outcome in outcomes) < LONGEST


@pytest.mark.parametrize("keep", [0, 1, 2, 100, 0.5, 0.99, -1])
@pytest.mark.parametrize("kind", REAL)
def test_truncated_files(loads: Loads, seeds: dict[str, bytes], kind: str, keep: float) -> None:
    data = seeds[kind]
    assert refused(loads(kind, data[: int(keep * len(data)) if isinstance(keep, float) else keep]))


@pytest.mark.parametrize("kind", REAL)
def test_the_real_files_load(loads: Loads, seeds: dict[str, bytes], kind: str) -> None:
    assert loads(kind, seeds[kind]).kind == "loaded"


FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@settings(FUZZ, max_examples=500)
@given(
    kind=st.sampled_from(REAL),
    mutator=st.sampled_from([*mutators.PLAIN, *mutators.OPCODES]),
    seed=st.integers(0, 2**32),
)
def test_mutated_files(loads: Loads, seeds: dict[str, bytes], kind: str, mutator: mutators.Mutator, seed: int) -> None:
    random = Random(seed)
    loads(kind, mutator(seeds[kind], seeds[random.choice(list(seeds))], random))


PIECES = [
    *(b"N", b"\x88", b"K\x01", b"]", b"}", b")", b"\x8f", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", hostile.text("a")),
    *(hostile.number(7), hostile.number(-1), hostile.long_number(2**70), hostile.raw(b"abcd"), hostile.text("G_ema")),
    *(b"c" + name for name in mutators.NAMES),
    *(hostile.module(_modules=b"}"), hostile.array((2,), "u1", b"ab"), hostile.one_storage(4, hostile.FOUR)),
    *(hostile.storage_id(4), hostile.tensor(hostile.one_storage(4, hostile.FOUR), 0, (2, 2), (2, 1))),
]
ACTS = [
    *(b"\x85", b"\x86", b"\x87", b"(", b"t", b"e", b"u", b"\x90", b"a", b"s", b"R", b"\x81", b"b", b"Q", b"\x93"),
    *(hostile.put(1), hostile.put(2), hostile.get(1), hostile.get(2), b"\x94", b"0", b"2", b"d", b"l", b"\x91"),
]


@pytest.mark.slow
@settings(FUZZ, max_examples=1500)
@given(
    kind=st.sampled_from(["snapshot", "zip", "legacy"]),
    steps=st.lists(st.sampled_from(PIECES) | st.sampled_from(ACTS), min_size=2, max_size=30),
)
def test_programs_of_random_opcodes(loads: Loads, kind: str, steps: list[bytes]) -> None:
    wrap = {"snapshot": hostile.snapshot, "zip": hostile.zip_file, "legacy": hostile.legacy_file}[kind]
    outcome = loads(kind if kind == "snapshot" else "torch file", wrap(b"".join(steps)))
    assert refused(outcome) or kind != "snapshot"


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("x.pkl", hostile.snapshot(hostile.PAYLOADS["posix.system"])),
        ("x.pkl", hostile.snapshot(hostile.SNAPSHOT_BOMBS["a class name of control characters"]())),
        ("x.pt", hostile.zip_file(hostile.PAYLOADS["posix.system"])),
        ("model_0.pth", hostile.zip_file(hostile.BOMBS["hashes of shared tuples"]())),
        ("config.json", b'{"a":' * 10**5),
    ],
)
def test_dsgan_info_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, data: bytes
) -> None:
    (tmp_path / file).write_bytes(data)
    assert main(["info", str(tmp_path / file if file.startswith("x.") else tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dsgan: error: ") and err.count("\n") == 1 and err[:-1].isprintable()


# ------------------------------------------------------------------------------------------- annotations


#: Megabytes by which reading any annotations may grow.
GROWTH = 1000


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = export_to(tmp_path_factory.mktemp("exported") / "a")
    write_labelme(folder)
    return folder


def labelme(shapes: list[Any]) -> bytes:
    return json.dumps({"shapes": shapes, "imagePath": "000000003.png", "imageHeight": 16, "imageWidth": 16}).encode()


def coco(annotations: list[Any], **image: Any) -> bytes:
    images = [{"id": 1, "file_name": "000000003.png", "width": 16, "height": 16, **image}]
    categories = [{"id": 1, "name": "hat"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def zigzag(count: int) -> list[list[float]]:
    return [[float(i % 16), 16.0 * (i % 2)] for i in range(count)]


def polygon(segmentation: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "segmentation": segmentation}


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_default.json", content)
    return file.getvalue()


def large_png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, format="PNG")
    return file.getvalue()


SQUARE = [[1, 1], [9, 1], [9, 9], [1, 9]]
#: Name -> name of a file beside an export, and its content.
ANNOTATION_BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a polygon of many corners": ("given.json", lambda: labelme([{"label": "hat", "points": zigzag(300_000)}])),
    "many polygons": ("given.json", lambda: labelme([{"label": "hat", "points": SQUARE}] * 50_000)),
    "many shapes of no class": ("given.json", lambda: labelme([{"label": str(i)} for i in range(100_000)])),
    "many circles": (
        "given.json",
        lambda: labelme([{"label": "hat", "points": SQUARE, "shape_type": "circle"}] * 50_000),
    ),
    "a mask larger than the image": (
        "given.json",
        lambda: labelme(
            [
                {
                    "label": "hat",
                    "points": SQUARE,
                    "shape_type": "mask",
                    "mask": base64.b64encode(large_png(5000)).decode(),
                }
            ]
        ),
    ),
    "many polygons of one annotation": ("given.json", lambda: coco([polygon([[1, 1, 9, 1, 9, 9]] * 100_000)])),
    "many annotations": ("given.json", lambda: coco([polygon([[1, 1, 9, 1, 9, 9]])] * 50_000)),
    "many boxes": ("given.json", lambda: coco([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}] * 50_000)),
    "many images that are not there": ("given.json", lambda: coco([{"image_id": i} for i in range(100_000)])),
    "long run lengths": ("given.json", lambda: coco([polygon({"size": [16, 16], "counts": "o" * 10_000_000})])),
    "huge run lengths": ("given.json", lambda: coco([polygon({"size": [16, 16], "counts": [10**30, 256 - 10**30]})])),
    "run lengths of a huge image": (
        "given.json",
        lambda: coco([polygon({"size": [10**6, 10**6], "counts": [10**12]})], width=10**6, height=10**6),
    ),
    "a huge zip entry": ("given.zip", lambda: zipped(bytes(400_000_000))),
    "a huge JSON in a zip": ("given.zip", lambda: zipped(b"[" + b"{}," * 20_000_000 + b"{}]")),
    "a mask of another size": ("given-000000003.png", lambda: large_png(5000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANNOTATION_BOMBS)
def test_annotations_take_bounded_time_and_memory(child: Watched, exported: Path, tmp_path: Path, name: str) -> None:
    file, content = ANNOTATION_BOMBS[name]
    folder = shutil.copytree(exported, tmp_path / "a")
    data = content()
    (folder / file).write_bytes(data)
    outcome = child.load("given annotations", folder)
    assert outcome.violations(len(data), GROWTH) == [] and outcome.kind == "refused"
    assert outcome.seconds < LONGEST and len(outcome.message) < 20_000


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "benchmarks")
    return importlib.import_module("fuzz")


@pytest.mark.extended
def test_the_fuzzer_counts(fuzz: Any, tmp_path: Path) -> None:
    """Every subject a few times; `benchmarks/fuzz.py` does the same with tens of thousands."""
    out, keep = tmp_path / "fuzz.json", tmp_path / "keep"
    assert fuzz.main(["--files", "126", "--workers", "1", "--keep", str(keep), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["files"] == report["loaded"] + report["refused"] == 126 and report["violations"] == 0
    assert sum(row["files"] for row in report["by_mutator"].values()) == 126 and not keep.exists()
    assert set(report["by_subject"]) == set(fuzz.SUBJECTS)


@pytest.mark.slow
def test_the_fuzzer_keeps_what_is_wrong(fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hostile.snapshot(b"N")
    seed = fuzz.Seed("x.pkl", data, ("plain pickle",), (mutators.truncate,))
    monkeypatch.setattr(fuzz, "make_seeds", lambda where: [seed])
    out, keep = tmp_path / "fuzz.json", tmp_path / "keep"
    assert fuzz.main(["--files", "1", "--workers", "1", "--keep", str(keep), "--out", str(out)]) == 1
    assert data.startswith((keep / "0-0" / "x.pkl").read_bytes()) and not out.exists()
