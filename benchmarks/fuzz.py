"""Damages real files in many ways and reads each: nothing may run, and it ends well or in the documented error.

Subjects are files of networks (checkpoints), their config.json (configs), sets of shards, annotations of every kind,
and command lines.

Files are loaded in child processes with limits of time and memory and with an audit hook (tests/watched.py). A crash,
a timeout, another exception, a forbidden audit event or too much memory is a violation: the run then exits with 1 and
keeps the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import io
import json
import platform
import shutil
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # this checkout, as in the children, whatever else is installed

import mutators  # noqa: E402
from annotation_folders import (  # noqa: E402
    DEPTH,
    POINTS,
    export_to,
    names,
    write_coco,
    write_coco_points,
    write_depth,
    write_labelme,
    write_labelme_points,
    write_labelstudio,
    write_masks,
)
from conftest import SCHEMA, small_labeled, small_stylegan1  # noqa: E402
from measuring import cpu_name, progress, write_report  # noqa: E402
from watched import Outcome, Watched  # noqa: E402

from dsgan_datasets.shards import Encoding, Folder, Manifest, write_shards  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
EXAMPLE = "example: python benchmarks/fuzz.py --files 30000 --seed 0 --out benchmarks/results/fuzz.json"
#: Megabytes by which a subject may grow; what is not here, by three times the size of its files.
MOST_MEGABYTES = {"shards": 1000.0, "annotations": 1000.0, "commands": 1000.0}

SUBJECTS = ("checkpoints", "configs", "shards", "annotations", "commands")
Result = dict[str, Any]


@dataclass(frozen=True)
class Seed:
    """A real file that is damaged.

    Attributes:
        file: its name, in a folder of its own.
        hows: keys of `watched.loaders`; one is drawn for each damaged file.
        mutators: ways to damage it.
        folder: what lies beside it.
        subject: what it is an instance of.
        place: puts the damaged file into a folder; None writes it there.
    """

    file: str
    data: bytes
    hows: tuple[str, ...]
    mutators: tuple[mutators.Mutator, ...]
    folder: Path | None = None
    subject: str = "checkpoints"
    place: Callable[[Path, str, bytes], object] | None = None


def make_seeds(where: Path) -> list[Seed]:
    """Real files of every subject."""
    small_labeled().save_pretrained(where / "faces")
    return [*_checkpoints(where), *_shards(where), *_annotations(where), *_commands(where)]


def _shards(where: Path) -> list[Seed]:
    """A set of three records: its files, and each part of a record in a tar that fits its manifest."""
    folder = where / "shards"
    labeled = small_labeled()
    write_shards(labeled, folder, range(3), encoding=Encoding(uncertainty=True, latent=True), workers=1)
    write_shards(labeled, where / "jpeg", range(2), encoding=Encoding(image_format="jpg"), workers=1)
    names = ("manifest.json", "shard-000000.tar")
    seeds = [Seed(name, (folder / name).read_bytes(), ("shards",), _damage(name), folder, "shards") for name in names]
    for source in (folder, where / "jpeg"):
        parts = record_of(source)
        seeds += [
            Seed(name, content, ("shards",), _damage(name), source, "shards", partial(forge, parts))
            for name, content in parts.items()
        ]
    manifest = (folder / "manifest.json").read_bytes()
    return [*seeds, Seed("manifest.json", manifest, ("shards",), (mutators.change_json,), folder, "shards", sign)]


def _damage(name: str) -> tuple[mutators.Mutator, ...]:
    kind = Path(name).suffix
    return {
        ".json": mutators.TEXT,
        ".png": mutators.PICTURE,
        ".jpg": (*mutators.PLAIN, mutators.become_another_format),
    }.get(kind, mutators.PLAIN)


def record_of(folder: Path) -> dict[str, bytes]:
    """Name in the tar -> content, of the first record of a set."""
    shard = Manifest.read(Folder(folder)).shards[0]
    part = (folder / shard.name).read_bytes()[: shard.offsets[1]]
    with tarfile.open(fileobj=io.BytesIO(part)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def forge(parts: Mapping[str, bytes], folder: Path, name: str, data: bytes) -> None:
    """A set of one record with that part, and a manifest that fits: what a stranger may offer."""
    manifest = Manifest.read(Folder(folder))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in {**parts, name: data}.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        end = tar.offset
    record = file.getvalue()[:end]
    body = record + bytes(1024)
    plan = dataclasses.replace(manifest.plan, start=0, num_samples=1, samples_per_shard=1)
    shard = dataclasses.replace(
        manifest.shards[0], first=0, last=0, count=1, bytes=len(body), offsets=(0, len(record)), attempts={},
        sha256=hashlib.sha256(body).hexdigest(), checksums=hashlib.sha256(record).hexdigest()[:32],
    )  # fmt: skip
    (folder / shard.name).write_bytes(body)
    (folder / "manifest.json").write_bytes(Manifest(plan, (shard,)).to_json())


def sign(folder: Path, name: str, data: bytes) -> None:
    """A manifest whose digest is right, whatever else it says."""
    content = json.loads(data)
    if isinstance(content, dict):
        content.pop("digest", None)
        content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / name).write_text(json.dumps(content))


def _annotations(where: Path) -> list[Seed]:
    """Files of every kind of annotation, archives of them, and what an export consists of."""
    seeds = []
    for kind, targets, writer, file, more in (
        ("masks", (), write_masks, "masks/{}.png", ("classes.json", "annotations.json", "latents.npy")),
        ("labelme", (), write_labelme, "images/{}.json", ()),
        ("coco", (), write_coco, "coco.json", ()),
        ("points", (POINTS,), write_labelme_points, "images/{}.json", ("targets.json",)),
        ("coco points", (POINTS,), write_coco_points, "coco_keypoints.json", ()),
        ("label studio", (SCHEMA, POINTS), write_labelstudio, "labelstudio.json", ()),
        ("depth", (DEPTH,), write_depth, "depth/{}.npy", ("targets.json",)),
    ):
        folder = export_to(where / kind, *targets)
        writer(folder)
        first, second, _ = names(folder)
        own = file.format(first)
        damaged = [own, *more, *([f"depth/{second}.png"] if kind == "depth" else [])]
        hows = ("annotations", "partly annotated")
        for name in damaged:
            data = (folder / name).read_bytes()
            seeds.append(Seed(name, data, hows, _damage(name), folder, "annotations"))
        bare = export_to(where / f"{kind}-bare", *targets)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.glob(str(Path(own).with_name(f"*{Path(own).suffix}")))):
                archive.write(path, f"annotations/{path.name}")
        for name, content, damage in (
            ("given.zip", packed.getvalue(), mutators.PLAIN),
            (f"given-{first}{Path(own).suffix}", (folder / own).read_bytes(), _damage(own)),
        ):
            seeds.append(Seed(name, content, ("given annotations",), damage, bare, "annotations"))
    return seeds


def _commands(where: Path) -> list[Seed]:
    """Command lines that take a moment each."""
    folder = where / "commands"
    shutil.copytree(where / "faces", folder / "faces")
    shutil.copytree(where / "masks", folder / "to-annotate")
    shutil.copytree(where / "shards", folder / "shards")
    lines = (
        "info faces",
        "preview faces --num-samples 2 --seed 3 --out sheet.png --set truncation_psi=[0.5,0.9]",
        "stats faces --num-samples 2 --json --set size=[8,8]",
        "annotate check to-annotate --allow-missing --min-region 2 --out check.png",
        "annotate export faces out --num-samples 2 --select random --classes background,eye --seed 1",
        "export faces out --format coco --num-samples 2 --split val=0.5",
        "shards verify shards",
        "shards write faces out --num-samples 2 --samples-per-shard 1 --image-format png",
    )
    return [
        Seed(
            f"argv{i}.json",
            json.dumps(line.split()).encode(),
            ("command",),
            (mutators.change_words,),
            folder,
            "commands",
        )
        for i, line in enumerate(lines)
    ]


def _checkpoints(where: Path) -> list[Seed]:
    """A file of every dialect, those of torch.save in both formats, and the files of a checkpoint directory."""
    pickles = (*mutators.PLAIN, *mutators.OPCODES)
    classifier = GOLDEN / "dgan_sg1_128_c7_ckpt" / "model_0.pth"
    seeds = [
        Seed(f"{kind}.pkl", (GOLDEN / f"{name}.pkl").read_bytes(), ("generator",), pickles)
        for kind, name in (
            *(("stylegan2", "sg2ada_fullsnapshot16"), ("stylegan3", "sg3_r_32"), ("xl", "xl_c4_t32")),
            *(("tensorflow1", "tf3_sg1_cond16"), ("tensorflow2", "tf4_sg2_cond16"), ("rectangle", "human_sg3_t_32x16")),
            ("fastgan", "pgan_fastgan_lite_cond_256"),
        )
    ]
    seeds += [
        Seed(f"{kind}.pth", (GOLDEN / file).read_bytes(), ("generator",), pickles)
        for kind, file in (
            *(("genforce1", "genforce_sg1_cond16.pth"), ("genforce2", "genforce_sg2_32.pth")),
            *(("mmagic2", "mmagic_sg2_32.pth"), ("mmagic3", "mmagic_sg3_t_32.pth")),
            *(("lucidrains", "lucidrains_rgba_noconst_16/model_0.pt"), ("semanticgan", "semanticgan_32.pt")),
        )
    ]
    small = (GOLDEN / "tf4_sg2_resnet32.pkl").read_bytes()
    seeds.append(Seed("gzip.pkl.gz", gzip.compress(small, mtime=0), ("generator",), mutators.PLAIN))
    torch_files = {
        "model_0.pth": ("interpreter", torch.load(classifier, weights_only=True)),
        "rosinality.pt": ("generator", torch.load(GOLDEN / "ros_sg2_64.pt", weights_only=True)),
        "stylegan1.pt": ("generator", small_stylegan1()),
    }
    for name, (how, content) in torch_files.items():
        for new in (True, False):
            torch.save(content, where / name, _use_new_zipfile_serialization=new)
            seeds.append(Seed(name, (where / name).read_bytes(), (how,), pickles))
    folder = where / "faces"
    for file in ("config.json", "generator.safetensors", "interpreter.safetensors"):
        config = file == "config.json"
        damage = (*mutators.PLAIN, *mutators.TEXT) if config else mutators.PLAIN
        hows = ("generator", "interpreter", "labeled")
        subject = "configs" if config else "checkpoints"
        seeds.append(Seed(file, (folder / file).read_bytes(), hows, damage, folder, subject))
    return seeds


def warm_up(seeds: Sequence[Seed], where: Path) -> list[tuple[str, Path]]:
    """The seeds themselves, each in every way."""
    found = []
    for i, seed in enumerate(seeds):
        path = _write(seed, seed.data, where / f"seed{i}")
        found += [(how, path) for how in seed.hows]
    return found


def _write(seed: Seed, data: bytes, folder: Path) -> Path:
    """The damaged file, with what lies beside it; what to load."""
    shutil.rmtree(folder, ignore_errors=True)
    if seed.folder is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(seed.folder, folder)
    if seed.place is None:
        (folder / seed.file).write_bytes(data)
    else:
        seed.place(folder, seed.file, data)
    whole = (seed.folder and seed.subject != "commands") or seed.file == "model_0.pth"
    return folder if whole else folder / seed.file


class Fuzzer:
    """One child process for each thread.

    Args:
        seeds: real files.
        seed: of the randomness; file number i is the same in every run.
        where: folder for temporary files.
        keep: folder for offending files.
    """

    def __init__(self, seeds: Sequence[Seed], seed: int, where: Path, keep: Path) -> None:
        self.seeds = seeds
        self._seed = seed
        self._where = where
        self._keep = keep
        self._local = threading.local()
        self._children: list[Watched] = []

    def run(self, number: int) -> tuple[Seed, str, Outcome, list[str]]:
        """Damage and load file `number`: what was damaged, mutator, outcome, violations."""
        random = Random(f"{self._seed} {number}")
        seed = self.seeds[number % len(self.seeds)]
        mutator = random.choice(seed.mutators)
        data = mutator(seed.data, random.choice(self.seeds).data, random)
        child, folder = self._child()
        how = random.choice(seed.hows)
        path = _write(seed, data, folder / "in")
        size = sum(f.stat().st_size for f in (folder / "in").rglob("*"))
        outcome = child.load(how, path)
        violations = outcome.violations(size, MOST_MEGABYTES.get(seed.subject))
        if list(child.folder.iterdir()):
            violations.append(f"files appeared: {[f.name for f in child.folder.iterdir()]}")
        if violations:
            kept = self._keep / f"{self._seed}-{number}"
            shutil.copytree(folder / "in", kept, dirs_exist_ok=True)
            progress(f"VIOLATION {kept} ({how}, {mutator.__name__}): {'; '.join(violations)}")
        return seed, mutator.__name__, outcome, violations

    def _child(self) -> tuple[Watched, Path]:
        if not hasattr(self._local, "child"):
            folder = self._where / f"worker{threading.get_ident()}"
            (folder / "empty").mkdir(parents=True)
            self._local.child = Watched(folder / "empty", warm_up(self.seeds, folder)), folder
            self._children.append(self._local.child[0])
        child: tuple[Watched, Path] = self._local.child
        return child

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.close()


def fuzz(files: int, seed: int, workers: int, keep: Path, subjects: Sequence[str] = ()) -> Result:
    """Run, and count; no subjects are all."""
    by: dict[str, Counter[str]] = {}
    slowest, largest, bad = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        seeds = [each for each in make_seeds(Path(folder)) if each.subject in (subjects or (each.subject,))]
        fuzzer = Fuzzer(seeds, seed, Path(folder), keep)
        pool = ThreadPoolExecutor(workers)
        try:
            for damaged, mutator, outcome, violations in tqdm(
                pool.map(fuzzer.run, range(files)), total=files, unit="file"
            ):
                for name in ("all", f"subject {damaged.subject}", f"file {Path(damaged.file).name}", mutator):
                    by.setdefault(name, Counter()).update(["files", outcome.kind])
                slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
                bad += bool(violations)
        finally:
            pool.shutdown(cancel_futures=True)
            fuzzer.close()
    rows = {name: {kind: count[kind] for kind in ("files", "loaded", "refused")} for name, count in sorted(by.items())}
    return {
        **rows.pop("all"),
        "violations": bad,
        "slowest_seconds": round(slowest, 2),
        "most_megabytes": round(largest),
        "by_subject": {name[8:]: row for name, row in rows.items() if name.startswith("subject ")},
        "by_file": {name[5:]: row for name, row in rows.items() if name.startswith("file ")},
        "by_mutator": {name: row for name, row in rows.items() if " " not in name},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Load damaged files; nothing may run, hang or crash.", epilog=EXAMPLE)
    parser.add_argument("--files", type=int, default=10_000, help="damaged files (default: %(default)s)")
    parser.add_argument(
        "--subjects", nargs="+", default=[], choices=SUBJECTS, help="what to damage (default: everything)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="child processes (default: %(default)s)")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-violations"), help="where offending files go (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (default: none)")
    args = parser.parse_args(arguments)
    if min(args.files, args.workers) < 1:
        parser.error("--files and --workers must be at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 if anything was violated."""
    args = parse(arguments)
    report: Result = {"benchmark": "fuzz", "cpu": cpu_name(), "workers": args.workers, "seed": args.seed}
    report |= {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    report |= {
        "safetensors": safetensors.__version__,
        **fuzz(args.files, args.seed, args.workers, args.keep, args.subjects),
    }
    print(json.dumps(report, indent=2))
    if report["violations"]:
        progress(f"FAILED: {report['violations']} violations; the files are in {args.keep}")
        return 1
    if args.out:
        write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
