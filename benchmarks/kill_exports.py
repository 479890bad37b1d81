"""Kills what writes folders again and again, and compares what is left with an undisturbed run.

Subjects: exports in every format, folders of images to annotate, new checkpoints, and checkpoints that replace others.
A writer is forked from this process, which has imported everything, and gets SIGKILL before a flush to the disk, before
or after a rename, half-way through a file, or at any time. Then:

- what has its final name is whole: equal to the bytes of an undisturbed run, or, where a checkpoint is replaced, each
  file is that of the old or of the new one, and a mixture of both is refused when it is loaded;
- everything else has a hidden temporary name;
- the same command, run once more and left alone, ends with the bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from killing import Kills, Moments, around_rename, before_flush, failed, half_way_through_a_file
from measuring import conclude, cpu_name, progress

from dsgan_datasets import LabeledGenerator
from dsgan_datasets.annotations import export_annotations
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.export import ExportInput, export, formats_for

EXAMPLE = "example: python benchmarks/kill_exports.py --kills 400 --out benchmarks/results/kill_exports.json"
SAMPLES, OUT = 5, "out"
#: Kills before a writer is left alone; each comes upon what the others left.
KILLS_A_FOLDER = 4


@dataclass(frozen=True)
class Subject:
    """Something that writes a folder.

    Attributes:
        write: writes it to a path.
        prepare: puts there what is to be replaced; None for a new folder.
        load: loads the folder, or raises a CheckpointError; None if nothing reads it.
    """

    write: Callable[[Path], object]
    prepare: Callable[[Path], object] | None = None
    load: Callable[[Path], str] | None = None


def subjects(labeled: LabeledGenerator) -> dict[str, Subject]:
    """Name -> what is killed."""
    other = labeled.with_recipe(labeled.recipe.override(truncation_psi=0.5, reject_fraction=0))

    def exporting(format: str, out: Path) -> object:
        return export(ExportInput.generated(labeled, SAMPLES), out, format, splits={"val": 0.2})

    found = {f"export {name}": Subject(functools.partial(exporting, name)) for name in formats_for(labeled.targets)}

    def annotate(out: Path) -> object:
        recipe = labeled.recipe.unfiltered()
        return export_annotations(
            labeled.generator, labeled.schema, out, num_samples=2, select="random", recipe=recipe, interpreter=labeled
        )

    def load(path: Path) -> str:
        return LabeledGenerator.from_pretrained(path, device="cpu").fingerprint

    return {
        **found,
        "annotate export": Subject(annotate),
        "save a new checkpoint": Subject(other.save_pretrained, load=load),
        "replace a checkpoint": Subject(other.save_pretrained, labeled.save_pretrained, load),
    }


MOMENTS: Moments = {
    "before a flush": before_flush,
    "before a rename": lambda strike: around_rename(strike, before=True),
    "after a rename": lambda strike: around_rename(strike, before=False),
    "half-way through a file": half_way_through_a_file,
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and below, but hidden ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def wrong(root: Path, subject: Subject, old: dict[str, bytes], new: dict[str, bytes], known: set[str]) -> list[str]:
    """What a killed writer must not leave."""
    out, faults = root / OUT, []
    faults += [
        f"{path.name} is left" for path in root.iterdir() if path != out and not path.name.startswith(f".{OUT}.")
    ]
    if not out.exists():
        return faults + (["the old checkpoint is gone"] if old else [])
    found = content(out)
    if not old:
        return faults if found == new else [*faults, f"{OUT} is not whole"]
    faults += [f"{name} is half written" for name, data in found.items() if data not in (old.get(name), new.get(name))]
    assert subject.load is not None
    try:
        if subject.load(out) not in known:
            faults.append("a mixture of two checkpoints is loaded")
    except CheckpointError:
        pass
    return faults


class Killer:
    """One subject, killed as often as `kill` is called.

    Args:
        name: of the subject.
        subject: what is killed.
        root: an empty folder.
        draw: of the moments.
    """

    def __init__(self, name: str, subject: Subject, root: Path, draw: random.Random) -> None:
        self.name, self.subject, self.root = name, subject, root
        self.faults: list[str] = []
        self.since = 0
        self.kills = Kills(name, self._work, MOMENTS, self._begin, root.parent, draw)
        self._begin()
        self.old = content(root / OUT) if subject.prepare is not None else {}
        self.known = {subject.load(root / OUT)} if self.old and subject.load else set()
        self.kills.undisturbed()
        self.new = content(root / OUT)
        self.known |= {subject.load(root / OUT)} if subject.load else set()
        self._begin()

    def _work(self) -> object:
        return self.subject.write(self.root / OUT)

    def _begin(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        if self.subject.prepare is not None:
            self.subject.prepare(self.root / OUT)

    def kill(self) -> None:
        """Kill once, look at what is left, and now and then leave a writer alone."""
        kind, status = self.kills.kill()
        if failed(status):
            self.faults.append(f"{self.name}: a writer failed by itself, to be killed {kind}")
        left = wrong(self.root, self.subject, self.old, self.new, self.known)
        self.faults += [f"{self.name}, killed {kind}: {fault}" for fault in left]
        self.since += 1
        finished = not self.old and (self.root / OUT).exists()
        if self.since < KILLS_A_FOLDER and not finished:
            return
        if not finished:
            status, _ = self.kills.undisturbed()
            if status != 0 or content(self.root / OUT) != self.new:
                self.faults.append(f"{self.name}: the same command again ended with status {status}, or other bytes")
        self.since = 0
        self._begin()


def run(kills: int, seed: int, names: list[str] | None = None) -> dict[str, Any]:
    """Kill that often, all subjects in turn; the result says how it ended."""
    draw = random.Random(seed)
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    labeled = labeled.with_recipe(labeled.recipe.unfiltered())  # its acceptance rate need not be measured
    with tempfile.TemporaryDirectory(prefix="dsgan-kill-") as scratch:
        chosen = {name: s for name, s in subjects(labeled).items() if names is None or name.startswith(tuple(names))}
        killers = [
            Killer(name, subject, Path(scratch) / str(number), draw)
            for number, (name, subject) in enumerate(chosen.items())
        ]
        for number in range(100 * kills):  # some writers are faster
            done = sum(killer.kills.done.total() for killer in killers)
            if done >= kills or sum(len(killer.faults) for killer in killers) > 20:
                break
            killers[number % len(killers)].kill()
            progress(f"{done} of {kills} kills")
    return {
        "benchmark": "kill_exports",
        "fingerprint": labeled.fingerprint,
        "samples": SAMPLES,
        "device": cpu_name(),
        "torch": torch.__version__,
        "seed": seed,
        "kills": {killer.name: dict(killer.kills.done) for killer in killers},
        "kills_in_all": sum(killer.kills.done.total() for killer in killers),
        "faults": [fault for killer in killers for fault in killer.faults],
    }


def main() -> int:
    """Kill, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=400, help="(default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--subject", action="append", help="first words of the subjects to kill (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    result = run(args.kills, args.seed, args.subject)
    for name, kinds in result["kills"].items():
        print(f"{sum(kinds.values()):6}  {name}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    print(f"{result['kills_in_all']:6}  in all")
    return conclude(
        result,
        "faults",
        args.out,
        "nothing half written under a final name; every command ended as one that was never killed",
    )


if __name__ == "__main__":
    sys.exit(main())
