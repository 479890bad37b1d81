"""Options that several verbs share."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dsgan_datasets._deprecation import outside_level, warn_renamed
from dsgan_datasets.checkpoints.directory import read_config
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.files import check_writable, exists, is_folder
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_INDEX, MAX_SEED
from dsgan_datasets.recipe import RENAMED, RecipeOverrides
from dsgan_datasets.tools.messages import printable

Verbs = argparse._SubParsersAction  # the type of add_subparsers' result has no public name

#: Truncation of images of a generator that has no recipe yet, as published.
BARE_PSI = 0.7

#: What a stopped command says, unless it keeps something.
_NOTHING_KEPT = "nothing was written: run the same command again"


class Parser(argparse.ArgumentParser):
    """Quotes no control characters and no endless words in its errors."""

    def error(self, message: str) -> NoReturn:
        """Usage and one sentence; exits with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def add_verb(
    verbs: Verbs[argparse.ArgumentParser], name: str, summary: str, example: str, *, kept: str = _NOTHING_KEPT
) -> argparse.ArgumentParser:
    """A subparser with a summary and an example in its help.

    Args:
        verbs: where to add it.
        name: of the verb.
        summary: what it does, without capital and full stop.
        example: commands.
        kept: what is left of the work if a signal ends it, and how to resume.
    """
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser, kept=kept)
    return parser


def add_checkpoint(
    parser: argparse.ArgumentParser, *, filtered: bool = True, metavar: str = "checkpoint", more: str = ""
) -> None:
    """The checkpoint, its device, and what may be changed in its recipe; `more` is what it may be instead."""
    what = f'checkpoint directory, built-in name such as "demo-faces", or hf://org/name{more}'
    parser.add_argument("checkpoint", metavar=metavar, help=what)
    add_recipe(parser, psi="truncation psi (default: the checkpoint's)")
    parser.set_defaults(no_filter=False)
    if filtered:
        parser.add_argument("--no-filter", action="store_true", help="accept every draw, uncertain ones too")


def add_recipe(parser: argparse.ArgumentParser, *, psi: str) -> None:
    """The device, and fields of the recipe to change, `args.recipe`; `psi` is the help of that one."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    psi_option: dict[str, Any] = {
        "dest": "recipe",
        "type": lambda text: ("truncation_psi", number(text)),
        "default": {},
    }
    parser.add_argument("--truncation-psi", metavar="PSI", action=_AddField, help=psi, **psi_option)
    parser.add_argument("--psi", action=_AddRenamedField, help=argparse.SUPPRESS, **psi_option)
    parser.add_argument(
        "--set",
        dest="recipe",
        metavar="FIELD=VALUE",
        type=recipe_field,
        action=_AddField,
        default={},
        help="change any other field of the recipe, the value as JSON: --set mixing_layer=4 "
        "--set truncation_psi=[0.5,0.9]",
    )


class _AddField(argparse.Action):
    """Collects fields of the recipe in a dict; each may be given once."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        name, value = values
        fields: dict[str, Any] = getattr(namespace, self.dest)
        if name in fields:
            parser.error(f"argument {option}: {name} is given twice, as {fields[name]!r} and {value!r}")
        setattr(namespace, self.dest, {**fields, name: value})


class _AddRenamedField(_AddField):
    """An old spelling of an option, which warns and sets what the new one sets."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        warn_renamed(str(option), "--" + values[0].replace("_", "-"), stacklevel=outside_level())
        super().__call__(parser, namespace, values, option)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The seed of the samples."""
    parser.add_argument("--seed", type=seed, default=0, help="0 … 2^64-1; another seed, other samples (default: 0)")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Whether a checkpoint that is already at `out` may be replaced; see `check_out`."""
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is already at OUT")


def check_out(args: argparse.Namespace) -> None:
    """Say before any work that `out` cannot be written, or that something is there which may not be replaced.

    Raises:
        ValueError: it is neither a new or empty folder nor a checkpoint that --overwrite allows to replace.
        OSError: it cannot be written to.
    """
    out: Path = args.out
    if re.match(r"[a-z]+:/", os.fspath(out)):
        raise ValueError(f"{out}: OUT is a folder on this machine; write it there, then upload the folder")
    if exists(out) and not is_folder(out):
        raise ValueError(f"{out} is a file: choose another name")
    if is_folder(out) and any(out.iterdir()):
        if not args.overwrite:
            raise ValueError(
                f"{out} exists: choose another name, or pass --overwrite to replace a checkpoint, its card too"
            )
        try:
            read_config(out)
        except CheckpointError as error:
            raise ValueError(f"{error}: --overwrite replaces checkpoints only; choose another name") from error
    check_writable(out)


def check_file(out: Path, option: str, *endings: str) -> None:
    """Say before any work that a file cannot be written.

    Args:
        out: the file.
        option: that names it.
        endings: that its name may have; none for any.

    Raises:
        ValueError: another ending, or a folder of that name.
        OSError: its folder cannot be written to.
    """
    if endings and out.suffix.lower() not in endings:
        raise ValueError(f"{option} {out}: the file name must end in {' or '.join(endings)}")
    if is_folder(out):
        raise ValueError(f"{option} {out} is a folder: name a file")
    check_writable(out.parent)


def short(name: str) -> str:
    """A checkpoint's name in what is written: without the folders of this machine."""
    return name if "://" in name else Path(name).resolve().name


def add_json(parser: argparse._ActionsContainer, what: str = "print JSON in place of text") -> None:
    """Output for scripts, on standard output and nothing else there."""
    parser.add_argument("--json", action="store_true", help=what)


def print_json(content: Any) -> None:
    """What a command found, for scripts."""
    print(json.dumps(content, indent=2))


def print_rows(rows: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:>{width}}  {value}")


def load(args: argparse.Namespace, **overrides: Any) -> LabeledGenerator:
    """The checkpoint that the options name."""
    overrides = {**args.recipe, **overrides}
    if args.no_filter:
        overrides["reject_fraction"] = 0.0
    return LabeledGenerator.from_pretrained(args.checkpoint, device=args.device, **overrides)


def recipe_field(text: str) -> tuple[str, Any]:
    """Name and value of FIELD=VALUE; a value that is no JSON is a word."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    name = RENAMED.get(name, name)
    # The layout of features was a field once: `fit` says where it is now.
    if name not in RecipeOverrides.__annotations__ and name != "features":
        known = ", ".join(sorted(RecipeOverrides.__annotations__))
        raise argparse.ArgumentTypeError(f"no such recipe field: {name}; the fields are: {known}")
    try:
        return name, json.loads(value)
    except RecursionError:
        raise argparse.ArgumentTypeError(f"{name}: the value is nested too deeply") from None
    except ValueError:
        return name, value


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    """The type of an option that takes an integer in lowest … highest."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer in {_shown(lowest)} … {_shown(highest)}")
        return value

    return parse


def _shown(number: int) -> str:
    """2^63-1 rather than 9223372036854775807."""
    return f"2^{(number + 1).bit_length() - 1}-1" if number in (MAX_INDEX, MAX_SEED) else f"{number:,}"


#: Types of options.
count, index, seed = integer(1, MAX_INDEX), integer(0, MAX_INDEX), integer(0, MAX_SEED)


def shares(text: str) -> float | dict[str, float]:
    """A number, or numbers by field: "mask=0.1,keypoints=0.05"."""
    if "=" not in text:
        return number(text)
    pairs = [pair.partition("=") for pair in text.split(",")]
    if len({field for field, _, _ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a label twice")
    return {field.strip(): number(value) for field, _, value in pairs}


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value
