"""Runs `dsgan` with command lines that mix what is right and what is hostile: none may end in a traceback, or hang.

Each command line takes a verb, some of its options, and values that are drawn from good ones, from numbers, texts and
JSON of all kinds, and from files and folders that are damaged, missing or of another kind. It runs in a child process,
in a folder of its own, and is stopped by SIGTERM when it is still at work after a while: then it was accepted. Exit
statuses are 0, 1, 2 and 143; standard error must hold a sentence after an error, and neither "Traceback" nor "internal
error"; memory may not grow by more than 1 GB; and a refused command leaves the folder as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from measuring import conclude, cpu_name, progress

from dsgan_datasets import LabeledGenerator, load_generator, save_generator, write_shards
from dsgan_datasets.annotations import export_annotations
from dsgan_datasets.recipe import RecipeOverrides
from dsgan_datasets.tools.cli import build_parser, main

EXAMPLE = "example: python benchmarks/fuzz_commands.py --cases 2000 --out benchmarks/results/fuzz_commands.json"
#: Seconds after which a command that is still at work counts as accepted.
PATIENCE = 2.0
#: Seconds in which it must end then.
GRACE = 60.0
LARGEST_GROWTH = 2**30  # bytes

NUMBERS = ["0", "1", "2", "-1", "3", "7", "1e3", "0.5", "-0.0", "nan", "inf", "1e999", "9" * 30, str(2**63), str(2**64)]
TEXTS = [
    "",
    " ",
    "a",
    "é",
    "a\udce4",
    "a\0b",
    "\x1b[2J",
    "x" * 300,
    "x/" * 3000,
    "..",
    "/",
    "~",
    "%s{}",
    "'\"",
    "--",
    "-",
]
JSON = ["null", "true", "[]", "{}", "[1,2]", '["a"]', "[" * 50_000, '{"a":' * 5_000, "[NaN]", "[1e400]", '"\\ud800"']
PLACES = [
    "demo-faces",
    "small",
    "generator",
    "shards",
    "annotations",
    "file",
    "folder",
    "damaged",
    "deep.json",
    "new",
    "a/b",
]
PLACES += [
    "s3://u:secret@nowhere.invalid/a?k=secret",
    "hf://nobody/nothing",
    "file:///dev/null",
    "/dev/null",
    "/proc/1/mem",
]


def templates(root: Path) -> Path:
    """A folder with one of each kind of thing that a command line may name."""
    root.mkdir()
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu")
    labeled.save_pretrained(root / "small")
    save_generator(load_generator("demo-faces", device="cpu"), root / "generator")
    write_shards(labeled.with_recipe(labeled.recipe.unfiltered()), root / "shards", range(2))
    export_annotations(
        labeled.generator, labeled.schema, root / "annotations", num_samples=2, select="random", interpreter=labeled
    )
    (root / "file").write_text("text")
    (root / "deep.json").write_text("[" * 100_000)
    (root / "folder").mkdir()
    shutil.copytree(root / "small", root / "damaged")
    (root / "damaged" / "config.json").write_bytes((root / "small" / "config.json").read_bytes()[:700])
    return root


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Words of a command -> its parser."""
    found: dict[str, argparse.ArgumentParser] = {}

    def descend(words: str, parser: argparse.ArgumentParser) -> None:
        inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not inner:
            found[words] = parser
        for action in inner:
            for name, below in action.choices.items():
                descend(f"{words} {name}".strip(), below)

    descend("", build_parser())
    return found


def value(action: argparse.Action, draw: random.Random) -> str:
    """Something for an option or an argument, right or wrong."""
    kind = draw.random()
    if action.choices and kind < 0.7:
        return str(draw.choice(list(action.choices)))
    if action.metavar == "FIELD=VALUE" and kind < 0.9:
        field = draw.choice([*RecipeOverrides.__annotations__, "self", "device", "psi", ""])
        return f"{field}={draw.choice([*NUMBERS, *TEXTS, *JSON])}"
    if action.option_strings and action.type is not Path and kind < 0.7:
        return draw.choice(NUMBERS)
    return draw.choice(PLACES if kind < 0.95 else [*TEXTS, *JSON, *NUMBERS])


