"""Damages real files in many ways and loads each: nothing may run, and each load ends well or in a CheckpointError.

Files are loaded in child processes with limits of time and memory and with an audit hook (tests/watched.py). A crash,
a timeout, another exception, a forbidden audit event or too much memory is a violation: the run then exits with 1 and
keeps the file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from conftest import small_labeled, small_stylegan1  # noqa: E402
from measuring import cpu_name, progress, write_report  # noqa: E402
from watched import Outcome, Watched  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
EXAMPLE = "example: python benchmarks/fuzz.py --files 10000 --seed 0 --out benchmarks/results/fuzz.json"

Result = dict[str, Any]


@dataclass(frozen=True)
class Seed:
    """A real file that is damaged.

    Attributes:
        file: its name, in a folder of its own.
        hows: keys of `watched.loaders`; one is drawn for each damaged file.
        mutators: ways to damage it.
        folder: what lies beside it.
    """

    file: str
    data: bytes
    hows: tuple[str, ...]
    mutators: tuple[mutators.Mutator, ...]
    folder: Path | None = None


def make_seeds(where: Path) -> list[Seed]:
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
    small_labeled().save_pretrained(folder)
    for file in ("config.json", "generator.safetensors", "interpreter.safetensors"):
        damage = (*mutators.PLAIN, mutators.change_json) if file == "config.json" else mutators.PLAIN
        hows = ("generator", "interpreter", "labeled")
        seeds.append(Seed(file, (folder / file).read_bytes(), hows, damage, folder))
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
    (folder / seed.file).write_bytes(data)
    return folder if seed.folder or seed.file == "model_0.pth" else folder / seed.file


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

    def run(self, number: int) -> tuple[str, str, Outcome, list[str]]:
        """Damage and load file `number`: kind of file, mutator, outcome, violations."""
        random = Random(f"{self._seed} {number}")
        seed = self.seeds[number % len(self.seeds)]
        mutator = random.choice(seed.mutators)
        data = mutator(seed.data, random.choice(self.seeds).data, random)
        child, folder = self._child()
        how = random.choice(seed.hows)
        path = _write(seed, data, folder / "in")
        outcome = child.load(how, path)
        violations = outcome.violations(sum(f.stat().st_size for f in (folder / "in").iterdir()))
        if list(child.folder.iterdir()):
            violations.append(f"files appeared: {[f.name for f in child.folder.iterdir()]}")
        if violations:
            kept = self._keep / f"{self._seed}-{number}"
            shutil.copytree(folder / "in", kept, dirs_exist_ok=True)
            progress(f"VIOLATION {kept} ({how}, {mutator.__name__}): {'; '.join(violations)}")
        return seed.file, mutator.__name__, outcome, violations

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


def fuzz(files: int, seed: int, workers: int, keep: Path) -> Result:
    """Run, and count."""
    by: dict[str, Counter[str]] = {}
    slowest, largest, bad = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(make_seeds(Path(folder)), seed, Path(folder), keep)
        pool = ThreadPoolExecutor(workers)
        try:
            for file, mutator, outcome, violations in tqdm(
                pool.map(fuzzer.run, range(files)), total=files, unit="file"
            ):
                for name in ("all", f"file {file}", mutator):
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
        "by_file": {name[5:]: row for name, row in rows.items() if name.startswith("file ")},
        "by_mutator": {name: row for name, row in rows.items() if not name.startswith("file ")},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Load damaged files; nothing may run, hang or crash.", epilog=EXAMPLE)
    parser.add_argument("--files", type=int, default=10_000, help="damaged files (default: %(default)s)")
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
    report |= {"safetensors": safetensors.__version__, **fuzz(args.files, args.seed, args.workers, args.keep)}
    print(json.dumps(report, indent=2))
    if report["violations"]:
        progress(f"FAILED: {report['violations']} violations; the files are in {args.keep}")
        return 1
    if args.out:
        write_report(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
