"""Errors of the library in terms of the command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator

from dsgan_datasets.recipe import RecipeOverrides

#: A message quotes arguments and files; more of one word than this helps nobody.
_LONGEST_WORD = 300
#: In a longer word no address is looked for: hardly anything of it is shown.
_MOST_SEARCHED = 2000


def explain(error: Exception, args: argparse.Namespace) -> str:
    """An error as a sentence that names the thing, and the options of this command that the message speaks of.

    Args:
        error: what was raised.
        args: of the command; empty if they could not be read.
    """
    text = printable(_plain(error, args))
    hints = "; ".join(f"{name}: {option}" for name, option in _options(text, args))
    return f"{text} ({hints})" if hints else text


def _plain(error: Exception, args: argparse.Namespace) -> str:
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "not enough memory: ask for smaller images or batches (--set compute_batch=1), or fewer at a time"
    if isinstance(error, OSError) and error.strerror and type(error).__str__ is OSError.__str__:
        # Writing into an open file says what went wrong, and not with which file.
        where = error.filename if error.filename is not None else getattr(args, "out", None)
        return error.strerror if where is None else f"{os.fspath(where)}: {error.strerror}"
    return str(error) or type(error).__name__


def printable(text: str) -> str:
    """The text without what controls a terminal, with very long words cut: it may quote a file or an argument. Names,
    passwords and signatures in addresses are left out.

    Example:
        >>> printable("no file a\\x1b[2J, no s3://key:secret@bucket/a?signature=1")
        'no file a\\\\x1b[2J, no s3://…@bucket/a?…'
    """
    # So long a word would take the patterns below minutes. Behind a colon there may be a password.
    text = re.sub(rf"\S{{{_MOST_SEARCHED}}}\S*", lambda word: f"{word[0][:_LONGEST_WORD].partition(':')[0]}…", text)
    # One slash is what a `Path` leaves of two.
    text = re.sub(r"(\w:/{1,2})[^/\s@]+@", r"\1…@", text)
    text = re.sub(r"[^\s/:@'\"]+:[^\s/@'\"]+@", "…@", text)  # as network packages quote them
    text = re.sub(r"(\w:/{1,2}[^\s?]+\?)[^\s'\"]+", r"\1…", text)
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return re.sub(rf"(\S{{{_LONGEST_WORD}}})\S+", r"\1…", shown)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "sample"), counted(2000, "sample")
        ('1 sample', '2000 samples')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _options(text: str, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Names of parameters in a message, and the options of this command that set them."""
    parser: argparse.ArgumentParser | None = getattr(args, "parser", None)
    if parser is None:
        return
    options = {a.dest: a.option_strings[0] for a in parser._actions if a.option_strings}
    if "recipe" in options:
        spelled = {option for action in parser._actions for option in action.option_strings}
        for name in RecipeOverrides.__annotations__:
            own = f"--{name.replace('_', '-')}"
            options.setdefault(name, own if own in spelled else f"--set {name}=VALUE")
    for name, option in options.items():
        # A name of several words, or one that is clearly not a word of the sentence.
        pattern = rf"\b{name}\b" if "_" in name else rf"\b{name}(?==| must)"
        if re.search(pattern, text) and option.partition("=")[0] not in text:
            yield name, option
