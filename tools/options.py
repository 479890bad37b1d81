"""Options that several verbs share."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsgan_datasets._deprecation import outside_level, warn_renamed
from dsgan_datasets.checkpoints.directory import read_config
from dsgan_datasets.checkpoints.errors import CheckpointError
from dsgan_datasets.files import check_writable
from dsgan_datasets.labeled_generator import LabeledGenerator
from dsgan_datasets.latents import MAX_SEED

Verbs = argparse._SubParsersAction  # the type of add_subparsers' result has no public name


def add_verb(verbs: Verbs[argparse.ArgumentParser], name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A subparser with a summary and an example in its help."""
    return verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
    """The device, and fields of the recipe to change; `psi` is the help of that one. See `recipe_changes`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    parser.add_argument("--truncation-psi", type=float, help=psi)
    parser.add_argument("--psi", dest="truncation_psi", type=float, action=Renamed, help=argparse.SUPPRESS)
    parser.add_argument(
        "--set",
        dest="recipe",
        metavar="FIELD=VALUE",
        type=recipe_field,
        action="append",
        default=[],
        help="change any other field of the recipe, the value as JSON: --set mixing_layer=4 "
        "--set truncation_psi=[0.5,0.9]",
    )


class Renamed(argparse.Action):
    """An old spelling of an option, which warns and sets what the new one sets."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Called by argparse."""
        warn_renamed(option_string, "--" + self.dest.replace("_", "-"), stacklevel=outside_level())
        setattr(namespace, self.dest, values)


def recipe_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the recipe that the options change."""
    changes = dict(args.recipe)
    return changes if args.truncation_psi is None else {**changes, "truncation_psi": args.truncation_psi}


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The seed of the samples."""
    parser.add_argument("--seed", type=seed, default=0, help="0 … 2^64-1; another seed, other samples (default: 0)")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Whether a checkpoint that is already at `out` may be replaced; see `check_out`."""
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is already at OUT")


def check_out(args: argparse.Namespace) -> None:
    """Say before any work that `out` cannot be written, or that something is there which may not be replaced.

    Raises:
        ValueError: it is no new or empty folder, nor a checkpoint that --overwrite allows to replace.
        OSError: it cannot be written to.
    """
    out: Path = args.out
    if re.match(r"[a-z]+:/", os.fspath(out)):
        raise ValueError(f"{out}: OUT is a folder on this machine; write it there, then upload the folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another name")
    if out.is_dir() and any(out.iterdir()):
        if not args.overwrite:
            raise ValueError(
                f"{out} exists: choose another name, or say --overwrite to replace a checkpoint, its card too"
            )
        try:
            read_config(out)
        except CheckpointError as error:
            raise ValueError(f"{error}: --overwrite replaces checkpoints only; choose another name") from error
    check_writable(out)


def print_rows(rows: Mapping[str, str]) -> None:
    """Names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:>{width}}  {value}")


def load(args: argparse.Namespace, **overrides: Any) -> LabeledGenerator:
    """The checkpoint that the options name."""
    overrides = {**recipe_changes(args), **overrides}
    if args.no_filter:
        overrides["reject_fraction"] = 0.0
    return LabeledGenerator.from_pretrained(args.checkpoint, device=args.device, **overrides)


def recipe_field(text: str) -> tuple[str, Any]:
    """Name and value of FIELD=VALUE; a value that is no JSON is a word."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def count(text: str) -> int:
    """An integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def seed(text: str) -> int:
    """An integer in 0 … 2^64-1."""
    value = int(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{value} is not in 0 … 2^64-1")
    return value