def command_line(parsers: dict[str, argparse.ArgumentParser], draw: random.Random) -> list[str]:
    """A verb with arguments and some options."""
    words, parser = draw.choice(list(parsers.items()))
    line = words.split()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if not action.option_strings:
            line += [value(action, draw) for _ in range(1 if draw.random() < 0.95 else draw.randrange(3))]
        elif action.required or draw.random() < 0.15:
            line.append(draw.choice(action.option_strings))
            if action.nargs != 0:
                line += [value(action, draw) for _ in range(action.nargs if isinstance(action.nargs, int) else 1)]
    if draw.random() < 0.05:
        draw.shuffle(line)
    return line


def listing(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of everything in a folder."""
    return sorted((str(p.relative_to(folder)), p.stat().st_size if p.is_file() else 0) for p in folder.rglob("*"))


def attempt(line: list[str], folder: Path) -> tuple[str, str]:
    """Run one command line in a child; (how it ended, what is wrong with that)."""
    before = listing(folder)
    output = folder.with_suffix(".output")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.chdir(folder)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stream, ended = io.StringIO(), "died"
        try:
            with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()):
                ended = str(main(line))
        except BaseException as error:
            ended = f"raised {type(error).__name__}: {error}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
        output.write_text(f"{ended}\n{grown}\n{stream.getvalue()}", errors="backslashreplace")
        os._exit(0)
    if not ends(child, PATIENCE + GRACE):
        return "hangs", f"was still there {GRACE:.0f} s after SIGTERM"
    if not output.exists():
        return "died", "the process died"
    ended, memory, text = output.read_text().split("\n", 2)
    output.unlink()
    if ended not in ("0", "1", "2", "143"):
        return ended, f"ended so: {ended}"
    if "Traceback" in text or "internal error" in text:
        return ended, f"said {text[-500:]}"
    if ended in ("1", "2") and "error: " not in text and "FAULT" not in text and line[:2] != ["shards", "verify"]:
        return ended, f"status {ended}, and said only {text[-300:]!r}"
    if int(memory) > LARGEST_GROWTH:
        return ended, f"took {int(memory) / 2**20:.0f} MB more"
    if ended in ("1", "2") and line[:1] != ["shards"] and listing(folder) != before:
        return ended, f"was refused, and left {sorted(set(listing(folder)) ^ set(before))[:5]}"
    if "secret" in text.replace("…", ""):
        return ended, "printed a secret"
    return ended, ""


def ends(child: int, seconds: float) -> bool:
    """Whether a process ends in time; it is killed if not."""
    deadline = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)
    return True


def run(cases: int, seed: int) -> dict[str, Any]:
    """Try that many; the result says how they ended."""
    draw, ends, faults = random.Random(seed), Counter[str](), []
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="dsgan-fuzz-") as scratch:
        source = templates(Path(scratch) / "templates")
        folder = Path(scratch) / "work"
        shutil.copytree(source, folder)
        original, parsers = listing(folder), verbs()
        for number in range(cases):
            line = command_line(parsers, draw)
            ended, fault = attempt(line, folder)
            ends[ended] += 1
            if fault:
                faults.append(f"{[word[:60] for word in line]!a}: {fault}")
            if listing(folder) != original:
                shutil.rmtree(folder)
                shutil.copytree(source, folder)
            if number % 100 == 99:
                progress(f"{number + 1} of {cases} command lines, {len(faults)} faults")
    return {
        "benchmark": "fuzz_commands",
        "device": cpu_name(),
        "torch": torch.__version__,
        "seed": seed,
        "cases": cases,
        "statuses": dict(ends),
        "faults": faults,
    }


def entry() -> int:
    """Try, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, help="(default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the command lines (default: 0)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    result = run(args.cases, args.seed)
    print(f"{args.cases} command lines; statuses: {result['statuses']}")
    return conclude(result, "faults", args.out)


if __name__ == "__main__":
    sys.exit(entry())
