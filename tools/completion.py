"""`dsgan completion`: what a shell needs to complete the words of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from dsgan_datasets.tools import options

SHELLS = ("bash", "zsh", "tcsh")
#: What options are called in the help that take the name of a file or folder.
_FILES = {"FILE", "FOLDER", "JSON", "NAMES|JSON", "NPY", "PNG", "CHECKPOINT"}


def add_parser(verbs: options.Verbs[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = options.add_verb(
        verbs,
        "completion",
        "print a script that makes a shell complete commands, options and files",
        "dsgan completion bash > ~/.local/share/bash-completion/completions/dsgan\n"
        '  dsgan completion zsh > "${fpath[1]}/_dsgan"',
    )
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or tcsh")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the script.

    Raises:
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install 'dsgan_datasets[completion]'") from error
    for parser in _parsers(args.root):
        for action in parser._actions:
            named = not action.option_strings or action.type is Path or action.metavar in _FILES
            if named and action.choices is None:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(args.root, args.shell))


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _parsers(below)
